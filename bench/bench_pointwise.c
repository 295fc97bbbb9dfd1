/* bench/bench_pointwise.c - norms and activations of one token's vector, statistics of a row of
 * logits. "Operations" are elements. Warm. */
#include "bench/shim.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/pointwise.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct vectors {
    const qb_pointwise_row *row;
    size_t n;
    float *x, *y, *gain, *out;
    qb_logit_stats stats;
    double sum;
} vectors;

static void run_layernorm(void *state)
{
    vectors *v = state;
    v->row->layernorm(v->x, v->n, v->gain, v->y, 1e-5, v->out);
}

static void run_rmsnorm(void *state)
{
    vectors *v = state;
    v->row->rmsnorm(v->x, v->n, v->gain, 1, 1e-5, v->out);
}

static void run_gelu_tanh(void *state)
{
    vectors *v = state;
    v->row->gelu_tanh(v->x, v->n, v->out);
}

static void run_swiglu(void *state)
{
    vectors *v = state;
    v->row->swiglu(v->x, v->y, v->n, v->out);
}

static void run_add(void *state)
{
    vectors *v = state;
    v->row->add(v->out, v->y, v->n);
}

static void run_logsumexp(void *state)
{
    vectors *v = state;
    v->sum = v->row->logsumexp(v->x, v->n, &v->stats.top_a);
}

static void run_logit_stats(void *state)
{
    vectors *v = state;
    v->row->logit_stats(v->x, v->y, v->n, 1, &v->stats);
}

/* noise: how far the second row of logits is from the first; 1 and below is one exponential a pair,
 * more is two. */
static const struct timed {
    const char *name;
    void (*run)(void *state);
    size_t n;
    float noise;
} timed[] = {
    {"layernorm", run_layernorm, 768, 1},
    {"rmsnorm", run_rmsnorm, 576, 1},
    {"gelu_tanh", run_gelu_tanh, 3072, 1},
    {"swiglu", run_swiglu, 1536, 1},
    {"add", run_add, 576, 1},
    {"logsumexp", run_logsumexp, 49152, 1},
    {"logit_stats/near", run_logit_stats, 49152, 0.1f},
    {"logit_stats/far", run_logit_stats, 49152, 3},
};

typedef struct timed_params {
    const qb_pointwise_row *row;
    const struct timed *timed;
} timed_params;

static void vectors_teardown(void *state)
{
    vectors *v = state;
    qb_free(v->x);
    qb_free(v->y);
    qb_free(v->gain);
    qb_free(v->out);
}

static qb_status fill(vectors *v, float noise)
{
    QB_TRY(QB_NEW(&v->x, v->n, "x"));
    QB_TRY(QB_NEW(&v->y, v->n, "y"));
    QB_TRY(QB_NEW(&v->gain, v->n, "gain"));
    QB_TRY(QB_NEW_ZERO(&v->out, v->n, "out"));
    qb_rng_normal_f32(1, QB_STREAM_TEST, 0, v->n, 3.0f, v->x);
    qb_rng_normal_f32(2, QB_STREAM_TEST, 0, v->n, noise, v->y);
    qb_rng_normal_f32(3, QB_STREAM_TEST, 0, v->n, 1.0f, v->gain);
    for (size_t i = 0; i < v->n; i++) v->y[i] += v->x[i];
    return QB_OK;
}

static qb_status vectors_setup(void *state, const void *params, qb_pool *pool)
{
    vectors *v = state;
    timed_params p;
    (void)pool;
    memcpy(&p, params, sizeof p);
    v->row = p.row;
    v->n = p.timed->n;
    QB_TRY(fill(v, p.timed->noise));
    p.timed->run(v);
    for (size_t i = 0; i < v->n; i++)
        if (!isfinite(v->out[i]))
            return QB_FAIL(QB_ERR_DEVICE, "%s: wrong result at %zu", p.timed->name, i);
    return QB_OK;
}

void qb_bench_pointwise(void)
{
    for (const qb_pointwise_row *row = qb_pointwise_kernels; row->info.name; row++)
        for (size_t i = 0; i < QB_COUNT(timed) && !qb_kernel_refusal(&row->info); i++) {
            qb_bench_case c = {.n_threads = 1,
                               .state_bytes = sizeof(vectors),
                               .setup = vectors_setup,
                               .run = timed[i].run,
                               .teardown = vectors_teardown,
                               .ops_per_iter = (double)timed[i].n};
            timed_params p = {row, &timed[i]};
            snprintf(c.name, sizeof c.name, "%s/%s/n:%zu", row->info.name, timed[i].name,
                     timed[i].n);
            memcpy(c.params, &p, sizeof p);
            qb_bench_add(&c);
        }
}
