/* model/words.c - cutting a text into words: by a scan where a piece and what follows it are ASCII
 * and the row has such a scan, else by its pattern. */
#include "model/tokenizer_internal.h"

#include "core/memory.h"

/* ---- the scan of ASCII ---- */

enum { OTHER, LETTER, DIGIT, SPACE, BEYOND }; /* of a byte; BEYOND: not ASCII */

static inline int class_of(char c)
{
    unsigned u = (uint8_t)c;
    if ((u | 32) - 'a' < 26u) return LETTER;
    if (u >= 0x80) return BEYOND;
    if (u - '0' < 10u) return DIGIT;
    return u == ' ' || u - '\t' < 5u ? SPACE : OTHER;
}

/* Bytes of 's 't 'm 'd 're 've 'll at s, which starts with the apostrophe; 0 = none. */
static size_t contraction(const char *s, size_t n)
{
    if (n >= 2 && (s[1] == 's' || s[1] == 't' || s[1] == 'm' || s[1] == 'd')) return 2;
    if (n < 3) return 0;
    bool found = (s[1] == 'r' && s[2] == 'e') || (s[1] == 'v' && s[2] == 'e') ||
                 (s[1] == 'l' && s[2] == 'l');
    return found ? 3 : 0;
}

/* The piece at s of the patterns gpt-2 and smollm (digits one by one): its bytes, 0 = ask the
 * pattern. */
static inline size_t scan(const char *s, size_t n, bool single_digits)
{
    int kind = class_of(s[0]), next = n > 1 ? class_of(s[1]) : SPACE;
    if (s[0] == '\'') {
        size_t bytes = contraction(s, n);
        if (bytes) return bytes;
    }
    if (kind == DIGIT && single_digits) return 1;
    size_t i = 1;
    if (s[0] == ' ' && next != SPACE && !(single_digits && next == DIGIT)) kind = next, i = 2;
    if (kind == BEYOND) return 0;
    while (i < n && class_of(s[i]) == kind) i++;
    if (i < n && class_of(s[i]) == BEYOND) return 0; /* may belong to the piece */
    if (kind != SPACE || i == n || i == 1) return i;
    /* the last blank goes to the next word, where that takes one */
    return single_digits && class_of(s[i]) == DIGIT ? i : i - 1;
}

size_t qb__scan_gpt2(const char *s, size_t n)
{
    return scan(s, n, false);
}

size_t qb__scan_smollm(const char *s, size_t n)
{
    return scan(s, n, true);
}

/* ---- a text ---- */

qb_status qb__words_init(qb_words *w, const qb__pre *pre, const pcre2_code *code)
{
    *w = (qb_words){.pre = pre, .code = code};
    w->match = pcre2_match_data_create_from_pattern(code, NULL);
    return w->match ? QB_OK : QB_FAIL(QB_ERR_MEMORY, "pre-splitter: no memory to match");
}

void qb__words_deinit(qb_words *w)
{
    pcre2_match_data_free(w->match);
    pcre2_code_free(w->own_code);
}

qb_status qb_words_create(const char *name, qb_words **out)
{
    const qb__pre *pre = qb__pre_find(name);
    if (!pre)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "unknown pre-tokenizer: found \"%s\", expected %s", name,
                       qb__pre_names());
    pcre2_code *code;
    qb_words *w;
    QB_TRY(qb__pre_compile(pre, &code));
    qb_status status = QB_NEW_ZERO(&w, 1, "pre-splitter");
    if (status == QB_OK && (status = qb__words_init(w, pre, code)) != QB_OK) qb_free(w);
    if (status != QB_OK) {
        pcre2_code_free(code);
        return status;
    }
    w->own_code = code;
    *out = w;
    return QB_OK;
}

void qb_words_destroy(qb_words *w)
{
    if (!w) return;
    qb__words_deinit(w);
    qb_free(w);
}

void qb_words_start(qb_words *w, const char *text, size_t n_bytes)
{
    w->text = text;
    w->n_bytes = n_bytes;
    w->at = w->valid_end = 0;
}

/* Where the well-formed UTF-8 from `at` on ends. */
static size_t find_valid_end(const char *text, size_t n_bytes, size_t at)
{
    size_t length;
    for (;;) {
        for (uint64_t eight; n_bytes - at >= 8; at += 8) {
            memcpy(&eight, text + at, 8);
            if (eight & 0x8080808080808080u) break;
        }
        if (at >= n_bytes || !(length = qb__utf8_length(text + at, n_bytes - at))) return at;
        at += length;
    }
}

static qb_status match_pattern(qb_words *w, size_t *end)
{
    int n = pcre2_match(w->code, (PCRE2_SPTR)w->subject, w->valid_end - w->subject_at,
                        w->at - w->subject_at, PCRE2_NO_UTF_CHECK, w->match, NULL);
    *end = w->subject_at + pcre2_get_ovector_pointer(w->match)[1];
    if (n < 1 || *end <= w->at)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "pre-splitter %s: PCRE2 error %d", w->pre->name, n);
    return QB_OK;
}

qb_status qb_words_next(qb_words *w, const char **word, size_t *n_bytes)
{
    *word = w->text + w->at;
    *n_bytes = 0;
    if (w->at == w->n_bytes) return QB_OK;
    if (w->at == w->valid_end) {
        w->subject = w->text + w->at;
        w->subject_at = w->at;
        w->valid_end = find_valid_end(w->text, w->n_bytes, w->at);
    }
    size_t end = w->at + 1; /* of a byte that is no UTF-8 */
    if (w->at == w->valid_end) {
        w->valid_end = end;
    } else {
        size_t bytes = w->pre->scan ? w->pre->scan(*word, w->valid_end - w->at) : 0;
        end = w->at + bytes;
        if (!bytes) QB_TRY(match_pattern(w, &end));
    }
    *n_bytes = end - w->at;
    w->at = end;
    return QB_OK;
}

size_t qb_words_spell(const char *bytes, size_t n_bytes, char *dst)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        uint32_t c = qb__byte_to_code_point((uint8_t)bytes[i]);
        if (c >= 0x80) dst[n++] = (char)(0xc0 | c >> 6);
        dst[n++] = (char)(c >= 0x80 ? 0x80 | (c & 0x3f) : c);
    }
    return n;
}
