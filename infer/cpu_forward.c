/* infer/cpu_forward.c - one forward pass over a block of rows, for every architecture and scheme.
 *
 * Each step between two products is one pass over the rows, in parallel: it finishes the output of
 * the product before, does what stands between, and stages the input of the next (see
 * quant/linear.h):
 *
 *     add + norm1 (gates) -> [q k v] -> rotate, cache -> attention (times gates) -> [o] ->
 *     add + norm2 -> [gate up] -> act -> [down]
 */
#include "infer/cpu_engine.h"

#include "core/interrupt.h"
#include "infer/timeline.h"

#include <math.h>
#include <string.h>

enum { ROWS_A_BLOCK = 8 };

void qb__for_rows(qb_pool *pool, size_t m, qb_span_task task, void *context)
{
    qb_parallel_spans(pool, m, ROWS_A_BLOCK, task, context);
}

/* One forward call: what the row passes need to know. */
typedef struct forward {
    cpu_engine *e;
    cpu_backbone *b;
    const qb_config *c;
    const int32_t *tokens;
    size_t m, n_tokens, past; /* rows, tokens a sequence now, positions before */
    bool last_only;
    size_t layer;
    qb_block *block;          /* of this layer */
    const qb_linear *pending; /* its output in h is still to be added to x; NULL = none */
    size_t qkv_width, q_width, kv_width;
    qb_linear_input input; /* of the next product */
    const qb_taps *taps;   /* who looks; NULL = nobody */
    qb_status seen;        /* what they said */
    qb_timeline *timeline; /* NULL = off */
} forward;

static bool takes_fused_qkv(const forward *f)
{
    return f->block->qkv.n > 0;
}

/* Layers that share an input quantise it alike or, in a mixed engine, not at all: the one that
 * stages it for all. */
static const qb_linear *stager(qb_linear *const *linears, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (linears[i]->input.bits) return linears[i];
    return linears[0];
}

static const qb_linear *stager_of_qkv(const forward *f)
{
    qb_block *b = f->block;
    return takes_fused_qkv(f) ? &b->qkv : stager((qb_linear *const[]){&b->q, &b->k, &b->v}, 3);
}

static const qb_linear *stager_of_up(const forward *f)
{
    return stager((qb_linear *const[]){&f->block->up, &f->block->gate}, f->b->ff2 ? 2 : 1);
}

/* ---- who looks (infer/taps.h) ---- */

static void show(forward *f, qb_tap tap, qb_role role, float *x, size_t width, size_t stride)
{
    if (!f->taps || f->seen != QB_OK) return;
    f->seen = qb__taps_show(f->taps, &(qb_tap_view){.tap = tap,
                                                    .role = role,
                                                    .layer = f->layer,
                                                    .batch = f->m / f->n_tokens,
                                                    .n_tokens = f->n_tokens,
                                                    .x = x,
                                                    .width = width,
                                                    .stride = stride});
}

static void show_rows(forward *f, qb_tap tap, qb_role role, float *x)
{
    show(f, tap, role, x, f->c->d_model, f->c->d_model);
}

/* ---- timeline ---- */

static int layer_of(const forward *f)
{
    return f->layer < f->c->n_layers ? (int)f->layer : -1;
}

/* A pass over the rows, timed. phase: of what it does between requantising and staging; QUANTISE:
 * it stages alone. */
static void run_rows(forward *f, qb_span_task task, qb_phase phase, const qb_linear *before,
                     const qb_linear *after)
{
    bool splits = (before && before->output.bits) || (after && after->input.bits);
    if (phase == QB_PHASE_QUANTISE) splits = false;
    qb__timeline_open(f->timeline, layer_of(f), splits);
    qb__for_rows(f->b->base.pool, f->m, task, f);
    if (!qb__timeline_is_open(f->timeline)) return;
    qb_work works[QB_ROW_WORKS];
    const cpu_pass pass = {phase, layer_of(f), f->m, f->c->d_model, f->b->pointwise->info.name};
    qb__timeline_close(f->timeline, works, qb__cpu_row_works(&pass, before, after, works));
}

/* ---- embedding and norms ---- */

static void embed_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    size_t width = f->c->d_model;
    const qb_tensor *table = qb_model_tensor(f->b->base.model, QB_ROLE_TOK_EMBD, 0);
    for (size_t m = m0; m < m1; m++) {
        float *x = f->b->x + m * width;
        qb_tensor_rows_f32(table, (size_t)f->tokens[m], 1, x);
        if (f->b->pos_embd)
            f->b->pointwise->add(x, f->b->pos_embd + (f->past + m % f->n_tokens) * width, width);
    }
}

