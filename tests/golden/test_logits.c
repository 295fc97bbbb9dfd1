/* tests/golden/test_logits.c - logits and losses of the golden models on every set of kernel rows;
 * integer schemes equal on all of them. */
#include "golden_model.h"
#include "support.h"

#include "kernels/registry.h"

#include <stdlib.h>
#include <string.h>

static const char *const disabled[] = {"", "avx512vnni", "avx512", "avx2"};

static void logits_equal_float64(void **state)
{
    (void)state;
    for (const char *const *name = qb_golden_models; *name; name++) {
        qb_golden g = qb_golden_open(*name);
        for (size_t d = 0; d < QB_COUNT(disabled); d++) {
            setenv("QB_DISABLE", disabled[d], 1);
            float *logits = qb_golden_run(&g, "cpu", qb_scheme_find("full"));
            const double worst = qb_golden_error(&g, logits), nll = qb_golden_nll_error(&g, logits);
            print_message("%s without %s: %.2g of the largest logit, nll off by %.2g\n", *name,
                          *disabled[d] ? disabled[d] : "nothing", worst, nll);
            assert_true(worst <= 2e-4);
            assert_true(nll <= 1e-5);
            free(logits);
        }
        setenv("QB_DISABLE", "", 1);
        qb_golden_close(&g);
    }
}

/* Integer products are exact and so equal on all rows; what differs are the float parts around
 * them, pinned here by forcing these to the reference. */
static void integer_layers_are_the_same_bits(void **state)
{
    (void)state;
    QB_CHECK_OK(qb_kernel_force("gemm_f32/ref,attention/ref,pointwise/ref"));
    for (const char *const *name = qb_golden_models; *name; name++) {
        qb_golden g = qb_golden_open(*name);
        for (const qb_scheme *s = qb_schemes; s->name; s++) {
            if (s->weights.bits != 8) continue;
            float *first = NULL;
            for (size_t d = 0; d < QB_COUNT(disabled); d++) {
                setenv("QB_DISABLE", disabled[d], 1);
                float *logits = qb_golden_run(&g, "cpu", s);
                if (first)
                    assert_memory_equal(first, logits,
                                        g.batch * g.n_tokens * g.vocab * sizeof *first);
                if (first)
                    free(logits);
                else
                    first = logits;
            }
            free(first);
        }
        qb_golden_close(&g);
    }
    setenv("QB_DISABLE", "", 1);
    QB_CHECK_OK(qb_kernel_force(NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_float64),
        cmocka_unit_test(integer_layers_are_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
