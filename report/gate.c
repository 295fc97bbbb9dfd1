/* report/gate.c - limits, where they come from, and the judgement; see gate.h. */
#include "report/gate.h"

#include "core/memory.h"
#include "core/nearest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const qb_outcome_names[] = {
    [QB_KEPT] = "kept", [QB_BROKEN] = "broken", [QB_UNDECIDED] = "undecided"};

/* clang-format off */
const qb_limit qb_limits[QB_LIMIT_COUNT] = {
    [QB_LIMIT_PPL_DELTA] =     {"max-ppl-delta", {QB_FIGURE_PPL, QB_FIGURE_COUNT}, false, true, true, false},
    [QB_LIMIT_PENALTY] =       {"max-penalty", {QB_FIGURE_PENALTY, QB_FIGURE_COUNT}, true, false, true, false},
    [QB_LIMIT_KL] =            {"max-kl", {QB_FIGURE_KL, QB_FIGURE_COUNT}, true, false, true, false},
    [QB_LIMIT_SLOWDOWN] =      {"max-slowdown", {QB_FIGURE_PREFILL, QB_FIGURE_DECODE}, false, true, false, true},
    [QB_LIMIT_SPEEDUP_LOSS] =  {"max-speedup-loss", {QB_FIGURE_PREFILL_GAIN, QB_FIGURE_DECODE_GAIN}, false, true, false, true},
    [QB_LIMIT_MEMORY_GROWTH] = {"max-memory-growth", {QB_FIGURE_MEMORY, QB_FIGURE_COUNT}, false, true, false, false},
    [QB_LIMIT_TOP1] =          {"min-top1", {QB_FIGURE_TOP1, QB_FIGURE_COUNT}, true, true, false, true},
};
/* clang-format on */

/* ---- amounts ---- */

qb_status qb_amount_parse(const char *text, const char *what, qb_amount *out)
{
    char *end;
    double value = strtod(text, &end);
    bool percent = end != text && *end == '%' && !end[1];
    if (end == text || (*end && !percent) || !(value >= 0) || isinf(value))
        return QB_FAIL(QB_ERR_USAGE,
                       "%s: found '%.40s', expected a number from 0 on, or one with %%", what,
                       text);
    *out = (qb_amount){percent ? value / 100 : value, percent};
    return QB_OK;
}

qb_status qb_gate_limit_set(qb_amount *limits, qb_limit_id id, const char *text, const char *what)
{
    qb_amount amount;
    QB_TRY(qb_amount_parse(text, what, &amount));
    if (amount.percent ? !qb_limits[id].percent : !qb_limits[id].plain)
        return QB_FAIL(QB_ERR_USAGE, "%s: found '%.40s', expected %s", what, text,
                       amount.percent ? "a number without %" : "a percentage, as 3%");
    if (qb_limits[id].share && amount.value > 1)
        return QB_FAIL(QB_ERR_USAGE, "%s: found '%.40s', expected at most 100%%", what, text);
    limits[id] = amount;
    return QB_OK;
}

static void unset(qb_amount *limits)
{
    for (size_t i = 0; i < QB_LIMIT_COUNT; i++) limits[i] = (qb_amount){NAN, false};
}

void qb_gate_limits_init(qb_gate_limits *limits)
{
    *limits = (qb_gate_limits){0};
    unset(limits->limits);
}

void qb_gate_limits_deinit(qb_gate_limits *limits)
{
    for (size_t i = 0; i < limits->n_schemes; i++) qb_free(limits->schemes[i].scheme);
    qb_free(limits->schemes);
    qb_gate_limits_init(limits);
}

/* ---- a limits file ---- */

static qb_status find_limit(const char *name, const char *where, qb_limit_id *out)
{
    qb_nearest nearest = qb_nearest_begin(name);
    for (size_t i = 0; i < QB_LIMIT_COUNT; i++) {
        qb_nearest_consider(&nearest, qb_limits[i].name);
        if (strcmp(qb_limits[i].name, name)) continue;
        *out = (qb_limit_id)i;
        return QB_OK;
    }
    return QB_FAIL(QB_ERR_FORMAT, "%s: no such limit: found '%.40s'%s%s", where, name,
                   nearest.word ? ", expected a known one: did you mean "
                                : ", expected a known one",
                   nearest.word ? nearest.word : "");
}