static void norm_row(const forward *f, const norm_weights *w, const float *x, float *y)
{
    const qb_config *c = f->c;
    if (c->norm == QB_NORM_LAYERNORM)
        f->b->pointwise->layernorm(x, c->d_model, w->gain, w->bias, c->norm_eps, y);
    else
        f->b->pointwise->rmsnorm(x, c->d_model, w->gain, c->norm != QB_NORM_RMSNORM_SINGLE,
                                 c->norm_eps, y);
}

/* x += output of the product before (in h); y = norm(x). y may be h. */
static void add_and_norm_row(const forward *f, const norm_weights *w, size_t m, float *y,
                             qb_lap *lap)
{
    size_t width = f->c->d_model;
    float *x = f->b->x + m * width, *h = f->b->h + m * width;
    if (f->pending) {
        qb_linear_finish_row(f->pending, h);
        if (f->pending->output.bits) qb_lap_mark(lap, QB_PHASE_REQUANTISE);
        f->b->pointwise->add(x, h, width);
    }
    norm_row(f, w, x, y);
    qb_lap_mark(lap, QB_PHASE_NORM);
}

static void norm1_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    size_t width = f->c->d_model, n_heads = f->c->n_heads;
    qb_lap lap;
    qb_lap_begin(&lap, f->timeline);
    for (size_t m = m0; m < m1; m++) {
        float *h = f->b->h + m * width;
        add_and_norm_row(f, &f->b->norms[2 * f->layer], m, h, &lap);
        if (!f->b->gates) continue;
        const gate_weights *gate = &f->b->gates[f->layer];
        f->b->pointwise->head_gates(h, width, gate->w, gate->bias, n_heads,
                                    f->b->gate_values + m * n_heads);
    }
    qb_linear_stage_rows(stager_of_qkv(f), &f->input, m0, m1);
    qb_lap_mark(&lap, QB_PHASE_QUANTISE);
    qb_lap_end(&lap);
}

static void norm2_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    qb_lap lap;
    qb_lap_begin(&lap, f->timeline);
    for (size_t m = m0; m < m1; m++)
        add_and_norm_row(f, &f->b->norms[2 * f->layer + 1], m, f->b->h + m * f->c->d_model, &lap);
    qb_linear_stage_rows(stager_of_up(f), &f->input, m0, m1);
    qb_lap_mark(&lap, QB_PHASE_QUANTISE);
    qb_lap_end(&lap);
}

static void final_norm_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    qb_lap lap;
    qb_lap_begin(&lap, f->timeline);
    for (size_t m = m0; m < m1; m++)
        add_and_norm_row(f, &f->b->norms[2 * f->c->n_layers], m, f->e->hidden + m * f->c->d_model,
                         &lap);
    qb_lap_end(&lap);
}

/* ---- attention ---- */

/* Finishes q, k and v, rotates q and k, and copies k and v to the cache where there is one. */
static void position_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    const qb_block *block = f->block;
    size_t half = f->c->head_dim / 2;
    qb_lap lap;
    qb_lap_begin(&lap, f->timeline);
    for (size_t m = m0; m < m1; m++) {
        float *q = f->b->qkv + m * f->qkv_width, *k = q + f->q_width, *v = k + f->kv_width;
        size_t sequence = m / f->n_tokens, position = f->past + m % f->n_tokens;
        if (takes_fused_qkv(f)) {
            qb_linear_finish_row(&block->qkv, q);
        } else {
            qb_linear_finish_row(&block->q, q);
            qb_linear_finish_row(&block->k, k);
            qb_linear_finish_row(&block->v, v);
        }
        if (stager_of_qkv(f)->output.bits) qb_lap_mark(&lap, QB_PHASE_REQUANTISE);
        if (f->c->pos == QB_POS_ROPE) {
            const float *cosine = f->b->cosine + position * half,
                        *sine = f->b->sine + position * half;
            f->b->pointwise->rope(q, f->c->n_heads, half, cosine, sine);
            f->b->pointwise->rope(k, f->c->n_kv_heads, half, cosine, sine);
        }
        if (!f->e->k_cache) continue;
        size_t at =
            ((f->layer * f->e->base.cache_batch + sequence) * f->e->base.cache_context + position) *
            f->kv_width;
        memcpy(f->e->k_cache + at, k, f->kv_width * sizeof *k);
        memcpy(f->e->v_cache + at, v, f->kv_width * sizeof *v);
        if (stager_of_qkv(f)->output.bits) qb_lap_mark(&lap, QB_PHASE_POSITION);
    }
    qb_lap_mark(&lap, QB_PHASE_POSITION);
    qb_lap_end(&lap);
}

