/* train/cpu_linear.c - the processor's products: linear layers forward and backward with their
 * activation, and the classifier.
 *
 * The second operand of a product is packed in each call: O(n k) beside the product's O(m n k). */
#include "core/memory.h"
#include "train/cpu_ops_internal.h"

#include <string.h>

enum {
    PACK_CHANNELS = 64,   /* of a task */
    BIAS_COLS = 128,      /* of a task */
    BIAS_ROWS = 64,       /* added up in f32; these sums in double */
    HEAD_ELEMS = 8 << 20, /* logits at a time: 32 MiB */
    HEAD_MIN_ROWS = 64,   /* the head's gradient is gone through once for so many rows */
    HEAD_MAX_ROWS = 2048,
};

/* ---- operands ---- */

/* The largest packed operand of a layer of (n, k) in its three products. */
static size_t packed_bytes(const qb_train_device *d, size_t n, size_t k, size_t rows)
{
    size_t most = qb_max_size(d->gemm->packed_bytes(n, k), d->gemm->packed_bytes(k, n));
    return qb_max_size(most, d->gemm->packed_bytes(k, rows));
}

qb_status qb__cpu_linear_create(qb_train_device *d)
{
    const qb_config *c = d->c;
    size_t q_width = c->n_heads * c->head_dim, rows = d->max_rows;
    size_t head_rows = HEAD_ELEMS / c->vocab;
    if (head_rows < HEAD_MIN_ROWS) head_rows = HEAD_MIN_ROWS;
    if (head_rows > HEAD_MAX_ROWS) head_rows = HEAD_MAX_ROWS;
    d->head_rows = head_rows < rows ? head_rows : rows;
    size_t head = packed_bytes(d, c->vocab, c->d_model, d->head_rows);
    size_t bytes = packed_bytes(d, qb_train_qkv_width(c), c->d_model, rows);
    bytes = qb_max_size(bytes, packed_bytes(d, c->n_heads, c->d_model, rows));
    bytes = qb_max_size(bytes, packed_bytes(d, c->d_model, q_width, rows));
    bytes = qb_max_size(bytes, packed_bytes(d, qb_train_pre_width(c), c->d_model, rows));
    bytes = qb_max_size(bytes, packed_bytes(d, c->d_model, c->d_ff, rows));
    QB_TRY(qb__cpu_alloc(d, qb_max_size(bytes, head), 1, "packed operands", (void **)&d->packed));
    QB_TRY(qb__cpu_alloc(d, head, 1, "packed operands", (void **)&d->packed_head));
    QB_TRY(qb__cpu_alloc(d, head, 1, "packed operands", (void **)&d->packed_back));
    return qb__cpu_alloc(d, d->head_rows * c->vocab, sizeof(float), "logits", (void **)&d->logits);
}

typedef struct pack_call {
    const qb_gemm_f32_row *gemm;
    const float *w;
    bool transposed;
    size_t n, k;
    float *packed;
} pack_call;

static void pack_task(void *context, size_t n0, size_t n1)
{
    const pack_call *c = context;
    if (c->transposed)
        c->gemm->pack_transposed(c->w + n0, c->n, n0, n1, c->n, c->k, c->packed);
    else
        c->gemm->pack(c->w + n0 * c->k, n0, n1, c->n, c->k, c->packed);
}

void qb__cpu_pack(const qb_train_device *d, const float *w, bool transposed, size_t n, size_t k,
                  float *packed)
{
    pack_call c = {d->gemm, w, transposed, n, k, packed};
    qb_parallel_spans(d->pool, n, qb_round_up(PACK_CHANNELS, d->gemm->pack_n_align), pack_task, &c);
}

/* ---- forward ---- */

typedef struct act_call {
    const qb_train_device *d;
    const float *pre;
    float *y; /* or the gradient */
} act_call;

