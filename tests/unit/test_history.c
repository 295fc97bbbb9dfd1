/* tests/unit/test_history.c - histories in memory: series, changes, and failed allocations. The
 * file and the screen are tested on the program (tests/cli/watch_tests.py). */
#include "support.h"

#include "core/memory.h"
#include "report/history.h"

#include <string.h>

/* Ten records of one speed and then four of another, on two machines in turn. */
static qb_results speeds(void)
{
    qb_results results = {0};
    for (size_t i = 0; i < 28; i++) {
        qb_result *r;
        QB_CHECK_OK(qb_results_add(&results, &r));
        QB_CHECK_OK(qb_result_set(&r->model.name, "m"));
        QB_CHECK_OK(qb_result_set(&r->scheme.name, "fine"));
        QB_CHECK_OK(qb_result_set(&r->environment.cpu, i % 2 ? "one" : "another"));
        r->speed.decode.tok_per_s = i < 20 ? 100 : 90;
    }
    return results;
}

static void series_are_of_one_machine(void **state)
{
    (void)state;
    qb_results results = speeds();
    qb_watch watch;
    QB_CHECK_OK(qb_watch_make(&results, 0.01, 1, &watch));
    assert_int_equal(watch.n, 2);
    for (size_t i = 0; i < 2; i++) {
        const qb_series *s = &watch.items[i];
        assert_int_equal(s->figure, QB_FIGURE_DECODE);
        assert_non_null(strstr(s->title, i ? "one" : "another"));
        assert_int_equal(s->n, 14);
        assert_int_equal(s->n_changes, 1);
        assert_int_equal(s->changes[0], 10);
        assert_int_equal(s->records[10], 20 + i);
        assert_true(qb_series_step(s, 0) < -0.09 && qb_series_step(s, 0) > -0.11);
        assert_true(qb_series_is_worse(s, 4) && !qb_series_is_worse(s, 3));
    }
    qb_watch_deinit(&watch);
    qb_results_deinit(&results);
}

static void failed_allocations_come_back_clean(void **state)
{
    (void)state;
    qb_results results = speeds();
    size_t live = qb_memory_live_blocks();
    qb_status status = QB_ERR_MEMORY;
    for (size_t n = 1; status != QB_OK; n++) {
        qb_watch watch = {0};
        qb_memory_fail_at(n);
        status = qb_watch_make(&results, 0.01, 1, &watch);
        qb_memory_fail_at(0);
        assert_true(status == QB_OK || status == QB_ERR_MEMORY);
        qb_watch_deinit(&watch);
        assert_int_equal(qb_memory_live_blocks(), live);
    }
    qb_results_deinit(&results);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(series_are_of_one_machine),
        cmocka_unit_test(failed_allocations_come_back_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
