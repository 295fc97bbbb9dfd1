/* train/cuda/cuda_train_products.c - linear layers forward and backward, and the classifier.
 *
 * In bf16 GELU, ReLU and their derivatives are epilogues of the products; other activations are
 * passes of their own. */
#include "train/cuda/cuda_train.h"

#include "core/memory.h"

#ifdef QB_HAVE_CUBLASLT

static bool fuses_act(const qb_train_device *d)
{
    return d->type == QB_CUDA_BF16 && d->c->act == QB_ACT_GELU_TANH;
}

static qb_cuda_train_act act_of(const qb_train_device *d, const void *pre)
{
    return (qb_cuda_train_act){.m = d->m,
                               .width = d->c->d_ff,
                               .type = d->type,
                               .act = d->c->act,
                               .pre = pre,
                               .pre_stride = qb_cuda_stride(qb_train_pre_width(d->c)),
                               .y_stride = qb_cuda_stride(d->c->d_ff)};
}

/* The products about GELU and ReLU as kernels of our own. GELU: pre then holds the slope, which the
 * backward pass wants, in place of what came before it. ReLU: pre is the output, whose sign is the
 * slope. */
static qb_cuda_gemm_bf16_args up_product(const qb_train_device *d, const qb_train_linear *l,
                                         const void *x, void *pre, void *y)
{
    const bool relu = d->c->act == QB_ACT_RELU;
    return (qb_cuda_gemm_bf16_args){.epilogue = relu ? QB_BF16_RELU : QB_BF16_GELU,
                                    .m = d->m,
                                    .n = l->n,
                                    .k = l->k,
                                    .x = x,
                                    .x_stride = qb_cuda_stride(l->k),
                                    .w = qb__cuda_train_weights(d, l->w),
                                    .w_stride = l->k,
                                    .y = y,
                                    .y_stride = qb_cuda_stride(l->n),
                                    .aux = relu ? NULL : pre,
                                    .aux_stride = qb_cuda_stride(l->n)};
}

static qb_cuda_gemm_bf16_args down_product(const qb_train_device *d, const qb_train_linear *l,
                                           const void *dy, const void *pre, void *dx)
{
    const bool relu = d->c->act == QB_ACT_RELU;
    return (qb_cuda_gemm_bf16_args){.epilogue = relu ? QB_BF16_WHERE : QB_BF16_TIMES,
                                    .m = d->m,
                                    .n = l->k,
                                    .k = l->n,
                                    .x = dy,
                                    .x_stride = qb_cuda_stride(l->n),
                                    .w = qb__cuda_train_weights(d, l->w),
                                    .w_stride = l->k,
                                    .y = dx,
                                    .y_stride = qb_cuda_stride(l->k),
                                    .aux = (void *)pre, /* read */
                                    .aux_stride = qb_cuda_stride(l->k)};
}

/* Whether all layers' can be, so that a slope meets no product that takes it for something else. */
static bool owns_act(const qb_train_device *d)
{
    if (d->type != QB_CUDA_BF16 || d->c->mlp_bias) return false;
    if (d->c->act != QB_ACT_GELU_TANH && d->c->act != QB_ACT_RELU) return false;
    for (size_t i = 0; i < d->c->n_layers; i++) {
        const qb_param *up = qb_params_find(d->params, QB_ROLE_UP, i),
                       *down = qb_params_find(d->params, QB_ROLE_DOWN, i);
        const qb_train_linear lu = {up->offset, QB_NO_PARAM, up->rows, up->cols},
                              ld = {down->offset, QB_NO_PARAM, down->rows, down->cols};
        const qb_cuda_gemm_bf16_args forward = up_product(d, &lu, NULL, NULL, NULL),
                                     backward = down_product(d, &ld, NULL, NULL, NULL);
        if (qb_cuda_gemm_bf16_refuse(&forward) || qb_cuda_gemm_bf16_refuse(&backward)) return false;
    }
    return true;
}

