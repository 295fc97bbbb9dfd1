/* bench/cuda/bench_pointwise_cuda.c - the passes between two products, and the statistics of
 * logits, on the GPU. Bytes are those of the inputs and outputs, each once (twice for an input that
 * a per-tensor scale makes it read again). Cold: all inputs come from memory. */
#include "bench/cuda/random_floats.h"
#include "bench/shim.h"

#include "core/cuda.h"
#include "kernels/cuda/logits.h"
#include "kernels/cuda/pointwise.h"

#include <stdio.h>
#include <string.h>

typedef enum { NORM, ACT_NONE, ACT_GELU, ACT_SWIGLU, LOGITS, N_OPS } op;
static const char *const op_names[N_OPS] = {"norm", "stage", "gelu", "swiglu", "logit_stats"};
static const char *const kind_names[] = {"float", "token", "tensor", "static"};

typedef struct pass_params {
    op op;
    qb_stage_kind kind;
    size_t m, width;
} pass_params;

enum { N_BUFFERS = 7 };
typedef struct pass_state {
    pass_params params;
    void *dev[N_BUFFERS]; /* all of them, to be freed */
    qb_cuda_norm_args norm;
    qb_cuda_act_args act;
    int32_t *target;
    qb_logit_stats *stats;
} pass_state;

static void pass_teardown(void *state)
{
    pass_state *s = state;
    for (size_t i = 0; i < N_BUFFERS; i++) qb_cuda_free(s->dev[i]);
}

static qb_status make_buffers(pass_state *s)
{
    const pass_params *p = &s->params;
    size_t n = p->m * p->width, halves = p->op == ACT_SWIGLU ? 2 : 1;
    void **d = s->dev;
    QB_TRY(qb_cuda_alloc(&d[0], n, sizeof(float), "x"));
    QB_TRY(qb_cuda_alloc(&d[1], n * halves, sizeof(float), "y"));
    QB_TRY(qb_cuda_alloc(&d[2], n, sizeof(float), "out"));
    QB_TRY(qb_cuda_alloc_zero(&d[3], p->m + 64, 64, "statistics"));
    QB_TRY(qb_cuda_alloc(&d[4], p->width, sizeof(float), "gain"));
    QB_TRY(qb_cuda_alloc_zero(&d[5], p->m + 64, sizeof(float), "scales"));
    QB_TRY(qb_cuda_alloc_zero(&d[6], p->m + 64, sizeof(int32_t), "targets"));
    QB_TRY(qb_bench_upload_random(d[0], n, QB_CUDA_F32));
    QB_TRY(qb_bench_upload_random(d[1], n * halves, p->op == LOGITS ? QB_CUDA_F32 : QB_CUDA_BF16));
    return qb_bench_upload_random(d[4], p->width, QB_CUDA_F32);
}

static qb_status pass_setup(void *state, const void *params, qb_pool *pool)
{
    pass_state *s = state;
    (void)pool;
    memcpy(&s->params, params, sizeof s->params);
    QB_TRY(make_buffers(s));
    const pass_params *p = &s->params;
    size_t pairs = p->op == ACT_SWIGLU ? 2 : 1;
    const qb_cuda_pending in = {.y = s->dev[1], .type = QB_CUDA_BF16, .stride = p->width * pairs};
    const qb_cuda_stage stage = {.kind = p->kind,
                                 .type = QB_CUDA_BF16,
                                 .y = s->dev[2],
                                 .q = s->dev[2],
                                 .stride = p->width,
                                 .scale = s->dev[5],
                                 .max_bits = s->dev[6],
                                 .row_stats = s->dev[3]};
    s->norm = (qb_cuda_norm_args){.m = p->m,
                                  .width = p->width,
                                  .x = s->dev[0],
                                  .x_stride = p->width,
                                  .pending = in,
                                  .norm = QB_NORM_LAYERNORM,
                                  .gain = s->dev[4],
                                  .bias = s->dev[4],
                                  .eps = 1e-5f,
                                  .stage = stage};
    s->act = (qb_cuda_act_args){.m = p->m,
                                .width = p->width,
                                .apply = p->op != ACT_NONE,
                                .act = p->op == ACT_SWIGLU ? QB_ACT_SWIGLU : QB_ACT_GELU_TANH,
                                .in = in,
                                .stage = stage};
    s->target = s->dev[6];
    s->stats = s->dev[3];
    return QB_OK;
}

static void pass_run(void *state)
{
    pass_state *s = state;
    const pass_params *p = &s->params;
    if (p->op == NORM)
        qb_cuda_add_norm(&s->norm, NULL);
    else if (p->op == LOGITS)
        qb_cuda_logit_stats(s->dev[0], s->dev[1], p->m, p->width, p->width, s->target, s->stats,
                            NULL);
    else
        qb_cuda_act(&s->act, NULL);
}

static double bytes_of(const pass_params *p)
{
    double n = (double)p->m * (double)p->width, out = p->kind == QB_STAGE_FLOAT ? 2 : 1;
    double again = p->kind == QB_STAGE_TENSOR ? 2 : 1;
    if (p->op == LOGITS) return n * 8;
    if (p->op == NORM) return n * (4 + 4 + 2 + out + 4 * (again - 1));
    return n * ((p->op == ACT_SWIGLU ? 4 : 2) * again + out);
}

static void add(op which, qb_stage_kind kind, size_t m, size_t width)
{
    const pass_params params = {which, kind, m, width};
    qb_bench_case c = {.n_threads = 1,
                       .state_bytes = sizeof(pass_state),
                       .setup = pass_setup,
                       .run = pass_run,
                       .teardown = pass_teardown,
                       .bytes_per_iter = bytes_of(&params),
                       .on_gpu = true,
                       .cold = true};
    if (which == LOGITS)
        snprintf(c.name, sizeof c.name, "logits/cuda/%s/M:%zu/V:%zu/cold", op_names[which], m,
                 width);
    else
        snprintf(c.name, sizeof c.name, "pointwise/cuda/%s/%s/M:%zu/N:%zu/cold", op_names[which],
                 kind_names[kind], m, width);
    memcpy(c.params, &params, sizeof params);
    qb_bench_add(&c);
}

void qb_bench_pointwise_cuda(void)
{
    static const size_t rows[] = {1, 16, 1024, 16384}, widths[] = {768, 2048, 8192};
    if (qb_cuda_refusal(0) || qb_cuda_use(0) != QB_OK) return;
    for (size_t w = 0; w < QB_COUNT(widths); w++)
        for (size_t r = 0; r < QB_COUNT(rows); r++)
            for (int kind = QB_STAGE_FLOAT; kind <= QB_STAGE_TENSOR; kind++)
                for (int which = 0; which < LOGITS; which++)
                    add((op)which, (qb_stage_kind)kind, rows[r], widths[w]);
    for (size_t r = 0; r < 3; r++) add(LOGITS, QB_STAGE_FLOAT, rows[r], 50304);
}
