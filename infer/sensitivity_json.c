/* infer/sensitivity_json.c - a sensitivity as JSON; docs/analyze.md and docs/analysis.schema.json
 * name its keys. */
#include "infer/sensitivity.h"

#include "core/json.h"

#include <math.h>

static void set_interval(json_t *object, const char *key, qb_interval interval)
{
    json_t *pair = json_null();
    if (!isnan(interval.low) && !isnan(interval.high)) {
        pair = json_array();
        json_array_append_new(pair, qb_json_real(interval.low));
        json_array_append_new(pair, qb_json_real(interval.high));
    }
    json_object_set_new(object, key, pair);
}

static json_t *one_part(const qb_sensitivity_part *p)
{
    json_t *object = json_object();
    json_object_set_new(object, "name", json_string(p->name));
    json_object_set_new(object, "layer",
                        p->layer ? json_integer((json_int_t)p->layer) : json_null());
    json_object_set_new(object, "role", p->role[0] ? json_string(p->role) : json_null());
    qb_json_set_size(object, "linears", p->linears);
    qb_json_set_real(object, "ppl", p->ppl);
    qb_json_set_real(object, "penalty", p->penalty);
    set_interval(object, "penalty_ci95", p->penalty_ci95);
    qb_json_set_real(object, "share", p->share);
    qb_json_set_real(object, "cumulative_share", p->cumulative_share);
    qb_json_set_real(object, "ppl_without", p->ppl_without);
    qb_json_set_real(object, "saved", p->saved);
    set_interval(object, "saved_ci95", p->saved_ci95);
    qb_json_set_real(object, "sqnr_db", p->sqnr_db);
    qb_json_set_real(object, "input_kurtosis", p->input_kurtosis);
    qb_json_set_real(object, "input_amax", p->input_amax);
    qb_json_set_real(object, "input_p999", p->input_p999);
    qb_json_set_real(object, "amax_ratio", p->amax_ratio);
    return object;
}

static json_t *one_kept(const qb_sensitivity_kept *k)
{
    json_t *object = json_object();
    qb_json_set_size(object, "n", k->n);
    qb_json_set_real(object, "ppl", k->ppl);
    qb_json_set_real(object, "penalty", k->penalty);
    set_interval(object, "penalty_ci95", k->penalty_ci95);
    qb_json_set_real(object, "removed", k->removed);
    return object;
}

json_t *qb_sensitivity_to_json(const qb_sensitivity *s)
{
    json_t *object = json_object(), *parts = json_array(), *kept = json_array();
    json_object_set_new(object, "by", json_string(qb_sensitivity_words[s->by]));
    qb_json_set_size(object, "windows", s->n_windows);
    qb_json_set_size(object, "scored_tokens", s->n_scored);
    qb_json_set_real(object, "ppl_full", s->ppl_full);
    qb_json_set_real(object, "ppl", s->ppl);
    qb_json_set_real(object, "penalty", s->penalty);
    set_interval(object, "penalty_ci95", s->penalty_ci95);
    for (size_t i = 0; i < s->n_parts; i++) json_array_append_new(parts, one_part(&s->parts[i]));
    for (size_t i = 0; i < s->n_kept; i++) json_array_append_new(kept, one_kept(&s->kept[i]));
    json_object_set_new(object, "parts", parts);
    json_object_set_new(object, "kept", kept);
    return object;
}
