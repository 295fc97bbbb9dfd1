/* tests/unit/test_nfc.c - canonical composition: examples of UAX #15 and of Hangul, bytes that are
 * no text, and that composing twice changes nothing. */
#include "support.h"

#include "core/memory.h"
#include "model/nfc.h"

#include <stdlib.h>
#include <string.h>

static void examples_compose(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"", ""},
        {"plain \u00e9", "plain \u00e9"},
        {"e\u0301t\u00e9", "\u00e9t\u00e9"},
        {"\u212b \u2126", "\u00c5 \u03a9"},             /* singletons */
        {"\u1e0a\u0323", "\u1e0c\u0307"},               /* the mark below goes first */
        {"q\u0307\u0323", "q\u0323\u0307"},             /* in order, nothing to compose */
        {"s\u0323\u0307", "\u1e69"},                    /* twice */
        {"a\u0305\u0301", "a\u0305\u0301"},             /* blocked by one of its own class */
        {"a\u0327\u0301", "\u00e1\u0327"},              /* not by one of another */
        {"\u0958 \u0344", "\u0915\u093c \u0308\u0301"}, /* exclusions stay apart */
        {"\u1112\u1161\u11ab \uac00\u11a8", "\ud55c \uac01"},
        {"\uac01\u11a8", "\uac01\u11a8"}, /* it has its last consonant */
        {"\u304b\u3099\ufb01", "\u304c\ufb01"},
        {"\U0001d15e", "\U0001d157\U0001d165"},
        {"e\xcc\xff\u0301", "e\xcc\xff\u0301"}, /* bytes that are no text stand between */
        {"\u0301e", "\u0301e"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        char *out;
        size_t n;
        QB_CHECK_OK(qb_nfc(cases[i].text, strlen(cases[i].text), &out, &n));
        if (n != strlen(cases[i].want) || memcmp(out, cases[i].want, n))
            fail_msg("case %zu: found \"%.*s\", expected \"%s\"", i, (int)n, out, cases[i].want);
        qb_free(out);
    }
    assert_true(qb_nfc_is_plain("caf\u00e9 \u02ff", 8));
    assert_false(qb_nfc_is_plain("e\u0300", 3));
}

static size_t write_utf8(uint32_t c, char *p)
{
    if (c < 0x80) return *p = (char)c, 1;
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) p[i] = (char)(0x80 | (c & 0x3f));
    *p = (char)((n == 2 ? 0xc0u : n == 3 ? 0xe0u : 0xf0u) | c);
    return n;
}

/* Every character, each between a letter and a mark: what comes out is its own form. */
static void composing_twice_changes_nothing(void **state)
{
    (void)state;
    enum { AT_ONCE = 0x8000 };
    char *text = malloc(AT_ONCE * 8), *once, *twice;
    for (uint32_t first = 1; first < 0x110000; first += AT_ONCE) {
        size_t n = 0, n_once, n_twice;
        for (uint32_t c = first; c < first + AT_ONCE && c < 0x110000; c++) {
            if (c >= 0xd800 && c < 0xe000) continue;
            text[n++] = 'a';
            n += write_utf8(c, text + n);
            n += write_utf8(0x301, text + n);
        }
        QB_CHECK_OK(qb_nfc(text, n, &once, &n_once));
        QB_CHECK_OK(qb_nfc(once, n_once, &twice, &n_twice));
        assert_int_equal(n_once, n_twice);
        assert_memory_equal(once, twice, n_once);
        qb_free(once);
        qb_free(twice);
    }
    free(text);
}

/* Many marks behind one letter, in the wrong order: sorted, not in quadratic time. */
static void many_marks_are_ordered(void **state)
{
    (void)state;
    enum { N = 200000 };
    char *text = malloc(2 * N + 1), *out;
    size_t n, at = 1;
    text[0] = 'q';
    for (size_t i = 0; i < N; i++) at += write_utf8(i % 2 ? 0x323 : 0x307, text + at);
    QB_CHECK_OK(qb_nfc(text, at, &out, &n));
    assert_int_equal(n, at);
    for (size_t i = 0; i < N; i++)
        assert_memory_equal(out + 1 + 2 * i, i < N / 2 ? "\u0323" : "\u0307", 2);
    qb_free(out);
    for (size_t i = 1;; i++) {
        qb_memory_fail_at(i);
        qb_status status = qb_nfc(text, 2001, &out, &n);
        qb_memory_fail_at(0);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(qb_memory_live_blocks(), 0);
    }
    qb_free(out);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(examples_compose),
        cmocka_unit_test(composing_twice_changes_nothing),
        cmocka_unit_test(many_marks_are_ordered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
