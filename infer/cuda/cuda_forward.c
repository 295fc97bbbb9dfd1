/* infer/cuda/cuda_forward.c - one forward pass on the GPU, for every architecture and scheme.
 *
 *     add + norm1 -> [qkv] -> requantise, rotate, cache -> attention (times gates) -> [o] ->
 *     add + norm2 -> [up] -> act -> [down]
 *
 * A product that is not requantised adds to the residual stream and applies its activation in its
 * own epilogue; one that is (coarse) leaves that to the next pass, which knows its largest value.
 */
#include "infer/cuda/cuda_forward_internal.h"

#include <cuda_runtime_api.h>

/* ---- layers ---- */

/* With many rows a pass that follows anyway waits for memory, while each instruction of an epilogue
 * takes time from the products beside it. */
static qb_epilogue_act epilogue_act(const cuda_forward *f, const qb_cuda_linear *up,
                                    const qb_cuda_linear *down)
{
    enum { FEW_ROWS = 128 };
    if (up->requant != QB_CUDA_REQUANT_NONE || f->c->act == QB_ACT_SWIGLU) return QB_EPI_NONE;
    if (up->outlier_min > 0) return QB_EPI_NONE; /* a part of the sum comes later */
    if (down->input != QB_STAGE_FLOAT && f->m > FEW_ROWS) return QB_EPI_NONE;
    return f->c->act == QB_ACT_RELU ? QB_EPI_RELU : QB_EPI_GELU;
}

static qb_status mlp_part(cuda_forward *f)
{
    const qb_cuda_linear *up = &f->block->up, *down = &f->block->down;
    qb_cuda_stage stage = qb__cuda_stage(f->e, up, f->b->normed);
    cuda_input in = qb__cuda_staged(up, &stage, f->m, f->b);
    cuda_output out = qb__cuda_float_output(f, up, f->b->ff, up->n);
    out.act = epilogue_act(f, up, down);
    bool acted = out.act != QB_EPI_NONE;
    if (acted && up->kind == QB_CUDA_LINEAR_S8 && down->input == QB_STAGE_TOKEN)
        out.row_max_bits = f->b->row_max_bits;
    QB_TRY(qb__cuda_add_norm(f, &f->e->norms[2 * f->layer + 1], &stage, out.row_max_bits));
    QB_TRY(qb__cuda_show_normed(f, QB_ROLE_NORM2, &stage));
    QB_TRY(qb__cuda_run_linear(f, up, QB_ROLE_UP, &in, &out));
    qb_cuda_stage next = qb__cuda_stage(f->e, down, f->b->act);
    if (acted && down->input == QB_STAGE_FLOAT) {
        next.y = f->b->ff;
        QB_TRY(qb__cuda_clear_padding(f, next.y, f->c->d_ff));
    } else {
        qb_cuda_act_args args = {.m = f->m,
                                 .width = f->c->d_ff,
                                 .apply = !acted,
                                 .act = f->c->act,
                                 .in = qb__cuda_pending(up, &out),
                                 .row_max_bits = out.row_max_bits,
                                 .stage = next};
        QB_TRY(qb__cuda_run_act(f, &args));
    }
    in = qb__cuda_staged(down, &next, f->m, f->b);
    return qb__cuda_run_into_x(f, down, QB_ROLE_DOWN, &in);
}

/* A step's logits, which go to slot 0; not where they need scales that span the call. */
static bool has_step_head(const cuda_forward *f)
{
    return f->past_dev && !f->e->own_head.n;
}

/* As after attention, in a last block that has none; what was to be added to x is added before. */
static qb_status keep_last_rows_here(cuda_forward *f)
{
    if (!f->last_only || f->layer + 1 < f->c->n_layers) return QB_OK;
    QB_TRY(qb__cuda_settle(f));
    return qb__cuda_keep_last_rows(f);
}

