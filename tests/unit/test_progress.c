/* tests/unit/test_progress.c - when a progress line is shown and what it says; the interrupt flag.
 */
#include "support.h"

#include "core/interrupt.h"
#include "core/progress.h"

#include <stdlib.h>
#include <string.h>

#define SECOND_NS 1000000000ull

/* What is printed for work of 100 that is at `done` after `elapsed_s`; free() it. */
static char *shown(bool is_terminal, unsigned elapsed_s, size_t done, bool end)
{
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);
    qb_progress_open(stream, is_terminal);
    qb_progress p = qb_progress_begin("coarse: quality", 100);
    p.start_ns -= elapsed_s * SECOND_NS;
    qb_progress_update(&p, done);
    qb_progress_update(&p, done); /* at once again: shows nothing */
    if (end) qb_progress_end(&p);
    qb_progress_open(NULL, false);
    fclose(stream);
    return text;
}

static void check(bool is_terminal, unsigned elapsed_s, size_t done, bool end, const char *want)
{
    char *text = shown(is_terminal, elapsed_s, done, end);
    assert_string_equal(text, want);
    free(text);
}

static void short_work_shows_nothing(void **state)
{
    (void)state;
    check(true, 1, 50, true, "");
    check(false, 1, 50, true, "");
}

static void terminal_line_is_rewritten_and_taken_away(void **state)
{
    (void)state;
    check(true, 10, 50, false, "\rcoarse: quality:  50 %, 10 s left\033[K");
    check(true, 10, 50, true, "\rcoarse: quality:  50 %, 10 s left\033[K\r\033[K");
}

static void other_streams_get_whole_lines(void **state)
{
    (void)state;
    check(false, 100, 25, true, "coarse: quality:  25 %, 5 min 00 s left\n");
    check(false, 100, 1, true, "coarse: quality:   1 %, 2 h 45 min left\n");
    check(false, 100, 0, true, "coarse: quality:   0 %\n");
    check(false, 100, 300, true, "coarse: quality: 100 %, 0 s left\n");
}

/* A resumed run's speed is that of what it did itself. */
static void resumed_work_says_its_detail(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);
    qb_progress_open(stream, false);
    qb_progress p = qb_progress_begin("train", 100);
    p.first = 40;
    p.detail = "loss 3.5";
    p.start_ns -= 10 * SECOND_NS;
    qb_progress_update(&p, 50);
    qb_progress_open(NULL, false);
    fclose(stream);
    assert_string_equal(text, "train:  50 %, loss 3.5, 50 s left\n");
    free(text);
}

static void silent_without_a_stream(void **state)
{
    (void)state;
    qb_progress_open(NULL, false);
    qb_progress p = qb_progress_begin("x", 0);
    p.start_ns = 0;
    qb_progress_update(&p, 1);
    qb_progress_end(&p);
    assert_int_equal(p.done, 0);
}

static void interrupt_is_a_status(void **state)
{
    (void)state;
    QB_CHECK_OK(qb_interrupt_check());
    qb_interrupt_set(true);
    assert_int_equal(qb_interrupt_check(), QB_ERR_INTERRUPTED);
    assert_string_equal(qb_error_message(), "interrupted");
    qb_interrupt_ignore_here(true); /* a thread that saves */
    QB_CHECK_OK(qb_interrupt_check());
    qb_interrupt_ignore_here(false);
    assert_true(qb_interrupted());
    qb_interrupt_set(false);
    QB_CHECK_OK(qb_interrupt_check());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_work_shows_nothing),
        cmocka_unit_test(terminal_line_is_rewritten_and_taken_away),
        cmocka_unit_test(other_streams_get_whole_lines),
        cmocka_unit_test(resumed_work_says_its_detail),
        cmocka_unit_test(silent_without_a_stream),
        cmocka_unit_test(interrupt_is_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
