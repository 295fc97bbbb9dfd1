/* tests/unit/test_batches.c - the order of training windows: every token once an epoch, documents
 * whole and shuffled, the same windows however they are asked for. */
#include "support.h"

#include "core/memory.h"
#include "core/threads.h"
#include "train/data/batches.h"
#include "train/data/prefetch.h"
#include "train/data/shards.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_SHARDS = 3, VOCAB = 70000, N_DOCS = 60, CONTEXT = 16, MOST_WINDOWS = 400 };
static const char sha[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
static char folder[64], names[N_SHARDS][96];
static const char *paths[N_SHARDS];
static size_t doc_tokens[N_DOCS], n_all;

/* Document d of all shards holds d * 1000, d * 1000 + 1, ...: a token tells where it belongs. The
 * middle shard is empty. */
static void write_shard(size_t shard, size_t first_doc, size_t n_docs, const char *tokenizer)
{
    static int32_t tokens[N_DOCS * 64];
    static uint64_t doc_end[N_DOCS];
    size_t n = 0;
    for (size_t d = 0; d < n_docs; d++) {
        for (size_t i = 0; i < doc_tokens[first_doc + d]; i++)
            tokens[n++] = (int32_t)((first_doc + d) * 1000 + i);
        doc_end[d] = n;
    }
    qb_shard_contents c = {tokens, n, doc_end, n_docs, VOCAB, 0, 10 * n, tokenizer, sha};
    QB_CHECK_OK(qb_shard_write(paths[shard], &c, NULL));
}

static int write_shards(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/qb_batches_XXXXXX");
    if (!mkdtemp(folder)) return 1;
    for (size_t i = 0; i < N_SHARDS; i++) {
        snprintf(names[i], sizeof names[i], "%s/%zu.qbs", folder, i);
        paths[i] = names[i];
    }
    for (size_t d = 0; d < N_DOCS; d++) n_all += doc_tokens[d] = 1 + d * 37 % 63;
    write_shard(0, 0, 25, sha);
    write_shard(1, 25, 0, sha);
    write_shard(2, 25, N_DOCS - 25, sha);
    return 0;
}

static int remove_shards(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SHARDS; i++) unlink(paths[i]);
    return rmdir(folder);
}

static qb_batches *open_batches(size_t context, uint64_t seed, bool in_order)
{
    qb_batches *b;
    QB_CHECK_OK(
        qb_batches_open(paths, N_SHARDS, &(qb_batches_options){context, seed, in_order}, &b));
    return b;
}

/* The stream of an epoch, put together from its windows (context 1: nothing is left out). */
static void read_epoch(const qb_batches *b, uint64_t epoch, int32_t *stream)
{
    uint64_t n = qb_batches_windows_per_epoch(b);
    assert_int_equal(n, n_all - 1);
    int32_t *pairs;
    QB_CHECK_OK(QB_NEW(&pairs, 2 * n, "pairs"));
    QB_CHECK_OK(qb_batches_fill(b, epoch * n, n, pairs));
    for (uint64_t i = 0; i < n; i++) {
        stream[i] = pairs[2 * i];
        stream[i + 1] = pairs[2 * i + 1];
        if (i) assert_int_equal(pairs[2 * i], pairs[2 * i - 1]);
    }
    qb_free(pairs);
}

/* Cuts the stream into documents and notes their order; each is there once, whole. */
static void check_documents(const int32_t *stream, size_t order[N_DOCS])
{
    bool seen[N_DOCS] = {false};
    size_t at = 0;
    for (size_t place = 0; place < N_DOCS; place++) {
        size_t doc = (size_t)stream[at] / 1000;
        assert_in_range(doc, 0, N_DOCS - 1);
        assert_false(seen[doc]);
        seen[doc] = true;
        for (size_t i = 0; i < doc_tokens[doc]; i++) assert_int_equal(stream[at++], doc * 1000 + i);
        order[place] = doc;
    }
    assert_int_equal(at, n_all);
}

