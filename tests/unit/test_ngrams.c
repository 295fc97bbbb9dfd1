/* tests/unit/test_ngrams.c - shared 13-grams against a search that compares all words with all. */
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "train/data/ngrams.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_WORDS = 3000, TEXT_BYTES = 40000 };

/* Words of a small vocabulary, so that long runs repeat; spelled in several ways. */
static void make_text(uint64_t seed, size_t n_words, size_t n_kinds, char *text)
{
    static const char *const gaps[] = {" ", "  ", ", ", ".\n", "-", "'", "\t\"", "/"};
    char *p = text;
    for (size_t i = 0; i < n_words; i++) {
        size_t kind = qb_rng_below(seed, QB_STREAM_TEST, 3 * i, n_kinds);
        bool upper = qb_rng_below(seed, QB_STREAM_TEST, 3 * i + 1, 4) == 0;
        size_t gap = qb_rng_below(seed, QB_STREAM_TEST, 3 * i + 2, QB_COUNT(gaps));
        p += sprintf(p, "%c%s%s%s", (upper ? 'A' : 'a') + (int)(kind / 2 % 26),
                     kind % 2 ? "\xc3\xa9" : "", kind % 3 ? "" : "7z", gaps[gap]);
    }
}

/* The words in lower case, one after the other with a NUL each. */
static size_t split(const char *text, char *words, char **at)
{
    size_t n = 0;
    for (const char *p = text; *p;) {
        at[n] = words;
        for (; *p && ((uint8_t)*p >= 0x80 || strchr("abcdefghijklmnopqrstuvwxyz0123456789", *p) ||
                      (*p >= 'A' && *p <= 'Z'));
             p++)
            *words++ = *p >= 'A' && *p <= 'Z' ? (char)(*p + 32) : *p;
        if (words > at[n]) *words++ = 0, n++;
        while (*p && (uint8_t)*p < 0x80 &&
               !strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", *p))
            p++;
    }
    return n;
}

static bool slow_shares(const char *a, const char *b)
{
    static char words[2][TEXT_BYTES];
    static char *at[2][MOST_WORDS];
    size_t n = split(a, words[0], at[0]), m = split(b, words[1], at[1]);
    for (size_t i = 0; i + QB_NGRAM_WORDS <= n; i++)
        for (size_t k = 0; k + QB_NGRAM_WORDS <= m; k++) {
            size_t j = 0;
            while (j < QB_NGRAM_WORDS && !strcmp(at[0][i + j], at[1][k + j])) j++;
            if (j == QB_NGRAM_WORDS) return true;
        }
    return false;
}

static qb_ngrams *ngrams_of(const char *text)
{
    qb_ngrams *g;
    qb_text t;
    QB_CHECK_OK(qb_ngrams_create(&g));
    QB_CHECK_OK(qb_text_from_memory("held out", text, strlen(text), &t));
    QB_CHECK_OK(qb_ngrams_add(g, &t));
    qb_text_deinit(&t);
    return g;
}

static void equals_the_slow_search(void **state)
{
    (void)state;
    static char held_out[TEXT_BYTES], text[TEXT_BYTES];
    size_t n_shared = 0, n_cases = 400;
    for (uint64_t seed = 0; seed < n_cases; seed++) {
        make_text(2 * seed, 10 + seed % 150, 2 + seed % 3, held_out);
        make_text(2 * seed + 1, 5 + seed % 90, 2 + seed % 3, text);
        if (seed % 4 == 1) { /* a piece of one in the other, 12 to 14 words of it */
            char *from = held_out, *end;
            for (size_t i = 0; i < 8; i++) from += strcspn(from, " ,./-'\t\"") + 1;
            end = from;
            for (size_t i = 0; *end && i < 11 + seed / 4 % 3; i++) {
                end += strcspn(end, " ,./-'\t\"");
                end += strspn(end, " ,./-'\t\"\n");
            }
            memcpy(text + strlen(text), from, (size_t)(end - from) + 1);
        }
        qb_ngrams *g = ngrams_of(held_out);
        bool shares = qb_ngrams_shares(g, text, strlen(text));
        assert_int_equal(shares, slow_shares(held_out, text));
        n_shared += shares;
        qb_ngrams_destroy(g);
    }
    print_message("%zu of %zu cases share a 13-gram\n", n_shared, n_cases);
    assert_in_range(n_shared, n_cases / 20, n_cases * 19 / 20);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

/* Enough for the tables to grow several times; every document of the text finds itself again. */
static void large_texts(void **state)
{
    (void)state;
    enum { N = 2000 };
    char *held_out = malloc(60 * TEXT_BYTES), *p = held_out;
    for (uint64_t d = 0; d < N; d++) {
        make_text(d, 40, 52, p);
        p += strlen(p);
        p += sprintf(p, "\n<|endoftext|>\n");
    }
    qb_text t;
    qb_ngrams *g;
    QB_CHECK_OK(qb_ngrams_create(&g));
    QB_CHECK_OK(qb_text_from_memory("held out", held_out, strlen(held_out), &t));
    QB_CHECK_OK(qb_ngrams_add(g, &t));
    size_t n = qb_ngrams_n(g);
    assert_in_range(n, N * 27, N * 60); /* gaps may glue or cut words */
    QB_CHECK_OK(qb_ngrams_add(g, &t));
    assert_int_equal(qb_ngrams_n(g), n); /* nothing new */
    size_t start = 0;
    for (size_t d = 0; d < t.n_docs; start = t.doc_end[d++])
        assert_true(qb_ngrams_shares(g, t.bytes + start, t.doc_end[d] - start));
    char other[2000];
    for (uint64_t d = N; d < 2 * N; d++) {
        make_text(d, 40, 52, other);
        assert_false(qb_ngrams_shares(g, other, strlen(other)));
    }
    qb_ngrams_destroy(g);
    qb_text_deinit(&t);
    free(held_out);
}

static void failed_allocations(void **state)
{
    (void)state;
    static char held_out[TEXT_BYTES];
    qb_text t;
    make_text(1, MOST_WORDS, 26, held_out);
    QB_CHECK_OK(qb_text_from_memory("held out", held_out, strlen(held_out), &t));
    for (size_t n = 1;; n++) {
        qb_ngrams *g = NULL;
        qb_memory_fail_at(n);
        qb_status status = qb_ngrams_create(&g);
        if (status == QB_OK) status = qb_ngrams_add(g, &t);
        qb_memory_fail_at(0);
        qb_ngrams_destroy(g);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
    }
    qb_text_deinit(&t);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_slow_search),
        cmocka_unit_test(large_texts),
        cmocka_unit_test(failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
