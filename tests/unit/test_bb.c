/* tests/unit/test_bb.c - Bigram-Backcopy sequences: the figures of the task as it was published,
 * the rules of a sequence, independence of how it is asked for, bad tables of counts. */
#include "support.h"

#include "core/memory.h"
#include "train/data/bb.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LENGTH = 257, N_SEQUENCES = 2000 };

static int32_t *sequences(const qb_bb *bb, uint64_t seed, size_t n, size_t length)
{
    int32_t *x;
    QB_CHECK_OK(QB_NEW(&x, n * length, "sequences"));
    qb_bb_fill(bb, seed, 0, n, length, x);
    return x;
}

static double entropy(const double *p, size_t n)
{
    double h = 0;
    for (size_t i = 0; i < n; i++) h -= p[i] > 0 ? p[i] * log(p[i]) : 0;
    return h;
}

/* The mean entropy that the oracle meets at non-triggers behind <s>, how often triggers come, what
 * is left when backcopies cost nothing. (With <s> itself, whose row has 3.31 nats, it is 2.228.) */
static void published_figures(void **state)
{
    (void)state;
    qb_bb bb;
    QB_CHECK_OK(qb_bb_open(NULL, &(qb_bb_options){.n_triggers = 3, .n_bos = 1}, &bb));
    assert_int_equal(bb.vocab, 67);
    assert_int_equal(bb.bos, 65);
    assert_int_equal(bb.code_points[39], 'a');
    const int32_t expected[] = {1, 43, 58}; /* space, e, t */
    assert_memory_equal(bb.triggers, expected, sizeof expected);
    assert_true(fabs(entropy(bb.conditional + 65 * 67, 67) - 3.3128) < 5e-5);
    assert_true(fabs(bb.conditional[65 * 67 + 1] - 0.1523) < 5e-5);

    int32_t *x = sequences(&bb, 42, N_SEQUENCES, LENGTH);
    double bigram = 0;
    size_t n_triggers = 0, n_others = 0;
    for (size_t i = 0; i < N_SEQUENCES; i++)
        for (size_t t = 1; t + 1 < LENGTH; t++) {
            int32_t token = x[i * LENGTH + t];
            n_triggers += bb.is_trigger[token];
            n_others += !bb.is_trigger[token];
            if (!bb.is_trigger[token]) bigram += entropy(bb.conditional + token * 67, 67);
        }
    double share = (double)n_triggers / (double)(n_triggers + n_others);
    print_message("oracle %.4f nats, triggers %.4f, floor %.4f\n", bigram / (double)n_others, share,
                  bigram / (double)(n_triggers + n_others));
    assert_true(fabs(bigram / (double)n_others - 2.223) < 0.003);
    assert_true(fabs(share - 0.255) < 0.002);
    assert_true(fabs(bigram / (double)(n_triggers + n_others) - 1.655) < 0.005);
    qb_free(x);
    qb_bb_deinit(&bb);
}

static void check_rules(const qb_bb *bb, const int32_t *x)
{
    for (size_t t = 0; t < LENGTH; t++) {
        assert_in_range(x[t], 0, bb->vocab - 2); /* <d> never */
        assert_int_equal(x[t] == bb->bos, t < bb->n_bos);
        if (t <= bb->n_bos) {
            assert_false(bb->is_trigger[x[t]]);
        } else if (bb->is_trigger[x[t - 1]]) {
            assert_false(bb->is_trigger[x[t]]); /* two triggers are never adjacent */
            assert_int_equal(x[t], x[t - 2]);
        } else {
            assert_true(bb->conditional[x[t - 1] * (int)bb->vocab + x[t]] > 0);
        }
    }
}

static void sequences_keep_the_rules(void **state)
{
    (void)state;
    for (size_t n_bos = 0; n_bos <= 2; n_bos++)
        for (size_t k = 0; k <= 5; k += 5) {
            qb_bb bb;
            QB_CHECK_OK(qb_bb_open(NULL, &(qb_bb_options){k, n_bos}, &bb));
            int32_t *x = sequences(&bb, 7, 200, LENGTH);
            for (size_t i = 0; i < 200; i++) check_rules(&bb, x + i * LENGTH);
            qb_free(x);
            qb_bb_deinit(&bb);
        }
}

