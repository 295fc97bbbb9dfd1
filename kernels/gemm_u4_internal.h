/* kernels/gemm_u4_internal.h - slices and codes of 4-bit weights, shared by the rows. */
#ifndef QB_KERNELS_GEMM_U4_INTERNAL_H
#define QB_KERNELS_GEMM_U4_INTERNAL_H

#include "kernels/gemm_u4.h"

#include <stdbool.h>

/* A slice as (code - zero_point) * scale, constants included: a constant slice becomes code 0, zero
 * point -1, scale = its value. */
typedef struct qb__u4_slice {
    float scale;
    int32_t zero_point;
    bool is_constant; /* its codes count as 0 */
} qb__u4_slice;

static inline size_t qb__u4_slice_idx(const qb_u4_weights *w, size_t n, size_t k)
{
    return n * w->n_step + k / w->k_group * w->k_step;
}

static inline qb__u4_slice qb__u4_slice_at(const qb_u4_weights *w, size_t n, size_t k)
{
    size_t s = qb__u4_slice_idx(w, n, k);
    if (w->scale[s] != 0.0f) return (qb__u4_slice){w->scale[s], w->zero_point[s], false};
    return (qb__u4_slice){w->fill ? w->fill[s] : 0.0f, -1, true};
}

static inline uint8_t qb__u4_code(const uint8_t *codes, size_t k)
{
    return k % 2 ? codes[k / 2] >> 4 : codes[k / 2] & 15;
}

/* The code of (n, k) as it goes with its qb__u4_slice. */
static inline uint8_t qb__u4_code_at(const qb_u4_weights *w, size_t n, size_t k)
{
    if (w->scale[qb__u4_slice_idx(w, n, k)] == 0.0f) return 0;
    return qb__u4_code(w->codes + n * ((w->k + 1) / 2), k);
}

#define QB__GEMM_U4_ROW(isa)                                                                       \
    size_t qb__gemm_u4_packed_bytes_##isa(const qb_u4_weights *weights);                           \
    const char *qb__gemm_u4_pack_##isa(const qb_u4_weights *weights, size_t n0, size_t n1,         \
                                       void *packed);                                              \
    size_t qb__gemm_u4_prepared_bytes_##isa(size_t m, size_t k);                                   \
    void qb__gemm_u4_prepare_##isa(const float *x, size_t x_stride, size_t m0, size_t m1,          \
                                   size_t m, size_t k, const void *packed, void *prepared);        \
    size_t qb__gemm_u4_n_tasks_##isa(const qb_gemm_u4_args *args, size_t n_threads);               \
    void qb__gemm_u4_task_##isa(const qb_gemm_u4_args *args, size_t i, size_t n_tasks);
QB__GEMM_U4_ROW(avx512vnni)
#undef QB__GEMM_U4_ROW

#endif
