/* report/compare.c - which records belong together, what must be equal in them, and the verdicts;
 * see compare.h. */
#include "report/compare_internal.h"

#include "core/memory.h"
#include "report/format.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

const char *const qb_verdict_names[] = {
    [QB_SAME] = "SAME", [QB_BETTER] = "BETTER", [QB_WORSE] = "WORSE", [QB_UNSURE] = "UNSURE"};

const char *const qb_quality_source_names[] = {[QB_FROM_NOTHING] = NULL,
                                               [QB_FROM_INTERVALS] = "intervals",
                                               [QB_FROM_WINDOWS] = "windows",
                                               [QB_FROM_TOKENS] = "tokens"};

/* ---- fields that must agree ---- */

static const char *const same_scheme[] = {
    "scheme.name",     "scheme.weight_bits", "scheme.weight_axis", "scheme.act_bits",
    "scheme.act_axis", "scheme.act_scale",   "scheme.out_bits",    NULL};
static const char *const same_model[] = {"model.name", NULL};
static const char *const same_shape[] = {"model.arch",  "model.n_layers", "model.d_model",
                                         "model.vocab", "model.n_params", NULL};
static const char *const same_text[] = {"text.sha256",
                                        "text.tokens",
                                        "text.tokenizer_sha256",
                                        "protocol.name",
                                        "protocol.context",
                                        "protocol.stride",
                                        "protocol.batch",
                                        "protocol.scored_tokens",
                                        NULL};
static const char *const same_machine[] = {"environment.device",
                                           "environment.cpu",
                                           "environment.gpu.name",
                                           "environment.threads",
                                           "speed.batch",
                                           "speed.context",
                                           NULL};

static const char *value_at(const qb_result *r, const char *path)
{
    const qb_result_field *f = qb_result_fields;
    while (f->path && strcmp(f->path, path)) f++;
    assert(f->path && "a field of the table");
    return (const char *)r + f->offset;
}

static bool is_count(const char *path)
{
    const qb_result_field *f = qb_result_fields;
    while (strcmp(f->path, path)) f++;
    return f->kind == QB_FIELD_COUNT;
}

static bool equal_at(const qb_result *a, const qb_result *b, const char *path)
{
    const char *x = value_at(a, path), *y = value_at(b, path);
    if (is_count(path)) return *(const int64_t *)x == *(const int64_t *)y;
    const char *s = *(char *const *)x, *t = *(char *const *)y;
    return s && t ? !strcmp(s, t) : s == t;
}

/* The first path at which they differ; NULL = none. */
static const char *first_difference(const qb_result *a, const qb_result *b,
                                    const char *const *paths)
{
    for (; *paths; paths++)
        if (!equal_at(a, b, *paths)) return *paths;
    return NULL;
}

enum { SHOWN = 80 };

static const char *show(const qb_result *r, const char *path, char text[SHOWN])
{
    const char *at = value_at(r, path);
    if (!is_count(path))
        snprintf(text, SHOWN, "%.70s", *(char *const *)at ? *(char *const *)at : "null");
    else if (*(const int64_t *)at < 0)
        snprintf(text, SHOWN, "null");
    else
        snprintf(text, SHOWN, "%" PRId64, *(const int64_t *)at);
    return text;
}

static const char *or_unnamed(const char *name)
{
    return name ? name : "without a name";
}

static qb_status refuse(const qb_compare_side *a, const qb_compare_side *b, const qb_pair *pair,
                        const char *path)
{
    char found[SHOWN], expected[SHOWN];
    return QB_FAIL(QB_ERR_FORMAT,
                   "%s: %s: found %s, expected %s as in %s (model %.60s, scheme %.60s)", b->name,
                   path, show(pair->b, path, found), show(pair->a, path, expected), a->name,
                   or_unnamed(pair->a->model.name), or_unnamed(pair->a->scheme.name));
}

static qb_status note(qb_pair *pair, const char *what, const char *path)
{
    char line[300], before[SHOWN], after[SHOWN];
    snprintf(line, sizeof line, "%s: %s was %s, is %s", what, path, show(pair->a, path, before),
             show(pair->b, path, after));
    return qb_texts_add(&pair->notes, line);
}

/* ---- verdicts ---- */

