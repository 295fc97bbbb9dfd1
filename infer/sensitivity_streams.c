/* infer/sensitivity_streams.c - what passes have in common is run once: with one layer quantised,
 * all blocks before it do what they do in full precision; with all but one, what they do under the
 * scheme. The bits are the same as without. */
#include "infer/sensitivity.h"

#include "core/memory.h"
#include "infer/taps.h"

#include <string.h>

enum { MOST_BYTES = 1 << 30 };

struct qb__streams {
    size_t n_blocks, width, n_rows; /* n_rows: fed tokens of all windows */
    const qb_windows *windows;
    float *x[2];    /* (n_blocks, n_rows, width) after each block: full precision, the scheme */
    bool known[2];  /* their passes have been run */
    size_t at, now; /* of the pass that is kept: its first row, and which of x */
};

static size_t fed_rows(const qb_windows *w, size_t n)
{
    size_t rows = 0;
    for (size_t i = 0; i < n; i++) rows += w->items[i].n_feed;
    return rows;
}

qb_status qb__streams_create(const qb_sensitivity_plan *plan, const qb_engine *mixed,
                             qb__streams **out)
{
    const qb_config *c = &qb_engine_model(mixed)->config;
    size_t rows = fed_rows(plan->windows, plan->windows->n), elems;
    qb__streams *s;
    *out = NULL;
    if (plan->by == QB_SENSITIVITY_ROLE || !qb_engine_resumes(mixed) ||
        !qb_mul_size(rows, c->n_layers * c->d_model, &elems) ||
        elems > MOST_BYTES / (2 * sizeof(float)))
        return QB_OK;
    QB_TRY(QB_NEW_ZERO(&s, 1, "streams"));
    *out = s;
    s->n_blocks = c->n_layers;
    s->width = c->d_model;
    s->n_rows = rows;
    s->windows = plan->windows;
    for (int i = 0; i < 2; i++) QB_TRY(QB_NEW(&s->x[i], elems, "streams"));
    return QB_OK;
}

void qb__streams_destroy(qb__streams *s)
{
    if (!s) return;
    qb_free(s->x[0]);
    qb_free(s->x[1]);
    qb_free(s);
}

static float *rows_after(const qb__streams *s, size_t which, size_t block, size_t first_row)
{
    return s->x[which] + (block * s->n_rows + first_row) * s->width;
}

static qb_status keep(void *context, const qb_tap_view *v)
{
    const qb__streams *s = context;
    size_t rows = v->batch * v->n_tokens;
    for (size_t r = 0; r < rows; r++)
        memcpy(rows_after(s, s->now, v->layer, s->at + r), v->x + r * v->stride,
               s->width * sizeof *v->x);
    return QB_OK;
}

/* How many blocks from the first on have all their layers as `value` says. */
static size_t blocks_alike(const qb_engine *mixed, const uint8_t *mask, uint8_t value)
{
    const qb_model *model = qb_engine_model(mixed);
    for (size_t cell = 0; cell < model->config.n_layers * QB_ROLE_COUNT; cell++) {
        size_t layer = cell / QB_ROLE_COUNT, role = cell % QB_ROLE_COUNT;
        bool is_layer = qb_roles[role].linear && qb_model_tensor(model, (qb_role)role, layer)->data;
        if (is_layer && mask[cell] != value) return layer;
    }
    return model->config.n_layers;
}

qb_status qb__streams_prefill(qb__streams *s, qb_engine *mixed, const uint8_t *mask,
                              size_t first_window, const int32_t *tokens, size_t batch,
                              size_t n_tokens)
{
    if (!s) return qb_engine_prefill(mixed, tokens, batch, n_tokens);
    size_t row = fed_rows(s->windows, first_window);
    for (uint8_t which = 0; which < 2; which++) {
        size_t alike = blocks_alike(mixed, mask, which);
        if (alike == s->n_blocks) {
            const qb_taps taps = {.sees = QB_TAP_BIT(QB_TAP_STREAM), .see = keep, .context = s};
            s->at = row;
            s->now = which;
            QB_TRY(qb_engine_observe(mixed, &taps));
            qb_status status = qb_engine_prefill(mixed, tokens, batch, n_tokens);
            qb_engine_observe(mixed, NULL);
            s->known[which] = status == QB_OK;
            return status;
        }
        if (alike > 0 && s->known[which])
            return qb_engine_prefill_from(mixed, tokens, batch, n_tokens, alike,
                                          rows_after(s, which, alike - 1, row));
    }
    return qb_engine_prefill(mixed, tokens, batch, n_tokens);
}
