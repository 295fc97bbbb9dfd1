/* bench/cuda/random_floats.c - see random_floats.h. */
#include "bench/cuda/random_floats.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"

qb_status qb_bench_upload_random(void *dev, size_t n, qb_cuda_dtype type)
{
    enum { CHUNK = 1 << 20 };
    float *x = NULL;
    uint16_t *half = NULL;
    size_t bytes = qb_cuda_dtype_bytes(type);
    qb_status status = QB_NEW(&x, CHUNK, "numbers");
    if (status == QB_OK) status = QB_NEW(&half, CHUNK, "numbers");
    if (status != QB_OK) goto done;
    qb_rng_normal_f32(1, QB_STREAM_TEST, 0, CHUNK, 1.0f, x);
    for (size_t i = 0; i < CHUNK; i++) half[i] = qb_bf16_from_f32(x[i]);
    for (size_t at = 0; at < n && status == QB_OK; at += CHUNK - 77)
        status = qb_cuda_upload((char *)dev + at * bytes, type == QB_CUDA_F32 ? (void *)x : half,
                                (n - at < CHUNK ? n - at : CHUNK) * bytes, NULL);
done:
    qb_free(x);
    qb_free(half);
    return status;
}