static qb_status read_limits(json_t *object, const char *where, qb_amount *limits)
{
    const char *name;
    json_t *value;
    if (!json_is_object(object))
        return QB_FAIL(QB_ERR_FORMAT, "%s: found no object, expected one of limits", where);
    json_object_foreach(object, name, value)
    {
        qb_limit_id id = QB_LIMIT_COUNT;
        char place[160], number[40];
        QB_TRY(find_limit(name, where, &id));
        snprintf(place, sizeof place, "%.100s.%s", where, name);
        if (json_is_null(value)) { /* of a scheme: not this one */
            limits[id] = (qb_amount){INFINITY, false};
            continue;
        }
        if (json_is_number(value))
            snprintf(number, sizeof number, "%.17g", json_number_value(value));
        else if (!json_is_string(value))
            return QB_FAIL(QB_ERR_FORMAT,
                           "%s: found neither text nor number, expected \"0.5%%\" or 0.3", place);
        const char *text = json_is_string(value) ? json_string_value(value) : number;
        char message[300];
        if (qb_gate_limit_set(limits, id, text, place) == QB_OK) continue;
        snprintf(message, sizeof message, "%s", qb_error_message());
        return QB_FAIL(QB_ERR_FORMAT, "%s",
                       message); /* not the command line, but a file is wrong */
    }
    return QB_OK;
}

static qb_status read_scheme(const char *scheme, json_t *object, qb_gate_limits *out)
{
    char where[80];
    QB_TRY(qb_realloc((void **)&out->schemes, out->n_schemes, out->n_schemes + 1,
                      sizeof *out->schemes, "limits of schemes"));
    qb_scheme_limits *own = &out->schemes[out->n_schemes];
    QB_TRY(qb_strdup(&own->scheme, scheme));
    out->n_schemes++;
    unset(own->limits);
    snprintf(where, sizeof where, "schemes.%.60s", scheme);
    return read_limits(object, where, own->limits);
}

static qb_status read_root(json_t *root, qb_gate_limits *out)
{
    const char *name;
    json_t *value, *scheme_value;
    const char *scheme;
    if (!json_is_object(root))
        return QB_FAIL(QB_ERR_FORMAT, "found no object, expected {\"limits\": {...}}");
    json_object_foreach(root, name, value)
    {
        if (!strcmp(name, "limits")) {
            QB_TRY(read_limits(value, "limits", out->limits));
        } else if (!strcmp(name, "schemes") && json_is_object(value)) {
            json_object_foreach(value, scheme, scheme_value)
                QB_TRY(read_scheme(scheme, scheme_value, out));
        } else {
            return QB_FAIL(
                QB_ERR_FORMAT,
                "%.40s: found another key or kind, expected the keys limits and schemes, objects",
                name);
        }
    }
    return QB_OK;
}

/* Frees the root. */
static qb_status take_root(json_t *root, const char *what, qb_gate_limits *out)
{
    qb_status status = read_root(root, out);
    json_decref(root);
    return status == QB_OK ? QB_OK : qb_error_prefix(status, what);
}

enum { MAX_LIMITS_BYTES = 1 << 20 };

qb_status qb_gate_limits_parse(const char *text, size_t bytes, const char *what,
                               qb_gate_limits *out)
{
    json_t *root;
    QB_TRY(qb_json_parse(text, bytes, MAX_LIMITS_BYTES, what, &root));
    return take_root(root, what, out);
}

qb_status qb_gate_limits_read(const char *path, qb_gate_limits *out)
{
    json_t *root;
    QB_TRY(qb_json_read_file(path, MAX_LIMITS_BYTES, &root));
    return take_root(root, path, out);
}

/* ---- judgement ---- */

/* As if more were worse and the limit a greatest value. */
static qb_draws towards_worse(const qb_judgement *j, double *limit)
{
    const qb_change *c = &j->pair->changes[j->figure];
    const qb_figure *figure = &qb_figures[j->figure];
    bool of_b = qb_limits[j->limit].of_b_alone;
    qb_draws draws = of_b ? c->level : c->change;
    *limit = j->amount.value;
    if (!of_b && figure->relative && !j->amount.percent) *limit /= c->a; /* given in the unit */
    if (figure->better > 0) {
        draws.estimate = -draws.estimate;
        if (of_b) *limit = -*limit;
    }
    return draws;
}

