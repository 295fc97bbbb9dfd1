/* infer/cpu_head.c - logits of the last forward call, and comparing those of two engines. */
#include "infer/cpu_engine.h"

#include "infer/timeline.h"

#include <string.h>

/* ---- the head ---- */

/* Rows of the last call through a head that quantises its input. Its staging area holds max_tokens
 * rows, of which the given ones are filled: other engines may have used it in between. */
static void run_own_head(cpu_engine *e, size_t first_row, size_t n_rows, float *logits)
{
    cpu_backbone *b = qb__cpu_backbone(e->base.backbone);
    qb_linear *head = &e->own_head;
    size_t width = b->base.config->d_model;
    qb_linear_input input = {
        .m = n_rows, .k = width, .fixed_scale = &e->head_in_scale, .scratch = &b->linear};
    input.x = e->hidden + first_row * width;
    if (head->input.outlier_min > 0) input.fixed_outliers = &e->head_outliers;
    bool overwrites = (head->kind == QB_LINEAR_FAKE && head->input.bits) || head->smooth;
    if (overwrites) { /* by staging: work on a copy */
        memcpy(b->h, input.x, n_rows * width * sizeof *b->h);
        input.x = b->h;
    }
    if (head->input.span != QB_SPAN_TENSOR || head->input.is_static) input.fixed_scale = NULL;
    qb_linear_stage_rows(head, &input, 0, n_rows);
    qb_linear_stage_finish(head, &input, b->base.pool);
    uint32_t keep = head->max_abs_bits;
    qb_linear_run(&head, &(qb_linear_output){logits, b->base.config->vocab}, 1, &input,
                  b->base.pool);
    if (e->head_ready) head->max_abs_bits = keep;
}

static float largest_head_input(const cpu_engine *e)
{
    const qb_linear *head = &e->own_head;
    float *row = qb__cpu_backbone(e->base.backbone)->h, largest = 0;
    for (size_t m = 0; m < e->base.n_rows; m++) {
        memcpy(row, e->hidden + m * head->k, head->k * sizeof *row);
        qb_linear_smooth_row(head, row);
        float x = head->quantize->absmax(row, head->k);
        largest = x > largest ? x : largest;
    }
    return largest;
}

/* Scales of the head span all rows of the call, so they are found before the first logits. */
static void prepare_own_head(cpu_engine *e)
{
    qb_linear *head = &e->own_head;
    size_t width = e->base.backbone->config->d_model;
    e->head_in_scale = largest_head_input(e) / 127.0f;
    if (head->input.outlier_min > 0)
        qb_linear_find_outliers(head,
                                &(qb_linear_input){.x = e->hidden, .m = e->base.n_rows, .k = width},
                                &e->head_outliers, e->base.backbone->pool);
    uint32_t largest = 0;
    for (size_t m = 0; e->head_chunk && m < e->base.n_rows; m += HEAD_CHUNK_ROWS) {
        size_t n = e->base.n_rows - m < HEAD_CHUNK_ROWS ? e->base.n_rows - m : HEAD_CHUNK_ROWS;
        run_own_head(e, m, n, e->head_chunk);
        if (head->max_abs_bits > largest) largest = head->max_abs_bits;
    }
    head->max_abs_bits = largest;
    e->head_ready = true;
}

typedef struct finish_logits {
    const qb_linear *head;
    float *logits;
} finish_logits;

static void finish_logit_rows(void *context, size_t m0, size_t m1)
{
    const finish_logits *f = context;
    for (size_t m = m0; m < m1; m++) qb_linear_finish_row(f->head, f->logits + m * f->head->n);
}

static void run_logits(cpu_engine *e, size_t first_row, size_t n_rows, float *logits)
{
    cpu_backbone *b = qb__cpu_backbone(e->base.backbone);
    size_t width = b->base.config->d_model, vocab = b->base.config->vocab;
    if (!e->own_head.n) {
        qb_linear *head = &b->head;
        qb_linear_input input = {
            .x = e->hidden + first_row * width, .m = n_rows, .k = width, .scratch = &b->linear};
        qb_linear_run(&head, &(qb_linear_output){logits, vocab}, 1, &input, b->base.pool);
        return;
    }
    if (!e->head_ready) prepare_own_head(e);
    run_own_head(e, first_row, n_rows, logits);
    finish_logits finish = {&e->own_head, logits};
    if (e->own_head.output.bits) qb__for_rows(b->base.pool, n_rows, finish_logit_rows, &finish);
}

qb_status qb__cpu_logits(qb_engine *engine, size_t first_row, size_t n_rows, float *logits)
{
    cpu_engine *e = qb__cpu_engine(engine);
    qb__timeline_open(engine->timeline, -1, false);
    run_logits(e, first_row, n_rows, logits);
    if (!qb__timeline_is_open(engine->timeline)) return QB_OK;
    qb_linear *head = e->own_head.n ? &e->own_head : &qb__cpu_backbone(engine->backbone)->head;
    qb_work work = qb__cpu_product_work(&head, 1, n_rows, -1, QB_ROLE_HEAD);
    work.phase = QB_PHASE_HEAD;
    qb__timeline_close(engine->timeline, &work, 1);
    return QB_OK;
}

qb_status qb__cpu_head(qb_engine *engine, size_t slot, size_t first_row, size_t row_step,
                       size_t n_rows)
{
    float *logits = qb__cpu_backbone(engine->backbone)->slots[slot];
    if (row_step == 1) return qb__cpu_logits(engine, first_row, n_rows, logits);
    size_t vocab = engine->backbone->config->vocab;
    for (size_t i = 0; i < n_rows; i++)
        QB_TRY(qb__cpu_logits(engine, first_row + i * row_step, 1, logits + i * vocab));
    return QB_OK;
}

/* ---- comparing logits ---- */

typedef struct compare_job {
    const qb_pointwise_row *pointwise;
    const float *a, *b;
    size_t vocab;
    const int32_t *target;
    qb_logit_stats *out;
} compare_job;

static void compare_row(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const compare_job *j = context;
    const float *a = j->a + i * j->vocab;
    if (j->b) {
        j->pointwise->logit_stats(a, j->b + i * j->vocab, j->vocab, j->target[i], &j->out[i]);
        return;
    }
    j->out[i] = (qb_logit_stats){0};
    double lse = j->pointwise->logsumexp(a, j->vocab, &j->out[i].top_a);
    if (j->target[i] >= 0) j->out[i].nll_a = lse - (double)a[j->target[i]];
}

qb_status qb__cpu_compare(qb_backbone *backbone, int slot_a, int slot_b, size_t n_rows,
                          const int32_t *target, qb_logit_stats *out)
{
    cpu_backbone *b = qb__cpu_backbone(backbone);
    compare_job job = {.pointwise = b->pointwise,
                       .a = b->slots[slot_a],
                       .b = slot_b < 0 ? NULL : b->slots[slot_b],
                       .vocab = backbone->config->vocab,
                       .target = target,
                       .out = out};
    qb_parallel_for(backbone->pool, n_rows, compare_row, &job);
    return QB_OK;
}
