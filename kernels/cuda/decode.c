/* kernels/cuda/decode.c - the host side of the persistent decode kernel, and the table.
 *
 * create() flattens the model and allocates the scratch; step() is one launch. */
#include "kernels/cuda/decode_chain.h"

#include "core/memory.h"

#include <string.h>

enum { ROWS = QB_CUDA_DECODE_MAX_BATCH, N_COUNTERS = 96 };

struct qb_cuda_decode {
    qb__decode_params params; /* all but the arguments of a step */
    qb__decode_limits limits;
    qb__decode_layer *layers; /* host */
    qb__decode_layer *layers_dev;
    void *scratch_dev;
    size_t max_batch, bytes;
};

static void flatten_layers(const qb_cuda_decode_model *m, qb_cuda_decode *d)
{
    uint32_t slots = 0, rotate = 0;
    bool requant = false, dynamic = m->n_layers > 0;
    for (size_t i = 0; i < m->n_layers; i++) {
        const qb_cuda_decode_layer *in = &m->layers[i];
        qb__decode_layer *out = &d->layers[i];
        const qb_cuda_linear *linears[4] = {&in->qkv, &in->o, &in->up, &in->down};
        for (int j = 0; j < 4; j++)
            qb__decode_flatten(linears[j], &d->limits, &slots, &rotate, &out->linear[j]);
        out->norm1_gain = in->norm1_gain, out->norm1_bias = in->norm1_bias;
        out->norm2_gain = in->norm2_gain, out->norm2_bias = in->norm2_bias;
        out->k_cache = in->k_cache, out->v_cache = in->v_cache;
        dynamic = dynamic && in->down.kind == QB_CUDA_LINEAR_S8 &&
                  (in->down.input == QB_STAGE_TOKEN || in->down.input == QB_STAGE_TENSOR);
        requant = requant || in->up.requant != QB_CUDA_REQUANT_NONE;
    }
    qb__decode_flatten(&m->head, &d->limits, &slots, &rotate, &d->layers[m->n_layers].linear[0]);
    d->layers[m->n_layers].norm1_gain = m->norm_f_gain;
    d->layers[m->n_layers].norm1_bias = m->norm_f_bias;
    d->params.n_max_bits = slots;
    const bool swiglu = m->act == QB_ACT_SWIGLU;
    d->params.act_in_epilogue = !requant && (!swiglu || m->d_ff % QB__DECODE_TILE == 0);
    d->params.max_in_epilogue = d->params.act_in_epilogue && dynamic;
    for (size_t i = 0; i < m->n_layers; i++)
        d->layers[i].linear[2].paired = swiglu && d->params.act_in_epilogue;
}

static uint32_t widest_staged(const qb_cuda_decode *d)
{
    uint32_t most = d->layers[d->params.n_layers].linear[0].x_bytes;
    for (uint32_t i = 0; i < d->params.n_layers; i++)
        for (int j = 0; j < 4; j++)
            if (d->layers[i].linear[j].x_bytes > most) most = d->layers[i].linear[j].x_bytes;
    return most;
}

/* One allocation, cut into 256-byte aligned parts. With base NULL it only counts. */
static size_t cut_scratch(qb_cuda_decode *d, char *base)
{
    qb__decode_params *p = &d->params;
    size_t at = 0;
    const size_t att = (size_t)ROWS * p->n_heads * QB__DECODE_MAX_SPLITS;
    p->staged_stride = widest_staged(d);
#define CUT(field, elems)                                                                          \
    do {                                                                                           \
        if (base) p->field = (void *)(base + at);                                                  \
        at += ((elems) * sizeof *p->field + 255) / 256 * 256;                                      \
    } while (0)
    CUT(qkv, (size_t)ROWS * p->qkv_stride);
    CUT(o, (size_t)ROWS * p->o_stride);
    CUT(up, (size_t)ROWS * p->up_stride);
    CUT(down, (size_t)ROWS * p->o_stride);
    CUT(att, att * p->head_dim + 4);
    CUT(att_ml, att * 2);
    CUT(staged, (size_t)ROWS * p->staged_stride);
    CUT(staged_scale, (size_t)ROWS);
    CUT(staged_sums, (size_t)ROWS * QB__DECODE_WARPS * 2);
    CUT(max_bits, p->n_max_bits);
    CUT(counters, (size_t)N_COUNTERS);
#undef CUT
    return at;
}