static void epochs_hold_every_document_once(void **state)
{
    (void)state;
    qb_batches *b = open_batches(1, 42, false), *other = open_batches(1, 43, false);
    size_t orders[4][N_DOCS];
    int32_t *stream;
    QB_CHECK_OK(QB_NEW(&stream, n_all, "stream"));
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
        read_epoch(b, epoch, stream);
        check_documents(stream, orders[epoch]);
    }
    read_epoch(other, 0, stream);
    check_documents(stream, orders[3]);
    for (size_t i = 0; i < 4; i++) {
        size_t in_place = 0;
        for (size_t d = 0; d < N_DOCS; d++) in_place += orders[i][d] == d;
        assert_in_range(in_place, 0, 8); /* a shuffle leaves about one */
        for (size_t k = 0; k < i; k++)
            assert_memory_not_equal(orders[i], orders[k], sizeof orders[i]);
    }
    qb_batches *plain = open_batches(1, 42, true);
    for (uint64_t epoch = 0; epoch < 2; epoch++) {
        read_epoch(plain, epoch, stream);
        check_documents(stream, orders[0]);
        for (size_t d = 0; d < N_DOCS; d++) assert_int_equal(orders[0][d], d);
    }
    qb_free(stream);
    qb_batches_close(plain);
    qb_batches_close(other);
    qb_batches_close(b);
}

typedef struct ask {
    const qb_batches *b;
    int32_t *got;
} ask;

static void ask_one(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    ask *a = context;
    size_t window = MOST_WINDOWS - 1 - i * 7 % MOST_WINDOWS; /* to and fro between epochs */
    assert_int_equal(qb_batches_fill(a->b, window, 1, a->got + window * (CONTEXT + 1)), QB_OK);
}