static void act_rows(void *context, size_t m0, size_t m1)
{
    const act_call *a = context;
    const qb_pointwise_row *p = a->d->pointwise;
    size_t width = a->d->c->d_ff;
    for (size_t m = m0; m < m1; m++) {
        const float *pre = a->pre + m * qb_train_pre_width(a->d->c);
        float *y = a->y + m * width;
        if (a->d->c->act == QB_ACT_SWIGLU)
            p->swiglu(pre, pre + width, width, y);
        else if (a->d->c->act == QB_ACT_RELU)
            p->relu(pre, width, y);
        else
            p->gelu_tanh(pre, width, y);
    }
}

qb_status qb__cpu_linear_forward(qb_train_device *d, const qb_train_linear *l, const void *x,
                                 void *pre, void *y)
{
    qb__cpu_pack(d, qb__cpu_weights(d, l->w), false, l->n, l->k, d->packed);
    qb_gemm_f32_args product = {.m = d->m,
                                .n = l->n,
                                .k = l->k,
                                .x = x,
                                .x_stride = l->k,
                                .w = d->packed,
                                .y = pre ? pre : y,
                                .y_stride = l->n,
                                .bias = qb__cpu_weights(d, l->bias)};
    qb_gemm_f32_run(d->gemm, &product, 1, d->pool);
    act_call act = {d, pre, y};
    if (pre) qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, act_rows, &act);
    return QB_OK;
}

/* ---- backward ---- */

static void act_backward_rows(void *context, size_t m0, size_t m1)
{
    const act_call *a = context;
    const qb_gradient_row *g = a->d->gradient;
    size_t width = a->d->c->d_ff;
    for (size_t m = m0; m < m1; m++) {
        const float *pre = a->pre + m * qb_train_pre_width(a->d->c);
        float *dx = a->y + m * qb_train_pre_width(a->d->c);
        if (a->d->c->act == QB_ACT_SWIGLU)
            g->swiglu(pre, pre + width, width, dx + width, dx, dx + width);
        else if (a->d->c->act == QB_ACT_RELU)
            g->relu(pre, width, dx);
        else
            g->gelu_tanh(pre, width, dx);
    }
}

/* For SwiGLU the product goes to the place of d_up. */
qb_status qb__cpu_linear_backward_input(qb_train_device *d, const qb_train_linear *l,
                                        const void *dy, const void *pre, bool accumulate, void *dx)
{
    size_t stride = pre ? qb_train_pre_width(d->c) : l->k;
    qb__cpu_pack(d, qb__cpu_weights(d, l->w), true, l->k, l->n, d->packed);
    qb_gemm_f32_args product = {.m = d->m,
                                .n = l->k,
                                .k = l->n,
                                .x = dy,
                                .x_stride = l->n,
                                .w = d->packed,
                                .y = (float *)dx + (stride - l->k),
                                .y_stride = stride,
                                .accumulate = accumulate};
    qb_gemm_f32_run(d->gemm, &product, 1, d->pool);
    act_call act = {d, pre, dx};
    if (pre) qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, act_backward_rows, &act);
    return QB_OK;
}

typedef struct bias_call {
    const qb_train_device *d;
    const float *dy;
    size_t n;
    float *gradient;
} bias_call;

static void bias_cols(void *context, size_t c0, size_t c1)
{
    const bias_call *b = context;
    size_t n = c1 - c0;
    double total[BIAS_COLS] = {0};
    for (size_t m0 = 0; m0 < b->d->m; m0 += BIAS_ROWS) {
        float sum[BIAS_COLS] = {0};
        for (size_t m = m0; m < b->d->m && m < m0 + BIAS_ROWS; m++)
            b->d->pointwise->add(sum, b->dy + m * b->n + c0, n);
        for (size_t c = 0; c < n; c++) total[c] += (double)sum[c];
    }
    for (size_t c = 0; c < n; c++) b->gradient[c0 + c] += (float)total[c];
}

/* dw (n, k) += dy^T x over `rows` rows; x has been packed. */
static void add_weight_gradient(const qb_train_device *d, size_t rows, size_t n, size_t k,
                                const float *dy, const float *x_packed, float *dw)
{
    qb_gemm_f32_args product = {.m = n,
                                .n = k,
                                .k = rows,
                                .x = dy,
                                .x_stride = n,
                                .x_transposed = true,
                                .w = x_packed,
                                .y = dw,
                                .y_stride = k,
                                .accumulate = true};
    qb_gemm_f32_run(d->gemm, &product, 1, d->pool);
}