static void destroy(qb_cuda_decode *d)
{
    if (!d) return;
    qb_cuda_free(d->layers_dev);
    qb_cuda_free(d->scratch_dev);
    qb_free(d->layers);
    qb_free(d);
}

static qb_status prepare(const qb_cuda_decode_model *m, qb_cuda_decode *d)
{
    QB_TRY(qb__decode_limits_sm90(&d->limits));
    qb__decode_set_shape(m, &d->params);
    const size_t n = m->n_layers + 1; /* and the head */
    QB_TRY(QB_NEW_ZERO(&d->layers, n, "layers of the decode kernel"));
    flatten_layers(m, d);
    d->max_batch = m->max_batch;
    QB_TRY(qb__decode_plan(&d->params, d->layers, &d->limits, (uint32_t)m->max_batch));
    QB_TRY(QB_CUDA_NEW(&d->layers_dev, n, "layers of the decode kernel"));
    d->bytes = cut_scratch(d, NULL);
    QB_TRY(qb_cuda_alloc_zero(&d->scratch_dev, d->bytes, 1, "scratch of the decode kernel"));
    cut_scratch(d, d->scratch_dev);
    d->bytes += n * sizeof *d->layers;
    d->params.layers = d->layers_dev;
    QB_TRY(qb_cuda_upload(d->layers_dev, d->layers, n * sizeof *d->layers, NULL));
    return qb_cuda_sync(NULL);
}

static qb_status create(const qb_cuda_decode_model *model, qb_cuda_decode **out)
{
    const char *why = qb__decode_refuse(model);
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "decode/sm90: %s", why);
    qb_cuda_decode *d;
    QB_TRY(QB_NEW_ZERO(&d, 1, "decode kernel"));
    qb_status status = prepare(model, d);
    if (status == QB_OK)
        *out = d;
    else
        destroy(d);
    return status;
}

static size_t scratch_bytes(const qb_cuda_decode *d)
{
    return d->bytes;
}

static qb_status step(qb_cuda_decode *d, size_t batch, const int32_t *tokens_dev,
                      const int32_t *position_dev, float *hidden_dev, float *logits_dev,
                      size_t logits_stride, qb_cuda_stream stream)
{
    qb__decode_params *p = &d->params;
    if (batch == 0 || batch > d->max_batch)
        return QB_FAIL(QB_ERR_SHAPE, "decode: found %zu sequences, expected 1 to %zu", batch,
                       d->max_batch);
    if (p->batch != batch) QB_TRY(qb__decode_plan(p, d->layers, &d->limits, (uint32_t)batch));
    p->tokens = tokens_dev, p->position = position_dev;
    p->hidden = hidden_dev, p->logits = logits_dev, p->logits_stride = logits_stride;
    return qb__decode_launch_sm90(p, stream);
}

const qb_cuda_decode_row qb_cuda_decode_kernels[] = {
    {{"decode/chain_sm90", "cuda", QB_CUDA_SM90A},
     1,
     qb__chain_refuse,
     qb__chain_create,
     qb__chain_destroy,
     qb__chain_scratch_bytes,
     qb__chain_step},
    {{"decode/sm90", "cuda", QB_CUDA_SM90A},
     QB_CUDA_DECODE_MAX_BATCH,
     qb__decode_refuse,
     create,
     destroy,
     scratch_bytes,
     step},
    {{0}, 0, 0, 0, 0, 0, 0},
};
