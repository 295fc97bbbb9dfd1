/* tests/unit/test_tokenizer.c - pre-splitters, merging against a slow reference, special tokens,
 * round trips of any bytes, the serialised form. tokenizer.json: test_tokenizer_json.c. */
#include "support.h"
#include "token_checks.h"

#include "core/memory.h"
#include "core/rng.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- a vocabulary under construction ---- */

typedef struct maker {
    char texts[1024][32];
    const char *text_list[1024];
    size_t text_bytes[1024];
    uint8_t types[1024];
    float scores[1024];
    char merges[256][64];
    const char *merge_list[256];
    size_t merge_bytes[256];
    qb_tokenizer_spec spec;
} maker;

static int32_t add(maker *m, const char *text, qb_token_type type, float score)
{
    size_t id = m->spec.vocab++;
    assert_true(id < QB_COUNT(m->texts));
    snprintf(m->texts[id], sizeof m->texts[id], "%s", text);
    m->text_list[id] = m->texts[id];
    m->text_bytes[id] = strlen(text);
    m->types[id] = (uint8_t)type;
    m->scores[id] = score;
    return (int32_t)id;
}

static void add_merge(maker *m, const char *left, const char *right)
{
    size_t i = m->spec.n_merges++;
    snprintf(m->merges[i], sizeof m->merges[i], "%s %s", left, right);
    m->merge_list[i] = m->merges[i];
    m->merge_bytes[i] = strlen(m->merges[i]);
    char joined[64];
    snprintf(joined, sizeof joined, "%s%s", left, right);
    add(m, joined, QB_TOKEN_NORMAL, 0);
}

static void start(maker *m, qb_tokenizer_kind kind, const char *pre)
{
    *m = (maker){.spec = {.kind = kind, .pre = pre, .bos = -1, .eos = -1, .unk = -1}};
    m->spec.texts = m->text_list;
    m->spec.text_bytes = m->text_bytes;
    m->spec.types = m->types;
    m->spec.scores = kind == QB_TOKENIZER_SPM ? m->scores : NULL;
    m->spec.merges = m->merge_list;
    m->spec.merge_bytes = m->merge_bytes;
}

/* Ids 0..255 are the bytes in order; then merges over a, b, c and the space. */
static void start_bpe(maker *m, const char *pre)
{
    start(m, QB_TOKENIZER_BPE, pre);
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t c = qb__byte_to_code_point((uint8_t)byte);
        char text[3] = {(char)c};
        if (c >= 0x80) text[0] = (char)(0xc0 | c >> 6), text[1] = (char)(0x80 | (c & 0x3f));
        add(m, text, QB_TOKEN_NORMAL, 0);
    }
}

static void add_abc_merges(maker *m)
{
    static const char *const pairs[][2] = {{"a", "b"},   {"a", "a"},  {"b", "c"},   {"aa", "a"},
                                           {"ab", "ab"}, {"c", "ab"}, {"aa", "bc"}, {"Ġ", "a"},
                                           {"Ġ", "ab"},  {"b", "b"},  {"Ġ", "Ġ"},   {"abab", "c"}};
    for (size_t i = 0; i < QB_COUNT(pairs); i++) add_merge(m, pairs[i][0], pairs[i][1]);
}

/* <unk> <s> </s>, the 256 byte tokens, then pieces over a, b, c and the space. `crossing`: also one
 * with a space inside. */
static void start_spm(maker *m, bool crossing)
{
    start(m, QB_TOKENIZER_SPM, NULL);
    m->spec.unk = add(m, "<unk>", QB_TOKEN_UNKNOWN, 0);
    m->spec.bos = add(m, "<s>", QB_TOKEN_CONTROL, 0);
    m->spec.eos = add(m, "</s>", QB_TOKEN_CONTROL, 0);
    m->spec.add_bos = m->spec.add_space_prefix = true;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        add(m, text, QB_TOKEN_BYTE, 0);
    }
    static const char *const pieces[] = {"▁a", "ab",  "▁▁", "bc", "▁ab", "abc", "aa",
                                         "bb", "cab", "▁",  "a",  "b",   "c",   "é"};
    for (size_t i = 0; i < QB_COUNT(pieces); i++)
        add(m, pieces[i], QB_TOKEN_NORMAL, 2 - (float)(i / 2)); /* neighbours tie */
    if (crossing) add(m, "c▁", QB_TOKEN_NORMAL, 1.5f);
}

