/* tests/unit/test_bpe_train.c - the trained vocabulary against a trainer that counts all pairs anew
 * before every merge; independence of threads and order; limits, failures. */
#include "support.h"

#include "core/json.h"
#include "core/memory.h"
#include "core/rng.h"
#include "model/tokenizer_internal.h"
#include "train/data/bpe_train.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 20000, MOST_VOCAB = 400 };

/* ---- the slow trainer: all words of the text one after the other ---- */

typedef struct slow {
    int32_t ids[MOST_BYTES];
    bool starts_word[MOST_BYTES + 1];
    size_t n;
    char tokens[MOST_VOCAB][64]; /* as strings: the texts here have no NUL */
    int n_tokens;
    int merges[MOST_VOCAB][2], n_merges;
} slow;

static void slow_start(slow *s, const qb_tokenizer *like, const char *text, size_t n_bytes)
{
    memset(s, 0, sizeof *s);
    for (s->n_tokens = 0; s->n_tokens < 256; s->n_tokens++)
        strcpy(s->tokens[s->n_tokens], qb_tokenizer_token_bytes(like, s->n_tokens, NULL));
    qb_words *w;
    QB_CHECK_OK(qb_words_create("gpt-2", &w));
    qb_words_start(w, text, n_bytes);
    for (;;) {
        const char *word;
        size_t n;
        QB_CHECK_OK(qb_words_next(w, &word, &n));
        if (!n) break;
        s->starts_word[s->n] = true;
        for (size_t i = 0; i < n; i++) s->ids[s->n++] = like->byte_id[(uint8_t)word[i]];
    }
    s->starts_word[s->n] = true;
    qb_words_destroy(w);
}

/* The commonest pair, ties to the lower ids. False: none occurs twice. */
static bool slow_choose(const slow *s, int *left, int *right)
{
    static int counts[MOST_VOCAB][MOST_VOCAB];
    int best = 1;
    for (int a = 0; a < s->n_tokens; a++) memset(counts[a], 0, sizeof counts[a]);
    for (size_t i = 0; i + 1 < s->n; i++)
        if (!s->starts_word[i + 1]) counts[s->ids[i]][s->ids[i + 1]]++;
    for (int a = 0; a < s->n_tokens; a++)
        for (int b = 0; b < s->n_tokens; b++)
            if (counts[a][b] > best) best = counts[ *left = a][ *right = b];
    return best > 1;
}

static void slow_merge(slow *s, int left, int right)
{
    char joined[128];
    snprintf(joined, sizeof joined, "%s%s", s->tokens[left], s->tokens[right]);
    int id = s->n_tokens++;
    strcpy(s->tokens[id], joined);
    s->merges[s->n_merges][0] = left;
    s->merges[s->n_merges++][1] = right;
    size_t kept = 0;
    for (size_t i = 0; i < s->n; kept++) {
        bool joins =
            i + 1 < s->n && !s->starts_word[i + 1] && s->ids[i] == left && s->ids[i + 1] == right;
        s->starts_word[kept] = s->starts_word[i];
        s->ids[kept] = joins ? id : s->ids[i];
        i += joins ? 2 : 1;
    }
    s->n = kept;
    s->starts_word[kept] = true;
}

/* ---- */

static qb_tokenizer *train(qb_pool *pool, const char *const *texts, size_t n_texts, size_t vocab)
{
    qb_bpe_trainer *trainer;
    qb_tokenizer *tokenizer;
    QB_CHECK_OK(qb_bpe_trainer_create(pool, &trainer));
    for (size_t i = 0; i < n_texts; i++) {
        qb_text text;
        QB_CHECK_OK(qb_text_from_memory("text", texts[i], strlen(texts[i]), &text));
        QB_CHECK_OK(qb_bpe_trainer_add(trainer, &text));
        qb_text_deinit(&text);
    }
    QB_CHECK_OK(qb_bpe_trainer_finish(trainer, vocab, &tokenizer));
    qb_bpe_trainer_destroy(trainer);
    return tokenizer;
}

/* Words of few letters, so that counts tie and tokens are spelled in several ways. */
static void make_text(uint64_t seed, size_t n_letters, char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t r = qb_rng_below(seed, QB_STREAM_TEST, i, n_letters + 2);
        text[i] = r < n_letters ? (char)('a' + r) : r == n_letters ? ' ' : '\'';
    }
    text[n] = 0;
}

static void equals_the_slow_trainer(void **state)
{
    (void)state;
    static slow s;
    static char text[MOST_BYTES];
    for (uint64_t seed = 0; seed < 10; seed++) {
        make_text(seed, 2 + seed % 4, text, 200 + 150 * seed);
        const char *const texts[] = {text};
        qb_tokenizer *t = train(NULL, texts, 1, 380);
        slow_start(&s, t, text, strlen(text));
        int left = 0, right = 0;
        while (s.n_tokens < 379 && slow_choose(&s, &left, &right)) slow_merge(&s, left, right);
        assert_int_equal(qb_tokenizer_vocab(t), s.n_tokens + 1);
        assert_int_equal(t->n_merges, s.n_merges);
        for (int i = 0; i < s.n_merges; i++) {
            assert_int_equal(t->merges[i].left, s.merges[i][0]);
            assert_int_equal(t->merges[i].right, s.merges[i][1]);
        }
        for (int i = 0; i < s.n_tokens; i++)
            assert_string_equal(qb_tokenizer_token_bytes(t, i, NULL), s.tokens[i]);
        qb_tokenizer_destroy(t);
    }
}

