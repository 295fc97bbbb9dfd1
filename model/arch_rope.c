/* model/arch_rope.c - rotary positions: rules, JSON and frequencies of each kind. */
#include "core/json.h"
#include "model/arch_internal.h"

#include <math.h>
#include <string.h>

const char *const qb_rope_names[QB_ROPE_COUNT] = {"default", "linear", "llama3", "yarn"};

/* ---- rules ---- */

static qb_status check_yarn(const qb_rope *r)
{
    QB_TRY(qb__check_real("rope.theta", r->theta, 1.001, 1e12)); /* its logarithm divides */
    QB_TRY(qb__check_real("rope.beta_fast", r->beta_fast, 1e-3, 1e6));
    QB_TRY(qb__check_real("rope.beta_slow", r->beta_slow, 1e-3, 1e6));
    QB_TRY(qb__check_real("rope.attention_factor", r->attention_factor, 1e-3, 1e3));
    if (r->beta_slow >= r->beta_fast)
        return QB_FAIL(QB_ERR_FORMAT, "rope.beta_slow: found %g, expected less than beta_fast %g",
                       r->beta_slow, r->beta_fast);
    return QB_OK;
}

qb_status qb__rope_check(const qb_rope *r, size_t head_dim)
{
    if (head_dim % 2)
        return QB_FAIL(QB_ERR_FORMAT,
                       "head_dim: found %zu, expected an even number for rotary positions",
                       head_dim);
    QB_TRY(qb__check_real("rope.theta", r->theta, 1e-3, 1e12));
    if (r->kind == QB_ROPE_DEFAULT) return QB_OK;
    QB_TRY(qb__check_real("rope.factor", r->factor, 1e-3, 1e6));
    if (r->kind == QB_ROPE_LINEAR) return QB_OK;
    QB_TRY(qb__check_range("rope.original_context", r->original_context, QB__MAX_ROWS));
    if (r->kind == QB_ROPE_YARN) return check_yarn(r);
    QB_TRY(qb__check_real("rope.low_freq_factor", r->low_freq_factor, 1e-3, 1e6));
    QB_TRY(qb__check_real("rope.high_freq_factor", r->high_freq_factor, 1e-3, 1e6));
    if (r->low_freq_factor >= r->high_freq_factor)
        return QB_FAIL(QB_ERR_FORMAT,
                       "rope.low_freq_factor: found %g, expected less than high_freq_factor %g",
                       r->low_freq_factor, r->high_freq_factor);
    return QB_OK;
}

/* ---- JSON ---- */

json_t *qb__rope_to_json(const qb_rope *r)
{
    json_t *o = json_pack("{s:s, s:f}", "kind", qb_rope_names[r->kind], "theta", r->theta);
    int failed = !o;
    if (r->kind != QB_ROPE_DEFAULT)
        failed |= json_object_set_new(o, "factor", json_real(r->factor));
    if (r->kind == QB_ROPE_LLAMA3)
        failed |= json_object_set_new(o, "low_freq_factor", json_real(r->low_freq_factor)) |
                  json_object_set_new(o, "high_freq_factor", json_real(r->high_freq_factor)) |
                  json_object_set_new(o, "original_context",
                                      json_integer((json_int_t)r->original_context));
    if (r->kind == QB_ROPE_YARN)
        failed |= json_object_set_new(o, "original_context",
                                      json_integer((json_int_t)r->original_context)) |
                  json_object_set_new(o, "beta_fast", json_real(r->beta_fast)) |
                  json_object_set_new(o, "beta_slow", json_real(r->beta_slow)) |
                  json_object_set_new(o, "attention_factor", json_real(r->attention_factor)) |
                  json_object_set_new(o, "truncate", json_boolean(r->truncate));
    if (!failed) return o;
    json_decref(o);
    return NULL;
}

