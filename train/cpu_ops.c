/* train/cpu_ops.c - the processor's row of train/ops.h: the device, embeddings, norms, positions
 * and gates. */
#include "train/cpu_ops_internal.h"

#include <math.h>
#include <string.h>

/* ---- the device ---- */

qb_status qb__cpu_alloc(qb_train_device *d, size_t n_elems, size_t elem_bytes, const char *what,
                        void **out)
{
    return qb_blocks_add(&d->blocks, qb_alloc_zero, n_elems, elem_bytes, what, out);
}

static void destroy(qb_train_device *d)
{
    if (!d) return;
    qb__cpu_update_destroy(d);
    qb_blocks_free(&d->blocks, qb_free);
    qb_pool_destroy(d->pool);
    qb_free(d);
}

static qb_status create_positions(qb_train_device *d)
{
    size_t n = d->options->context * (d->c->head_dim / 2);
    if (d->c->pos != QB_POS_ROPE) return QB_OK;
    QB_TRY(qb__cpu_alloc(d, n, sizeof(float), "angles", (void **)&d->cosine));
    QB_TRY(qb__cpu_alloc(d, n, sizeof(float), "angles", (void **)&d->sine));
    QB_TRY(qb__cpu_alloc(d, n, sizeof(float), "angles", (void **)&d->minus_sine));
    qb_rope_table(&d->c->rope, d->c->head_dim, d->options->context, d->cosine, d->sine);
    for (size_t i = 0; i < n; i++) d->minus_sine[i] = -d->sine[i];
    return QB_OK;
}

static size_t n_row_blocks(size_t m)
{
    return (m + QB__CPU_ROWS - 1) / QB__CPU_ROWS;
}

static size_t array_elems(const qb_train_device *d, qb_train_array array)
{
    return array < QB_ARRAY_STATE0 ? d->params->n_elems : d->share->end - d->share->first;
}

static qb_status create_buffers(qb_train_device *d)
{
    size_t n_arrays = QB_ARRAY_STATE0 + d->options->optimizer->n_states;
    for (size_t i = 0; i < n_arrays; i++)
        QB_TRY(qb__cpu_alloc(d, array_elems(d, (qb_train_array)i), sizeof(float),
                             "weights and moments", (void **)&d->arrays[i]));
    QB_TRY(qb__cpu_alloc(d, d->options->micro_batch * (d->options->context + 1), sizeof(int32_t),
                         "tokens", (void **)&d->tokens));
    QB_TRY(qb__cpu_alloc(d, d->max_rows, sizeof(double), "losses", (void **)&d->row_loss));
    QB_TRY(qb__cpu_alloc(d, n_row_blocks(d->max_rows) * 2 * d->c->d_model, sizeof(float),
                         "sums of norms", (void **)&d->partial_sums));
    QB_TRY(create_positions(d));
    QB_TRY(qb__cpu_linear_create(d));
    QB_TRY(qb__cpu_attention_create(d));
    return qb__cpu_update_create(d);
}

static const char *refuse(const qb_config *config, const qb_trainer_options *options)
{
    (void)config;
    (void)options;
    return NULL;
}

static qb_status create(const qb_params *params, const qb_trainer_options *options,
                        const qb_train_share *share, qb_train_device **out)
{
    qb_train_device *d;
    QB_TRY(QB_NEW_ZERO(&d, 1, "training device"));
    d->params = params;
    d->c = &params->config;
    d->options = options;
    d->share = share;
    d->pointwise = QB_KERNEL_PICK(qb_pointwise_kernels);
    d->gradient = QB_KERNEL_PICK(qb_gradient_kernels);
    d->gemm = QB_KERNEL_PICK(qb_gemm_f32_kernels);
    d->max_rows = options->micro_batch * options->context;
    qb_status status = qb_pool_create(options->n_threads, &d->pool);
    if (status == QB_OK) status = create_buffers(d);
    if (status == QB_OK)
        *out = d;
    else
        destroy(d);
    return status;
}

static size_t memory_bytes(const qb_train_device *d)
{
    return d->blocks.bytes;
}

static qb_status alloc(qb_train_device *d, qb_train_buffer kind, size_t width, void **out)
{
    (void)kind; /* all are f32 here */
    return qb__cpu_alloc(d, d->max_rows * width, sizeof(float), "activations", out);
}