static void attention(forward *f)
{
    cpu_engine *e = f->e;
    cpu_backbone *b = f->b;
    qb_attention_args args = {.batch = f->m / f->n_tokens,
                              .n_q = f->n_tokens,
                              .n_past = f->past,
                              .n_heads = f->c->n_heads,
                              .n_kv_heads = f->c->n_kv_heads,
                              .head_dim = f->c->head_dim,
                              .softmax = f->c->softmax,
                              .gamma = (float)f->c->softmax_gamma,
                              .zeta = (float)f->c->softmax_zeta,
                              .sink = b->sinks ? b->sinks[f->layer] : NULL,
                              .free_prefix = f->c->free_prefix,
                              .scale = 1.0f / sqrtf((float)f->c->head_dim),
                              .q = b->qkv,
                              .q_stride = f->qkv_width,
                              .out = b->att,
                              .out_stride = f->q_width,
                              .scratch = b->attention_scratch};
    if (e->k_cache) {
        size_t layer_elems = e->base.cache_batch * e->base.cache_context * f->kv_width;
        args.k = e->k_cache + f->layer * layer_elems;
        args.v = e->v_cache + f->layer * layer_elems;
        args.kv_stride = f->kv_width;
        args.kv_batch_stride = e->base.cache_context * f->kv_width;
    } else {
        args.k = b->qkv + f->q_width;
        args.v = args.k + f->kv_width;
        args.kv_stride = f->qkv_width;
        args.kv_batch_stride = f->n_tokens * f->qkv_width;
    }
    qb__timeline_open(f->timeline, layer_of(f), false);
    qb_attention_run(b->attention, &args, b->base.pool);
    if (!qb__timeline_is_open(f->timeline)) return;
    const qb_work work = qb__cpu_attention_work(&args, b->attention, layer_of(f));
    qb__timeline_close(f->timeline, &work, 1);
}

/* Each head's output times its gate, where there are gates. */
static void stage_attention_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    size_t head_dim = f->c->head_dim;
    qb_lap lap;
    qb_lap_begin(&lap, f->timeline);
    for (size_t i = m0 * f->c->n_heads; f->b->gates && i < m1 * f->c->n_heads; i++)
        for (size_t d = 0; d < head_dim; d++) f->b->att[i * head_dim + d] *= f->b->gate_values[i];
    qb_lap_mark(&lap, QB_PHASE_ATTENTION);
    qb_linear_stage_rows(&f->block->o, &f->input, m0, m1);
    qb_lap_mark(&lap, QB_PHASE_QUANTISE);
    qb_lap_end(&lap);
}

/* ---- products ---- */

static qb_linear_input make_input(forward *f, float *x, size_t k)
{
    return (qb_linear_input){.x = x, .m = f->m, .k = k, .scratch = &f->b->linear};
}

/* The codes of a scale that had to wait for all rows. */
static void finish_stage(const forward *f, const qb_linear *l)
{
    if (!qb_linear_stage_waits(l, &f->input)) return;
    qb__timeline_open(f->timeline, layer_of(f), false);
    qb_linear_stage_finish(l, &f->input, f->b->base.pool);
    const qb_work work = {.phase = QB_PHASE_QUANTISE,
                          .layer = layer_of(f),
                          .role = -1,
                          .kernel = l->quantize->info.name,
                          .bytes = (double)(f->m * l->k) * (1 + sizeof(float))};
    qb__timeline_close(f->timeline, &work, 1);
}

static void run_products(forward *f, qb_linear *const *linears, const qb_role *roles,
                         const qb_linear_output *outputs, size_t n)
{
    finish_stage(f, stager(linears, n));
    for (size_t i = 0; i < n; i++)
        show(f, QB_TAP_INPUT, roles[i], f->input.x, f->input.k, f->input.k);
    qb__timeline_open(f->timeline, layer_of(f), false);
    qb_linear_run(linears, outputs, n, &f->input, f->b->base.pool);
    if (qb__timeline_is_open(f->timeline)) {
        const qb_work work = qb__cpu_product_work(linears, n, f->m, layer_of(f), (int)roles[0]);
        qb__timeline_close(f->timeline, &work, 1);
    }
    for (size_t i = 0; i < n; i++)
        show(f, QB_TAP_OUTPUT, roles[i], outputs[i].y, linears[i]->n, outputs[i].stride);
}

