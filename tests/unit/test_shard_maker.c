/* tests/unit/test_shard_maker.c - shards against encoding each document alone; dropped documents;
 * any number of threads; failing allocations. */
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "train/data/bpe_train.h"
#include "train/data/shard_maker.h"
#include "train/data/shards.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_DOCS = 700, DOC_BYTES = 2500 };
static char path[64], *bytes;
static qb_text text;
static qb_tokenizer *tokenizer;

/* Documents of very different length, some of them longer than a task. */
static int make_text(void **state)
{
    (void)state;
    static const char *const words[] = {" the", " cat", " sat", "ting", "\n\n", " on", " 42", "'s"};
    bytes = malloc(N_DOCS * DOC_BYTES + 400000);
    char *p = bytes;
    for (uint64_t d = 0; d < N_DOCS; d++) {
        size_t n = d == 300 ? 60000 : 1 + qb_rng_below(d, QB_STREAM_TEST, 0, 300);
        for (uint64_t i = 1; i <= n; i++)
            p = stpcpy(p, words[qb_rng_below(d, QB_STREAM_TEST, i, QB_COUNT(words))]);
        p = stpcpy(p, "\n<|endoftext|>\n");
    }
    strcpy(path, "/tmp/qb_maker_XXXXXX");
    int fd = mkstemp(path);
    qb_bpe_trainer *trainer;
    if (fd < 0 || close(fd)) return 1;
    QB_CHECK_OK(qb_text_from_memory("text", bytes, (size_t)(p - bytes), &text));
    QB_CHECK_OK(qb_bpe_trainer_create(NULL, &trainer));
    QB_CHECK_OK(qb_bpe_trainer_add(trainer, &text));
    QB_CHECK_OK(qb_bpe_trainer_finish(trainer, 400, &tokenizer));
    qb_bpe_trainer_destroy(trainer);
    return 0;
}

static int drop_text(void **state)
{
    (void)state;
    qb_text_deinit(&text);
    qb_tokenizer_destroy(tokenizer);
    free(bytes);
    return unlink(path);
}

static qb_shard_made make_shard(const qb_ngrams *unwanted, size_t n_threads)
{
    qb_pool *pool;
    qb_shard_maker *maker;
    qb_shard_made made;
    QB_CHECK_OK(qb_pool_create(n_threads, &pool));
    QB_CHECK_OK(qb_shard_maker_create(tokenizer, unwanted, pool, &maker));
    QB_CHECK_OK(qb_shard_maker_write(maker, &text, path, NULL, &made));
    qb_shard_maker_destroy(maker);
    qb_pool_destroy(pool);
    return made;
}

/* The shard holds the documents that are kept, encoded one by one. */
static void check_shard(const qb_shard_made *made, const bool kept[N_DOCS])
{
    qb_shard shard;
    QB_CHECK_OK(qb_shard_open(path, &shard));
    QB_CHECK_OK(qb_shard_verify(&shard));
    assert_memory_equal(shard.header.digest, made->digest, 64);
    assert_memory_equal(shard.header.text_sha256, text.sha256, 64);
    assert_memory_equal(shard.header.tokenizer_sha256, qb_tokenizer_sha256(tokenizer), 64);
    size_t start = 0, at = 0, place = 0, text_bytes = 0;
    qb_tokens ids = {0};
    for (size_t d = 0; d < N_DOCS; start = text.doc_end[d++]) {
        if (!kept[d]) continue;
        ids.n = 0;
        QB_CHECK_OK(qb_tokens_push(&ids, qb_tokenizer_eos(tokenizer)));
        QB_CHECK_OK(qb_tokenizer_encode(tokenizer, text.bytes + start, text.doc_end[d] - start,
                                        false, &ids));
        int32_t *got = malloc(ids.n * sizeof *got);
        assert_int_equal(shard.doc_end[place++], at + ids.n);
        QB_CHECK_OK(qb_shard_read(&shard, at, ids.n, got));
        assert_memory_equal(got, ids.ids, ids.n * sizeof *got);
        at += ids.n;
        text_bytes += text.doc_end[d] - start;
        free(got);
    }
    qb_tokens_deinit(&ids);
    assert_int_equal(shard.header.n_docs, place);
    assert_int_equal(shard.header.n_tokens, at);
    assert_int_equal(shard.header.text_bytes, text_bytes);
    assert_int_equal(made->n_docs, place);
    assert_int_equal(made->n_dropped, N_DOCS - place);
    assert_int_equal(made->n_tokens, at);
    assert_int_equal(made->text_bytes, text_bytes);
    qb_shard_close(&shard);
}

static void holds_every_document(void **state)
{
    (void)state;
    bool kept[N_DOCS];
    memset(kept, true, sizeof kept);
    assert_int_equal(text.n_docs, N_DOCS);
    qb_shard_made one = make_shard(NULL, 1), four = make_shard(NULL, 4);
    check_shard(&four, kept);
    assert_memory_equal(one.digest, four.digest, 64);
}

static void drops_what_is_unwanted(void **state)
{
    (void)state;
    bool kept[N_DOCS];
    qb_ngrams *unwanted;
    qb_text held_out;
    size_t start = text.doc_end[299]; /* a piece of the long document */
    QB_CHECK_OK(qb_ngrams_create(&unwanted));
    QB_CHECK_OK(qb_text_from_memory("held out", text.bytes + start + 1000, 300, &held_out));
    QB_CHECK_OK(qb_ngrams_add(unwanted, &held_out));
    start = 0;
    for (size_t d = 0; d < N_DOCS; start = text.doc_end[d++])
        kept[d] = !qb_ngrams_shares(unwanted, text.bytes + start, text.doc_end[d] - start);
    assert_false(kept[300]);
    qb_shard_made made = make_shard(unwanted, 3);
    assert_in_range(made.n_dropped, 1, N_DOCS / 2);
    check_shard(&made, kept);
    qb_ngrams_destroy(unwanted);
    qb_text_deinit(&held_out);
}

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    static const char absent[] = "/tmp/qb_maker_never";
    size_t live = qb_memory_live_blocks();
    for (size_t n = 1;; n += n < 40 ? 1 : 7) {
        qb_shard_maker *maker = NULL;
        qb_shard_made made;
        qb_memory_fail_at(n);
        qb_status status = qb_shard_maker_create(tokenizer, NULL, NULL, &maker);
        if (status == QB_OK) status = qb_shard_maker_write(maker, &text, absent, NULL, &made);
        qb_memory_fail_at(0);
        qb_shard_maker_destroy(maker);
        assert_int_equal(qb_memory_live_blocks(), live);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(access(absent, F_OK), -1);
    }
    unlink(absent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holds_every_document),
        cmocka_unit_test(drops_what_is_unwanted),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, make_text, drop_text);
}
