/* tests/tiny_model.c - see tiny_model.h. The forward pass is written to be read beside the
 * formulas. */
#include "tiny_model.h"

#include "support.h"

#include "core/memory.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

qb_config qb_test_tiny_config(const char *arch)
{
    qb_config c = qb_arch_find(arch)->defaults;
    c.arch = qb_arch_find(arch);
    bool llama = !strcmp(arch, "llama");
    c.n_layers = 2;
    c.n_heads = llama ? 4 : 3;
    c.n_kv_heads = llama ? 2 : 3;
    c.head_dim = 10;
    c.d_model = c.n_heads * c.head_dim;
    c.d_ff = 75;
    c.vocab = 61;
    c.context = 24;
    c.rope.theta = 10000;
    return c;
}

qb_model *qb_test_tiny_model(const qb_config *config, uint64_t seed)
{
    qb_model *model;
    QB_CHECK_OK(qb_config_check(config));
    QB_CHECK_OK(qb_model_create(config, "tiny", "random", &model));
    for (size_t layer = 0; layer < config->n_layers; layer++)
        for (int role = 0; role < QB_ROLE_COUNT; role++) {
            size_t rows, cols;
            if (!qb_config_has(config, (qb_role)role, layer)) continue;
            qb_config_shape(config, (qb_role)role, &rows, &cols);
            if (!qb_roles[role].per_layer && layer) continue;
            float *w;
            QB_CHECK_OK(qb_model_new_block(model, rows * cols * sizeof *w, (void **)&w));
            bool gain = role == QB_ROLE_NORM1 || role == QB_ROLE_NORM2 || role == QB_ROLE_NORM_F;
            qb_rng_normal_f32(seed, 1000 + layer * 64 + (size_t)role, 0, rows * cols,
                              gain ? 0.1f : 0.15f, w);
            for (size_t i = 0; i < rows * cols; i++) {
                if (gain) w[i] += 1.0f;
                if (qb_rng_u32(seed, 7, i + layer) % 211 == 0) w[i] *= 6.0f;
            }
            QB_CHECK_OK(qb_model_set(model, (qb_role)role, layer, QB_F32, rows, cols, w,
                                     rows * cols * sizeof *w, "tiny"));
        }
    QB_CHECK_OK(qb_model_check_complete(model));
    return model;
}

void qb_test_tokens(const qb_config *config, int32_t *tokens, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)qb_rng_below(seed, QB_STREAM_TEST + 9, i, config->vocab);
}

/* ---- the forward pass ---- */

static float *floats_of(const qb_model *m, qb_role role, size_t layer)
{
    const qb_tensor *t = role == QB_ROLE_HEAD ? qb_model_head(m) : qb_model_tensor(m, role, layer);
    if (!t->data) return NULL;
    float *w = malloc(t->rows * t->cols * sizeof *w);
    qb_tensor_rows_f32(t, 0, t->rows, w);
    return w;
}

static void linear(const qb_model *m, qb_role role, size_t layer, const double *x, double *y)
{
    const qb_tensor *t = role == QB_ROLE_HEAD ? qb_model_head(m) : qb_model_tensor(m, role, layer);
    float *w = floats_of(m, role, layer), *bias = NULL;
    if (role != QB_ROLE_HEAD) bias = floats_of(m, (qb_role)(role + 1), layer);
    for (size_t n = 0; n < t->rows; n++) {
        y[n] = bias ? (double)bias[n] : 0;
        for (size_t k = 0; k < t->cols; k++) y[n] += x[k] * (double)w[n * t->cols + k];
    }
    free(w);
    free(bias);
}

