/* bench/cuda/gemm_s8_operands.c - see gemm_s8_operands.h. */
#include "bench/cuda/gemm_s8_operands.h"

#include "core/memory.h"
#include "core/rng.h"

const char *const qb_bench_output_names[] = {"bf16", "s8", "f32", "residual"};

const qb_bench_product qb_bench_products[] = {
    {8192, 8192, 8192},  {16384, 8192, 2048}, {16384, 2048, 8192}, {16384, 6144, 2048},
    {16384, 2048, 2048}, {16384, 3072, 768},  {16384, 768, 3072},  {16384, 2304, 768},
    {16384, 2048, 512},  {16384, 512, 2048},  {16384, 1536, 512},  {1024, 8192, 2048},
    {1024, 2048, 8192},  {64, 8192, 2048},    {0, 0, 0},
};

/* The same pseudo-random chunk again and again, at shifting places. */
static qb_status random_codes(int8_t **out, size_t bytes, uint64_t seed)
{
    enum { CHUNK = (1 << 20) + 977 };
    int8_t *codes = NULL;
    QB_TRY(qb_cuda_alloc((void **)out, bytes, 1, "codes"));
    QB_TRY(QB_NEW(&codes, CHUNK, "codes"));
    for (size_t i = 0; i < CHUNK; i++)
        codes[i] = (int8_t)((int)(qb_rng_u32(seed, QB_STREAM_TEST, i) % 255) - 127);
    qb_status status = QB_OK;
    for (size_t at = 0; at < bytes && status == QB_OK; at += CHUNK)
        status = qb_cuda_upload(*out + at, codes, bytes - at < CHUNK ? bytes - at : CHUNK, NULL);
    qb_free(codes);
    return status;
}

static qb_status scales(float **out, size_t n)
{
    float *host = NULL;
    QB_TRY(QB_CUDA_NEW(out, n, "scales"));
    QB_TRY(QB_NEW(&host, n, "scales"));
    for (size_t i = 0; i < n; i++) host[i] = 0.001f + 0.0001f * (float)(i % 97);
    qb_status status = qb_cuda_upload(*out, host, n * sizeof *host, NULL);
    qb_free(host);
    return status;
}

qb_status qb_bench_operands_make(qb_bench_operands *o, size_t m, size_t n, size_t k,
                                 bool with_residual)
{
    QB_TRY(random_codes(&o->x, m * qb_cuda_stride(k), 1));
    QB_TRY(random_codes(&o->w, n * qb_cuda_stride(k), 2));
    QB_TRY(scales(&o->x_scale, m));
    QB_TRY(scales(&o->w_scale, n));
    QB_TRY(scales(&o->out_scale, QB_CUDA_SEGMENTS));
    QB_TRY(qb_cuda_alloc(&o->y, m * qb_cuda_stride(n), sizeof(float), "y"));
    return with_residual ? QB_CUDA_NEW_ZERO(&o->residual, m * qb_cuda_stride(n), "residual")
                         : QB_OK;
}

void qb_bench_operands_free(qb_bench_operands *o)
{
    void *all[] = {o->x, o->w, o->x_scale, o->w_scale, o->out_scale, o->residual, o->y};
    for (size_t i = 0; i < QB_COUNT(all); i++) qb_cuda_free(all[i]);
    *o = (qb_bench_operands){0};
}

qb_cuda_gemm_s8_args qb_bench_operands_args(const qb_bench_operands *o, size_t m, size_t n,
                                            size_t k, qb_bench_output output)
{
    static const qb_cuda_dtype types[] = {QB_CUDA_BF16, QB_CUDA_S8, QB_CUDA_F32, QB_CUDA_F32};
    const bool adds = output == QB_BENCH_RESIDUAL;
    return (qb_cuda_gemm_s8_args){.m = m,
                                  .n = n,
                                  .k = k,
                                  .x = o->x,
                                  .x_stride = qb_cuda_stride(k),
                                  .w = o->w,
                                  .w_stride = qb_cuda_stride(k),
                                  .x_scale = o->x_scale,
                                  .x_scale_step = 1,
                                  .w_scale = o->w_scale,
                                  .out = types[output],
                                  .y = adds ? NULL : o->y,
                                  .y_stride = qb_cuda_stride(n),
                                  .residual = adds ? o->residual : NULL,
                                  .residual_stride = qb_cuda_stride(n),
                                  .out_scale = o->out_scale,
                                  .segments = {.n = 1, .end = {(int)n}},
                                  .w_is_constant = true};
}

double qb_bench_gemm_s8_bytes(size_t m, size_t n, size_t k, qb_bench_output output)
{
    static const double out_bytes[] = {2, 1, 4, 8};
    return (double)m * (double)k + (double)n * (double)k +
           out_bytes[output] * (double)m * (double)n;
}