static qb_status read_buffer(qb_train_device *d, qb_train_buffer kind, size_t width,
                             const void *buffer, float *to)
{
    (void)kind; /* all are f32 here */
    memcpy(to, buffer, d->m * width * sizeof *to);
    return QB_OK;
}

static qb_status copy_in(qb_train_device *d, qb_train_array array, const float *from)
{
    size_t n = array_elems(d, array);
    if (n) memcpy(d->arrays[array], from, n * sizeof *from);
    return QB_OK;
}

static qb_status copy_out(qb_train_device *d, qb_train_array array, float *to)
{
    size_t n = array_elems(d, array);
    if (n) memcpy(to, d->arrays[array], n * sizeof *to);
    return QB_OK;
}

/* ---- a pass ---- */

static qb_status begin(qb_train_device *d, bool gradients)
{
    d->loss_sum = 0;
    if (gradients) memset(d->arrays[QB_ARRAY_GRADIENTS], 0, d->params->n_elems * sizeof(float));
    return QB_OK;
}

static qb_status load_tokens(qb_train_device *d, const int32_t *tokens, size_t batch, bool learn)
{
    (void)learn;
    size_t window = d->options->context + 1;
    QB_TRY(qb_train_check_tokens(tokens, batch, window, d->c->vocab));
    memcpy(d->tokens, tokens, batch * window * sizeof *tokens);
    d->batch = batch;
    d->m = batch * d->options->context;
    return QB_OK;
}

static qb_status repeat(qb_train_device *d, const qb_train_repeat *repeat)
{
    (void)d;
    return repeat->queue(repeat->context);
}

static qb_status send_totals(qb_train_device *d, size_t place)
{
    d->totals[place] = (qb_train_totals){.loss_sum = d->loss_sum, .grad_norm = d->grad_norm};
    return QB_OK;
}

static qb_status receive_totals(qb_train_device *d, size_t place, qb_train_totals *out)
{
    *out = d->totals[place];
    return QB_OK;
}

static qb_status has_nonfinite(qb_train_device *d, qb_train_array array, size_t offset,
                               size_t n_elems, bool *out)
{
    const float *x = d->arrays[array] + offset;
    *out = false;
    for (size_t i = 0; i < n_elems && !*out; i++) *out = !isfinite(x[i]);
    return QB_OK;
}

/* ---- embeddings ---- */

typedef struct embed_call {
    qb_train_device *d;
    const float *dx;
    float *x;
    float *tokens, *positions; /* tables or their gradients; positions may be NULL */
} embed_call;

static embed_call embed_call_of(qb_train_device *d, qb_train_array array)
{
    const qb_param *tokens = qb_params_find(d->params, QB_ROLE_TOK_EMBD, 0);
    const qb_param *positions = qb_params_find(d->params, QB_ROLE_POS_EMBD, 0);
    return (embed_call){.d = d,
                        .tokens = d->arrays[array] + tokens->offset,
                        .positions = positions ? d->arrays[array] + positions->offset : NULL};
}

static size_t token_of(const qb_train_device *d, size_t row)
{
    size_t context = d->options->context;
    return (size_t)d->tokens[row / context * (context + 1) + row % context];
}

static void embed_rows(void *context, size_t m0, size_t m1)
{
    const embed_call *e = context;
    size_t width = e->d->c->d_model;
    for (size_t m = m0; m < m1; m++) {
        float *x = e->x + m * width;
        memcpy(x, e->tokens + token_of(e->d, m) * width, width * sizeof *x);
        if (e->positions)
            e->d->pointwise->add(x, e->positions + m % e->d->options->context * width, width);
    }
}

static qb_status embed_forward(qb_train_device *d, void *x)
{
    embed_call e = embed_call_of(d, QB_ARRAY_WEIGHTS);
    e.x = x;
    qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, embed_rows, &e);
    return QB_OK;
}

/* A task has some columns of all rows, so that no two tasks meet in a token's gradient. */
enum { EMBED_COLS = 64 };