static qb_status run_layers(cuda_forward *f)
{
    f->layer = f->c->n_layers; /* none yet */
    QB_TRY(qb__cuda_embed(f));
    f->layer = 0;
    QB_TRY(qb__cuda_show_x(f, QB_TAP_EMBEDDING, QB_ROLE_TOK_EMBD));
    for (f->layer = 0; f->layer < f->c->n_layers; f->layer++) {
        f->block = &f->e->blocks[f->layer];
        bool has_attention = qb_config_has_attention(f->c, f->layer);
        QB_TRY((has_attention ? qb__cuda_attention_part : keep_last_rows_here)(f));
        QB_TRY(mlp_part(f));
    }
    qb_cuda_stage last = {
        .kind = QB_STAGE_FLOAT, .type = QB_CUDA_F32, .y = f->e->hidden, .stride = f->x_stride};
    QB_TRY(qb__cuda_add_norm(f, &f->e->norms[2 * f->c->n_layers], &last, NULL));
    QB_TRY(qb__cuda_show_normed(f, QB_ROLE_NORM_F, &last));
    return has_step_head(f) ? qb__cuda_head(&f->e->base, 0, 0, 1, f->m) : QB_OK;
}

static cuda_forward make_forward(cuda_engine *e, size_t batch, size_t n_tokens, size_t past)
{
    const qb_config *c = e->base.backbone->config;
    cuda_forward f = {.e = e,
                      .b = qb__cuda_backbone(e->base.backbone),
                      .c = c,
                      .batch = batch,
                      .n_tokens = n_tokens,
                      .past = past,
                      .m = batch * n_tokens,
                      .x = qb__cuda_backbone(e->base.backbone)->x,
                      .att = qb__cuda_backbone(e->base.backbone)->att,
                      .q_width = c->n_heads * c->head_dim,
                      .kv_width = c->n_kv_heads * c->head_dim,
                      .x_stride = qb_cuda_stride(c->d_model)};
    f.qkv_width = f.q_width + 2 * f.kv_width;
    return f;
}

/* Codes and values in a cache are not shown. */
static qb_status run_observed(cuda_forward *f)
{
    const qb_scheme *scheme = &f->e->base.scheme;
    if (scheme->input.bits || scheme->output.bits || f->e->k_cache)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "--device cuda: activations are shown of full precision without a cache, "
                       "found scheme %s",
                       scheme->name);
    return run_layers(f);
}

/* ---- graphs ---- */

static qb_status capture(cuda_forward *f, cuda_graph *g)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    QB_CUDA_TRY(cudaStreamBeginCapture(f->b->stream, cudaStreamCaptureModeThreadLocal));
    qb_status status = run_layers(f);
    qb_status end = qb_cuda_check((int)cudaStreamEndCapture(f->b->stream, &graph), "capture");
    if (status == QB_OK) status = end;
    if (status == QB_OK)
        status = qb_cuda_check((int)cudaGraphInstantiate(&exec, graph, 0), "graph");
    if (graph) cudaGraphDestroy(graph);
    g->exec = exec;
    return status;
}

static bool is_of(const cuda_graph *g, const cuda_forward *f)
{
    return g->batch == f->batch && g->n_tokens == f->n_tokens && g->layout == f->b->layout &&
           g->last_only == f->last_only && g->tokens == f->tokens &&
           g->version == qb_timeline_version(f->e->base.timeline);
}

/* Kernels choose their algorithms at their first run, which a capture cannot hold: so the first
 * call of a shape runs as it is and the second is captured. With a timeline its stamps are kernels
 * of the graph. */
static qb_status run_captured(cuda_forward *f, cuda_graph *g)
{
    qb_timeline *timeline = f->e->base.timeline;
    if (timeline) g = &f->e->timed;
    if (!is_of(g, f)) {
        if (g->exec) cudaGraphExecDestroy(g->exec);
        *g = (cuda_graph){.batch = f->batch,
                          .n_tokens = f->n_tokens,
                          .layout = f->b->layout,
                          .last_only = f->last_only,
                          .tokens = f->tokens};
        qb__timeline_begin(timeline);
        g->version = qb_timeline_version(timeline);
        return run_layers(f);
    }
    if (!g->exec) {
        qb__timeline_begin(timeline);
        QB_TRY(capture(f, g));
        g->version = qb_timeline_version(timeline);
        if (timeline) qb__timeline_count(timeline, &g->n_spans, &g->n_stamps);
    }
    qb__timeline_restart(timeline, g->n_spans, g->n_stamps);
    QB_CUDA_TRY(cudaGraphLaunch(g->exec, f->b->stream));
    return QB_OK;
}

