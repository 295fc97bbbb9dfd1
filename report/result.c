/* report/result.c - the table of keys, and records in memory; see result.h. */
#include "report/result.h"

#include "core/memory.h"

#include <math.h>
#include <string.h>

#define ROW(kind, member)                                                                          \
    {                                                                                              \
#member, QB_FIELD_##kind, offsetof(qb_result, member)                                      \
    }
#define TIMING(member)                                                                             \
    ROW(REAL, member.tok_per_s), ROW(INTERVAL, member.tok_per_s_ci95), ROW(REAL, member.p50_ms),   \
        ROW(REAL, member.p90_ms), ROW(REAL, member.p99_ms), ROW(COUNT, member.samples),            \
        ROW(REALS, member.samples_ms)

/* clang-format off */
const qb_result_field qb_result_fields[] = {
    ROW(TEXT, model.path), ROW(TEXT, model.name), ROW(TEXT, model.sha256), ROW(TEXT, model.arch),
    ROW(COUNT, model.n_layers), ROW(COUNT, model.d_model), ROW(COUNT, model.n_heads),
    ROW(COUNT, model.n_params), ROW(COUNT, model.vocab), ROW(COUNT, model.context),
    ROW(TEXT, model.softmax), ROW(TEXT, model.norm), ROW(TEXT, model.optimizer),
    ROW(COUNT, model.train_tokens),
    ROW(TEXT, text.name), ROW(TEXT, text.sha256), ROW(COUNT, text.bytes), ROW(COUNT, text.tokens),
    ROW(TEXT, text.tokenizer_sha256),
    ROW(TEXT, protocol.name), ROW(COUNT, protocol.context), ROW(COUNT, protocol.stride),
    ROW(COUNT, protocol.batch), ROW(COUNT, protocol.windows), ROW(COUNT, protocol.scored_tokens),
    ROW(TEXT, scheme.name), ROW(COUNT, scheme.weight_bits), ROW(TEXT, scheme.weight_axis),
    ROW(COUNT, scheme.act_bits), ROW(TEXT, scheme.act_axis), ROW(TEXT, scheme.act_scale),
    ROW(COUNT, scheme.out_bits),
    ROW(REAL, quality.ppl_full), ROW(REAL, quality.ppl), ROW(REAL, quality.penalty),
    ROW(INTERVAL, quality.penalty_ci95), ROW(REAL, quality.kl_mean), ROW(REAL, quality.kl_p99),
    ROW(REAL, quality.top1_agreement), ROW(REAL, quality.bits_per_byte),
    ROW(REAL, quality.word_ppl), ROW(REAL, quality.byte_ppl), ROW(REAL, quality.ppl_fake),
    ROW(REAL, quality.fake_max_logit_diff),
    ROW(REALS, quality.windows.n), ROW(REALS, quality.windows.nll),
    ROW(REALS, quality.windows.nll_full), ROW(REALS, quality.windows.kl),
    ROW(REALS, quality.windows.agree),
    ROW(TEXT, quality.nll_file.path), ROW(TEXT, quality.nll_file.sha256),
    ROW(COUNT, quality.nll_file.bytes),
    ROW(COUNT, coverage.linears), ROW(COUNT, coverage.linears_quantised),
    ROW(REAL, coverage.macs_share), ROW(REAL, coverage.bytes_share),
    ROW(TEXTS, coverage.kept_float),
    ROW(COUNT, speed.batch), ROW(COUNT, speed.context),
    ROW(COUNT, speed.decode_after),
    TIMING(speed.prefill), TIMING(speed.decode), TIMING(speed.full.prefill),
    TIMING(speed.full.decode),
    ROW(COUNT, memory.weights_bytes), ROW(COUNT, memory.full_weights_bytes),
    ROW(COUNT, memory.kv_bytes), ROW(COUNT, memory.scratch_bytes), ROW(COUNT, memory.peak_bytes),
    ROW(REAL, energy.j_per_token), ROW(TEXT, energy.source),
    ROW(TEXT, environment.device), ROW(TEXT, environment.cpu), ROW(COUNT, environment.cores),
    ROW(COUNT, environment.threads), ROW(TEXT, environment.features),
    ROW(TEXT, environment.kernels), ROW(TEXT, environment.os),
    ROW(TEXT, environment.kernel_version), ROW(TEXT, environment.hypervisor),
    ROW(TEXT, environment.governor), ROW(REAL, environment.load),
    ROW(COUNT, environment.memory_bytes), ROW(TEXT, environment.compiler),
    ROW(TEXT, environment.gpu.name), ROW(COUNT, environment.gpu.index),
    ROW(TEXT, environment.gpu.compute_capability), ROW(COUNT, environment.gpu.n_sms),
    ROW(COUNT, environment.gpu.memory_bytes), ROW(TEXT, environment.gpu.driver),
    ROW(TEXT, environment.gpu.cuda_driver), ROW(TEXT, environment.gpu.cuda_runtime),
    ROW(COUNT, environment.gpu.sm_mhz), ROW(COUNT, environment.gpu.sm_max_mhz),
    ROW(COUNT, environment.gpu.memory_mhz), ROW(REAL, environment.gpu.power_w),
    ROW(REAL, environment.gpu.power_limit_w), ROW(REAL, environment.gpu.power_capped_share),
    ROW(REAL, environment.gpu.temperature_c), ROW(TEXT, environment.gpu.throttle),
    ROW(TEXT, environment.gpu.ecc), ROW(COUNT, environment.gpu.other_processes),
    ROW(TEXT, trust.level), ROW(TEXTS, trust.reasons),
    ROW(TEXT, time_utc), ROW(TEXT, qbench_version), ROW(TEXT, git_commit), ROW(TEXT, command),
    {0}};
