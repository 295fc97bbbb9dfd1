/* infer/sensitivity_probe.c - what products say of themselves: while full precision runs, each
 * product's input is looked at, given to the scheme's product too, and both outputs compared. */
#include "infer/sensitivity.h"

#include "core/memory.h"
#include "core/moments.h"
#include "infer/taps.h"

#include <math.h>
#include <string.h>

typedef struct probe {
    const qb_sensitivity_plan *plan;
    qb_sensitivity_part *parts;
    size_t n_parts;
    float *x, *work, *y; /* (rows, widest) the last input, a copy to spoil, the scheme's output */
    qb_taps taps;
} probe;

static qb_sensitivity_part *part_of(const probe *p, const qb_tap_view *v)
{
    size_t cell = v->layer * QB_ROLE_COUNT + (size_t)v->role;
    for (size_t i = 0; i < p->n_parts; i++)
        if (p->parts[i].mask[cell]) return &p->parts[i];
    return NULL;
}

static void raise_to(double *most, double value)
{
    if (isnan(*most) || value > *most) *most = value; /* NaN: nothing yet */
}

static void see_input(probe *p, const qb_tap_view *v, qb_sensitivity_part *part)
{
    size_t rows = v->batch * v->n_tokens, n = rows * v->width;
    for (size_t r = 0; r < rows; r++)
        memcpy(p->x + r * v->width, v->x + r * v->stride, v->width * sizeof *p->x);
    qb_moments moments = qb_moments_of(p->x, n);
    for (size_t i = 0; i < n; i++) p->work[i] = fabsf(p->x[i]);
    double amax = (double)qb_max_abs(p->x, n),
           p999 = (double)qb_select(p->work, n, n - 1 - n / 1000);
    raise_to(&part->input_kurtosis, qb_moments_kurtosis(&moments));
    raise_to(&part->input_amax, amax);
    raise_to(&part->input_p999, p999);
    raise_to(&part->amax_ratio, amax / p999);
}

static qb_status see_output(probe *p, const qb_tap_view *v, qb_sensitivity_part *part)
{
    const qb_model *model = qb_engine_model(p->plan->probe);
    size_t rows = v->batch * v->n_tokens, k = qb_model_tensor(model, v->role, v->layer)->cols;
    double signal = 0, noise = 0;
    memcpy(p->work, p->x, rows * k * sizeof *p->x);
    QB_TRY(qb_engine_product(p->plan->probe, v->role, v->layer, p->work, rows, p->y));
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < v->width; c++) {
            double y = (double)v->x[r * v->stride + c], d = y - (double)p->y[r * v->width + c];
            signal += y * y;
            noise += d * d;
        }
    double sqnr = 10 * log10(signal / noise);
    if (isnan(part->sqnr_db) || sqnr < part->sqnr_db) part->sqnr_db = sqnr;
    return QB_OK;
}

static qb_status see(void *context, const qb_tap_view *v)
{
    probe *p = context;
    qb_sensitivity_part *part = part_of(p, v);
    if (!part) return QB_OK;
    if (v->tap == QB_TAP_OUTPUT) return see_output(p, v, part);
    see_input(p, v, part);
    return QB_OK;
}

qb_status qb__sensitivity_probe(const qb_sensitivity_plan *plan, const int32_t *tokens,
                                size_t batch, size_t n_tokens, qb_sensitivity_part *parts,
                                size_t n_parts)
{
    const qb_config *c = &qb_engine_model(plan->probe)->config;
    size_t q = c->n_heads * c->head_dim, widest = q + 2 * c->n_kv_heads * c->head_dim;
    widest = widest > c->d_ff ? widest : c->d_ff;
    widest = widest > c->d_model ? widest : c->d_model;
    size_t elems = batch * n_tokens * widest;
    probe p = {.plan = plan, .parts = parts, .n_parts = n_parts};
    p.taps = (qb_taps){
        .sees = QB_TAP_BIT(QB_TAP_INPUT) | QB_TAP_BIT(QB_TAP_OUTPUT), .see = see, .context = &p};
    qb_status status;
    QB_TRY_GOTO(status, QB_NEW(&p.x, elems, "inputs"), done);
    QB_TRY_GOTO(status, QB_NEW(&p.work, elems, "inputs"), done);
    QB_TRY_GOTO(status, QB_NEW(&p.y, elems, "outputs"), done);
    QB_TRY_GOTO(status, qb_engine_observe(plan->probe_full, &p.taps), done);
    status = qb_engine_prefill(plan->probe_full, tokens, batch, n_tokens);
    qb_engine_observe(plan->probe_full, NULL);
done:
    qb_free(p.x);
    qb_free(p.work);
    qb_free(p.y);
    return status;
}