static qb_tokenizer *make(const maker *m)
{
    qb_tokenizer *t;
    QB_CHECK_OK(qb_tokenizer_create(&m->spec, &t));
    return t;
}

static maker shared; /* too large for the stack */

static qb_tokenizer *make_bpe(const char *pre)
{
    start_bpe(&shared, pre);
    add_abc_merges(&shared);
    return make(&shared);
}

static void check_round_trip(const qb_tokenizer *t, const char *text, size_t n_bytes)
{
    qb_tokens ids = {0};
    char *back;
    size_t back_bytes;
    QB_CHECK_OK(qb_tokenizer_encode(t, text, n_bytes, true, &ids));
    QB_CHECK_OK(qb_tokenizer_decode(t, ids.ids, ids.n, &back, &back_bytes));
    assert_int_equal(back_bytes, n_bytes);
    assert_memory_equal(back, text, n_bytes);
    qb_free(back);
    qb_tokens_deinit(&ids);
}

/* ---- pre-splitters ---- */

static void check_pieces(const char *pre, const char *text, const char *expected)
{
    pcre2_code *code;
    QB_CHECK_OK(qb__pre_compile(qb__pre_find(pre), &code));
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
    char got[512] = "";
    size_t n = strlen(text), at = 0, out = 0;
    while (at < n) {
        assert_true(pcre2_match(code, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK, match, NULL) >
                    0);
        size_t end = pcre2_get_ovector_pointer(match)[1];
        assert_true(end > at);
        out += (size_t)snprintf(got + out, sizeof got - out, "%s%.*s", at ? "|" : "",
                                (int)(end - at), text + at);
        at = end;
    }
    assert_string_equal(got, expected);
    pcre2_match_data_free(match);
    pcre2_code_free(code);
}

static void pre_splitters_cut_as_documented(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *text, *pieces;
    } cases[] = {
        {"gpt-2", "don't I'LL  x", "don|'t| I|'|LL| | x"},
        {"gpt-2", "a  \n b 12.5%", "a|  \n| b| 12|.|5|%"},
        {"gpt-2", "x   ", "x|   "},
        {"gpt-2", "a\u00a0b\u3000 c", "a|\u00a0|b|\u3000| c"},
        {"gpt-2", "a\302\205\302\205b\u180ec",
         "a|\302\205|\302\205|b|\u180e|c"},              /* U+180E: no space */
        {"smollm", "v12 a  34 b", "v|1|2| a|  |3|4| b"}, /* spaces before a digit stay together */
        {"smollm", "x  y ٣٤", "x| | y| |٣|٤"},
        {"llama-bpe", "I'LL (don't) 12345", "I|'LL| (|don|'t|)| |123|45"},
        {"llama-bpe", "a\r\n\n  b\n\nc", "a|\r\n\n| | b|\n\n|c"},
        {"llama-bpe", "f(x);\n\ty", "f|(x|);\n|\ty"},
        /* as the Python package tokenizers 0.23 cuts */
        {"qwen2", "in 20245 WE'RE/\n\nx", "in| |2|0|2|4|5| WE|'RE|/\n\n|x"},
        {"qwen2", "x//\n\n/y  ЖЖж ʰA 日本語a  \n b", "x|//\n\n|/y| | ЖЖж| ʰA| 日本語a|  \n| b"},
        {"tekken", "in 20245 WE'RE/\n\nx", "in| |2|0|2|4|5| WE|'RE|/\n\n|x"},
        {"tekken", "camelCase HTTPServer ABC's Don'T", "camel|Case| HTTPServer| ABC|'s| Don|'T"},
        {"tekken", "x//\n\n/y  ЖЖж ʰA 日本語a  \n b", "x|//\n\n/|y| | ЖЖж| ʰ|A| 日本語a|  \n| b"},
        {"gpt-4o", "in 20245 WE'RE/\n\nx", "in| |202|45| WE'RE|/\n\n|x"},
        {"gpt-4o", "camelCase HTTPServer ABC's Don'T", "camel|Case| HTTPServer| ABC's| Don'T"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++)
        check_pieces(cases[i].pre, cases[i].text, cases[i].pieces);
    assert_ptr_equal(qb__pre_find("llama3"), qb__pre_find("llama-bpe"));
    assert_null(qb__pre_find(""));
    assert_null(qb__pre_find("llama"));
    assert_null(qb__pre_find("default"));
    assert_true(qb_tokenizer_pre_ignores_merges("llama-bpe"));
    assert_false(qb_tokenizer_pre_ignores_merges("gpt-2"));
}

