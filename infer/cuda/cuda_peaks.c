/* infer/cuda/cuda_peaks.c - how fast a GPU is at most: copies of a gigabyte, products of 8,192 x
 * 8,192 x 8,192, on numbers that are not all alike, since a chip that multiplies zeros is not at
 * its power limit. */
#include "infer/cuda/cuda_engine.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemm_float.h"
#include "kernels/cuda/gemm_s8.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <string.h>

enum { WIDTH = 8192, F32_WIDTH = 4096, TURNS = 12, PATTERN_BYTES = 1 << 22 };
static const size_t copy_bytes = (size_t)1 << 30;

typedef struct bench {
    qb_cuda_stream stream;
    cudaEvent_t begin, end;
    void *a, *b, *y; /* operands and result, copy_bytes each */
    float *scale;    /* (WIDTH) */
} bench;

/* The shortest of several turns, in ms. */
static qb_status best_ms(const bench *b, qb_status (*run)(const bench *b, const void *what),
                         const void *what, double *best)
{
    *best = INFINITY;
    for (size_t i = 0; i < TURNS; i++) {
        float ms;
        QB_CUDA_TRY(cudaEventRecord(b->begin, b->stream));
        QB_TRY(run(b, what));
        QB_CUDA_TRY(cudaEventRecord(b->end, b->stream));
        QB_TRY(qb_cuda_sync(b->stream));
        QB_CUDA_TRY(cudaEventElapsedTime(&ms, b->begin, b->end));
        if (i) *best = fmin(*best, (double)ms); /* the first chooses algorithms */
    }
    return QB_OK;
}

static qb_status run_copy(const bench *b, const void *what)
{
    (void)what;
    QB_CUDA_TRY(cudaMemcpyAsync(b->b, b->a, copy_bytes, cudaMemcpyDeviceToDevice, b->stream));
    return QB_OK;
}

static qb_status run_float(const bench *b, const void *what)
{
    return qb_cuda_gemm_float(what, b->stream);
}

static qb_status run_s8(const bench *b, const void *what)
{
    return qb_cuda_gemm_s8(what, b->stream);
}

/* Both operands with the pattern again and again. */
static qb_status fill(const bench *b, const void *pattern)
{
    for (size_t at = 0; at < copy_bytes; at += PATTERN_BYTES) {
        void *to = (char *)b->a + at;
        if (!at)
            QB_TRY(qb_cuda_upload(to, pattern, PATTERN_BYTES, b->stream));
        else
            QB_CUDA_TRY(
                cudaMemcpyAsync(to, b->a, PATTERN_BYTES, cudaMemcpyDeviceToDevice, b->stream));
    }
    QB_TRY(run_copy(b, NULL));
    return qb_cuda_sync(b->stream);
}

static qb_status fill_random(const bench *b, qb_cuda_dtype type)
{
    void *pattern;
    size_t n = PATTERN_BYTES / qb_cuda_dtype_bytes(type);
    QB_TRY(qb_alloc(&pattern, PATTERN_BYTES, 1, "operands"));
    for (size_t i = 0; i < n; i++) {
        float value = (float)qb_rng_below(1, QB_STREAM_SAMPLER, i, 255) - 127.0f;
        uint32_t bits;
        value = type == QB_CUDA_S8 ? value : value / 127.0f;
        memcpy(&bits, &value, sizeof bits);
        if (type == QB_CUDA_S8)
            ((int8_t *)pattern)[i] = (int8_t)value;
        else if (type == QB_CUDA_BF16)
            ((uint16_t *)pattern)[i] = (uint16_t)(bits >> 16);
        else
            ((float *)pattern)[i] = value;
    }
    qb_status status = fill(b, pattern);
    qb_free(pattern);
    return status;
}

static qb_status measure_float(const bench *b, qb_cuda_dtype type, size_t width, double *gops)
{
    const qb_cuda_gemm_float_args args = {.m = width,
                                          .n = width,
                                          .k = width,
                                          .in = type,
                                          .x = b->a,
                                          .w = b->b,
                                          .x_stride = width,
                                          .w_stride = width,
                                          .out = type,
                                          .y = b->y,
                                          .y_stride = width};
    double ms;
    QB_TRY(fill_random(b, type));
    QB_TRY(best_ms(b, run_float, &args, &ms));
    *gops = 2e-6 * (double)width * (double)width * (double)width / ms;
    return QB_OK;
}

static qb_status measure_s8(const bench *b, double *gops)
{
    const qb_cuda_gemm_s8_args args = {.m = WIDTH,
                                       .n = WIDTH,
                                       .k = WIDTH,
                                       .x = b->a,
                                       .x_stride = WIDTH,
                                       .w = b->b,
                                       .w_stride = WIDTH,
                                       .x_scale = b->scale,
                                       .x_scale_step = 1,
                                       .w_scale = b->scale,
                                       .out = QB_CUDA_BF16,
                                       .y = b->y,
                                       .y_stride = WIDTH,
                                       .segments = {1, {WIDTH}},
                                       .w_is_constant = true};
    double ms;
    QB_TRY(fill_random(b, QB_CUDA_S8));
    QB_TRY(best_ms(b, run_s8, &args, &ms));
    *gops = 2e-6 * WIDTH * (double)WIDTH * WIDTH / ms;
    return QB_OK;
}

static qb_status measure(bench *b, qb_peaks *out)
{
    double ms;
    QB_TRY(qb_cuda_stream_create(&b->stream));
    QB_CUDA_TRY(cudaEventCreate(&b->begin));
    QB_CUDA_TRY(cudaEventCreate(&b->end));
    QB_TRY(qb_cuda_alloc(&b->a, copy_bytes, 1, "memory to copy"));
    QB_TRY(qb_cuda_alloc(&b->b, copy_bytes, 1, "memory to copy"));
    QB_TRY(qb_cuda_alloc(&b->y, copy_bytes, 1, "product"));
    QB_TRY(QB_CUDA_NEW_ZERO(&b->scale, WIDTH + QB_CUDA_ROW_PAD, "scales"));
    QB_TRY(measure_s8(b, &out->gops_per_s[QB_RATE_S8]));
    QB_TRY(measure_float(b, QB_CUDA_BF16, WIDTH, &out->gops_per_s[QB_RATE_BF16]));
    QB_TRY(measure_float(b, QB_CUDA_F32, F32_WIDTH, &out->gops_per_s[QB_RATE_F32]));
    QB_TRY(best_ms(b, run_copy, NULL, &ms));
    out->copy_gb_per_s = 2e-6 * (double)copy_bytes / ms;
    return QB_OK;
}

qb_status qb__cuda_peaks(int device_idx, qb_peaks *out)
{
    bench b = {0};
    QB_TRY(qb_cuda_use(device_idx));
    qb_status status = measure(&b, out);
    void *const blocks[] = {b.a, b.b, b.y, b.scale};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_cuda_free(blocks[i]);
    if (b.begin) cudaEventDestroy(b.begin);
    if (b.end) cudaEventDestroy(b.end);
    qb_cublaslt_forget(b.stream);
    qb_cuda_stream_destroy(b.stream);
    return status;
}
