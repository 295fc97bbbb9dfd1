/* bench/cuda/tune_gemm_s8.c - makes kernels/cuda/gemm_s8_tuned.inc: times every variant of
 * gemm_s8/sm90 on the shapes that goals are set for and on the layers of GPT2 models, and prints
 * the best of each shape and kind of output as a row of that table.
 *
 *     build/bench/qbench_tune_gemm_s8 > kernels/cuda/gemm_s8_tuned.inc
 *
 * Operands are taken in turn from several sets, so that most come from memory. */
#include "bench/cuda/gemm_s8_operands.h"
#include "kernels/cuda/gemm_s8_internal.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_SETS = 4, N_OUTPUTS = 4, REPEATS = 3, RASTERS = 2 };
#define SET_BYTES 80e6   /* together more than the L2 cache */
#define SAMPLE_US 600.0f /* of calls between two events */

static const int rasters[RASTERS] = {16, 8}; /* row tiles in a band */

typedef struct sets {
    size_t n;
    qb_bench_operands set[MAX_SETS];
} sets;

typedef struct best {
    qb__gemm_s8_plan plan;
    float us;
} best;

static cudaEvent_t before, after;

static qb_status queue(const sets *s, const qb_bench_product *d, qb_bench_output output,
                       qb__gemm_s8_plan plan, int n_calls)
{
    for (int i = 0; i < n_calls; i++) {
        const qb_cuda_gemm_s8_args args =
            qb_bench_operands_args(&s->set[(size_t)i % s->n], d->m, d->n, d->k, output);
        QB_TRY(plan.variant->launch(&args, plan.raster, NULL));
    }
    return QB_OK;
}

static qb_status time_calls(const sets *s, const qb_bench_product *d, qb_bench_output output,
                            qb__gemm_s8_plan plan, int n_calls, float *us)
{
    float ms;
    QB_CUDA_TRY(cudaEventRecord(before, NULL));
    QB_TRY(queue(s, d, output, plan, n_calls));
    QB_CUDA_TRY(cudaEventRecord(after, NULL));
    QB_CUDA_TRY(cudaEventSynchronize(after));
    QB_CUDA_TRY(cudaEventElapsedTime(&ms, before, after));
    *us = ms * 1e3f / (float)n_calls;
    return QB_OK;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* A chip that is busy for long lowers its clock, and the last of the variants would look slow. */
static void let_cool(float us)
{
    const struct timespec pause = {.tv_nsec = us > 20.0f ? 2000000 : 0};
    nanosleep(&pause, NULL);
}

/* The median of REPEATS. */
static qb_status time_plan(const sets *s, const qb_bench_product *d, qb_bench_output output,
                           qb__gemm_s8_plan plan, float *out)
{
    float first, us[REPEATS];
    QB_TRY(time_calls(s, d, output, plan, 2, &first));
    let_cool(first);
    const float calls = SAMPLE_US / first;
    for (int i = 0; i < REPEATS; i++)
        QB_TRY(time_calls(s, d, output, plan,
                          calls < 4     ? 4
                          : calls > 100 ? 100
                                        : (int)calls,
                          &us[i]));
    qsort(us, REPEATS, sizeof us[0], by_value);
    *out = us[REPEATS / 2];
    return QB_OK;
}

/* Blocks that would mostly compute padding, or more splits than k has blocks, are not tried. */
static bool is_hopeless(const qb__gemm_s8_variant *v, const qb_bench_product *d)
{
    const size_t rows = (size_t)(v->bm * v->cm), area = (size_t)(v->bm * v->bn);
    return (size_t)v->split * 128 > d->k || (d->m > 2048 && (v->split > 1 || area < 128 * 128)) ||
           (rows >= 2 * d->m && rows > 64);
}

static qb_status tune(const sets *s, const qb_bench_product *d, qb_bench_output output)
{
    const qb__gemm_s8_variant *v;
    best b = {.us = 1e30f};
    for (size_t i = 0; (v = qb__gemm_s8_variant_at(i)); i++)
        for (int r = 0; r < RASTERS; r++) {
            const qb__gemm_s8_plan plan = {v, rasters[r] / v->cm > 1 ? rasters[r] / v->cm : 1};
            float us;
            if (is_hopeless(v, d) || (r > 0 && d->m <= (size_t)(rasters[r] * v->bm))) continue;
            QB_TRY(time_plan(s, d, output, plan, &us));
            if (us < b.us) b = (best){plan, us};
        }
    const double ops = 2.0 * (double)d->m * (double)d->n * (double)d->k;
    printf("{%zu, %zu, %zu, %d, \"%s\", %d}, /* %s: %.1f us, %.0f TOP/s */\n", d->m, d->n, d->k,
           (int)output, b.plan.variant->name, b.plan.raster, qb_bench_output_names[output],
           (double)b.us, ops / (double)b.us * 1e-6);
    return QB_OK;
}

static qb_status tune_shape(const qb_bench_product *d)
{
    sets s = {0};
    const double bytes = qb_bench_gemm_s8_bytes(d->m, d->n, d->k, QB_BENCH_BF16);
    const size_t wanted = (size_t)(SET_BYTES / bytes) + 1;
    qb_status status = QB_OK;
    for (; status == QB_OK && s.n < wanted && s.n < MAX_SETS; s.n++)
        status = qb_bench_operands_make(&s.set[s.n], d->m, d->n, d->k, true);
    for (int output = 0; status == QB_OK && output < N_OUTPUTS; output++)
        status = tune(&s, d, (qb_bench_output)output);
    for (size_t i = 0; i < s.n; i++) qb_bench_operands_free(&s.set[i]);
    return status;
}

static qb_status tune_all(void)
{
    static const size_t rows[] = {64, 512, 1024, 4096, 16384};
    static const size_t layers[][2] = {{1536, 512},  {512, 512},   {2048, 512},  {512, 2048},
                                       {2304, 768},  {768, 768},   {3072, 768},  {768, 3072},
                                       {6144, 2048}, {2048, 2048}, {8192, 2048}, {2048, 8192}};
    qb_cuda_info gpu;
    QB_TRY(qb_cuda_use(0));
    QB_TRY(qb_cuda_info_get(0, &gpu));
    printf("/* Made by bench/cuda/tune_gemm_s8.c on %s: m, n, k, output, variant, raster. */\n",
           gpu.name);
    QB_CUDA_TRY(cudaEventCreate(&before));
    QB_CUDA_TRY(cudaEventCreate(&after));
    QB_TRY(tune_shape(&qb_bench_products[0])); /* the others are layers */
    for (size_t i = 0; i < QB_COUNT(layers); i++)
        for (size_t j = 0; j < QB_COUNT(rows); j++)
            QB_TRY(tune_shape(&(qb_bench_product){rows[j], layers[i][0], layers[i][1]}));
    return QB_OK;
}

int main(void)
{
    if (tune_all() == QB_OK) return 0;
    fprintf(stderr, "tune_gemm_s8: %s\n", qb_error_message());
    return 4;
}