static qb_verdict judge(const qb_figure *figure, const qb_change *c, double margin)
{
    double low = c->change.ci95.low, high = c->change.ci95.high;
    if (isnan(low) || isnan(high)) return c->change.estimate == 0 ? QB_SAME : QB_UNSURE;
    if (low >= -margin && high <= margin) return QB_SAME;
    if (c->u_p > 0.05) return QB_UNSURE; /* the ranks see no difference */
    if (low > margin) return figure->better > 0 ? QB_BETTER : QB_WORSE;
    if (high < -margin) return figure->better > 0 ? QB_WORSE : QB_BETTER;
    return QB_UNSURE;
}

/* ---- one pair ---- */

/* Without what one of them did not measure; engines of another device hold other things. */
static qb_status compare_memory(qb_pair *pair)
{
    static const char *const same_device[] = {"environment.device", NULL};
    const qb_result *a = pair->a, *b = pair->b;
    const char *other = first_difference(a, b, same_device);
    if (other) return note(pair, "memory is not compared", other);
    bool with_kv = a->memory.kv_bytes >= 0 && b->memory.kv_bytes >= 0;
    bool with_scratch = a->memory.scratch_bytes >= 0 && b->memory.scratch_bytes >= 0;
    qb_change *c = &pair->changes[QB_FIGURE_MEMORY];
    c->a = qb__memory_bytes(a, with_kv, with_scratch);
    c->b = qb__memory_bytes(b, with_kv, with_scratch);
    if (c->a > 0 && !isnan(c->b)) c->change = qb_draws_exact(c->b / c->a - 1);
    return QB_OK;
}

static void compare_energy(qb_pair *pair)
{
    qb_change *c = &pair->changes[QB_FIGURE_ENERGY];
    c->a = pair->a->energy.j_per_token;
    c->b = pair->b->energy.j_per_token;
    if (c->a > 0) c->change.estimate = c->b / c->a - 1; /* one reading each: no interval */
}

static qb_status compare_speed(qb_pair *pair, const qb_compare_options *options)
{
    const qb_result *a = pair->a, *b = pair->b;
    if (isnan(a->speed.prefill.tok_per_s) || isnan(b->speed.prefill.tok_per_s)) return QB_OK;
    const char *other = first_difference(a, b, same_machine);
    if (other) return note(pair, "speed is not compared", other);
    QB_TRY(qb__compare_timing(&a->speed.prefill, &b->speed.prefill, options,
                              &pair->changes[QB_FIGURE_PREFILL]));
    QB_TRY(qb__compare_timing(&a->speed.decode, &b->speed.decode, options,
                              &pair->changes[QB_FIGURE_DECODE]));
    QB_TRY(qb__compare_gain(pair, QB_FIGURE_PREFILL_GAIN, options));
    QB_TRY(qb__compare_gain(pair, QB_FIGURE_DECODE_GAIN, options));
    compare_energy(pair);
    return QB_OK;
}

static qb_status note_weights(qb_pair *pair)
{
    const char *a = pair->a->model.sha256, *b = pair->b->model.sha256;
    char line[80];
    if (!a || !b || !strcmp(a, b)) return QB_OK; /* a folder has none */
    snprintf(line, sizeof line, "other weights: SHA-256 was %.12s..., is %.12s...", a, b);
    return qb_texts_add(&pair->notes, line);
}

static qb_status compare_quality(const qb_compare_side *a, const qb_compare_side *b,
                                 const qb_compare_options *options, qb_pair *pair)
{
    qb_result_windows tokens_a = {0}, tokens_b = {0};
    bool found = false;
    char why[300] = "";
    qb_status status = QB_OK;
    if (options->tokens)
        status = options->tokens->read(a, b, pair, &tokens_a, &tokens_b, &found, why);
    if (status == QB_OK && *why) status = qb_texts_add(&pair->notes, why);
    if (status == QB_OK)
        status = qb__compare_quality(pair, found ? &tokens_a : NULL, &tokens_b, options);
    qb_result_windows_deinit(&tokens_a);
    qb_result_windows_deinit(&tokens_b);
    return status;
}

static qb_status compare_pair(const qb_compare_side *a, const qb_compare_side *b,
                              const qb_compare_options *options, qb_pair *pair)
{
    const char *other = first_difference(pair->a, pair->b, same_shape);
    if (other && !options->across) return refuse(a, b, pair, other);
    bool has_text = pair->a->text.sha256 && pair->b->text.sha256;
    other = first_difference(pair->a, pair->b, same_text);
    if (has_text && other) return refuse(a, b, pair, other);
    if (has_text) QB_TRY(compare_quality(a, b, options, pair));
    QB_TRY(compare_speed(pair, options));
    QB_TRY(compare_memory(pair));
    if (!options->across) QB_TRY(note_weights(pair));
    for (size_t i = 0; i < QB_FIGURE_COUNT; i++) {
        const qb_figure *figure = &qb_figures[i];
        double margin = figure->margin ? figure->margin(options, pair->a) : 0;
        pair->changes[i].verdict = judge(figure, &pair->changes[i], margin);
    }
    return QB_OK;
}

