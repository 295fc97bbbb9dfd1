/* bench/cuda/bench_attention_cuda.c - every row of attention on the GPU: prompts (nothing in the
 * cache, q, k and v in one matrix as the product before leaves them) and decode steps. Operations:
 * 4 * head_dim for each pair that the mask lets through. Bytes: q, k, v and the result, each once.
 * Cold: all inputs come from memory. */
#include "bench/cuda/random_floats.h"
#include "bench/shim.h"

#include "core/cuda.h"
#include "kernels/cuda/attention.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct attention_params {
    const qb_cuda_attention_row *row;
    qb_cuda_dtype type;
    unsigned batch, n_q, n_past, n_heads, n_kv_heads, head_dim;
} attention_params;

typedef struct attention_state {
    const qb_cuda_attention_row *row;
    qb_cuda_attention_args args;
    void *in, *out, *workspace;
} attention_state;

static size_t widths(const attention_params *p, size_t *q, size_t *kv)
{
    *q = (size_t)p->n_heads * p->head_dim;
    *kv = (size_t)p->n_kv_heads * p->head_dim;
    return *q + 2 * *kv;
}

/* Everything but the pointers. */
static qb_cuda_attention_args describe(const attention_params *p)
{
    size_t q_width, kv_width, all = qb_cuda_stride(widths(p, &q_width, &kv_width));
    bool prompt = p->n_past == 0;
    return (qb_cuda_attention_args){.type = p->type,
                                    .batch = p->batch,
                                    .n_q = p->n_q,
                                    .n_past = p->n_past,
                                    .n_heads = p->n_heads,
                                    .n_kv_heads = p->n_kv_heads,
                                    .head_dim = p->head_dim,
                                    .softmax = QB_SOFTMAX,
                                    .scale = 1 / sqrtf((float)p->head_dim),
                                    .q_stride = prompt ? all : q_width,
                                    .kv_stride = prompt ? all : kv_width,
                                    .kv_batch_stride =
                                        prompt ? p->n_q * all : (p->n_past + p->n_q) * kv_width,
                                    .out_stride = q_width};
}

static void attention_run(void *state)
{
    attention_state *s = state;
    s->row->run(&s->args, NULL);
}

static void attention_teardown(void *state)
{
    attention_state *s = state;
    qb_cuda_free(s->in);
    qb_cuda_free(s->out);
    qb_cuda_free(s->workspace);
}

static qb_status make_buffers(attention_state *s, const attention_params *p)
{
    qb_cuda_attention_args *a = &s->args;
    size_t q_width, kv_width, elem = qb_cuda_dtype_bytes(p->type), workspace;
    widths(p, &q_width, &kv_width);
    *a = describe(p);
    size_t q_elems = p->batch * p->n_q * a->q_stride, kv_elems = p->batch * a->kv_batch_stride;
    size_t in_elems = p->n_past ? q_elems + 2 * kv_elems : q_elems;
    QB_TRY(qb_cuda_alloc(&s->in, in_elems, elem, "q, k and v"));
    QB_TRY(qb_cuda_alloc(&s->out, p->batch * p->n_q * a->out_stride, elem, "out"));
    QB_TRY(qb_bench_upload_random(s->in, in_elems, p->type));
    char *base = s->in;
    a->q = base;
    a->k = base + elem * (p->n_past ? q_elems : q_width);
    a->v = base + elem * (p->n_past ? q_elems + kv_elems : q_width + kv_width);
    a->out = s->out;
    workspace = qb_cuda_attention_workspace(a);
    QB_TRY(qb_cuda_alloc(&s->workspace, workspace, 1, "workspace"));
    a->workspace = s->workspace;
    return QB_OK;
}

static qb_status attention_setup(void *state, const void *params, qb_pool *pool)
{
    attention_params p;
    attention_state *s = state;
    (void)pool;
    memcpy(&p, params, sizeof p);
    s->row = p.row;
    QB_TRY(make_buffers(s, &p));
    QB_TRY(p.row->run(&s->args, NULL));
    return qb_cuda_sync(NULL);
}

static void add_case(const attention_params *p)
{
    const qb_cuda_attention_args args = describe(p);
    if (qb_kernel_refusal(&p->row->info) || p->row->refuse(&args)) return;
    size_t q_width, kv_width, elem = qb_cuda_dtype_bytes(p->type);
    widths(p, &q_width, &kv_width);
    double t = p->n_q, pairs = t * p->n_past + t * (t + 1) / 2, keys = t + p->n_past;
    qb_bench_case c = {.n_threads = 1,
                       .state_bytes = sizeof(attention_state),
                       .setup = attention_setup,
                       .run = attention_run,
                       .teardown = attention_teardown,
                       .on_gpu = true,
                       .cold = true,
                       .ops_per_iter = 4 * pairs * (double)q_width * p->batch,
                       .bytes_per_iter = 2.0 * (double)elem * p->batch *
                                         (t * (double)q_width + keys * (double)kv_width)};
    const char *what = p->n_past ? "past" : "T";
    snprintf(c.name, sizeof c.name, "%s/cuda/%s/B:%u/%s:%u/heads:%u:%u/dim:%u/cold",
             p->row->info.name, p->type == QB_CUDA_F32 ? "f32" : "bf16", p->batch, what,
             p->n_past ? p->n_past : p->n_q, p->n_heads, p->n_kv_heads, p->head_dim);
    memcpy(c.params, p, sizeof *p);
    qb_bench_add(&c);
}

void qb_bench_attention_cuda(void)
{
    static const unsigned heads[][3] = {{9, 3, 64}, {12, 12, 64}, {16, 16, 128}, {16, 16, 256}};
    static const unsigned prompts[][2] = {{1, 512}, {64, 256}, {16, 1024}, {4, 4096}};
    static const unsigned decodes[][2] = {{1, 511}, {1, 4095}, {16, 1023}};
    if (qb_cuda_refusal(0) || qb_cuda_use(0) != QB_OK) return;
    for (const qb_cuda_attention_row *row = qb_cuda_attention_kernels; row->info.name; row++)
        for (int type = QB_CUDA_F32; type <= QB_CUDA_BF16; type++)
            for (size_t h = 0; h < QB_COUNT(heads); h++) {
                attention_params p = {row, (qb_cuda_dtype)type, 0,           0,
                                      0,   heads[h][0],         heads[h][1], heads[h][2]};
                for (size_t i = 0; i < QB_COUNT(prompts); i++) {
                    p.batch = prompts[i][0], p.n_q = prompts[i][1], p.n_past = 0;
                    add_case(&p);
                }
                for (size_t i = 0; i < QB_COUNT(decodes); i++) {
                    p.batch = decodes[i][0], p.n_q = 1, p.n_past = decodes[i][1];
                    add_case(&p);
                }
            }
}