static void embed_cols(void *context, size_t c0, size_t c1)
{
    const embed_call *e = context;
    size_t width = e->d->c->d_model, n = c1 - c0;
    for (size_t m = 0; m < e->d->m; m++) {
        const float *dx = e->dx + m * width + c0;
        e->d->pointwise->add(e->tokens + token_of(e->d, m) * width + c0, dx, n);
        if (e->positions)
            e->d->pointwise->add(e->positions + m % e->d->options->context * width + c0, dx, n);
    }
}

static qb_status embed_backward(qb_train_device *d, const void *dx)
{
    embed_call e = embed_call_of(d, QB_ARRAY_GRADIENTS);
    e.dx = dx;
    qb_parallel_spans(d->pool, d->c->d_model, EMBED_COLS, embed_cols, &e);
    return QB_OK;
}

/* ---- norms ---- */

typedef struct norm_call {
    qb_train_device *d;
    const qb_train_norm *norm;
    const float *x, *add, *dy;
    float *sum, *y, *dx;
    bool accumulate;
} norm_call;

static void norm_row(const norm_call *c, const float *x, float *y)
{
    const qb_config *config = c->d->c;
    const float *gain = qb__cpu_weights(c->d, c->norm->gain);
    if (config->norm == QB_NORM_LAYERNORM)
        c->d->pointwise->layernorm(x, config->d_model, gain, qb__cpu_weights(c->d, c->norm->bias),
                                   config->norm_eps, y);
    else
        c->d->pointwise->rmsnorm(x, config->d_model, gain, config->norm != QB_NORM_RMSNORM_SINGLE,
                                 config->norm_eps, y);
}

static void norm_rows(void *context, size_t m0, size_t m1)
{
    const norm_call *c = context;
    size_t width = c->d->c->d_model;
    for (size_t m = m0; m < m1; m++) {
        const float *x = c->x + m * width;
        if (c->add) {
            float *sum = c->sum + m * width;
            if (sum != x) memcpy(sum, x, width * sizeof *sum);
            c->d->pointwise->add(sum, c->add + m * width, width);
            x = sum;
        }
        norm_row(c, x, c->y + m * width);
    }
}

/* The backward pass works the statistics out again, in double. */
static qb_status norm_forward(qb_train_device *d, const qb_train_norm *norm, const void *x,
                              const void *add, void *sum, void *stats, void *y)
{
    (void)stats;
    norm_call c = {.d = d, .norm = norm, .x = x, .add = add, .sum = sum, .y = y};
    qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, norm_rows, &c);
    return QB_OK;
}

static void norm_backward_rows(void *context, size_t m0, size_t m1)
{
    const norm_call *c = context;
    const qb_config *config = c->d->c;
    size_t width = config->d_model;
    const qb_norm_shape shape = {.n = width,
                                 .centred = config->norm == QB_NORM_LAYERNORM,
                                 .eps = config->norm_eps,
                                 .gain = qb__cpu_weights(c->d, c->norm->gain),
                                 .gain_step = config->norm != QB_NORM_RMSNORM_SINGLE};
    float *dgain = c->d->partial_sums + m0 / QB__CPU_ROWS * 2 * width, *dbias = dgain + width;
    memset(dgain, 0, 2 * width * sizeof *dgain);
    for (size_t m = m0; m < m1; m++)
        c->d->gradient->norm(&shape, c->x + m * width, c->dy + m * width, c->accumulate,
                             c->dx + m * width, dgain, c->norm->bias == QB_NO_PARAM ? NULL : dbias);
}

static void add_partial_sums(const qb_train_device *d, size_t first, size_t n, float *to)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t b = 0; b < n_row_blocks(d->m); b++)
            sum += (double)d->partial_sums[b * 2 * d->c->d_model + first + i];
        to[i] += (float)sum;
    }
}

static qb_status norm_backward(qb_train_device *d, const qb_train_norm *norm, const void *x,
                               const void *stats, const void *dy, bool accumulate, void *dx)
{
    (void)stats;
    norm_call c = {.d = d, .norm = norm, .x = x, .dy = dy, .dx = dx, .accumulate = accumulate};
    size_t width = d->c->d_model;
    qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, norm_backward_rows, &c);
    add_partial_sums(d, 0, d->c->norm == QB_NORM_RMSNORM_SINGLE ? 1 : width,
                     qb__cpu_gradients(d, norm->gain));
    if (norm->bias != QB_NO_PARAM)
        add_partial_sums(d, width, width, qb__cpu_gradients(d, norm->bias));
    return QB_OK;
}