/* ---- which records belong together ---- */

/* The model of record i is the n-th of its file, counted by names. */
static size_t model_number(const qb_results *results, size_t i)
{
    size_t number = 0;
    for (size_t k = 0; k < i; k++) {
        bool seen = equal_at(&results->items[k], &results->items[i], "model.name");
        for (size_t j = 0; j < k && !seen; j++)
            seen = equal_at(&results->items[j], &results->items[k], "model.name");
        number += !seen;
    }
    return number;
}

static bool belong_together(const qb_results *a, size_t i, const qb_results *b, size_t k,
                            bool across)
{
    if (first_difference(&a->items[i], &b->items[k], same_scheme)) return false;
    if (across) return model_number(a, i) == model_number(b, k);
    return !first_difference(&a->items[i], &b->items[k], same_model);
}

static qb_status add_only(const qb_result *r, qb_texts *texts)
{
    char name[200];
    snprintf(name, sizeof name, "%.90s, %.90s", or_unnamed(r->model.name),
             or_unnamed(r->scheme.name));
    return qb_texts_add(texts, name);
}

static qb_status match(const qb_results *a, const qb_results *b, bool across, bool *taken,
                       qb_comparison *out)
{
    for (size_t i = 0; i < a->n; i++) {
        size_t k = 0;
        while (k < b->n && (taken[k] || !belong_together(a, i, b, k, across))) k++;
        if (k == b->n) {
            QB_TRY(add_only(&a->items[i], &out->only_a));
            continue;
        }
        taken[k] = true;
        qb_pair *pair = &out->pairs[out->n++];
        *pair = (qb_pair){.a = &a->items[i], .b = &b->items[k]};
        const qb_draws none = {NAN, NAN, {NAN, NAN}, 0};
        for (size_t f = 0; f < QB_FIGURE_COUNT; f++)
            pair->changes[f] = (qb_change){NAN, NAN, none, none, NAN, QB_UNSURE};
    }
    for (size_t k = 0; k < b->n; k++)
        if (!taken[k]) QB_TRY(add_only(&b->items[k], &out->only_b));
    return QB_OK;
}

/* Says in which field the first records differ. */
static qb_status fail_no_pair(const qb_compare_side *a, const qb_compare_side *b, bool across)
{
    if (!a->results->n || !b->results->n)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found no records, expected at least one",
                       a->results->n ? b->name : a->name);
    qb_pair first = {.a = a->results->items, .b = b->results->items};
    const char *path = across ? NULL : first_difference(first.a, first.b, same_model);
    if (!path) path = first_difference(first.a, first.b, same_scheme);
    return refuse(a, b, &first, path ? path : same_model[0]);
}

static qb_status compare_all(const qb_compare_side *a, const qb_compare_side *b,
                             const qb_compare_options *options, qb_comparison *out)
{
    bool *taken;
    QB_TRY(QB_NEW_ZERO(&out->pairs, a->results->n, "pairs of records"));
    QB_TRY(QB_NEW_ZERO(&taken, b->results->n, "records"));
    qb_status status = match(a->results, b->results, options->across, taken, out);
    qb_free(taken);
    QB_TRY(status);
    if (!out->n) return fail_no_pair(a, b, options->across);
    for (size_t i = 0; i < out->n; i++) QB_TRY(compare_pair(a, b, options, &out->pairs[i]));
    return QB_OK;
}

qb_status qb_compare(const qb_compare_side *a, const qb_compare_side *b,
                     const qb_compare_options *options, qb_comparison *out)
{
    qb_comparison comparison = {.name_a = a->name, .name_b = b->name};
    qb_status status = compare_all(a, b, options, &comparison);
    if (status != QB_OK)
        qb_comparison_deinit(&comparison);
    else
        *out = comparison;
    return status;
}

void qb_comparison_deinit(qb_comparison *comparison)
{
    for (size_t i = 0; i < comparison->n; i++) qb_texts_deinit(&comparison->pairs[i].notes);
    qb_free(comparison->pairs);
    qb_texts_deinit(&comparison->only_a);
    qb_texts_deinit(&comparison->only_b);
    *comparison = (qb_comparison){0};
}