/* As they stand in the tokenizer.json of Qwen2, Mistral Nemo and GPT-4o. */
static void split_patterns_have_a_row(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *regex;
    } cases[] = {
        {"qwen2", "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^"
                  "\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
        {"tekken", "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p"
                   "{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo"
                   "}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+["
                   "\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
        {"gpt-4o", "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p"
                   "{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]"
                   "?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?"
                   "i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]"
                   "*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++)
        assert_ptr_equal(qb__pre_find_hf_regex(cases[i].regex), qb__pre_find(cases[i].pre));
    assert_null(qb__pre_find_hf_regex(cases[0].regex + 1));
}

static void byte_alphabet_is_a_bijection(void **state)
{
    (void)state;
    for (int byte = 0; byte < 256; byte++)
        assert_int_equal(qb__code_point_to_byte(qb__byte_to_code_point((uint8_t)byte)), byte);
    assert_int_equal(qb__byte_to_code_point(' '), 0x120);
    assert_int_equal(qb__byte_to_code_point('\n'), 0x10a);
    assert_int_equal(qb__byte_to_code_point(0xad), 0x143);
    assert_int_equal(qb__code_point_to_byte(0x144), -1);
    assert_int_equal(qb__code_point_to_byte(0xa0), -1);
}

/* ---- merging ---- */

/* The definition, word by word: again and again the pair of lowest rank, leftmost first. */
static size_t slow_bpe(const qb_tokenizer *t, const char *word, size_t n, int32_t *ids)
{
    for (size_t i = 0; i < n; i++) ids[i] = t->byte_id[(uint8_t)word[i]];
    for (;;) {
        size_t best = SIZE_MAX, best_at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t rank = 0; rank < t->n_merges && rank < best; rank++)
                if ((int32_t)t->merges[rank].left == ids[i] &&
                    (int32_t)t->merges[rank].right == ids[i + 1])
                    best = rank, best_at = i;
        if (best == SIZE_MAX) return n;
        ids[best_at] = 256 + (int32_t)best; /* merge r made token 256 + r */
        memmove(ids + best_at + 1, ids + best_at + 2, (n - best_at - 2) * sizeof *ids);
        n--;
    }
}

static void bpe_merges_as_the_definition(void **state)
{
    (void)state;
    qb_tokenizer *t = make_bpe("gpt-2");
    for (uint64_t i = 0; i < 2000; i++) {
        char word[64];
        int32_t want[64];
        size_t n = 1 + qb_rng_below(1, QB_STREAM_TEST, i, 60);
        for (size_t k = 0; k < n; k++)
            word[k] = "abc"[qb_rng_below(2, QB_STREAM_TEST, i * 64 + k, 3)];
        word[n] = 0;
        size_t n_want = slow_bpe(t, word, n, want);
        qb_test_ids(t, word, false, n_want, want);
    }
    qb_test_ids(t, "aaaaa", false, 2, (int32_t[]){257, 259}); /* ties from the left: aa aa a */
    qb_tokenizer_destroy(t);
}

static void ignore_merges_takes_known_words_whole(void **state)
{
    (void)state;
    for (int ignore = 0; ignore < 2; ignore++) {
        start_bpe(&shared, "gpt-2");
        add_merge(&shared, "b", "c");
        add_merge(&shared, "a", "b");
        int32_t abc = add(&shared, "Ġabc", QB_TOKEN_NORMAL, 0); /* no merge leads here */
        shared.spec.ignore_merges = ignore;
        qb_tokenizer *t = make(&shared);
        if (ignore)
            qb_test_ids(t, "abc abc", false, 3, (int32_t[]){'a', 256, abc});
        else
            qb_test_ids(t, "abc abc", false, 5, (int32_t[]){'a', 256, ' ', 'a', 256});
        qb_tokenizer_destroy(t);
    }
}

/* A word of 262,144 letters, and as many spaces: n log n, so this ends at once. */
static void long_words_are_not_quadratic(void **state)
{
    (void)state;
    enum { N = 1 << 18 };
    char *text = malloc(N + 1);
    qb_tokenizer *tokenizers[3] = {make_bpe("gpt-2")};
    tokenizers[1] = make_bpe("llama-bpe");
    start_spm(&shared, true);
    tokenizers[2] = make(&shared);
    for (size_t k = 0; k < QB_COUNT(tokenizers); k++) {
        for (int c = 0; c < 4; c++) {
            memset(text, " ab."[c], N);
            if (c == 2) text[N - 1] = 'c';
            check_round_trip(tokenizers[k], text, N);
        }
        qb_tokenizer_destroy(tokenizers[k]);
    }
    free(text);
}

/* The definition: again and again the pair that makes the best token, leftmost first. */
static size_t slow_spm(const qb_tokenizer *t, const char *text, int32_t *ids)
{
    char symbols[256][32];
    size_t n = 0, n_bytes = strlen(text);
    for (size_t at = 0; at < n_bytes; n++) {
        size_t length = qb__utf8_length(text + at, n_bytes - at);
        snprintf(symbols[n], 32, "%.*s", (int)length, text + at);
        at += length;
    }
    for (;;) {
        int32_t best = -1;
        size_t best_at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            char joined[64];
            snprintf(joined, sizeof joined, "%.31s%.31s", symbols[i], symbols[i + 1]);
            int32_t id = qb__tokenizer_find(t, joined, strlen(joined));
            if (id >= 0 && (best < 0 || t->scores[id] > t->scores[best])) best = id, best_at = i;
        }
        if (best < 0) break;
        strncat(symbols[best_at], symbols[best_at + 1], 16);
        memmove(symbols + best_at + 1, symbols + best_at + 2, (n - best_at - 2) * 32);
        n--;
    }
    for (size_t i = 0; i < n; i++) ids[i] = qb__tokenizer_find(t, symbols[i], strlen(symbols[i]));
    return n;
}

static void spm_merges_as_the_definition(void **state)
{
    (void)state;
    for (int crossing = 0; crossing < 2; crossing++) {
        start_spm(&shared, crossing);
        qb_tokenizer *t = make(&shared);
        assert_int_equal(t->splits_at_spaces, !crossing);
        for (uint64_t i = 0; i < 2000; i++) {
            char text[64], escaped[256] = "▁";
            int32_t want[256];
            size_t n = 1 + qb_rng_below(3, QB_STREAM_TEST, i, 40);
            for (size_t k = 0; k < n; k++) {
                text[k] = "abc "[qb_rng_below(4, QB_STREAM_TEST, i * 64 + k, 4)];
                strcat(escaped, text[k] == ' ' ? "▁" : (char[]){text[k], 0});
            }
            text[n] = 0;
            size_t n_want = slow_spm(t, escaped, want);
            qb_test_ids(t, text, false, n_want, want);
        }
        qb_tokenizer_destroy(t);
    }
}

static void spm_falls_back_to_bytes(void **state)
{
    (void)state;
    start_spm(&shared, false);
    qb_tokenizer *t = make(&shared);
    int32_t space = qb__tokenizer_find(t, "▁", 3), e = qb__tokenizer_find(t, "é", 2);
    qb_test_ids(t, "é", false, 2, (int32_t[]){space, e});
    qb_test_ids(t, "ö", false, 3, (int32_t[]){space, 3 + 0xc3, 3 + 0xb6});
    qb_test_ids(t, "\xff", false, 2, (int32_t[]){space, 3 + 0xff});
    qb_test_ids(t, "<s>ab", true, 2, (int32_t[]){1, qb__tokenizer_find(t, "▁ab", 5)});
    qb_test_ids(t, "", true, 0, NULL);
    check_round_trip(t, "<s> ab</s>c", 11);
    qb_tokenizer_destroy(t);
    shared.text_bytes[3 + 0xff] = 0; /* no token for this byte: unk, and the space stays */
    t = make(&shared);
    qb_test_decoded(t, "\xff ab", "<unk> ab");
    qb_tokenizer_destroy(t);
    shared.spec.vocab = 200; /* bytes are missing now: allowed with unk only */
    t = make(&shared);
    qb_test_ids(t, "\xff", false, 4, (int32_t[]){0, 3 + 0x96, 3 + 0x81, 0}); /* the space too */
    qb_tokenizer_destroy(t);
    shared.spec.unk = -1;
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_FORMAT);
}