qb_status qb__cuda_train_linear_forward(qb_train_device *d, const qb_train_linear *l, const void *x,
                                        void *pre, void *y)
{
    const bool fused = pre && fuses_act(d);
    if (pre && d->owns_act) {
        const qb_cuda_gemm_bf16_args own = up_product(d, l, x, pre, y);
        return qb_cuda_gemm_bf16(&own, d->stream);
    }
    qb_lt_matmul_args product = {.m = d->m,
                                 .n = l->n,
                                 .k = l->k,
                                 .in = d->type,
                                 .out = d->type,
                                 .x = x,
                                 .x_stride = qb_cuda_stride(l->k),
                                 .w = qb__cuda_train_weights(d, l->w),
                                 .w_stride = l->k,
                                 .d = pre && !fused ? pre : y,
                                 .d_stride = qb_cuda_stride(l->n),
                                 .alpha = 1,
                                 .bias = qb__cuda_train_weights(d, l->bias)};
    if (fused) {
        product.epilogue = QB_LT_GELU_AUX;
        product.aux = pre;
        product.aux_stride = qb_cuda_stride(l->n);
    }
    QB_TRY(qb_lt_matmul(&product, d->stream));
    if (!pre || fused) return QB_OK;
    qb_cuda_train_act act = act_of(d, pre);
    act.y = y;
    return qb_cuda_train_act_forward(&act, d->stream);
}

qb_status qb__cuda_train_linear_backward_input(qb_train_device *d, const qb_train_linear *l,
                                               const void *dy, const void *pre, bool accumulate,
                                               void *dx)
{
    const bool fused = pre && fuses_act(d);
    if (pre && d->owns_act) {
        const qb_cuda_gemm_bf16_args own = down_product(d, l, dy, pre, dx);
        return qb_cuda_gemm_bf16(&own, d->stream);
    }
    void *to = pre && d->d_act ? d->d_act : dx;
    qb_lt_matmul_args product = {.m = d->m,
                                 .n = l->k,
                                 .k = l->n,
                                 .in = d->type,
                                 .out = d->type,
                                 .x = dy,
                                 .x_stride = qb_cuda_stride(l->n),
                                 .w = qb__cuda_train_weights(d, l->w),
                                 .w_is_kn = true,
                                 .w_stride = l->k,
                                 .d = to,
                                 .d_stride = qb_cuda_stride(l->k),
                                 .alpha = 1,
                                 .beta = accumulate};
    if (fused) {
        product.epilogue = QB_LT_DGELU;
        product.aux = (void *)pre; /* read */
        product.aux_stride = qb_cuda_stride(l->k);
    }
    QB_TRY(qb_lt_matmul(&product, d->stream));
    if (!pre || fused) return QB_OK;
    qb_cuda_train_act act = act_of(d, pre);
    act.y = to;
    act.d_pre = dx;
    return qb_cuda_train_act_backward(&act, d->stream);
}

/* dw (n, k) += dy^T x over `rows` rows */
static qb_status add_weight_gradient(const qb_train_device *d, size_t rows, size_t n, size_t k,
                                     const void *dy, const void *x, float *dw)
{
    qb_lt_matmul_args product = {.m = n,
                                 .n = k,
                                 .k = rows,
                                 .in = d->type,
                                 .out = QB_CUDA_F32,
                                 .x = dy,
                                 .x_is_km = true,
                                 .x_stride = qb_cuda_stride(n),
                                 .w = x,
                                 .w_is_kn = true,
                                 .w_stride = qb_cuda_stride(k),
                                 .d = dw,
                                 .d_stride = k,
                                 .alpha = 1,
                                 .beta = 1};
    return qb_lt_matmul(&product, d->stream);
}

qb_status qb__cuda_train_linear_backward_weights(qb_train_device *d, const qb_train_linear *l,
                                                 const void *x, const void *dy)
{
    float *d_bias = qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, l->bias);
    QB_TRY(add_weight_gradient(d, d->m, l->n, l->k, dy, x,
                               qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, l->w)));
    if (!d_bias) return QB_OK;
    return qb_cuda_train_column_sums(dy, d->type, d->m, l->n, qb_cuda_stride(l->n), d->partials,
                                     d_bias, d->stream);
}

/* ---- the classifier ---- */

/* The product that leaves exponentials; e NULL: their sums alone. */
static qb_cuda_gemm_bf16_args exponentials_of(const qb_train_device *d, const void *x, size_t rows,
                                              void *e)
{
    return (qb_cuda_gemm_bf16_args){.epilogue = QB_BF16_EXP,
                                    .m = rows,
                                    .n = d->c->vocab,
                                    .k = d->c->d_model,
                                    .x = x,
                                    .x_stride = qb_cuda_stride(d->c->d_model),
                                    .w = qb__cuda_train_weights(d, qb__cuda_train_head_offset(d)),
                                    .w_stride = d->c->d_model,
                                    .y = e,
                                    .y_stride = qb_cuda_stride(d->c->vocab),
                                    .shift = d->softmax.shift,
                                    .sums = d->sums,
                                    .maxima = d->maxima};
}