/* clang-format on */

void qb_result_init(qb_result *result)
{
    for (const qb_result_field *f = qb_result_fields; f->path; f++) {
        char *at = (char *)result + f->offset;
        switch (f->kind) {
        case QB_FIELD_TEXT:
            *(char **)at = NULL;
            break;
        case QB_FIELD_COUNT:
            *(int64_t *)at = -1;
            break;
        case QB_FIELD_REAL:
            *(double *)at = NAN;
            break;
        case QB_FIELD_INTERVAL:
            *(qb_interval *)at = (qb_interval){NAN, NAN};
            break;
        case QB_FIELD_TEXTS:
            *(qb_texts *)at = (qb_texts){0};
            break;
        case QB_FIELD_REALS:
            *(qb_reals *)at = (qb_reals){0};
            break;
        }
    }
}

void qb_result_deinit(qb_result *result)
{
    for (const qb_result_field *f = qb_result_fields; f->path; f++) {
        char *at = (char *)result + f->offset;
        if (f->kind == QB_FIELD_TEXT) qb_free(*(char **)at);
        if (f->kind == QB_FIELD_TEXTS) qb_texts_deinit((qb_texts *)at);
        if (f->kind == QB_FIELD_REALS) qb_free(((qb_reals *)at)->items);
    }
    qb_result_init(result);
}

void qb_result_windows_deinit(qb_result_windows *w)
{
    qb_reals *const lists[] = {&w->n, &w->nll, &w->nll_full, &w->kl, &w->agree};
    for (size_t i = 0; i < QB_COUNT(lists); i++) qb_free(lists[i]->items);
    *w = (qb_result_windows){0};
}

/* Bytes of the UTF-8 character at p, 0 where there is none (RFC 3629: no overlong forms, no
 * surrogates, nothing beyond U+10FFFF). */
static size_t utf8_length(const unsigned char *p)
{
    if (p[0] < 0x80) return 1;
    size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f)) return 0;
    if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) return 0;
    return n;
}

/* JSON and XML take UTF-8 alone, but a path may hold any bytes. */
static void make_utf8(char *text)
{
    for (char *p = text; *p;) {
        size_t n = utf8_length((const unsigned char *)p);
        if (!n) *p = '?';
        p += n ? n : 1;
    }
}

qb_status qb_result_set(char **text, const char *value)
{
    char *copy = NULL;
    if (value) {
        QB_TRY(qb_strdup(&copy, value));
        make_utf8(copy);
    }
    qb_free(*text);
    *text = copy;
    return QB_OK;
}

qb_status qb_result_read_text(const json_t *object, const char *key, char **out)
{
    const char *text = NULL;
    QB_TRY(qb_json_get_string(object, key, &text));
    return qb_result_set(out, text);
}

bool qb_result_is_full(const qb_result *r)
{
    return r->scheme.weight_bits < 0 && r->scheme.act_bits < 0;
}

bool qb_result_same_path(const qb_result *a, const qb_result *b)
{
    return a->model.path && b->model.path && !strcmp(a->model.path, b->model.path);
}

qb_status qb_texts_add(qb_texts *texts, const char *value)
{
    char *copy;
    QB_TRY(qb_realloc((void **)&texts->items, texts->n, texts->n + 1, sizeof *texts->items,
                      "list of texts"));
    QB_TRY(qb_strdup(&copy, value));
    make_utf8(copy);
    texts->items[texts->n++] = copy;
    return QB_OK;
}

void qb_texts_deinit(qb_texts *texts)
{
    for (size_t i = 0; i < texts->n; i++) qb_free(texts->items[i]);
    qb_free(texts->items);
    *texts = (qb_texts){0};
}

qb_status qb_reals_resize(qb_reals *reals, size_t n)
{
    double *items = NULL;
    if (n) QB_TRY(QB_NEW(&items, n, "list of numbers"));
    qb_free(reals->items);
    *reals = (qb_reals){items, n};
    return QB_OK;
}

qb_status qb_results_add(qb_results *results, qb_result **out)
{
    if (results->n == results->capacity) {
        size_t more = results->capacity ? 2 * results->capacity : 8;
        QB_TRY(qb_realloc((void **)&results->items, results->capacity, more, sizeof *results->items,
                          "results"));
        results->capacity = more;
    }
    *out = &results->items[results->n++];
    qb_result_init(*out);
    return QB_OK;
}

void qb_results_deinit(qb_results *results)
{
    for (size_t i = 0; i < results->n; i++) qb_result_deinit(&results->items[i]);
    qb_free(results->items);
    *results = (qb_results){0};
}