/* ---- one token a sequence ---- */

/* Queues the copy of position and tokens; the piece of host memory is not written again before it
 * was read. */
static qb_status send_step(cuda_engine *e, const int32_t *tokens, size_t batch, size_t past)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    size_t piece = e->base.cache_batch + 1;
    if (e->n_steps % RING == 0) QB_TRY(qb_cuda_sync(b->stream));
    int32_t *host = e->step_host + e->n_steps++ % RING * piece;
    host[0] = (int32_t)past;
    for (size_t i = 0; i < batch; i++) host[1 + i] = tokens[i];
    return qb_cuda_upload(e->step, host, (1 + batch) * sizeof *host, b->stream);
}

/* A step by a row of decode.h, whose kernels are the sections: `captured` once they were told. */
typedef struct row_watch {
    cuda_engine *e;
    bool captured;
} row_watch;

static void row_begins(void *context, int layer)
{
    row_watch *w = context;
    if (!w->captured) qb__timeline_begin(w->e->base.timeline);
    w->captured = true;
    qb__timeline_open(w->e->base.timeline, layer, false);
}

static void row_ended(void *context, int layer, qb_cuda_decode_part part)
{
    const row_watch *w = context;
    qb_timeline *timeline = w->e->base.timeline;
    if (!qb__timeline_is_open(timeline)) return;
    const qb_work work = qb__cuda_part_work(w->e, layer, part);
    qb__timeline_close(timeline, &work, 1);
}

static qb_status run_watched(cuda_engine *e)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    qb_timeline *timeline = e->base.timeline;
    row_watch w = {.e = e};
    if (e->row_version != qb_timeline_version(timeline)) e->n_watches++;
    const qb_cuda_decode_watch watch = {
        .context = &w, .version = e->n_watches, .begins = row_begins, .ended = row_ended};
    QB_TRY(e->decode_row->watched_step(e->decode, e->step + 1, e->step, e->hidden, b->slots[0],
                                       &watch, b->stream));
    if (w.captured) {
        qb__timeline_count(timeline, &e->row_spans, &e->row_stamps);
        e->row_version = qb_timeline_version(timeline);
    }
    qb__timeline_restart(timeline, e->row_spans, e->row_stamps);
    return QB_OK;
}

static qb_status run_row(cuda_engine *e)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    QB_TRY(e->base.timeline ? run_watched(e)
                            : e->decode_row->step(e->decode, e->step + 1, e->step, e->hidden,
                                                  b->slots[0], b->stream));
    b->slot_owner = &e->base;
    return QB_OK;
}

static qb_status decode(cuda_engine *e, const int32_t *tokens, size_t batch, size_t past)
{
    cuda_backbone *b = qb__cuda_backbone(e->base.backbone);
    QB_TRY(send_step(e, tokens, batch, past));
    if (e->decode && batch == 1) return run_row(e);
    cuda_forward f = make_forward(e, batch, 1, e->base.cache_context - 1);
    f.tokens = e->step + 1;
    f.past_dev = e->step;
    QB_TRY(run_captured(&f, &e->single_step));
    if (has_step_head(&f)) b->slot_owner = &e->base;
    return QB_OK;
}

qb_status qb__cuda_forward(qb_engine *engine, const int32_t *tokens, size_t batch, size_t n_tokens,
                           size_t past, bool last_only)
{
    cuda_engine *e = qb__cuda_engine(engine);
    cuda_backbone *b = qb__cuda_backbone(engine->backbone);
    QB_TRY(qb_cuda_use(b->base.device_idx));
    e->head_ready = false;
    b->slot_owner = NULL;
    if (past) return decode(e, tokens, batch, past);
    cuda_forward f = make_forward(e, batch, n_tokens, past);
    f.tokens = b->tokens;
    f.last_only = last_only && n_tokens > 1;
    QB_TRY(qb_cuda_upload(b->tokens, tokens, f.m * sizeof *tokens, b->stream));
    f.taps = last_only ? NULL : engine->taps;
    if (f.taps) return run_observed(&f);
    return run_captured(&f, &e->prefill);
}