static qb_status create_exponentials(qb_train_device *d)
{
    const size_t n_tiles = (d->c->vocab + QB_BF16_TILE - 1) / QB_BF16_TILE;
    qb_cuda_train_softmax *s = &d->softmax;
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &s->target, d->head_rows, "rows of logits"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &s->shift, d->head_rows, "rows of logits"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &s->factors, d->max_rows, "rows of logits"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &s->redo, 1, "rows of logits"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->sums, n_tiles * d->head_rows, "rows of logits"));
    QB_TRY(QB__CUDA_TRAIN_NEW(d, &d->maxima, n_tiles * d->head_rows, "rows of logits"));
    s->sums = d->sums, s->maxima = d->maxima;
    return qb__cuda_train_alloc(d, d->head_rows * qb_cuda_stride(d->c->d_model), sizeof(uint16_t),
                                "rows of logits", &d->scaled);
}

/* Rows of logits at a time: a sixteenth of the device's memory, the fewer the more often the head's
 * gradient is read and written. */
static qb_status choose_head_rows(qb_train_device *d)
{
    qb_cuda_info info;
    QB_TRY(qb_cuda_info_get(d->index, &info));
    const size_t row_bytes = qb_cuda_stride(d->c->vocab) * qb_cuda_dtype_bytes(d->type);
    const size_t rows = info.memory_bytes / 16 / row_bytes;
    d->head_rows = rows < 256 ? 256 : rows / 256 * 256;
    if (d->head_rows > d->max_rows) d->head_rows = d->max_rows;
    return QB_OK;
}

qb_status qb__cuda_train_products_create(qb_train_device *d)
{
    QB_TRY(choose_head_rows(d));
    QB_TRY(qb__cuda_train_alloc(d, d->head_rows * qb_cuda_stride(d->c->vocab),
                                qb_cuda_dtype_bytes(d->type), "logits", &d->logits));
    d->owns_act = owns_act(d);
    if (d->type != QB_CUDA_BF16) return QB_OK;
    const qb_cuda_gemm_bf16_args product = exponentials_of(d, d->logits, d->head_rows, d->logits);
    d->has_exponentials = !qb_cuda_gemm_bf16_refuse(&product);
    return d->has_exponentials ? create_exponentials(d) : QB_OK;
}

static const void *row_at(const qb_train_device *d, const void *x, size_t row, size_t width)
{
    return (const char *)x + row * qb_cuda_stride(width) * qb_cuda_dtype_bytes(d->type);
}

static qb_status logits_of(const qb_train_device *d, const void *x, size_t rows)
{
    qb_lt_matmul_args product = {.m = rows,
                                 .n = d->c->vocab,
                                 .k = d->c->d_model,
                                 .in = d->type,
                                 .out = d->type,
                                 .x = x,
                                 .x_stride = qb_cuda_stride(d->c->d_model),
                                 .w = qb__cuda_train_weights(d, qb__cuda_train_head_offset(d)),
                                 .w_stride = d->c->d_model,
                                 .d = d->logits,
                                 .d_stride = qb_cuda_stride(d->c->vocab),
                                 .alpha = 1};
    return qb_lt_matmul(&product, d->stream);
}

/* dh = d_logits W, and the head's own gradient, d_logits^T scaled */
static qb_status logits_backward(const qb_train_device *d, const void *scaled, size_t rows,
                                 void *dh)
{
    const size_t width = d->c->d_model, vocab = d->c->vocab, head = qb__cuda_train_head_offset(d);
    qb_lt_matmul_args product = {.m = rows,
                                 .n = width,
                                 .k = vocab,
                                 .in = d->type,
                                 .out = d->type,
                                 .x = d->logits,
                                 .x_stride = qb_cuda_stride(vocab),
                                 .w = qb__cuda_train_weights(d, head),
                                 .w_is_kn = true,
                                 .w_stride = width,
                                 .d = dh,
                                 .d_stride = qb_cuda_stride(width),
                                 .alpha = 1};
    QB_TRY(qb_lt_matmul(&product, d->stream));
    return add_weight_gradient(d, rows, vocab, width, d->logits, scaled,
                               qb__cuda_train_array(d, QB_ARRAY_GRADIENTS, head));
}