static void run_qkv(forward *f)
{
    float *qkv = f->b->qkv;
    if (takes_fused_qkv(f)) {
        qb_linear *const one[] = {&f->block->qkv};
        run_products(f, one, (qb_role[]){QB_ROLE_QKV}, &(qb_linear_output){qkv, f->qkv_width}, 1);
        return;
    }
    qb_linear *const three[] = {&f->block->q, &f->block->k, &f->block->v};
    const qb_linear_output outputs[] = {{qkv, f->qkv_width},
                                        {qkv + f->q_width, f->qkv_width},
                                        {qkv + f->q_width + f->kv_width, f->qkv_width}};
    run_products(f, three, (qb_role[]){QB_ROLE_Q, QB_ROLE_K, QB_ROLE_V}, outputs, 3);
}

static void run_up(forward *f)
{
    qb_linear *const two[] = {&f->block->up, &f->block->gate};
    float *up = f->b->ff2 ? f->b->ff2 : f->b->ff;
    const qb_linear_output outputs[] = {{up, f->c->d_ff}, {f->b->ff, f->c->d_ff}};
    run_products(f, two, (qb_role[]){QB_ROLE_UP, QB_ROLE_GATE}, outputs, f->b->ff2 ? 2 : 1);
}

static void act_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    size_t width = f->c->d_ff;
    bool requantises = f->block->up.output.bits > 0;
    qb_lap lap;
    qb_lap_begin(&lap, f->timeline);
    for (size_t m = m0; m < m1; m++) {
        float *x = f->b->ff + m * width;
        if (requantises) qb_lap_mark(&lap, QB_PHASE_ACTIVATION);
        if (f->b->ff2) {
            float *up = f->b->ff2 + m * width;
            qb_linear_finish_row(&f->block->gate, x);
            qb_linear_finish_row(&f->block->up, up);
            if (requantises) qb_lap_mark(&lap, QB_PHASE_REQUANTISE);
            f->b->pointwise->swiglu(x, up, width, x);
            continue;
        }
        qb_linear_finish_row(&f->block->up, x);
        if (requantises) qb_lap_mark(&lap, QB_PHASE_REQUANTISE);
        if (f->c->act == QB_ACT_RELU)
            f->b->pointwise->relu(x, width, x);
        else
            f->b->pointwise->gelu_tanh(x, width, x);
    }
    qb_lap_mark(&lap, QB_PHASE_ACTIVATION);
    qb_linear_stage_rows(&f->block->down, &f->input, m0, m1);
    qb_lap_mark(&lap, QB_PHASE_QUANTISE);
    qb_lap_end(&lap);
}

static void finish_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    size_t width = f->c->d_model;
    for (size_t m = m0; m < m1; m++) qb_linear_finish_row(f->pending, f->b->h + m * width);
}

static void add_rows(void *context, size_t m0, size_t m1)
{
    forward *f = context;
    size_t at = m0 * f->c->d_model;
    f->b->pointwise->add(f->b->x + at, f->b->h + at, (m1 - m0) * f->c->d_model);
}

/* For those who look, what the next pass would do first: in the same steps, so with the same bits.
 */
static void settle(forward *f, qb_role role)
{
    qb__for_rows(f->b->base.pool, f->m, finish_rows, f);
    show_rows(f, QB_TAP_ADDED, role, f->b->h);
    qb__for_rows(f->b->base.pool, f->m, add_rows, f);
    f->pending = NULL;
    if (role == QB_ROLE_DOWN) show_rows(f, QB_TAP_STREAM, role, f->b->x);
}

/* One product whose output is then added to the residual stream; it goes to h. */
static void run_into_h(forward *f, qb_linear *l, qb_role role)
{
    run_products(f, &l, &role, &(qb_linear_output){f->b->h, f->c->d_model}, 1);
    f->pending = l;
    if (f->taps) settle(f, role);
}

/* Behind the last layer's attention only the rows that are asked for go on: of the stream, and of
 * what will be added to it, which is made of attention's output or, without attention, lies in h.
 */