/* What follows 'q' (id 55) against its counts, by the chi-square of the commonest. */
static void draws_follow_the_counts(void **state)
{
    (void)state;
    qb_bb bb;
    QB_CHECK_OK(qb_bb_open(NULL, &(qb_bb_options){.n_triggers = 0, .n_bos = 1}, &bb));
    int32_t *x = sequences(&bb, 1, N_SEQUENCES, LENGTH);
    static double seen[67 * 67], rows[67];
    for (size_t i = 0; i < N_SEQUENCES; i++)
        for (size_t t = 0; t + 1 < LENGTH; t++) {
            const int32_t *p = x + i * LENGTH + t;
            seen[p[0] * 67 + p[1]]++;
            rows[p[0]]++;
        }
    double chi_square = 0, n_cells = 0;
    for (size_t v = 0; v < 66; v++)
        for (size_t w = 0; w < 65; w++) {
            double expected = rows[v] * bb.conditional[v * 67 + w];
            if (expected < 10) continue;
            chi_square += (seen[v * 67 + w] - expected) * (seen[v * 67 + w] - expected) / expected;
            n_cells++;
        }
    print_message("chi-square %.0f over %.0f cells\n", chi_square, n_cells);
    assert_true(n_cells > 700);
    assert_true(fabs(chi_square - n_cells) < 5 * sqrt(2 * n_cells));
    qb_free(x);
    qb_bb_deinit(&bb);
}

static void any_range_is_the_same_stream(void **state)
{
    (void)state;
    qb_bb bb;
    QB_CHECK_OK(qb_bb_open(NULL, &(qb_bb_options){3, 1}, &bb));
    int32_t *x = sequences(&bb, 42, 20, LENGTH), part[3 * LENGTH];
    qb_bb_fill(&bb, 42, 11, 3, LENGTH, part);
    assert_memory_equal(part, x + 11 * LENGTH, sizeof part);
    qb_bb_fill(&bb, 42, 11, 3, 100, part); /* a shorter sequence is the start of the longer */
    assert_memory_equal(part + 100, x + 12 * LENGTH, 100 * sizeof *part);
    qb_bb_fill(&bb, 43, 11, 3, LENGTH, part);
    assert_memory_not_equal(part, x + 11 * LENGTH, sizeof part);
    qb_free(x);
    qb_bb_deinit(&bb);
}

static void bad_counts_are_refused_by_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"", "found 0 characters, expected 2"},
        {"# only\n97\t1\t1\n", "found 1 characters"},
        {"97\t2\t1\t1\n98\t1\tx\t1\n", "line 2: expected a whole number up to 2^40, found 'x"},
        {"97\t2\t1\t1\n98\t1\t1\n", "line 2: expected a whole number up to 2^40, found ''"},
        {"#\n97\t2\t1\t1\t1\n98\t1\t1\t1\n", "line 2: found more than 2 counts"},
        {"98\t2\t1\t1\n97\t1\t1\t1\n", "line 2: found code point 97"},
        {"97\t2\t0\t0\n98\t1\t1\t1\n", "line 1: character 0: found counts of 0"},
        {"97 2\t1\t1\n98\t1\t1\t1\n", "line 1: found no tab after 97"},
        {"97\t2\t1\t99999999999999999999\n98\t1\t1\t1\n", "line 1: expected a whole number"},
    };
    char path[] = "/tmp/qb_bb_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, bad[i].text, strlen(bad[i].text), 0), strlen(bad[i].text));
        qb_bb bb;
        assert_int_equal(qb_bb_open(path, &(qb_bb_options){1, 1}, &bb), QB_ERR_FORMAT);
        if (!strstr(qb_error_message(), bad[i].message))
            fail_msg("found \"%s\", expected \"%s\"", qb_error_message(), bad[i].message);
        assert_non_null(strstr(qb_error_message(), path));
    }
    close(fd);
    unlink(path);
    qb_bb bb;
    assert_int_equal(qb_bb_open(NULL, &(qb_bb_options){65, 1}, &bb), QB_ERR_USAGE);
    assert_int_equal(qb_bb_open(NULL, &(qb_bb_options){3, 3}, &bb), QB_ERR_USAGE);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

static void failed_allocations(void **state)
{
    (void)state;
    for (size_t n = 1;; n++) {
        qb_bb bb;
        qb_memory_fail_at(n);
        qb_status status = qb_bb_open(NULL, &(qb_bb_options){3, 1}, &bb);
        qb_memory_fail_at(0);
        if (status == QB_OK) qb_bb_deinit(&bb);
        assert_int_equal(qb_memory_live_blocks(), 0);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_figures),
        cmocka_unit_test(sequences_keep_the_rules),
        cmocka_unit_test(draws_follow_the_counts),
        cmocka_unit_test(any_range_is_the_same_stream),
        cmocka_unit_test(bad_counts_are_refused_by_line),
        cmocka_unit_test(failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