static void norm(const qb_model *m, qb_role role, size_t layer, const double *x, double *y)
{
    const qb_config *c = &m->config;
    float *gain = floats_of(m, role, layer), *bias = floats_of(m, (qb_role)(role + 1), layer);
    double mean = 0, square = 0;
    size_t n = c->d_model;
    for (size_t i = 0; c->norm == QB_NORM_LAYERNORM && i < n; i++) mean += x[i] / (double)n;
    for (size_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / (double)n;
    for (size_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) / sqrt(square + c->norm_eps) *
                   (double)gain[c->norm == QB_NORM_RMSNORM_SINGLE ? 0 : i] +
               (bias ? (double)bias[i] : 0);
    free(gain);
    free(bias);
}

static void rotate(const qb_config *c, double *x, size_t n_heads, size_t t)
{
    double inv_freq[128], scale = 1;
    size_t half = c->head_dim / 2;
    if (c->pos != QB_POS_ROPE) return;
    qb_rope_inv_freq(&c->rope, c->head_dim, inv_freq);
    if (c->rope.kind == QB_ROPE_YARN) scale = c->rope.attention_factor;
    for (size_t h = 0; h < n_heads; h++)
        for (size_t i = 0; i < half; i++) {
            double *p = x + h * c->head_dim + i, a = p[0], b = p[half],
                   angle = (double)t * inv_freq[i];
            p[0] = scale * (a * cos(angle) - b * sin(angle));
            p[half] = scale * (b * cos(angle) + a * sin(angle));
        }
}

/* sink: the head's own logit, where the softmax has one. */
static void weights_of_row(const qb_config *c, double sink, double *s, size_t n)
{
    double m = -INFINITY, sum = 0;
    if (c->softmax == QB_SOFTMAX1) m = 0;
    if (c->softmax == QB_SOFTMAX_SINK) m = sink;
    if (c->softmax == QB_SOFTMAX_RELU) {
        for (size_t j = 0; j < n; j++) s[j] = fmax(0, s[j]) / (double)n;
        return;
    }
    for (size_t j = 0; j < n; j++) m = fmax(m, s[j]);
    for (size_t j = 0; j < n; j++) sum += s[j] = exp(s[j] - m);
    if (c->softmax == QB_SOFTMAX1) sum += exp(-m);
    if (c->softmax == QB_SOFTMAX_SINK) sum += exp(sink - m);
    for (size_t j = 0; j < n; j++) s[j] /= sum;
    for (size_t j = 0; j < n && c->softmax == QB_SOFTMAX_CLIPPED; j++)
        s[j] = fmin(1, fmax(0, (c->softmax_zeta - c->softmax_gamma) * s[j] + c->softmax_gamma));
}

static double activate(const qb_config *c, double x, double gate)
{
    if (c->act == QB_ACT_RELU) return fmax(0, x);
    if (c->act == QB_ACT_SWIGLU) return gate / (1 + exp(-gate)) * x;
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

static void attend(const qb_config *c, const float *sink, const double *qkv, size_t n_tokens,
                   size_t t, double *out)
{
    size_t width = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim, d = c->head_dim;
    size_t n = t + 1, free_prefix = c->free_prefix < n_tokens ? c->free_prefix : n_tokens;
    double s[256];
    if (n < free_prefix) n = free_prefix;
    for (size_t h = 0; h < c->n_heads; h++) {
        size_t g = h / (c->n_heads / c->n_kv_heads);
        const double *q = qkv + t * width + h * d;
        for (size_t j = 0; j < n; j++) {
            const double *k = qkv + j * width + (c->n_heads + g) * d;
            s[j] = 0;
            for (size_t i = 0; i < d; i++) s[j] += q[i] * k[i] / sqrt((double)d);
        }
        weights_of_row(c, sink ? (double)sink[h] : 0, s, n);
        for (size_t i = 0; i < d; i++) {
            out[h * d + i] = 0;
            for (size_t j = 0; j < n; j++)
                out[h * d + i] += s[j] * qkv[j * width + (c->n_heads + c->n_kv_heads + g) * d + i];
        }
    }
}

static void add_mlp(const qb_model *m, size_t layer, double *x)
{
    const qb_config *c = &m->config;
    double h[256], y[256], gate[256] = {0}, up[256];
    norm(m, QB_ROLE_NORM2, layer, x, h);
    linear(m, QB_ROLE_UP, layer, h, up);
    if (c->act == QB_ACT_SWIGLU) linear(m, QB_ROLE_GATE, layer, h, gate);
    for (size_t i = 0; i < c->d_ff; i++) up[i] = activate(c, up[i], gate[i]);
    linear(m, QB_ROLE_DOWN, layer, up, y);
    for (size_t i = 0; i < c->d_model; i++) x[i] += y[i];
}

static void add_attention(const qb_model *m, size_t layer, double *x, size_t n_tokens)
{
    const qb_config *c = &m->config;
    size_t width = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    double *qkv = malloc(n_tokens * width * sizeof *qkv), h[256], y[256];
    double *head_gate = calloc(n_tokens * c->n_heads, sizeof *head_gate);
    float *sink = floats_of(m, QB_ROLE_SINK, layer);
    for (size_t t = 0; t < n_tokens; t++) {
        double *q = qkv + t * width, *k = q + c->n_heads * c->head_dim,
               *v = k + c->n_kv_heads * c->head_dim;
        norm(m, QB_ROLE_NORM1, layer, x + t * c->d_model, h);
        if (c->attn_gate) linear(m, QB_ROLE_ATTN_GATE, layer, h, head_gate + t * c->n_heads);
        if (c->fused_qkv) {
            linear(m, QB_ROLE_QKV, layer, h, q);
        } else {
            linear(m, QB_ROLE_Q, layer, h, q);
            linear(m, QB_ROLE_K, layer, h, k);
            linear(m, QB_ROLE_V, layer, h, v);
        }
        rotate(c, q, c->n_heads, t);
        rotate(c, k, c->n_kv_heads, t);
    }
    for (size_t t = 0; t < n_tokens; t++) {
        double *xt = x + t * c->d_model;
        attend(c, sink, qkv, n_tokens, t, h);
        for (size_t i = 0; c->attn_gate && i < c->n_heads * c->head_dim; i++)
            h[i] /= 1 + exp(-head_gate[t * c->n_heads + i / c->head_dim]);
        linear(m, QB_ROLE_O, layer, h, y);
        for (size_t i = 0; i < c->d_model; i++) xt[i] += y[i];
    }
    free(qkv);
    free(head_gate);
    free(sink);
}

static void forward_sequence(const qb_model *m, const int32_t *tokens, size_t n_tokens,
                             double *logits)
{
    const qb_config *c = &m->config;
    float *table = floats_of(m, QB_ROLE_TOK_EMBD, 0), *pos = floats_of(m, QB_ROLE_POS_EMBD, 0);
    double *x = malloc(n_tokens * c->d_model * sizeof *x), h[256];
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t i = 0; i < c->d_model; i++)
            x[t * c->d_model + i] = (double)table[(size_t)tokens[t] * c->d_model + i] +
                                    (pos ? (double)pos[t * c->d_model + i] : 0);
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        if (qb_config_has_attention(c, layer)) add_attention(m, layer, x, n_tokens);
        for (size_t t = 0; t < n_tokens; t++) add_mlp(m, layer, x + t * c->d_model);
    }
    for (size_t t = 0; t < n_tokens; t++) {
        norm(m, QB_ROLE_NORM_F, 0, x + t * c->d_model, h);
        linear(m, QB_ROLE_HEAD, 0, h, logits + t * c->vocab);
    }
    free(x);
    free(table);
    free(pos);
}

