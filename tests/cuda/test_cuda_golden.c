/* tests/cuda/test_cuda_golden.c - the golden models on the GPU: f32 and bf16 against float64. */
#include "golden_model.h"
#include "gpu.h"

#include <stdlib.h>

/* f32 differs by the order of its sums; bf16 rounds weights and activations to 8 bits, which moves
 * single logits, but hardly the mean loss. */
static const struct {
    const char *scheme;
    double logits, nll;
} kinds[] = {{"full-f32", 5e-4, 1e-4}, {"full", 5e-2, 5e-3}};

static void models_equal_float64(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (const char *const *name = qb_golden_models; *name; name++) {
        qb_golden g = qb_golden_open(*name);
        for (size_t i = 0; i < QB_COUNT(kinds); i++) {
            float *logits = qb_golden_run(&g, "cuda", qb_scheme_find(kinds[i].scheme));
            const double worst = qb_golden_error(&g, logits), nll = qb_golden_nll_error(&g, logits);
            print_message("%s %s: %.2g of the largest logit, nll off by %.2g\n", *name,
                          kinds[i].scheme, worst, nll);
            assert_true(worst <= kinds[i].logits);
            assert_true(nll <= kinds[i].nll);
            free(logits);
        }
        qb_golden_close(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(models_equal_float64)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