static void keep_last_rows(forward *f, bool has_attention)
{
    cpu_backbone *b = f->b;
    size_t width = f->c->d_model;
    f->m /= f->n_tokens;
    for (size_t i = 0; i < f->m; i++) {
        size_t from = (i + 1) * f->n_tokens - 1;
        memmove(b->x + i * width, b->x + from * width, width * sizeof *b->x);
        if (!has_attention) {
            memmove(b->h + i * width, b->h + from * width, width * sizeof *b->h);
            continue;
        }
        memmove(b->att + i * f->q_width, b->att + from * f->q_width, f->q_width * sizeof *b->att);
        for (size_t h = 0; b->gates && h < f->c->n_heads; h++)
            b->gate_values[i * f->c->n_heads + h] = b->gate_values[from * f->c->n_heads + h];
    }
}

static void attend(forward *f)
{
    cpu_backbone *b = f->b;
    f->input = make_input(f, b->h, f->c->d_model);
    run_rows(f, norm1_rows, QB_PHASE_NORM, f->pending, stager_of_qkv(f));
    show_rows(f, QB_TAP_NORMED, QB_ROLE_NORM1, b->h);
    run_qkv(f);
    run_rows(f, position_rows, QB_PHASE_POSITION, stager_of_qkv(f), NULL);
    show(f, QB_TAP_QKV, QB_ROLE_QKV, b->qkv, f->qkv_width, f->qkv_width);
    attention(f);
    show(f, QB_TAP_ATTENTION, QB_ROLE_O, b->att, f->q_width, f->q_width);
}

static void project_attention(forward *f)
{
    f->input = make_input(f, f->b->att, f->q_width);
    if (f->block->o.input.bits || f->b->gates)
        run_rows(f, stage_attention_rows, f->b->gates ? QB_PHASE_ATTENTION : QB_PHASE_QUANTISE,
                 NULL, &f->block->o);
    run_into_h(f, &f->block->o, QB_ROLE_O);
}

static void run_block(forward *f)
{
    cpu_backbone *b = f->b;
    const bool has_attention = qb_config_has_attention(f->c, f->layer);
    if (has_attention) attend(f);
    if (f->last_only && f->layer + 1 == f->c->n_layers) keep_last_rows(f, has_attention);
    if (has_attention) project_attention(f);
    f->input = make_input(f, b->h, f->c->d_model);
    run_rows(f, norm2_rows, QB_PHASE_NORM, f->pending, stager_of_up(f));
    show_rows(f, QB_TAP_NORMED, QB_ROLE_NORM2, b->h);
    run_up(f);
    f->input = make_input(f, b->ff, f->c->d_ff);
    run_rows(f, act_rows, QB_PHASE_ACTIVATION, &f->block->up, &f->block->down);
    run_into_h(f, &f->block->down, QB_ROLE_DOWN);
}

qb_status qb__cpu_forward(qb_engine *engine, const int32_t *tokens, size_t batch, size_t n_tokens,
                          size_t past, bool last_only)
{
    cpu_engine *e = qb__cpu_engine(engine);
    const qb_config *c = e->base.backbone->config;
    forward f = {.e = e,
                 .b = qb__cpu_backbone(e->base.backbone),
                 .c = c,
                 .tokens = tokens,
                 .m = batch * n_tokens,
                 .n_tokens = n_tokens,
                 .past = past,
                 .last_only = last_only,
                 .taps = past || last_only ? NULL : engine->taps,
                 .layer = c->n_layers, /* none yet */
                 .timeline = engine->timeline,
                 .q_width = c->n_heads * c->head_dim,
                 .kv_width = c->n_kv_heads * c->head_dim};
    f.qkv_width = f.q_width + 2 * f.kv_width;
    qb__timeline_begin(f.timeline);
    if (engine->stream) {
        memcpy(f.b->x, engine->stream, f.m * c->d_model * sizeof *f.b->x);
    } else {
        run_rows(&f, embed_rows, QB_PHASE_EMBEDDING, NULL, NULL);
        f.layer = 0;
        show_rows(&f, QB_TAP_EMBEDDING, QB_ROLE_TOK_EMBD, f.b->x);
    }
    for (f.layer = engine->first_block; f.layer < c->n_layers; f.layer++) {
        QB_TRY(qb_interrupt_check());
        f.block = &e->blocks[f.layer];
        run_block(&f);
    }
    run_rows(&f, final_norm_rows, QB_PHASE_NORM, f.pending, NULL);
    show_rows(&f, QB_TAP_NORMED, QB_ROLE_NORM_F, e->hidden);
    e->head_ready = false;
    return f.seen;
}
