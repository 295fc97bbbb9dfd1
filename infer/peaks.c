/* infer/peaks.c - the processor's peaks; those of other devices are measured by their backends. */
#include "infer/peaks.h"

#include "core/clock.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "infer/backend.h"
#include "infer/environment.h"
#include "kernels/gemm_f32.h"
#include "kernels/gemm_s8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double turn_ms = 80; /* that each peak is sought for */
enum {
    MIN_TURNS = 3,
    SPAN_ELEMS = 1 << 16,
    PRODUCT_M = 256,
    PRODUCT_N = 1536,
    PRODUCT_K = 1536,
    PACK_ROWS = 256, /* a multiple of what rows are packed by */
};

/* The shortest time of a call, in ms. */
static qb_status best_ms(void (*run)(void *context), void *context, double *best)
{
    double start = qb_now_ms();
    *best = INFINITY;
    for (size_t i = 0; i < MIN_TURNS || qb_now_ms() - start < turn_ms; i++) {
        QB_TRY(qb_interrupt_check());
        double begin = qb_now_ms();
        run(context);
        *best = fmin(*best, qb_now_ms() - begin);
    }
    return QB_OK;
}

/* ---- copying ---- */

typedef struct copy_job {
    const float *from;
    float *to;
    size_t n;
    qb_pool *pool;
} copy_job;

static void copy_span(void *context, size_t begin, size_t end)
{
    const copy_job *j = context;
    memcpy(j->to + begin, j->from + begin, (end - begin) * sizeof *j->to);
}

static void fill_span(void *context, size_t begin, size_t end)
{
    const copy_job *j = context;
    for (size_t i = begin; i < end; i++) j->to[i] = (float)(i % 251);
}

static void copy_all(void *context)
{
    copy_job *j = context;
    qb_parallel_spans(j->pool, j->n, SPAN_ELEMS, copy_span, j);
}

/* As the kernel tells it, which in a virtual machine knows better than the processor; "32768K". */
static double last_cache_bytes(void)
{
    char text[32] = "";
    for (int level = 3; level >= 2 && !*text; level--) {
        char path[80];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", level);
        FILE *file = fopen(path, "re");
        if (!file) continue;
        if (!fgets(text, sizeof text, file)) *text = 0;
        fclose(file);
    }
    char *end;
    double size = strtod(text, &end);
    double unit = *end == 'K' ? 1 << 10 : *end == 'M' ? 1 << 20 : 1;
    return size > 0 ? size * unit : NAN;
}

/* Bytes that no cache holds. */
static size_t far_bytes(double cache)
{
    const double least = 64 << 20, most = 512 << 20;
    return (size_t)(isfinite(cache) ? fmin(fmax(4 * cache, least), most) : most);
}

static qb_status measure_copy(qb_pool *pool, size_t bytes, qb_peaks *out)
{
    copy_job j = {.pool = pool, .n = bytes / sizeof(float)};
    float *a = NULL, *b = NULL;
    double ms;
    qb_status status;
    QB_TRY_GOTO(status, QB_NEW(&a, j.n, "memory to copy"), done);
    QB_TRY_GOTO(status, QB_NEW(&b, j.n, "memory to copy"), done);
    j.to = a;
    qb_parallel_spans(pool, j.n, SPAN_ELEMS, fill_span, &j);
    j.from = a;
    j.to = b;
    QB_TRY_GOTO(status, best_ms(copy_all, &j, &ms), done);
    out->copy_gb_per_s = 2e-6 * (double)bytes / ms;
done:
    qb_free(a);
    qb_free(b);
    return status;
}

/* ---- products ---- */

typedef struct product {
    qb_pool *pool;
    size_t m, n, k;
    void *x, *w;
    float *y;
    int32_t *sum; /* of s8 rows */
    const qb_gemm_f32_row *f32;
    const qb_gemm_s8_row *s8;
} product;

static void product_free(product *p)
{
    qb_free(p->x);
    qb_free(p->w);
    qb_free(p->y);
    qb_free(p->sum);
}

static void run_f32(void *context)
{
    const product *p = context;
    const qb_gemm_f32_args args = {.m = p->m,
                                   .n = p->n,
                                   .k = p->k,
                                   .x = p->x,
                                   .x_stride = p->k,
                                   .w = p->w,
                                   .y = p->y,
                                   .y_stride = p->n};
    qb_gemm_f32_run(p->f32, &args, 1, p->pool);
}

static void run_s8(void *context)
{
    static const float one = 1;
    const product *p = context;
    const qb_gemm_s8_args args = {.m = p->m,
                                  .n = p->n,
                                  .k = p->k,
                                  .x = p->x,
                                  .x_stride = qb_gemm_s8_x_stride(p->k),
                                  .x_sum = p->sum,
                                  .w = p->w,
                                  .y = p->y,
                                  .y_stride = p->n,
                                  .x_scale = &one,
                                  .w_scale = &one};
    qb_gemm_s8_run(p->s8, &args, 1, p->pool);
}

