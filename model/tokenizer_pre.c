/* model/tokenizer_pre.c - the pre-splitters of byte-level BPE: one table row each.
 *
 * White space is Unicode's White_Space property written out, because PCRE2's own \s also takes
 * U+180E, which is none since Unicode 6.3. */
#include "model/tokenizer_internal.h"

#include "core/memory.h"

#include <stdio.h>
#include <string.h>

#define WS "\\t-\\r\\x{85}\\p{Z}"
#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
/* Of the Split patterns and, with white space written out, of ours. */
#define HF_BLANKS "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define BLANKS "[" WS "]*[\\r\\n]+|[" WS "]+(?![^" WS "])|[" WS "]+"
/* A word of capitals or title case before small letters, and one without any: o200k_base. */
#define CASED_START "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED_END "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED_WORDS(suffix)                                                                        \
    CASED_START "*" CASED_END "+" suffix "|" CASED_START "+" CASED_END "*" suffix
#define AFTER_WORD "(?i:" CONTRACTIONS ")?"

static const qb__pre rows[] = {
    {.name = "gpt-2",
     .hf_regex =
         "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     .hf_byte_level = true,
     .pattern = CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+"
                             "|[" WS "]+(?![^" WS "])|[" WS "]+",
     .scan = qb__scan_gpt2},
    /* Digits are cut out one by one first and the GPT-2 pattern sees what lies between, so for its
     * lookahead the text ends at a digit: hence \p{N} in the lookahead's class. */
    {.name = "smollm",
     .hf_digits = true,
     .pattern = "\\p{N}|" CONTRACTIONS "| ?\\p{L}+| ?[^" WS "\\p{L}\\p{N}]+"
                "|[" WS "]+(?![^" WS "\\p{N}])|[" WS "]+",
     .scan = qb__scan_smollm},
    {.name = "llama-bpe",
     .aliases = "llama3,llama-v3",
     .hf_regex = "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
                 "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" HF_BLANKS,
     .gguf_ignore_merges = true,
     .pattern = "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" BLANKS},
    {.name = "qwen2",
     .hf_regex = "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                 "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" HF_BLANKS,
     .pattern = "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
                "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" BLANKS},
    {.name = "tekken", /* Mistral Nemo */
     .hf_regex = CASED_WORDS("") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" HF_BLANKS,
     .gguf_ignore_merges = true,
     .pattern = CASED_WORDS("") "|\\p{N}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" BLANKS},
    {.name = "gpt-4o",
     .aliases = "llama4",
     .hf_regex = CASED_WORDS(AFTER_WORD) "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" HF_BLANKS,
     .pattern = CASED_WORDS(AFTER_WORD) "|\\p{N}{1,3}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" BLANKS},
};

static bool in_list(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; p && n; p = strchr(p, ',')) {
        if (*p == ',') p++;
        if (!strncmp(p, word, n) && (p[n] == ',' || !p[n])) return true;
    }
    return false;
}

const qb__pre *qb__pre_find(const char *name)
{
    for (size_t i = 0; i < QB_COUNT(rows); i++)
        if (!strcmp(rows[i].name, name) || in_list(rows[i].aliases, name)) return &rows[i];
    return NULL;
}

const qb__pre *qb__pre_find_hf_regex(const char *regex)
{
    for (size_t i = 0; i < QB_COUNT(rows); i++)
        if (rows[i].hf_regex && !strcmp(rows[i].hf_regex, regex)) return &rows[i];
    return NULL;
}

const qb__pre *qb__pre_find_hf_digits(void)
{
    for (size_t i = 0; i < QB_COUNT(rows); i++)
        if (rows[i].hf_digits) return &rows[i];
    return NULL;
}

const qb__pre *qb__pre_find_hf_byte_level(void)
{
    for (size_t i = 0; i < QB_COUNT(rows); i++)
        if (rows[i].hf_byte_level) return &rows[i];
    return NULL;
}

const char *qb__pre_names(void)
{
    return "gpt-2, smollm, llama-bpe, qwen2, tekken or gpt-4o";
}

bool qb_tokenizer_pre_ignores_merges(const char *pre)
{
    const qb__pre *row = qb__pre_find(pre);
    return row && row->gguf_ignore_merges;
}

static void *alloc_for_pcre(PCRE2_SIZE bytes, void *context)
{
    (void)context;
    void *block;
    return qb_alloc(&block, bytes, 1, "pre-splitter") == QB_OK ? block : NULL;
}

static void free_for_pcre(void *block, void *context)
{
    (void)context;
    qb_free(block);
}

qb_status qb__pre_compile(const qb__pre *pre, pcre2_code **out)
{
    pcre2_general_context *general =
        pcre2_general_context_create(alloc_for_pcre, free_for_pcre, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    int code = PCRE2_ERROR_HEAP_FAILED;
    PCRE2_SIZE at = 0;
    pcre2_code *compiled = NULL;
    if (context)
        compiled = pcre2_compile((PCRE2_SPTR)pre->pattern, PCRE2_ZERO_TERMINATED,
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, &code,
                                 &at, context);
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    if (!compiled)
        return QB_FAIL(QB_ERR_MEMORY, "pre-splitter %s: PCRE2 error %d at %zu", pre->name, code,
                       (size_t)at);
    /* Where no executable memory can be had, the interpreter gives the same pieces. */
    (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
    *out = compiled;
    return QB_OK;
}

bool qb_tokenizer_regex(char *version, unsigned capacity)
{
    char text[64] = "";
    uint32_t jit = 0;
    pcre2_config(PCRE2_CONFIG_VERSION, text); /* "10.42 2022-12-11", at most 24 bytes */
    pcre2_config(PCRE2_CONFIG_JIT, &jit);
    snprintf(version, capacity, "%.*s", (int)strcspn(text, " "), text);
    return jit;
}