static void judge(qb_judgement *j)
{
    double limit;
    qb_draws draws = towards_worse(j, &limit), mirrored = draws;
    j->p = qb_draws_p_at_most(&draws, limit);
    j->outcome = QB_UNDECIDED;
    mirrored.estimate = -draws.estimate;
    double p_above = qb_draws_p_at_most(&mirrored, -limit);
    if (p_above < 0.05 || (draws.deviation == 0 && draws.estimate <= limit))
        j->outcome = QB_KEPT;
    else if (isnan(draws.estimate))
        j->why = "not measured in both on the same kind of machine";
    else if (isnan(j->p))
        j->why = "no interval: the files hold too few windows or samples";
    else
        j->why = "the noise is too large to decide";
}

/* With p corrected. Ranks that see no difference in speed have the last word. */
static void judge_broken(qb_judgement *j)
{
    if (j->outcome == QB_KEPT || !(j->p < 0.05)) return;
    if (j->pair->changes[j->figure].u_p > 0.05) return;
    j->outcome = QB_BROKEN;
    j->why = NULL;
}

static const qb_amount *limit_of(const qb_gate_limits *limits, const char *scheme, qb_limit_id id)
{
    for (size_t i = 0; scheme && i < limits->n_schemes; i++)
        if (!strcmp(limits->schemes[i].scheme, scheme) &&
            !isnan(limits->schemes[i].limits[id].value))
            return &limits->schemes[i].limits[id];
    return &limits->limits[id];
}

/* Full precision has no penalty, nothing to agree with and nothing to gain on. */
static bool applies(const qb_pair *pair, qb_limit_id id)
{
    bool is_full = pair->a->scheme.weight_bits < 0 && pair->a->scheme.act_bits < 0;
    return !is_full || !(qb_limits[id].of_b_alone || id == QB_LIMIT_SPEEDUP_LOSS);
}

static void add(const qb_pair *pair, qb_limit_id id, const qb_amount *amount, qb_gate *gate)
{
    for (size_t f = 0; f < 2; f++) {
        qb_figure_id figure = qb_limits[id].figures[f];
        if (figure == QB_FIGURE_COUNT) continue;
        gate->items[gate->n] =
            (qb_judgement){.pair = pair, .limit = id, .figure = figure, .amount = *amount};
        judge(&gate->items[gate->n++]);
    }
}

static qb_status correct(qb_gate *gate)
{
    double *p;
    size_t n = 0;
    QB_TRY(QB_NEW(&p, gate->n, "limits"));
    for (size_t i = 0; i < gate->n; i++)
        if (!isnan(gate->items[i].p)) p[n++] = gate->items[i].p;
    qb_status status = qb_holm(p, n);
    n = 0;
    for (size_t i = 0; i < gate->n; i++)
        if (!isnan(gate->items[i].p)) gate->items[i].p = p[n++];
    qb_free(p);
    return status;
}

qb_status qb_gate_judge(const qb_comparison *comparison, const qb_gate_limits *limits, bool strict,
                        qb_gate *out)
{
    qb_gate gate = {.comparison = comparison};
    QB_TRY(QB_NEW(&gate.items, comparison->n * QB_LIMIT_COUNT * 2, "limits"));
    for (size_t i = 0; i < comparison->n; i++)
        for (size_t id = 0; id < QB_LIMIT_COUNT; id++) {
            const qb_pair *pair = &comparison->pairs[i];
            const qb_amount *amount = limit_of(limits, pair->a->scheme.name, (qb_limit_id)id);
            if (isfinite(amount->value) && applies(pair, (qb_limit_id)id))
                add(pair, (qb_limit_id)id, amount, &gate);
        }
    qb_status status = correct(&gate);
    if (status != QB_OK) {
        qb_gate_deinit(&gate);
        return status;
    }
    for (size_t i = 0; i < gate.n; i++) {
        judge_broken(&gate.items[i]);
        if (strict && gate.items[i].outcome == QB_UNDECIDED) gate.items[i].outcome = QB_BROKEN;
        gate.n_broken += gate.items[i].outcome == QB_BROKEN;
        gate.n_undecided += gate.items[i].outcome == QB_UNDECIDED;
    }
    *out = gate;
    return QB_OK;
}

void qb_gate_deinit(qb_gate *gate)
{
    qb_free(gate->items);
    *gate = (qb_gate){0};
}
