/* bench/bench_attention.c - attention of a prompt (T tokens, nothing in the cache) and of a decode
 * step (one token after `past`). Operations: 4 * head_dim for each pair that the mask lets through.
 */
#include "bench/shapes.h"
#include "bench/shim.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/attention.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct attention_params {
    const qb_attention_row *row;
    size_t n_q, n_past;
    unsigned char n_heads, n_kv_heads, head_dim;
} attention_params;

typedef struct attention_state {
    attention_params params;
    qb_pool *pool;
    qb_attention_args args;
    float *q, *k, *v, *out;
} attention_state;

static void attention_run(void *state)
{
    attention_state *s = state;
    qb_attention_run(s->params.row, &s->args, s->pool);
}

static void attention_teardown(void *state)
{
    attention_state *s = state;
    qb_free(s->q);
    qb_free(s->k);
    qb_free(s->v);
    qb_free(s->out);
    qb_free(s->args.scratch);
}

/* The last query's first head, first dimension, against a plain loop. */
static qb_status check(attention_state *s)
{
    const qb_attention_args *a = &s->args;
    const float *q = s->q + (a->n_q - 1) * a->q_stride;
    double sum = 0, weighted = 0;
    for (size_t j = 0; j < a->n_past + a->n_q; j++) {
        double score = 0;
        for (size_t d = 0; d < a->head_dim; d++) score += (double)q[d] * s->k[j * a->kv_stride + d];
        sum += exp(score * a->scale);
        weighted += exp(score * a->scale) * s->v[j * a->kv_stride];
    }
    attention_run(s);
    if (!(fabs(s->out[(a->n_q - 1) * a->out_stride] - weighted / sum) <= 1e-5))
        return QB_FAIL(QB_ERR_DEVICE, "%s: wrong result", s->params.row->info.name);
    return QB_OK;
}

static qb_status fill(attention_state *s)
{
    const attention_params *p = &s->params;
    size_t q_stride = (size_t)p->n_heads * p->head_dim;
    size_t kv_stride = (size_t)p->n_kv_heads * p->head_dim, n_keys = p->n_past + p->n_q;
    QB_TRY(QB_NEW(&s->q, p->n_q * q_stride, "q"));
    QB_TRY(QB_NEW(&s->out, p->n_q * q_stride, "out"));
    QB_TRY(QB_NEW(&s->k, n_keys * kv_stride, "k"));
    QB_TRY(QB_NEW(&s->v, n_keys * kv_stride, "v"));
    qb_rng_normal_f32(1, QB_STREAM_TEST, 0, p->n_q * q_stride, 1.0f, s->q);
    qb_rng_normal_f32(2, QB_STREAM_TEST, 0, n_keys * kv_stride, 1.0f, s->k);
    qb_rng_normal_f32(3, QB_STREAM_TEST, 0, n_keys * kv_stride, 1.0f, s->v);
    s->args = (qb_attention_args){.batch = 1,
                                  .n_q = p->n_q,
                                  .n_past = p->n_past,
                                  .n_heads = p->n_heads,
                                  .n_kv_heads = p->n_kv_heads,
                                  .head_dim = p->head_dim,
                                  .softmax = QB_SOFTMAX,
                                  .scale = 1 / sqrtf(p->head_dim),
                                  .q = s->q,
                                  .q_stride = q_stride,
                                  .k = s->k,
                                  .v = s->v,
                                  .kv_stride = kv_stride,
                                  .kv_batch_stride = n_keys * kv_stride,
                                  .out = s->out,
                                  .out_stride = q_stride};
    size_t scratch_elems = p->row->scratch_elems(&s->args) * qb_pool_n_threads(s->pool);
    QB_TRY(QB_NEW(&s->args.scratch, scratch_elems, "scratch"));
    return check(s);
}

static qb_status attention_setup(void *state, const void *params, qb_pool *pool)
{
    attention_state *s = state;
    memcpy(&s->params, params, sizeof s->params);
    s->pool = pool;
    return fill(s);
}

static void add_case(const attention_params *p, const char *size, size_t n_threads)
{
    double t = (double)p->n_q, pairs = t * (double)p->n_past + t * (t + 1) / 2;
    qb_bench_case c = {.n_threads = n_threads,
                       .state_bytes = sizeof(attention_state),
                       .setup = attention_setup,
                       .run = attention_run,
                       .teardown = attention_teardown,
                       .ops_per_iter = 4 * pairs * p->n_heads * p->head_dim};
    snprintf(c.name, sizeof c.name, "%s/%s/heads:%u:%u/dim:%u", p->row->info.name, size, p->n_heads,
             p->n_kv_heads, p->head_dim);
    memcpy(c.params, p, sizeof *p);
    qb_bench_name_threads(&c);
    qb_bench_add(&c);
}

void qb_bench_attention(void)
{
    static const unsigned char heads[][3] = {{9, 3, 64}, {12, 12, 64}, {16, 16, 128}};
    static const size_t prompts[] = {512, 2048}, pasts[] = {256, 2048};
    char size[40];
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++)
        for (size_t h = 0; h < QB_COUNT(heads); h++)
            for (const size_t *threads = qb_thread_counts(); *threads; threads++) {
                if (qb_kernel_refusal(&row->info)) continue;
                attention_params p = {row, 0, 0, heads[h][0], heads[h][1], heads[h][2]};
                for (size_t i = 0; i < QB_COUNT(prompts); i++) {
                    p.n_q = prompts[i], p.n_past = 0;
                    snprintf(size, sizeof size, "T:%zu", p.n_q);
                    add_case(&p, size, *threads);
                }
                for (size_t i = 0; i < QB_COUNT(pasts); i++) {
                    p.n_q = 1, p.n_past = pasts[i];
                    snprintf(size, sizeof size, "decode/past:%zu", p.n_past);
                    add_case(&p, size, *threads);
                }
            }
}