/* Weights of f32, made of the same rows again and again; n is a multiple of PACK_ROWS. */
static qb_status make_f32(product *p)
{
    size_t rows = p->m > PACK_ROWS ? p->m : PACK_ROWS;
    p->f32 = QB_KERNEL_PICK(qb_gemm_f32_kernels);
    QB_TRY(qb_alloc(&p->x, rows * p->k, sizeof(float), "product"));
    QB_TRY(QB_NEW(&p->y, p->m * p->n, "product"));
    QB_TRY(qb_alloc_zero(&p->w, p->f32->packed_bytes(p->n, p->k), 1, "product"));
    float *x = p->x;
    for (size_t i = 0; i < rows * p->k; i++) x[i] = (float)(i % 17) - 8;
    for (size_t n = 0; n < p->n; n += PACK_ROWS)
        p->f32->pack(x, n, n + PACK_ROWS, p->n, p->k, p->w);
    return QB_OK;
}

static qb_status make_s8(product *p)
{
    p->s8 = QB_KERNEL_PICK(qb_gemm_s8_kernels);
    QB_TRY(qb_alloc_zero(&p->x, p->n * qb_gemm_s8_x_stride(p->k), 1, "product"));
    QB_TRY(QB_NEW(&p->y, p->m * p->n, "product"));
    QB_TRY(QB_NEW_ZERO(&p->sum, p->m, "product"));
    QB_TRY(qb_alloc_zero(&p->w, p->s8->packed_bytes(p->n, p->k), 1, "product"));
    p->s8->pack(p->x, 0, p->n, p->n, p->k, p->w);
    return QB_OK;
}

/* The best time of one product of these sizes, in s8 or f32. */
static qb_status time_product(qb_pool *pool, bool is_s8, size_t m, size_t n, size_t k, double *ms)
{
    product p = {.pool = pool, .m = m, .n = n, .k = k};
    qb_status status = (is_s8 ? make_s8 : make_f32)(&p);
    if (status == QB_OK) status = best_ms(is_s8 ? run_s8 : run_f32, &p, ms);
    product_free(&p);
    return status;
}

/* A product of one row reads its weights and does little else. */
static qb_status measure_reading(qb_pool *pool, double bytes, double *gb_per_s)
{
    size_t row_bytes = PRODUCT_K * sizeof(float), n = (size_t)bytes / row_bytes;
    double ms;
    n = n / PACK_ROWS * PACK_ROWS;
    if (!n) n = PACK_ROWS;
    QB_TRY(time_product(pool, false, 1, n, PRODUCT_K, &ms));
    *gb_per_s = 1e-6 * (double)(n * row_bytes) / ms;
    return QB_OK;
}

static qb_status measure_processor(qb_pool *pool, qb_peaks *out)
{
    const double ops = 2.0 * PRODUCT_M * PRODUCT_N * PRODUCT_K;
    double ms;
    out->cache_bytes = last_cache_bytes();
    size_t far = far_bytes(out->cache_bytes);
    QB_TRY(measure_copy(pool, far, out));
    QB_TRY(measure_reading(pool, (double)far, &out->read_gb_per_s));
    if (isfinite(out->cache_bytes))
        QB_TRY(measure_reading(pool, out->cache_bytes / 4, &out->cache_gb_per_s));
    QB_TRY(time_product(pool, false, PRODUCT_M, PRODUCT_N, PRODUCT_K, &ms));
    out->gops_per_s[QB_RATE_F32] = 1e-6 * ops / ms;
    QB_TRY(time_product(pool, true, PRODUCT_M, PRODUCT_N, PRODUCT_K, &ms));
    out->gops_per_s[QB_RATE_S8] = 1e-6 * ops / ms;
    return QB_OK;
}

qb_status qb_peaks_measure(const qb_device *device, qb_pool *pool, qb_peaks *out)
{
    qb_peaks peaks = {NAN, NAN, NAN, NAN, {NAN, NAN, NAN}};
    bool elsewhere = device->backend && device->backend->peaks;
    QB_TRY(elsewhere ? device->backend->peaks(device->index, &peaks)
                     : measure_processor(pool, &peaks));
    *out = peaks;
    return QB_OK;
}

void qb_peaks_raise(const qb_peaks *other, qb_peaks *out)
{
    out->copy_gb_per_s = fmax(out->copy_gb_per_s, other->copy_gb_per_s);
    out->read_gb_per_s = fmax(out->read_gb_per_s, other->read_gb_per_s);
    out->cache_gb_per_s = fmax(out->cache_gb_per_s, other->cache_gb_per_s);
    for (size_t i = 0; i < QB_RATE_COUNT; i++)
        out->gops_per_s[i] = fmax(out->gops_per_s[i], other->gops_per_s[i]);
}

void qb_peaks_key(const qb_device *device, const qb_pool *pool, char key[QB_PEAKS_KEY_BYTES])
{
    qb_machine machine;
    qb_cuda_info gpu = {.name = "no GPU"};
    const qb_kernel_info *f32 = QB_KERNEL_PICK(qb_gemm_f32_kernels);
    const qb_kernel_info *s8 = QB_KERNEL_PICK(qb_gemm_s8_kernels);
    bool is_cpu = qb_device_is_cpu(device);
    qb_machine_read(&machine);
    if (!is_cpu && qb_cuda_info_get(device->index, &gpu) != QB_OK) gpu.driver = 0;
    snprintf(key, QB_PEAKS_KEY_BYTES, "%s, %zu threads of %zu, %s, %s; %s %d.%d, %d SMs, driver %d",
             machine.cpu, qb_pool_n_threads(pool), machine.n_cpus, f32->name, s8->name, gpu.name,
             gpu.major, gpu.minor, gpu.n_sms, gpu.driver);
}