/* ---- special tokens ---- */

static void longest_special_token_wins(void **state)
{
    (void)state;
    start_bpe(&shared, "gpt-2");
    int32_t end = add(&shared, "<|end|>", QB_TOKEN_CONTROL, 0);
    int32_t ending = add(&shared, "<|end|>ing", QB_TOKEN_CONTROL, 0);
    int32_t user = add(&shared, "<|e", QB_TOKEN_USER, 0);
    qb_tokenizer *t = make(&shared);
    qb_test_ids(t, "<|end|>x", true, 2, (int32_t[]){end, 'x'});
    qb_test_ids(t, "<|end|>ing<|end|>in", true, 4, (int32_t[]){ending, end, 'i', 'n'});
    qb_test_ids(t, "a<|e<|end|", true, 6, (int32_t[]){'a', user, user, 'n', 'd', '|'});
    qb_test_ids(t, "<|end|>", false, 5, (int32_t[]){user, 'n', 'd', '|', '>'});
    assert_string_equal(qb_tokenizer_token_bytes(t, ending, NULL), "<|end|>ing");
    assert_string_equal(qb_tokenizer_token_bytes(t, 100000, NULL), "");
    assert_string_equal(qb_tokenizer_token_bytes(t, -1, NULL), "");
    qb_tokenizer_destroy(t);
}