qb_status qb__rope_from_json(const json_t *object, qb_rope *rope)
{
    int kind = (int)rope->kind;
    QB_TRY(qb__get_word(object, "kind", qb_rope_names, QB_ROPE_COUNT, &kind));
    rope->kind = (qb_rope_kind)kind;
    QB_TRY(qb_json_get_double(object, "theta", 0.0, 1e12, &rope->theta));
    QB_TRY(qb_json_get_double(object, "factor", 0.0, 1e6, &rope->factor));
    QB_TRY(qb_json_get_double(object, "low_freq_factor", 0.0, 1e6, &rope->low_freq_factor));
    QB_TRY(qb_json_get_double(object, "high_freq_factor", 0.0, 1e6, &rope->high_freq_factor));
    QB_TRY(qb_json_get_double(object, "beta_fast", 0.0, 1e6, &rope->beta_fast));
    QB_TRY(qb_json_get_double(object, "beta_slow", 0.0, 1e6, &rope->beta_slow));
    QB_TRY(qb_json_get_double(object, "attention_factor", 0.0, 1e3, &rope->attention_factor));
    QB_TRY(qb_json_get_bool(object, "truncate", &rope->truncate));
    return qb_json_get_size(object, "original_context", 0, QB__MAX_ROWS, &rope->original_context);
}

/* ---- rotary frequencies ---- */

/* Llama 3.1's rule: long wavelengths are stretched by `factor`, short ones kept, those between
 * blended linearly in original_context / wavelength. */
static double stretch_llama3(const qb_rope *r, double inv_freq)
{
    double turns = (double)r->original_context * inv_freq / (2.0 * M_PI);
    if (turns < r->low_freq_factor) return inv_freq / r->factor;
    if (turns > r->high_freq_factor) return inv_freq;
    double keep = (turns - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (1.0 - keep) * inv_freq / r->factor + keep * inv_freq;
}

/* YaRN (Peng et al. 2023, arXiv:2309.00071, sec. 3.2): pair i makes beta turns over the original
 * context where i = D ln(original_context / (2 pi beta)) / (2 ln theta). Pairs of fewer turns than
 * beta_slow are stretched, of more than beta_fast kept, those between blended linearly in i. */
static double yarn_pair_of(const qb_rope *r, size_t head_dim, double beta)
{
    return (double)head_dim * log((double)r->original_context / (2.0 * M_PI * beta)) /
           (2.0 * log(r->theta));
}

static double stretch_yarn(const qb_rope *r, size_t head_dim, size_t i, double inv_freq)
{
    double low = yarn_pair_of(r, head_dim, r->beta_fast);
    double high = yarn_pair_of(r, head_dim, r->beta_slow);
    if (r->truncate) low = floor(low), high = ceil(high);
    low = fmax(low, 0.0);
    high = fmin(high, (double)head_dim - 1.0);
    if (high == low) high += 0.001;
    double stretched = fmin(fmax(((double)i - low) / (high - low), 0.0), 1.0);
    return stretched * inv_freq / r->factor + (1.0 - stretched) * inv_freq;
}

void qb_rope_inv_freq(const qb_rope *rope, size_t head_dim, double *inv_freq)
{
    for (size_t i = 0; i < head_dim / 2; i++) {
        double f = pow(rope->theta, -2.0 * (double)i / (double)head_dim);
        if (rope->kind == QB_ROPE_LINEAR) f /= rope->factor;
        if (rope->kind == QB_ROPE_LLAMA3) f = stretch_llama3(rope, f);
        if (rope->kind == QB_ROPE_YARN) f = stretch_yarn(rope, head_dim, i, f);
        inv_freq[i] = f;
    }
}

void qb_rope_table(const qb_rope *rope, size_t head_dim, size_t n_positions, float *cosine,
                   float *sine)
{
    double inv_freq[QB_ROPE_MAX_HEAD_DIM / 2];
    size_t half = head_dim / 2;
    double scale = rope->kind == QB_ROPE_YARN ? rope->attention_factor : 1.0;
    qb_rope_inv_freq(rope, head_dim, inv_freq);
    for (size_t t = 0; t < n_positions; t++)
        for (size_t i = 0; i < half; i++) {
            cosine[t * half + i] = (float)(scale * cos((double)t * inv_freq[i]));
            sine[t * half + i] = (float)(scale * sin((double)t * inv_freq[i]));
        }
}
