/* train/peak.c - see peak.h. */
#include "train/peak.h"

#include "core/clock.h"
#include "core/cuda.h"
#include "core/memory.h"
#include "core/threads.h"
#include "kernels/gemm_f32.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Dense bf16 Tensor-Core rates of the data sheets; the first name that the GPU's contains. */
static const struct {
    const char *name;
    double tflops;
} gpus[] = {
    {"H100 PCIe", 756}, {"H100 NVL", 835}, {"H100", 989}, {"H200", 989}, {"GH200", 989},
    {"A100", 312},      {"A800", 312},     {"H800", 989}, {"L40S", 362}, {"RTX 4090", 165},
};

static qb_status peak_of_gpu(int index, qb_peak *out)
{
    qb_cuda_info info;
    QB_TRY(qb_cuda_info_get(index, &info));
    *out = (qb_peak){.tflops = 0};
    for (size_t i = 0; i < QB_COUNT(gpus) && out->tflops == 0; i++)
        if (strstr(info.name, gpus[i].name)) out->tflops = gpus[i].tflops;
    snprintf(out->source, sizeof out->source, "dense bf16 of %.60s", info.name);
    return QB_OK;
}

enum { SIDE = 512, MAX_RUNS = 8 };

/* Of three matrices of SIDE x SIDE: x, packed w, y. */
static double best_rate(const qb_gemm_f32_row *row, const qb_gemm_f32_args *args, qb_pool *pool)
{
    double best = 0, start = qb_now_s();
    for (int i = 0; i < MAX_RUNS; i++) {
        double before = qb_now_s();
        qb_gemm_f32_run(row, args, 1, pool);
        double after = qb_now_s(), rate = 2.0 * SIDE * SIDE * SIDE / (after - before);
        if (rate > best) best = rate;
        if (i > 1 && after - start > 0.1) break; /* a slow machine */
    }
    return best;
}

static qb_status measure(qb_pool *pool, qb_peak *out)
{
    const qb_gemm_f32_row *row = QB_KERNEL_PICK(qb_gemm_f32_kernels);
    float *x = NULL, *y = NULL;
    void *w = NULL;
    qb_status status = QB_NEW_ZERO(&x, (size_t)SIDE * SIDE, "product");
    if (status == QB_OK) status = QB_NEW_ZERO(&y, (size_t)SIDE * SIDE, "product");
    if (status == QB_OK) status = qb_alloc_zero(&w, row->packed_bytes(SIDE, SIDE), 1, "product");
    if (status == QB_OK) {
        qb_gemm_f32_args args = {.m = SIDE,
                                 .n = SIDE,
                                 .k = SIDE,
                                 .x = x,
                                 .x_stride = SIDE,
                                 .w = w,
                                 .y = y,
                                 .y_stride = SIDE};
        out->tflops = best_rate(row, &args, pool) / 1e12;
        snprintf(out->source, sizeof out->source, "measured: %s, %zu threads", row->info.name,
                 qb_pool_n_threads(pool));
    }
    qb_free(x);
    qb_free(y);
    qb_free(w);
    return status;
}

qb_status qb_peak_find(const char *device, double given_tflops, size_t n_threads, qb_peak *out)
{
    if (given_tflops > 0) {
        *out = (qb_peak){.tflops = given_tflops, .source = "given"};
        return QB_OK;
    }
    if (!strncmp(device, "cuda", 4))
        return peak_of_gpu(device[4] == ':' ? atoi(device + 5) : 0, out);
    qb_pool *pool;
    QB_TRY(qb_pool_create(n_threads, &pool));
    qb_status status = measure(pool, out);
    qb_pool_destroy(pool);
    return status;
}
