/* bench/bench_gemm_f32.c - the f32 product on layer shapes, and what one core could do at best: a
 * loop of fused multiply-adds on registers alone. Warm, but for one token: there the weights are
 * read in turn from copies that together exceed the caches. */
#include "bench/products.h"
#include "bench/shapes.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/gemm_f32.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#ifdef QB_WITH_X86
#include <immintrin.h>
#endif

enum { LONG_PROMPT = 8192 };

typedef struct product_params {
    const qb_gemm_f32_row *row;
    size_t m, n, k;
} product_params;

typedef struct product_state {
    product_params params;
    qb_pool *pool;
    qb_gemm_f32_args args;
    float *x, *w, *y;
    qb_bench_weights packed;
} product_state;

static void product_run(void *state)
{
    product_state *s = state;
    s->args.w = qb_bench_weights_next(&s->packed);
    qb_gemm_f32_run(s->params.row, &s->args, 1, s->pool);
}

static void product_teardown(void *state)
{
    product_state *s = state;
    qb_free(s->x);
    qb_free(s->w);
    qb_free(s->y);
    qb_bench_weights_free(&s->packed);
}

/* The first tokens against a plain loop. */
static qb_status check(product_state *s)
{
    const size_t n = s->params.n, k = s->params.k;
    product_run(s);
    for (size_t i = 0; i < n * QB_BENCH_CHECKED_TOKENS && i < n * s->params.m; i++) {
        double sum = 0, size = 0;
        for (size_t c = 0; c < k; c++) {
            double product = (double)s->x[i / n * k + c] * s->w[i % n * k + c];
            sum += product;
            size += fabs(product);
        }
        if (!(fabs(s->y[i] - sum) <= (double)(k + 4) * 0x1p-24 * size))
            return QB_FAIL(QB_ERR_DEVICE, "%s: wrong result at %zu, %zu", s->params.row->info.name,
                           i / n, i % n);
    }
    return QB_OK;
}

static qb_status fill(product_state *s)
{
    const size_t m = s->params.m, n = s->params.n, k = s->params.k;
    QB_TRY(qb_bench_weights_make(&s->packed, s->params.row->packed_bytes(n, k), m));
    QB_TRY(QB_NEW(&s->x, m * k, "x"));
    QB_TRY(QB_NEW(&s->w, n * k, "w"));
    QB_TRY(QB_NEW_ZERO(&s->y, m * n, "y"));
    qb_rng_normal_f32(1, QB_STREAM_TEST, 0, m * k, 1.0f, s->x);
    qb_rng_normal_f32(2, QB_STREAM_TEST, 0, n * k, 0.02f, s->w);
    s->params.row->pack(s->w, 0, n, n, k, s->packed.packed);
    qb_bench_weights_repeat(&s->packed);
    s->args = (qb_gemm_f32_args){
        .m = m, .n = n, .k = k, .x = s->x, .x_stride = k, .y = s->y, .y_stride = n};
    return check(s);
}

static qb_status product_setup(void *state, const void *params, qb_pool *pool)
{
    product_state *s = state;
    memcpy(&s->params, params, sizeof s->params);
    s->pool = pool;
    return fill(s);
}

static void add_product(const product_params *p, size_t n_threads)
{
    const double m = (double)p->m, n = (double)p->n, k = (double)p->k;
    qb_bench_case c = {.n_threads = n_threads,
                       .state_bytes = sizeof(product_state),
                       .setup = product_setup,
                       .run = product_run,
                       .teardown = product_teardown,
                       .bytes_per_iter = 4.0 * (n * k + m * k + m * n)};
    memcpy(c.params, p, sizeof *p);
    qb_bench_add_product(c, p->row->info.name, p->m, p->n, p->k, p->m == 1);
}

#ifdef QB_WITH_X86
enum { PEAK_ROUNDS = 100000, PEAK_SUMS = 12 }; /* more sums than latency times ports */

static qb_status peak_setup(void *state, const void *params, qb_pool *pool)
{
    (void)state, (void)params, (void)pool;
    return QB_OK;
}

/* acc = acc * 0.5 + 1 stays finite; the empty asm keeps the loop from being computed ahead. */
#define PEAK_RUN(name, isa, vec, prefix)                                                           \
    __attribute__((target(isa))) static void name(void *state)                                     \
    {                                                                                              \
        vec acc[PEAK_SUMS], half = prefix##_set1_ps(0.5f), one = prefix##_set1_ps(1.0f);           \
        _Pragma("GCC unroll 12") for (int i = 0; i < PEAK_SUMS; i++) acc[i] = one;                 \
        for (int round = 0; round < PEAK_ROUNDS; round++) {                                        \
            _Pragma("GCC unroll 12") for (int i = 0; i < PEAK_SUMS; i++)                           \
            {                                                                                      \
                acc[i] = prefix##_fmadd_ps(acc[i], half, one);                                     \
                __asm__ volatile("" : "+v"(acc[i]));                                               \
            }                                                                                      \
        }                                                                                          \
        float sum = 0;                                                                             \
        _Pragma("GCC unroll 12") for (int i = 0; i < PEAK_SUMS; i++) sum += acc[i][0];             \
        *(float *)state = sum;                                                                     \
    }
PEAK_RUN(peak_avx512, "avx512f", __m512, _mm512)
PEAK_RUN(peak_avx2, "avx2,fma", __m256, _mm256)

static void add_peak(const char *name, uint32_t needs, void (*run)(void *state), double lanes)
{
    if (needs & ~qb_cpu_features()) return;
    qb_bench_case c = {.n_threads = 1,
                       .state_bytes = sizeof(float), /* the sum, which someone has to want */
                       .setup = peak_setup,
                       .run = run,
                       .ops_per_iter = 2.0 * lanes * PEAK_SUMS * PEAK_ROUNDS};
    snprintf(c.name, sizeof c.name, "%s", name);
    qb_bench_add(&c);
}
#endif

void qb_bench_gemm_f32(void)
{
#ifdef QB_WITH_X86
    add_peak("fma_f32/avx512/peak", QB_CPU_AVX512, peak_avx512, 16);
    add_peak("fma_f32/avx2/peak", QB_CPU_AVX2, peak_avx2, 8);
#endif
    for (const qb_gemm_f32_row *row = qb_gemm_f32_kernels; row->info.name; row++)
        for (const qb_layer_shape *s = qb_layer_shapes; s->name; s++)
            for (const size_t *threads = qb_thread_counts(); *threads; threads++) {
                if (qb_kernel_refusal(&row->info)) continue;
                for (const size_t *m = qb_token_counts; *m; m++)
                    add_product(&(product_params){row, *m, s->n, s->k}, *threads);
                if (s->n < LONG_PROMPT)
                    add_product(&(product_params){row, LONG_PROMPT, s->n, s->k}, *threads);
            }
}