static void ids_are_in_the_order_of_gpt2(void **state)
{
    (void)state;
    static const char *const texts[] = {"abababab ab ab c"};
    qb_tokenizer *t = train(NULL, texts, 1, 300);
    assert_int_equal(t->byte_id['!'], 0);
    assert_int_equal(t->byte_id['~'], 93);
    assert_int_equal(t->byte_id[0xa1], 94);
    assert_int_equal(t->byte_id[0xff], 187);
    assert_int_equal(t->byte_id[0], 188);
    assert_int_equal(t->byte_id[' '], 220);
    assert_int_equal(t->byte_id[0xad], 255);
    assert_string_equal(qb_tokenizer_token_bytes(t, 256, NULL), "ab");
    assert_string_equal(qb_tokenizer_token_bytes(t, 257, NULL), "abab"); /* three, overlapping */
    assert_string_equal(qb_tokenizer_token_bytes(t, 258, NULL), " ab");  /* two */
    int32_t last = (int32_t)qb_tokenizer_vocab(t) - 1;
    assert_string_equal(qb_tokenizer_token_bytes(t, last, NULL), "<|endoftext|>");
    assert_int_equal(qb_tokenizer_eos(t), last);
    assert_int_equal(qb_tokenizer_bos(t), last);
    assert_int_equal(last, 259); /* no pair is left that occurs twice */
    qb_tokenizer_destroy(t);
}

/* More than a megabyte, so that there are several tasks. */
static void threads_and_order_do_not_matter(void **state)
{
    (void)state;
    enum { BYTES = 2 << 20 };
    char *one = malloc(BYTES + 1), *two = malloc(BYTES + 1);
    make_text(1, 9, one, BYTES);
    make_text(2, 7, two, BYTES / 2);
    for (size_t at = 30000; at + 20 < BYTES; at += 30000) memcpy(one + at, "\n<|endoftext|>\n", 15);
    const char *const forth[] = {one, two}, *const back[] = {two, one};
    qb_pool *pool;
    QB_CHECK_OK(qb_pool_create(4, &pool));
    qb_tokenizer *a = train(NULL, forth, 2, 500), *b = train(pool, forth, 2, 500),
                 *c = train(pool, back, 2, 500), *other = train(pool, forth, 1, 500);
    assert_int_equal(qb_tokenizer_vocab(a), 500);
    assert_string_equal(qb_tokenizer_sha256(a), qb_tokenizer_sha256(b));
    assert_string_equal(qb_tokenizer_sha256(a), qb_tokenizer_sha256(c));
    assert_string_not_equal(qb_tokenizer_sha256(a), qb_tokenizer_sha256(other));
    json_t *json;
    qb_tokenizer *again;
    QB_CHECK_OK(qb_tokenizer_to_hf_json(a, &json));
    QB_CHECK_OK(qb_tokenizer_from_hf_json(json, "again", &again));
    assert_string_equal(qb_tokenizer_sha256(a), qb_tokenizer_sha256(again));
    json_decref(json);
    qb_tokenizer *const all[] = {a, b, c, other, again};
    for (size_t i = 0; i < QB_COUNT(all); i++) qb_tokenizer_destroy(all[i]);
    qb_pool_destroy(pool);
    free(one);
    free(two);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

static void no_token_is_longer_than_the_limit(void **state)
{
    (void)state;
    char *text = malloc(100001);
    memset(text, 'a', 100000);
    text[100000] = 0;
    const char *const texts[] = {text};
    qb_tokenizer *t = train(NULL, texts, 1, 500);
    size_t longest = 0;
    for (int32_t id = 0; id + 1 < (int32_t)qb_tokenizer_vocab(t); id++) {
        size_t n;
        qb_tokenizer_token_bytes(t, id, &n);
        if (n > longest) longest = n;
    }
    assert_int_equal(longest, QB_BPE_MAX_TOKEN_BYTES);
    qb_tokenizer_destroy(t);
    free(text);
}

static void refusals_and_failed_allocations(void **state)
{
    (void)state;
    qb_tokenizer *t = NULL;
    qb_bpe_trainer *trainer;
    QB_CHECK_OK(qb_bpe_trainer_create(NULL, &trainer));
    assert_int_equal(qb_bpe_trainer_finish(trainer, 256, &t), QB_ERR_USAGE);
    assert_int_equal(qb_bpe_trainer_finish(trainer, QB_BPE_MAX_VOCAB + 1, &t), QB_ERR_USAGE);
    QB_CHECK_OK(qb_bpe_trainer_finish(trainer, 300, &t)); /* of nothing: bytes alone */
    assert_int_equal(qb_tokenizer_vocab(t), 257);
    qb_tokenizer_destroy(t);
    qb_bpe_trainer_destroy(trainer);
    qb_text text;
    QB_CHECK_OK(qb_text_from_memory("text", "to be or not to be", 18, &text));
    for (size_t n = 1;; n++) {
        trainer = NULL;
        qb_memory_fail_at(n);
        qb_status status = qb_bpe_trainer_create(NULL, &trainer);
        if (status == QB_OK) status = qb_bpe_trainer_add(trainer, &text);
        if (status == QB_OK) status = qb_bpe_trainer_finish(trainer, 300, &t);
        qb_memory_fail_at(0);
        qb_bpe_trainer_destroy(trainer);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
    }
    qb_tokenizer_destroy(t);
    qb_text_deinit(&text);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_slow_trainer),
        cmocka_unit_test(ids_are_in_the_order_of_gpt2),
        cmocka_unit_test(threads_and_order_do_not_matter),
        cmocka_unit_test(no_token_is_longer_than_the_limit),
        cmocka_unit_test(refusals_and_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