static void any_range_and_thread_sees_the_same(void **state)
{
    (void)state;
    enum { ROW = CONTEXT + 1 };
    qb_batches *b = open_batches(CONTEXT, 42, false), *again = open_batches(CONTEXT, 42, false);
    static int32_t all[MOST_WINDOWS * ROW], got[MOST_WINDOWS * ROW];
    assert_true(MOST_WINDOWS > 3 * qb_batches_windows_per_epoch(b));
    QB_CHECK_OK(qb_batches_fill(b, 0, MOST_WINDOWS, all));
    QB_CHECK_OK(qb_batches_fill(again, 123, 99, got)); /* as a resumed run does */
    assert_memory_equal(got, all + 123 * ROW, 99 * ROW * sizeof *got);
    qb_pool *pool;
    QB_CHECK_OK(qb_pool_create(4, &pool));
    memset(got, 0xff, sizeof got);
    qb_parallel_for(pool, MOST_WINDOWS, ask_one, &(ask){again, got});
    assert_memory_equal(got, all, sizeof got);
    qb_pool_destroy(pool);
    uint64_t n = qb_batches_windows_per_epoch(b);
    for (uint64_t w = 0; w + 1 < n; w++) /* the last token of a window starts the next */
        assert_int_equal(all[w * ROW + CONTEXT], all[(w + 1) * ROW]);
    assert_string_equal(qb_batches_sha256(b), qb_batches_sha256(again));
    qb_batches_close(again);
    again = open_batches(CONTEXT, 43, false);
    assert_string_not_equal(qb_batches_sha256(b), qb_batches_sha256(again));
    assert_int_equal(qb_batches_vocab(b), VOCAB);
    assert_int_equal(qb_batches_n_tokens(b), n_all);
    assert_int_equal(qb_batches_text_bytes(b), 10 * n_all);
    assert_string_equal(qb_batches_tokenizer_sha256(b), sha);
    qb_batches_close(again);
    qb_batches_close(b);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

/* A fixed order is part of the promise: runs are repeated with later versions. */
static void order_is_pinned(void **state)
{
    (void)state;
    qb_batches *b = open_batches(CONTEXT, 42, false);
    int32_t got[CONTEXT + 1];
    QB_CHECK_OK(qb_batches_fill(b, 0, 1, got));
    print_message("window 0 starts with token %d, window 200 with ", got[0]);
    assert_int_equal(got[0], 43000);
    QB_CHECK_OK(qb_batches_fill(b, 200, 1, got));
    print_message("%d\n", got[0]);
    assert_int_equal(got[0], 56028);
    qb_batches_close(b);
}

static void random_is_a_source_too(void **state)
{
    (void)state;
    enum { N = 500, WORDS = 30 };
    static int32_t some[N * (CONTEXT + 1)], part[3 * (CONTEXT + 1)], other[CONTEXT + 1];
    size_t counts[WORDS] = {0};
    qb_batches *b, *b2;
    QB_CHECK_OK(qb_batches_open_random(WORDS, &(qb_batches_options){CONTEXT, 42, false}, &b));
    QB_CHECK_OK(qb_batches_open_random(WORDS, &(qb_batches_options){CONTEXT, 43, false}, &b2));
    QB_CHECK_OK(qb_batches_fill(b, 0, N, some));
    for (size_t i = 0; i < QB_COUNT(some); i++) {
        assert_in_range(some[i], 0, WORDS - 1);
        counts[some[i]]++;
    }
    for (size_t i = 0; i < WORDS; i++) /* 283 expected, with a deviation of 17 */
        assert_in_range(counts[i], 200, 370);
    QB_CHECK_OK(qb_batches_fill(b, 7, 3, part));
    assert_memory_equal(part, some + 7 * (CONTEXT + 1), sizeof part);
    assert_memory_not_equal(part, part + CONTEXT + 1, sizeof other);
    QB_CHECK_OK(qb_batches_fill(b2, 7, 1, other));
    assert_memory_not_equal(part, other, sizeof other);
    assert_string_not_equal(qb_batches_sha256(b), qb_batches_sha256(b2));
    assert_int_equal(qb_batches_vocab(b), WORDS);
    qb_batches_close(b);
    qb_batches_close(b2);
    qb_batches *none;
    assert_int_equal(qb_batches_open_random(0, &(qb_batches_options){CONTEXT, 42, false}, &none),
                     QB_ERR_USAGE);
}

static void bb_is_a_source_too(void **state)
{
    (void)state;
    qb_bb bb;
    QB_CHECK_OK(qb_bb_open(NULL, &(qb_bb_options){3, 1}, &bb));
    qb_batches *b;
    QB_CHECK_OK(qb_batches_open_bb(&bb, &(qb_batches_options){CONTEXT, 42, false}, &b));
    int32_t got[2 * (CONTEXT + 1)], want[2 * (CONTEXT + 1)];
    QB_CHECK_OK(qb_batches_fill(b, 9, 2, got));
    qb_bb_fill(&bb, 42, 9, 2, CONTEXT + 1, want);
    assert_memory_equal(got, want, sizeof got);
    assert_int_equal(qb_batches_vocab(b), 67);
    assert_true(qb_batches_windows_per_epoch(b) == UINT64_MAX);
    assert_string_equal(qb_batches_tokenizer_sha256(b), "");
    qb_batches_close(b);
    qb_bb_deinit(&bb);
}

/* In a row, with jumps, from the same place twice; then windows that cannot be read. */
static void prefetched_windows_are_the_same(void **state)
{
    (void)state;
    enum { N = 7, ROW = CONTEXT + 1 };
    static const uint64_t asked[] = {0, 7, 14, 21, 3, 10, 10, 17, 1000, 1007, 0, 7};
    qb_batches *b = open_batches(CONTEXT, 42, false);
    qb_prefetch *p;
    QB_CHECK_OK(qb_prefetch_create(b, N, N, &p));
    for (size_t i = 0; i < QB_COUNT(asked); i++) {
        const int32_t *tokens;
        int32_t want[N * ROW];
        QB_CHECK_OK(qb_prefetch_get(p, asked[i], &tokens));
        if (i % 3 == 0) usleep(1000); /* the thread is done with the next ones, or is not */
        QB_CHECK_OK(qb_batches_fill(b, asked[i], N, want));
        assert_memory_equal(tokens, want, sizeof want);
    }
    qb_prefetch_destroy(p);
    for (size_t n = 1; n <= 4; n++) {
        qb_memory_fail_at(n);
        qb_status status = qb_prefetch_create(b, N, N, &p);
        qb_memory_fail_at(0);
        assert_int_equal(status, n < 4 ? QB_ERR_MEMORY : QB_OK);
        if (status == QB_OK) qb_prefetch_destroy(p);
    }
    qb_batches_close(b);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

/* A token outside the vocabulary, behind the digest's back. */
static void damaged_tokens_are_told_at_their_turn(void **state)
{
    (void)state;
    FILE *f = fopen(paths[2], "r+b");
    uint32_t outside = VOCAB;
    assert_non_null(f);
    /* the fourth of the last window */
    size_t n_behind = n_all - (n_all - 1) / CONTEXT * CONTEXT + CONTEXT - 3;
    assert_int_equal(fseek(f, -4 * (long)n_behind, SEEK_END), 0);
    assert_int_equal(fwrite(&outside, 4, 1, f), 1);
    fclose(f);
    qb_batches *b = open_batches(CONTEXT, 42, true);
    qb_prefetch *p;
    const int32_t *tokens;
    uint64_t last = qb_batches_windows_per_epoch(b) - 1;
    QB_CHECK_OK(qb_prefetch_create(b, 1, 1, &p));
    for (uint64_t w = 0; w < last; w++) QB_CHECK_OK(qb_prefetch_get(p, w, &tokens));
    assert_int_equal(qb_prefetch_get(p, last, &tokens), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "2.qbs: found token 70000, expected at most 69999"));
    qb_prefetch_destroy(p);
    qb_batches_close(b);
    write_shard(2, 25, N_DOCS - 25, sha);
}

static void refusals(void **state)
{
    (void)state;
    qb_batches *b = NULL;
    const qb_batches_options options = {CONTEXT, 0, false}, long_windows = {100000, 0, false};
    assert_int_equal(qb_batches_open(paths, 0, &options, &b), QB_ERR_USAGE);
    assert_int_equal(qb_batches_open(paths, N_SHARDS, &long_windows, &b), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "context + 1 = 100001"));
    write_shard(1, 25, 1, "11112233445566778899aabbccddeeff00112233445566778899aabbccddeeff");
    assert_int_equal(qb_batches_open(paths, N_SHARDS, &options, &b), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "1.qbs: tokenizer: found 111122334455"));
    const char *absent[] = {paths[0], "/nonexistent.qbs"};
    assert_int_equal(qb_batches_open(absent, 2, &options, &b), QB_ERR_IO);
    assert_null(b);
    for (size_t n = 1;; n++) {
        qb_memory_fail_at(n);
        qb_status status = qb_batches_open(paths, 1, &options, &b);
        qb_memory_fail_at(0);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(qb_memory_live_blocks(), 0);
    }
    qb_batches_close(b);
    write_shard(1, 25, 0, sha);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epochs_hold_every_document_once),
        cmocka_unit_test(any_range_and_thread_sees_the_same),
        cmocka_unit_test(order_is_pinned),
        cmocka_unit_test(random_is_a_source_too),
        cmocka_unit_test(bb_is_a_source_too),
        cmocka_unit_test(prefetched_windows_are_the_same),
        cmocka_unit_test(damaged_tokens_are_told_at_their_turn),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, write_shards, remove_shards);
}