static void space_is_put_before_each_segment(void **state)
{
    (void)state;
    start_bpe(&shared, "gpt-2");
    int32_t special = add(&shared, "<s>", QB_TOKEN_CONTROL, 0);
    shared.spec.add_space_prefix = true;
    qb_tokenizer *t = make(&shared);
    qb_test_ids(t, "a<s>a<s> a", true, 8,
                (int32_t[]){' ', 'a', special, ' ', 'a', special, ' ', 'a'});
    qb_tokenizer_destroy(t);
}

static void missing_bytes_give_nothing(void **state)
{
    (void)state;
    start_bpe(&shared, "gpt-2");
    shared.texts[0xff][0] = 0; /* the last byte has no token now */
    shared.text_bytes[0xff] = 0;
    qb_tokenizer *t = make(&shared);
    qb_test_ids(t, "a\xff\xfe\xff", false, 2, (int32_t[]){'a', 0xfe});
    qb_tokenizer_destroy(t);
}

/* ---- any bytes ---- */

/* Noise, letters, spaces, pieces of UTF-8, special tokens cut short; no U+2581, which SentencePiece
 * reads as a space. */
static void fill_text(char *text, size_t n, uint64_t seed)
{
    static const char *const parts[] = {"ab",       "abc",  " ",       "  ",   "\n",
                                        "é",        "日本", "😀",       "\xc3", "\xf0\x9f",
                                        "7",        "'s",   "<|end|>", "<|e",  "\xed\xa0\x80",
                                        "\xe2\x97", "a",    "\xc0\xaf"};
    size_t at = 0;
    for (uint64_t i = 0; at < n; i++) {
        uint32_t r = qb_rng_u32(seed, QB_STREAM_TEST, i);
        const char *part = parts[r % QB_COUNT(parts)];
        size_t bytes = r >> 24 < 64 ? 1 : strlen(part);
        if (bytes > n - at) bytes = n - at;
        if (r >> 24 < 64)
            text[at] = (char)(r >> 8);
        else
            memcpy(text + at, part, bytes);
        at += bytes;
    }
}

