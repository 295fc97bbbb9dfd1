/* tests/golden/test_train_golden.c - recorded training runs in float64: losses of 12 steps and the
 * gradients of the first, for each softmax, optimiser and norm. */
#include "support.h"

#include "core/memory.h"
#include "train/replay.h"

#include <math.h>

static const char *const norms[] = {"rmsnorm_s", "layernorm"};
static const char *const softmaxes[] = {"softmax", "softmax1"};

static const char *golden_of(const char *norm)
{
    char name[64];
    snprintf(name, sizeof name, "a-train-%s.safetensors", norm);
    return qb_test_golden(name);
}

static void losses_and_gradients_are_the_recorded_ones(void **state)
{
    (void)state;
    if (!golden_of(norms[0])) QB_SKIP("golden cases are absent");
    for (size_t n = 0; n < QB_COUNT(norms); n++)
        for (size_t s = 0; s < QB_COUNT(softmaxes); s++)
            for (const qb_optimizer *o = qb_optimizers; o->name; o++) {
                qb_replay_options options = {.softmax = softmaxes[s],
                                             .optimizer = o->name,
                                             .norm = norms[n],
                                             .n_threads = 2};
                qb_replay_result r;
                QB_CHECK_OK(qb_replay_run(golden_of(norms[n]), &options, &r));
                printf("%-10s %-9s %-13s losses off by %.2g, gradients by %.2g (%s)\n", norms[n],
                       softmaxes[s], o->name, r.loss_max_rel_error, r.grad_max_rel_error,
                       r.worst_gradient);
                assert_true(r.has_gradients && r.grad_max_rel_error <= 1e-5);
                assert_true(!r.has_losses || r.loss_max_rel_error <= 1e-5);
                qb_replay_result_deinit(&r);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_gradients_are_the_recorded_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
