/* tests/token_checks.c - see token_checks.h. */
#include "token_checks.h"

#include "support.h"

#include "core/memory.h"

#include <string.h>

void qb_test_ids(const qb_tokenizer *t, const char *text, bool parse_special, size_t n,
                 const int32_t *ids)
{
    qb_tokens got = {0};
    QB_CHECK_OK(qb_tokenizer_encode(t, text, strlen(text), parse_special, &got));
    for (size_t i = 0; i < got.n && got.n != n; i++) printf("%d ", got.ids[i]);
    assert_int_equal(got.n, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(got.ids[i], ids[i]);
    qb_tokens_deinit(&got);
}

void qb_test_decoded(const qb_tokenizer *t, const char *text, const char *expected)
{
    qb_tokens ids = {0};
    char *back;
    size_t back_bytes;
    QB_CHECK_OK(qb_tokenizer_encode(t, text, strlen(text), true, &ids));
    QB_CHECK_OK(qb_tokenizer_decode(t, ids.ids, ids.n, &back, &back_bytes));
    assert_string_equal(back, expected);
    qb_free(back);
    qb_tokens_deinit(&ids);
}