static void any_bytes_round_trip(void **state)
{
    (void)state;
    static const char *const pres[] = {"gpt-2",  "smollm", "llama-bpe", "qwen2",
                                       "tekken", "gpt-4o", NULL};
    for (size_t p = 0; p < QB_COUNT(pres); p++) {
        if (pres[p]) {
            start_bpe(&shared, pres[p]);
            add_abc_merges(&shared);
        } else {
            start_spm(&shared, false);
        }
        add(&shared, "<|end|>", QB_TOKEN_CONTROL, 0);
        qb_tokenizer *t = make(&shared);
        for (uint64_t seed = 0; seed < 500; seed++) {
            size_t n = qb_rng_below(seed, QB_STREAM_TEST, 1 << 20, 400);
            char *text = qb_test_guarded_alloc(n + !n); /* a read past the end faults */
            fill_text(text, n, seed);
            check_round_trip(t, text, n);
            qb_test_guarded_free(text, n + !n);
        }
        qb_tokenizer_destroy(t);
    }
}

static void utf8_lengths(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        size_t n, length;
    } cases[] = {
        {"a", 1, 1},
        {"\xc3\xa9", 2, 2},
        {"\xc3\xa9", 1, 0},
        {"\xc1\xbf", 2, 0},
        {"\xe0\xa0\x80", 3, 3},
        {"\xe0\x9f\xbf", 3, 0},
        {"\xed\x9f\xbf", 3, 3},
        {"\xed\xa0\x80", 3, 0},
        {"\xf0\x90\x80\x80", 4, 4},
        {"\xf0\x8f\xbf\xbf", 4, 0},
        {"\xf4\x8f\xbf\xbf", 4, 4},
        {"\xf4\x90\x80\x80", 4, 0},
        {"\xf5\x80\x80\x80", 4, 0},
        {"\xf0\x90\x80", 3, 0},
        {"\x80", 1, 0},
        {"\xe2\x82\x28", 3, 0},
        {"\xf0\x9f\x98\x28", 4, 0},
        {"", 0, 0},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++)
        assert_int_equal(qb__utf8_length(cases[i].s, cases[i].n), cases[i].length);
}

/* ---- the serialised form ---- */

static qb_tokenizer *make_kind(int kind)
{
    if (kind == 0) return make_bpe("smollm");
    start_spm(&shared, false);
    return make(&shared);
}

static void serialised_form_round_trips(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        qb_tokenizer *t = make_kind(kind), *back;
        uint8_t *data;
        size_t bytes;
        QB_CHECK_OK(qb_tokenizer_serialize(t, &data, &bytes));
        QB_CHECK_OK(qb_tokenizer_deserialize(data, bytes, &back));
        assert_string_equal(qb_tokenizer_sha256(t), qb_tokenizer_sha256(back));
        assert_int_equal(qb_tokenizer_bos(back), qb_tokenizer_bos(t));
        assert_int_equal(qb_tokenizer_eos(back), qb_tokenizer_eos(t));
        assert_int_equal(qb_tokenizer_add_bos(back), qb_tokenizer_add_bos(t));
        assert_int_equal(qb_tokenizer_vocab(back), qb_tokenizer_vocab(t));
        assert_string_equal(qb_tokenizer_pre(back), kind ? "sentencepiece" : "smollm");
        check_round_trip(back, "ab abc aab", 10);
        for (size_t n = 0; n < bytes; n++) { /* every truncation is refused */
            uint8_t *cut = qb_test_guarded_alloc(n + !n);
            memcpy(cut, data, n);
            qb_tokenizer *none;
            assert_int_not_equal(qb_tokenizer_deserialize(cut, n, &none), QB_OK);
            qb_test_guarded_free(cut, n + !n);
        }
        for (uint64_t i = 0; i < 1000; i++) { /* a flipped bit is refused or harmless */
            size_t bit = qb_rng_below(5, QB_STREAM_TEST, i, bytes * 8);
            data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            qb_tokenizer *flipped = NULL;
            if (qb_tokenizer_deserialize(data, bytes, &flipped) == QB_OK) {
                qb_tokens ids = {0};
                QB_CHECK_OK(qb_tokenizer_encode(flipped, "ab \xff", 4, true, &ids));
                qb_tokens_deinit(&ids);
            }
            qb_tokenizer_destroy(flipped);
            data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        qb_free(data);
        qb_tokenizer_destroy(back);
        qb_tokenizer_destroy(t);
    }
}