void qb_test_forward(const qb_model *model, const int32_t *tokens, size_t batch, size_t n_tokens,
                     double *logits)
{
    for (size_t b = 0; b < batch; b++)
        forward_sequence(model, tokens + b * n_tokens, n_tokens,
                         logits + b * n_tokens * model->config.vocab);
}

void qb_test_each_tiny_config(void (*check)(const qb_config *config, const char *what))
{
    qb_config base = qb_test_tiny_config("gpt2"), llama = qb_test_tiny_config("llama");
    check(&base, "gpt2");
    check(&llama, "llama");
    for (int i = 0; i < QB_SOFTMAX_COUNT; i++) {
        qb_config c = base;
        c.softmax = (qb_softmax_kind)i;
        check(&c, qb_softmax_names[i]);
    }
    for (int i = 0; i < QB_NORM_COUNT; i++) {
        qb_config c = base;
        c.norm = (qb_norm_kind)i;
        c.norm_bias = c.norm == QB_NORM_LAYERNORM;
        check(&c, qb_norm_names[i]);
    }
    for (int i = 0; i < QB_POS_COUNT; i++) {
        qb_config c = base;
        c.pos = (qb_pos_kind)i;
        c.rope = llama.rope;
        check(&c, qb_pos_names[i]);
    }
    for (int i = 0; i < QB_ACT_COUNT; i++) {
        qb_config c = base;
        c.act = (qb_act_kind)i;
        check(&c, qb_act_names[i]);
    }
    for (int i = 0; i < 2; i++) {
        qb_config c = i ? llama : base;
        c.attn_gate = true;
        check(&c, i ? "llama with gated attention" : "gated attention");
        c.softmax = i ? QB_SOFTMAX_SINK : QB_SOFTMAX_CLIPPED;
        c.softmax_gamma = -0.1;
        c.softmax_zeta = 1.3;
        c.free_prefix = 10;
        check(&c, i ? "sinks, gates, free prefix" : "clipped, gates, free prefix");
        c.free_prefix = c.context; /* no mask at all: a prompt is shorter */
        check(&c, "no mask");
    }
    for (unsigned blocks = 1; blocks < 7; blocks++) { /* which have none */
        qb_config c = blocks % 2 ? base : llama;
        c.n_layers = 3;
        c.no_attention = blocks;
        c.attn_gate = blocks == 2;
        c.softmax = blocks == 4 ? QB_SOFTMAX_SINK : c.softmax;
        check(&c, "blocks without attention");
    }
    qb_config c = base;
    c.attn_bias = c.mlp_bias = c.norm_bias = false;
    c.tied_head = false;
    check(&c, "no biases, untied");
    c = llama;
    c.attn_bias = true;
    c.tied_head = true;
    check(&c, "llama with biases, tied");
    c.qkv_bias_only = true;
    c.sliding_window = c.context;
    c.rope.kind = QB_ROPE_YARN;
    c.rope.factor = 4;
    c.rope.attention_factor = 1.3;
    check(&c, "llama without a bias of attn.o, yarn");
    c = qb_test_tiny_config("opt");
    check(&c, "opt");
}

qb_scheme qb_test_tiny_scheme(const qb_scheme *row)
{
    qb_scheme scheme = *row;
    if (scheme.input.outlier_min > 0) scheme.input.outlier_min = 1.75f;
    return scheme;
}

qb_calibration *qb_test_constant_calibration(const qb_config *config)
{
    qb_calibration *c;
    QB_CHECK_OK(qb_calibration_create(config, &c));
    for (size_t i = 0; i < (config->n_layers + 1) * QB_ROLE_COUNT; i++) {
        c->linears[i].in_max = 8;
        c->linears[i].out_max = 20;
        for (size_t k = 0; k < c->linears[i].cols; k++) c->linears[i].in_channel_max[k] = 8;
    }
    return c;
}
