/* bench/cuda/bench_attention_train_cuda.c - attention for training on the GPU, forward and
 * backward, every row. q, k and v lie in one matrix as the product before leaves them. Operations
 * of the half that the mask lets through: 4 * head_dim a pair forward, 10 backward. Bytes: every
 * input and result once. Cold: all inputs come from memory. */
#include "bench/cuda/random_floats.h"
#include "bench/shim.h"

#include "core/cuda.h"
#include "kernels/cuda/attention_train.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct train_params {
    const qb_cuda_attention_train_row *row;
    unsigned batch, n_tokens, n_heads, n_kv_heads, head_dim;
    qb_softmax_kind softmax;
    bool backward;
} train_params;

typedef struct train_state {
    const qb_cuda_attention_train_row *row;
    qb_cuda_attention_train_args args;
    bool backward;
    void *in, *out, *lse, *d_out, *d_in, *workspace;
} train_state;

/* Everything but the pointers. */
static qb_cuda_attention_train_args describe(const train_params *p)
{
    size_t width = (size_t)p->n_heads * p->head_dim, kv_width = (size_t)p->n_kv_heads * p->head_dim;
    size_t all = width + 2 * kv_width;
    return (qb_cuda_attention_train_args){.type = QB_CUDA_BF16,
                                          .batch = p->batch,
                                          .n_tokens = p->n_tokens,
                                          .n_heads = p->n_heads,
                                          .n_kv_heads = p->n_kv_heads,
                                          .head_dim = p->head_dim,
                                          .softmax = p->softmax,
                                          .scale = 1 / sqrtf((float)p->head_dim),
                                          .qkv_stride = all,
                                          .out_stride = width,
                                          .d_out_stride = width,
                                          .d_qkv_stride = all};
}

static void train_run(void *state)
{
    train_state *s = state;
    if (s->backward)
        s->row->backward(&s->args, NULL);
    else
        s->row->forward(&s->args, NULL);
}

static void train_teardown(void *state)
{
    train_state *s = state;
    void *buffers[] = {s->in, s->out, s->lse, s->d_out, s->d_in, s->workspace};
    for (size_t i = 0; i < QB_COUNT(buffers); i++) qb_cuda_free(buffers[i]);
}

static qb_status make_buffers(train_state *s, const train_params *p)
{
    qb_cuda_attention_train_args *a = &s->args;
    *a = describe(p);
    size_t n = (size_t)p->batch * p->n_tokens, in = n * a->qkv_stride, out = n * a->out_stride;
    size_t k_at = 2 * a->out_stride, v_at = k_at + 2 * (size_t)p->n_kv_heads * p->head_dim;
    QB_TRY(qb_cuda_alloc(&s->in, in, 2, "q, k and v"));
    QB_TRY(qb_cuda_alloc(&s->d_in, in, 2, "their gradients"));
    QB_TRY(qb_cuda_alloc(&s->out, out, 2, "out"));
    QB_TRY(qb_cuda_alloc(&s->d_out, out, 2, "its gradient"));
    QB_TRY(qb_cuda_alloc(&s->lse, n * p->n_heads, sizeof(float), "lse"));
    QB_TRY(qb_cuda_alloc(&s->workspace, qb_cuda_attention_train_workspace(a), 1, "workspace"));
    QB_TRY(qb_bench_upload_random(s->in, in, QB_CUDA_BF16));
    QB_TRY(qb_bench_upload_random(s->d_out, out, QB_CUDA_BF16));
    char *q = s->in, *d_q = s->d_in;
    a->q = q, a->k = q + k_at, a->v = q + v_at, a->out = s->out, a->lse = s->lse;
    a->d_q = d_q, a->d_k = d_q + k_at, a->d_v = d_q + v_at, a->d_out = s->d_out;
    a->workspace = s->workspace;
    return QB_OK;
}

static qb_status train_setup(void *state, const void *params, qb_pool *pool)
{
    train_params p;
    train_state *s = state;
    (void)pool;
    memcpy(&p, params, sizeof p);
    s->row = p.row;
    s->backward = p.backward;
    QB_TRY(make_buffers(s, &p));
    QB_TRY(p.row->forward(&s->args, NULL)); /* out and lse for backward */
    QB_TRY(p.row->backward(&s->args, NULL));
    return qb_cuda_sync(NULL);
}

static void add_case(const train_params *p)
{
    const qb_cuda_attention_train_args args = describe(p);
    if (qb_kernel_refusal(&p->row->info) || p->row->refuse(&args)) return;
    double rows = (double)p->batch * p->n_tokens, heads = (double)p->batch * p->n_heads;
    double pairs = heads * p->n_tokens * (p->n_tokens + 1.0) / 2;
    double elems = rows * (double)(args.qkv_stride + args.out_stride);
    double lse_bytes = 4 * heads * p->n_tokens;
    qb_bench_case c = {.n_threads = 1,
                       .state_bytes = sizeof(train_state),
                       .setup = train_setup,
                       .run = train_run,
                       .teardown = train_teardown,
                       .on_gpu = true,
                       .cold = true,
                       .ops_per_iter = (p->backward ? 10 : 4) * pairs * p->head_dim,
                       .bytes_per_iter = (p->backward ? 4 : 2) * elems + lse_bytes};
    snprintf(c.name, sizeof c.name, "%s/cuda/%s%s/B:%u/T:%u/heads:%u:%u/dim:%u/cold",
             p->row->info.name, p->backward ? "backward" : "forward",
             p->softmax == QB_SOFTMAX1 ? "/softmax1" : "", p->batch, p->n_tokens, p->n_heads,
             p->n_kv_heads, p->head_dim);
    memcpy(c.params, p, sizeof *p);
    qb_bench_add(&c);
}

void qb_bench_attention_train_cuda(void)
{
    static const unsigned shapes[][5] = {/* batch, tokens, heads, key heads, size */
                                         {128, 256, 12, 12, 64}, {64, 512, 12, 12, 64},
                                         {32, 1024, 12, 12, 64}, {32, 1024, 9, 3, 64},
                                         {64, 256, 16, 16, 128}, {16, 1024, 16, 16, 128},
                                         {512, 256, 1, 1, 256},  {512, 256, 8, 8, 32}};
    if (qb_cuda_refusal(0) || qb_cuda_use(0) != QB_OK) return;
    for (const qb_cuda_attention_train_row *row = qb_cuda_attention_train_kernels; row->info.name;
         row++)
        for (size_t i = 0; i < QB_COUNT(shapes); i++)
            for (int kind = 0; kind < 4; kind++) {
                const unsigned *s = shapes[i];
                const train_params p = {
                    row,     s[0], s[1], s[2], s[3], s[4], kind / 2 ? QB_SOFTMAX1 : QB_SOFTMAX,
                    kind % 2};
                add_case(&p);
            }
}