static void bad_specs_are_refused(void **state)
{
    (void)state;
    qb_tokenizer *t = NULL;
    start_bpe(&shared, "no-such-splitter");
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_UNSUPPORTED);
    assert_non_null(strstr(qb_error_message(), "no-such-splitter"));
    start_bpe(&shared, "gpt-2");
    add_merge(&shared, "a", "b");
    add(&shared, "ab", QB_TOKEN_NORMAL, 0);
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_FORMAT); /* twice the same */
    start_bpe(&shared, "gpt-2");
    add_merge(&shared, "a", "b");
    shared.spec.vocab--;
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_FORMAT); /* makes no token */
    start_bpe(&shared, "gpt-2");
    shared.spec.eos = 256;
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_FORMAT);
    start_bpe(&shared, "gpt-2");
    shared.spec.add_bos = true;
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_FORMAT);
    start_spm(&shared, false);
    shared.scores[5] = 0.0f / 0.0f;
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_FORMAT);
    shared.spec.vocab = 0;
    assert_int_equal(qb_tokenizer_create(&shared.spec, &t), QB_ERR_FORMAT);
    assert_null(t);
}

static void every_failed_allocation_is_reported(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        qb_tokenizer_destroy(make_kind(kind)); /* leaves the spec in `shared` */
        size_t live = qb_memory_live_blocks();
        for (size_t n = 1;; n++) {
            qb_tokenizer *t = NULL;
            qb_tokens ids = {0};
            char *back = NULL;
            size_t back_bytes;
            qb_memory_fail_at(n);
            qb_status status = qb_tokenizer_create(&shared.spec, &t);
            if (status == QB_OK) status = qb_tokenizer_encode(t, "ab abc é", 9, true, &ids);
            if (status == QB_OK)
                status = qb_tokenizer_decode(t, ids.ids, ids.n, &back, &back_bytes);
            qb_memory_fail_at(0);
            qb_tokens_deinit(&ids);
            qb_free(back);
            qb_tokenizer_destroy(t);
            assert_int_equal(qb_memory_live_blocks(), live);
            if (status == QB_OK) break;
            assert_int_equal(status, QB_ERR_MEMORY);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pre_splitters_cut_as_documented),
        cmocka_unit_test(split_patterns_have_a_row),
        cmocka_unit_test(byte_alphabet_is_a_bijection),
        cmocka_unit_test(bpe_merges_as_the_definition),
        cmocka_unit_test(ignore_merges_takes_known_words_whole),
        cmocka_unit_test(long_words_are_not_quadratic),
        cmocka_unit_test(spm_merges_as_the_definition),
        cmocka_unit_test(spm_falls_back_to_bytes),
        cmocka_unit_test(longest_special_token_wins),
        cmocka_unit_test(space_is_put_before_each_segment),
        cmocka_unit_test(missing_bytes_give_nothing),
        cmocka_unit_test(any_bytes_round_trip),
        cmocka_unit_test(utf8_lengths),
        cmocka_unit_test(serialised_form_round_trips),
        cmocka_unit_test(bad_specs_are_refused),
        cmocka_unit_test(every_failed_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