/* Rows row .. row + rows of the loss and, with dh, its gradients: by logits, */
static qb_status some_logits(const qb_train_device *d, const void *x, size_t row, size_t rows,
                             float scale, void *dh)
{
    qb_cuda_train_loss loss = {.first_row = row,
                               .n_rows = rows,
                               .vocab = d->c->vocab,
                               .n_tokens = d->options->context,
                               .first_target = qb_train_first_target(d->c),
                               .type = d->type,
                               .logits = d->logits,
                               .stride = qb_cuda_stride(d->c->vocab),
                               .tokens = d->tokens,
                               .scale = dh ? scale : 0,
                               .losses = d->losses};
    QB_TRY(logits_of(d, x, rows));
    QB_TRY(qb_cuda_train_cross_entropy(&loss, d->stream));
    return dh ? logits_backward(d, x, rows, dh) : QB_OK;
}

/* A vocabulary narrower than the model: what lacks factors are the exponentials themselves, not the
 * head's input and its gradient, which together are wider. */
static bool is_narrow(const qb_train_device *d)
{
    return d->c->vocab < d->c->d_model;
}

/* or by exponentials, when the rows of dh still lack their factors. */
static qb_status some_exponentials(const qb_train_device *d, const void *x, size_t row, size_t rows,
                                   float scale, void *dh)
{
    const size_t width = d->c->d_model, stride = qb_cuda_stride(width);
    qb_cuda_train_softmax s = d->softmax;
    s.first_row = row, s.n_rows = rows, s.vocab = d->c->vocab, s.width = width;
    s.n_tokens = d->options->context, s.first_target = qb_train_first_target(d->c);
    s.h = x, s.h_stride = stride, s.w = qb__cuda_train_weights(d, qb__cuda_train_head_offset(d));
    s.tokens = d->tokens, s.scale = scale, s.losses = d->losses;
    s.e = dh ? d->logits : NULL, s.e_stride = qb_cuda_stride(d->c->vocab);
    qb_cuda_gemm_bf16_args product = exponentials_of(d, x, rows, s.e);
    QB_TRY(qb_cuda_train_softmax_begin(&s, d->stream));
    QB_TRY(qb_cuda_gemm_bf16(&product, d->stream));
    QB_TRY(qb_cuda_train_softmax_check(&s, d->stream));
    product.run = s.redo;
    QB_TRY(qb_cuda_gemm_bf16(&product, d->stream));
    QB_TRY(qb_cuda_train_softmax_finish(&s, d->stream));
    if (!dh) return QB_OK;
    if (is_narrow(d)) {
        QB_TRY(qb_cuda_train_scale_rows(d->logits, d->logits, rows, s.vocab, s.e_stride,
                                        s.factors + row, d->stream));
        return logits_backward(d, x, rows, dh);
    }
    QB_TRY(qb_cuda_train_scale_rows(x, d->scaled, rows, width, stride, s.factors + row, d->stream));
    return logits_backward(d, d->scaled, rows, dh);
}

qb_status qb__cuda_train_classifier(qb_train_device *d, const void *h, float scale, void *dh)
{
    const size_t width = d->c->d_model, n_parts = (d->m + d->head_rows - 1) / d->head_rows;
    const size_t each = qb_round_up((d->m + n_parts - 1) / n_parts, 256);
    for (size_t row = 0; row < d->m; row += each) {
        const size_t rows = d->m - row < each ? d->m - row : each;
        const void *x = row_at(d, h, row, width);
        void *dx = dh ? (void *)row_at(d, dh, row, width) : NULL;
        QB_TRY((d->has_exponentials ? some_exponentials : some_logits)(d, x, row, rows, scale, dx));
    }
    if (dh && d->has_exponentials && !is_narrow(d))
        QB_TRY(qb_cuda_train_scale_rows(dh, dh, d->m, width, qb_cuda_stride(width),
                                        d->softmax.factors, d->stream));
    return qb_cuda_train_add_losses(d->losses, d->m, d->totals, d->stream);
}

#endif