qb_status qb__cpu_linear_backward_weights(qb_train_device *d, const qb_train_linear *l,
                                          const void *x, const void *dy)
{
    qb__cpu_pack(d, x, true, l->k, d->m, d->packed);
    add_weight_gradient(d, d->m, l->n, l->k, dy, d->packed, qb__cpu_gradients(d, l->w));
    bias_call bias = {d, dy, l->n, qb__cpu_gradients(d, l->bias)};
    if (bias.gradient) qb_parallel_spans(d->pool, l->n, BIAS_COLS, bias_cols, &bias);
    return QB_OK;
}

/* ---- the classifier ---- */

typedef struct head_call {
    qb_train_device *d;
    size_t first; /* row of the pass that the chunk starts with */
    float scale;
    bool gradients;
} head_call;

/* Losses of rows of logits, which become their own gradient. */
static void loss_rows(void *context, size_t r0, size_t r1)
{
    const head_call *c = context;
    qb_train_device *d = c->d;
    size_t vocab = d->c->vocab, window = d->options->context + 1;
    for (size_t r = r0; r < r1; r++) {
        size_t row = c->first + r, t = row % (window - 1);
        size_t target = (size_t)d->tokens[row / (window - 1) * window + t + 1];
        float *logits = d->logits + r * vocab;
        int32_t top;
        double lse = d->pointwise->logsumexp(logits, vocab, &top);
        bool scored = t >= qb_train_first_target(d->c);
        d->row_loss[row] = scored ? lse - (double)logits[target] : 0;
        if (!c->gradients) continue;
        d->gradient->exp_shift(logits, vocab, (float)lse);
        logits[target] -= 1;
        d->gradient->scale(logits, vocab, scored ? c->scale : 0, logits);
    }
}

qb_status qb__cpu_classifier(qb_train_device *d, const void *h, float scale, void *dh)
{
    size_t vocab = d->c->vocab, width = d->c->d_model;
    size_t w =
        qb_params_find(d->params, d->c->tied_head ? QB_ROLE_TOK_EMBD : QB_ROLE_HEAD, 0)->offset;
    const float *head = qb__cpu_weights(d, w);
    head_call call = {.d = d, .scale = scale, .gradients = dh};
    qb__cpu_pack(d, head, false, vocab, width, d->packed_head);
    if (dh) qb__cpu_pack(d, head, true, width, vocab, d->packed_back);
    for (size_t m0 = 0; m0 < d->m; m0 += d->head_rows) {
        size_t rows = d->m - m0 < d->head_rows ? d->m - m0 : d->head_rows;
        const float *x = (const float *)h + m0 * width;
        qb_gemm_f32_args logits = {.m = rows,
                                   .n = vocab,
                                   .k = width,
                                   .x = x,
                                   .x_stride = width,
                                   .w = d->packed_head,
                                   .y = d->logits,
                                   .y_stride = vocab};
        qb_gemm_f32_run(d->gemm, &logits, 1, d->pool);
        call.first = m0;
        qb_parallel_spans(d->pool, rows, QB__CPU_ROWS, loss_rows, &call);
        if (!dh) continue;
        qb_gemm_f32_args back = {.m = rows,
                                 .n = width,
                                 .k = vocab,
                                 .x = d->logits,
                                 .x_stride = vocab,
                                 .w = d->packed_back,
                                 .y = (float *)dh + m0 * width,
                                 .y_stride = width};
        qb_gemm_f32_run(d->gemm, &back, 1, d->pool);
        qb__cpu_pack(d, x, true, width, rows, d->packed);
        add_weight_gradient(d, rows, vocab, width, d->logits, d->packed, qb__cpu_gradients(d, w));
    }
    for (size_t m = 0; m < d->m; m++) d->loss_sum += d->row_loss[m];
    return QB_OK;
}