/* ---- positions and gates ---- */

typedef struct rope_call {
    const qb_train_device *d;
    float *qkv;
    const float *sine;
} rope_call;

static void rope_rows(void *context, size_t m0, size_t m1)
{
    const rope_call *r = context;
    const qb_config *c = r->d->c;
    size_t half = c->head_dim / 2, heads = c->n_heads + c->n_kv_heads; /* q and k side by side */
    for (size_t m = m0; m < m1; m++) {
        size_t at = m % r->d->options->context * half;
        r->d->pointwise->rope(r->qkv + m * qb_train_qkv_width(c), heads, half, r->d->cosine + at,
                              r->sine + at);
    }
}

static qb_status rope(qb_train_device *d, void *qkv, bool inverse)
{
    rope_call r = {d, qkv, inverse ? d->minus_sine : d->sine};
    qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, rope_rows, &r);
    return QB_OK;
}

typedef struct gate_call {
    const qb_train_device *d;
    const float *out, *gate, *d_gated;
    float *gated, *d_out, *d_gate;
} gate_call;

static float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

static void gate_rows(void *context, size_t m0, size_t m1)
{
    const gate_call *g = context;
    size_t heads = g->d->c->n_heads, dim = g->d->c->head_dim;
    for (size_t i = m0 * heads; i < m1 * heads; i++) {
        float s = sigmoid(g->gate[i]);
        for (size_t k = i * dim; k < (i + 1) * dim; k++) g->gated[k] = g->out[k] * s;
    }
}

static void gate_backward_rows(void *context, size_t m0, size_t m1)
{
    const gate_call *g = context;
    size_t heads = g->d->c->n_heads, dim = g->d->c->head_dim;
    for (size_t i = m0 * heads; i < m1 * heads; i++) {
        float s = sigmoid(g->gate[i]);
        double sum = 0;
        for (size_t k = i * dim; k < (i + 1) * dim; k++) {
            sum += (double)g->d_gated[k] * (double)g->out[k];
            g->d_out[k] = g->d_gated[k] * s;
        }
        g->d_gate[i] = (float)(sum * (double)s * (1 - (double)s));
    }
}

static qb_status gate_forward(qb_train_device *d, const void *out, const void *gate, void *gated)
{
    gate_call g = {.d = d, .out = out, .gate = gate, .gated = gated};
    qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, gate_rows, &g);
    return QB_OK;
}

static qb_status gate_backward(qb_train_device *d, const void *out, const void *gate,
                               const void *d_gated, void *d_out, void *d_gate)
{
    gate_call g = {
        .d = d, .out = out, .gate = gate, .d_gated = d_gated, .d_out = d_out, .d_gate = d_gate};
    qb_parallel_spans(d->pool, d->m, QB__CPU_ROWS, gate_backward_rows, &g);
    return QB_OK;
}

const qb_train_ops qb__train_ops_cpu = {
    .device = "cpu",
    .makes_hadamard = true,
    .refuse = refuse,
    .create = create,
    .destroy = destroy,
    .memory_bytes = memory_bytes,
    .alloc = alloc,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .read = read_buffer,
    .set_rotation = qb__cpu_set_rotation,
    .begin = begin,
    .load_tokens = load_tokens,
    .set_update = qb__cpu_set_update,
    .repeat = repeat,
    .embed_forward = embed_forward,
    .embed_backward = embed_backward,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .linear_forward = qb__cpu_linear_forward,
    .linear_backward_input = qb__cpu_linear_backward_input,
    .linear_backward_weights = qb__cpu_linear_backward_weights,
    .rope = rope,
    .attention_forward = qb__cpu_attention_forward,
    .attention_backward = qb__cpu_attention_backward,
    .gate_forward = gate_forward,
    .gate_backward = gate_backward,
    .classifier = qb__cpu_classifier,
    .share_gradients = qb__cpu_share_gradients,
    .gradient_norm = qb__cpu_gradient_norm,
    .update = qb__cpu_update,
    .go_on = qb__cpu_go_on,
    .has_nonfinite = has_nonfinite,
    .send_totals = send_totals,
    .receive_totals = receive_totals,
};
