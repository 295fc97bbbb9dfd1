/* bench/bench_gemm_u4.c - f32 activations with 4-bit weights (scales by output channel) on layer
 * shapes: the product alone, and prepare() apart. Warm, but for one token: there the weights are
 * read in turn from copies that together exceed the caches. */
#include "bench/products.h"
#include "bench/shapes.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/gemm_u4.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct product_params {
    const qb_gemm_u4_row *row;
    size_t m, n, k;
} product_params;

typedef struct product_state {
    product_params params;
    qb_pool *pool;
    qb_gemm_u4_args args;
    float *x, *y, *scales;
    int32_t *zero_points;
    uint8_t *codes;
    qb_bench_weights packed;
    char *prepared;
} product_state;

static void product_run(void *state)
{
    product_state *s = state;
    s->args.w = qb_bench_weights_next(&s->packed);
    qb_gemm_u4_run(s->params.row, &s->args, 1, s->pool);
}

static void prepare_run(void *state)
{
    product_state *s = state;
    const product_params *p = &s->params;
    p->row->prepare(s->x, p->k, 0, p->m, p->m, p->k, s->packed.packed, s->prepared);
}

static void product_teardown(void *state)
{
    product_state *s = state;
    qb_free(s->x);
    qb_free(s->y);
    qb_free(s->scales);
    qb_free(s->zero_points);
    qb_free(s->codes);
    qb_bench_weights_free(&s->packed);
    qb_free(s->prepared);
}

/* The first tokens against a plain loop in double; the tests have a sharper bound. */
static qb_status check(product_state *s)
{
    product_run(s);
    for (size_t m = 0; m < s->params.m && m < QB_BENCH_CHECKED_TOKENS; m++)
        for (size_t n = 0; n < s->params.n; n++) {
            double want = 0.0, passed = 0.0;
            for (size_t k = 0; k < s->params.k; k++) {
                uint8_t byte = s->codes[n * ((s->params.k + 1) / 2) + k / 2];
                int code = (k % 2 ? byte >> 4 : byte & 15) - s->zero_points[n];
                double term = (double)s->x[m * s->params.k + k] * code * (double)s->scales[n];
                want += term;
                passed += fabs(term);
            }
            if (!(fabs((double)s->y[m * s->params.n + n] - want) <= 1e-3 * passed))
                return QB_FAIL(QB_ERR_DEVICE, "%s: wrong result at %zu, %zu",
                               s->params.row->info.name, m, n);
        }
    return QB_OK;
}

static qb_status fill(product_state *s)
{
    const product_params *p = &s->params;
    const size_t m = p->m, n = p->n, k = p->k, code_bytes = n * ((k + 1) / 2);
    QB_TRY(QB_NEW(&s->x, m * k, "x"));
    QB_TRY(QB_NEW(&s->y, m * n, "y"));
    QB_TRY(QB_NEW(&s->scales, n, "scales"));
    QB_TRY(QB_NEW(&s->zero_points, n, "zero points"));
    QB_TRY(QB_NEW(&s->codes, code_bytes, "codes"));
    qb_rng_normal_f32(1, QB_STREAM_TEST, 0, m * k, 1.0f, s->x);
    for (size_t i = 0; i < n; i++) {
        s->scales[i] = 0.01f + 0.001f * (float)(i % 13);
        s->zero_points[i] = (int32_t)(i % 16);
    }
    for (size_t i = 0; i < code_bytes; i++)
        s->codes[i] = (uint8_t)(qb_rng_u32(2, QB_STREAM_TEST, i / 997) + i * 31);
    const qb_u4_weights weights = {.n = n,
                                   .k = k,
                                   .codes = s->codes,
                                   .n_step = 1,
                                   .k_group = 1,
                                   .scale = s->scales,
                                   .zero_point = s->zero_points};
    QB_TRY(qb_bench_weights_make(&s->packed, p->row->packed_bytes(&weights), m));
    QB_TRY(QB_NEW(&s->prepared, p->row->prepared_bytes(m, k), "prepared x"));
    const char *why = p->row->pack(&weights, 0, n, s->packed.packed);
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: %s", p->row->info.name, why);
    qb_bench_weights_repeat(&s->packed);
    s->args = (qb_gemm_u4_args){.m = m,
                                .n = n,
                                .k = k,
                                .x = s->x,
                                .x_stride = k,
                                .x_prepared = s->prepared,
                                .y = s->y,
                                .y_stride = n};
    prepare_run(s);
    return check(s);
}

static qb_status product_setup(void *state, const void *params, qb_pool *pool)
{
    product_state *s = state;
    memcpy(&s->params, params, sizeof s->params);
    s->pool = pool;
    return fill(s);
}

static void add_case(const product_params *p, size_t n_threads)
{
    const double m = (double)p->m, n = (double)p->n, k = (double)p->k;
    qb_bench_case c = {.n_threads = n_threads,
                       .state_bytes = sizeof(product_state),
                       .setup = product_setup,
                       .run = product_run,
                       .teardown = product_teardown,
                       .bytes_per_iter = 0.5 * n * k + 4.0 * m * k + 4.0 * m * n};
    memcpy(c.params, p, sizeof *p);
    qb_bench_add_product(c, p->row->info.name, p->m, p->n, p->k, p->m == 1);
}

static void add_prepare(const product_params *p)
{
    if (!p->row->prepared_bytes(p->m, p->k)) return;
    qb_bench_case c = {.n_threads = 1,
                       .state_bytes = sizeof(product_state),
                       .setup = product_setup,
                       .run = prepare_run,
                       .teardown = product_teardown,
                       .bytes_per_iter = 4.0 * (double)p->m * (double)p->k};
    snprintf(c.name, sizeof c.name, "%s/prepare/M:%zu/K:%zu", p->row->info.name, p->m, p->k);
    memcpy(c.params, p, sizeof *p);
    qb_bench_add(&c);
}

void qb_bench_gemm_u4(void)
{
    for (const qb_gemm_u4_row *row = qb_gemm_u4_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (const qb_layer_shape *s = qb_layer_shapes; s->name; s++)
            for (const size_t *m = qb_token_counts; *m; m++)
                for (const size_t *threads = qb_thread_counts(); *threads; threads++)
                    add_case(&(product_params){row, *m, s->n, s->k}, *threads);
        add_prepare(&(product_params){row, 512, 576, 576});
        add_prepare(&(product_params){row, 512, 576, 1536});
    }
}
