/* bench/bench_gemm_s8.c - the int8 product with scales applied, f32 out, on layer shapes. Warm, but
 * for one token: there the weights are read in turn from copies that together exceed the caches. */
#include "bench/products.h"
#include "bench/shapes.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/gemm_s8.h"

#include <stdio.h>
#include <string.h>

typedef struct product_params {
    const qb_gemm_s8_row *row;
    size_t m, n, k;
} product_params;

typedef struct product_state {
    product_params params;
    qb_pool *pool;
    qb_gemm_s8_args args;
    int8_t *x;
    qb_bench_weights packed;
    int32_t *x_sum;
    float *scales, *y; /* scales: of tokens, then of channels */
} product_state;

static void product_run(void *state)
{
    product_state *s = state;
    s->args.w = qb_bench_weights_next(&s->packed);
    qb_gemm_s8_run(s->params.row, &s->args, 1, s->pool);
}

static void product_teardown(void *state)
{
    product_state *s = state;
    qb_free(s->x);
    qb_bench_weights_free(&s->packed);
    qb_free(s->x_sum);
    qb_free(s->scales);
    qb_free(s->y);
}

static void fill_codes(int8_t *codes, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        codes[i] = (int8_t)(qb_rng_u32(seed, QB_STREAM_TEST, i / 997) % 255 + i * 31) | 1;
}

/* The first tokens against a plain loop. */
static qb_status check(product_state *s, const int8_t *w)
{
    product_run(s);
    for (size_t m = 0; m < s->params.m && m < QB_BENCH_CHECKED_TOKENS; m++)
        for (size_t n = 0; n < s->params.n; n++) {
            int32_t sum = 0;
            for (size_t k = 0; k < s->params.k; k++)
                sum += s->x[m * s->args.x_stride + k] * w[n * s->params.k + k];
            if (s->y[m * s->params.n + n] != (float)sum * (s->scales[m] * s->args.w_scale[n]))
                return QB_FAIL(QB_ERR_DEVICE, "%s: wrong result at %zu, %zu",
                               s->params.row->info.name, m, n);
        }
    return QB_OK;
}

static qb_status fill(product_state *s)
{
    const size_t m = s->params.m, n = s->params.n, k = s->params.k;
    const size_t stride = qb_gemm_s8_x_stride(k);
    int8_t *w;
    QB_TRY(qb_bench_weights_make(&s->packed, s->params.row->packed_bytes(n, k), m));
    QB_TRY(QB_NEW_ZERO(&s->x, m * stride, "x"));
    QB_TRY(QB_NEW_ZERO(&s->x_sum, m, "sums"));
    QB_TRY(QB_NEW(&s->scales, m + n, "scales"));
    QB_TRY(QB_NEW(&s->y, m * n, "y"));
    QB_TRY(QB_NEW(&w, n * k, "w"));
    for (size_t i = 0; i < m; i++) {
        fill_codes(s->x + i * stride, k, i);
        for (size_t c = 0; c < k; c++) s->x_sum[i] += s->x[i * stride + c];
    }
    fill_codes(w, n * k, 99);
    for (size_t i = 0; i < m + n; i++) s->scales[i] = 0.01f + 0.001f * (float)(i % 13);
    s->params.row->pack(w, 0, n, n, k, s->packed.packed);
    qb_bench_weights_repeat(&s->packed);
    s->args = (qb_gemm_s8_args){.m = m,
                                .n = n,
                                .k = k,
                                .x = s->x,
                                .x_stride = stride,
                                .x_sum = s->x_sum,
                                .y = s->y,
                                .y_stride = n,
                                .x_scale = s->scales,
                                .x_scale_step = 1,
                                .w_scale = s->scales + m,
                                .w_scale_step = 1};
    qb_status status = check(s, w);
    qb_free(w);
    return status;
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
                       .bytes_per_iter = n * k + m * k + 4.0 * m * n};
    memcpy(c.params, p, sizeof *p);
    qb_bench_add_product(c, p->row->info.name, p->m, p->n, p->k, p->m == 1);
}

void qb_bench_gemm_s8(void)
{
    for (const qb_gemm_s8_row *row = qb_gemm_s8_kernels; row->info.name; row++)
        for (const qb_layer_shape *s = qb_layer_shapes; s->name; s++)
            for (const size_t *m = qb_token_counts; *m; m++)
                for (const size_t *threads = qb_thread_counts(); *threads; threads++)
                    if (!qb_kernel_refusal(&row->info))
                        add_case(&(product_params){row, *m, s->n, s->k}, *threads);
}
