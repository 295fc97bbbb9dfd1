/* kernels/gemm_s8_internal.h - what the rows of gemm_s8 share: the epilogue and the row list. */
#ifndef QB_KERNELS_GEMM_S8_INTERNAL_H
#define QB_KERNELS_GEMM_S8_INTERNAL_H

#include "core/dtype.h"
#include "kernels/gemm_s8.h"

#include <math.h>
#include <stdatomic.h>

/* Equation (2) of gemm_s8.h. */
static inline float qb__gemm_s8_value(const qb_gemm_s8_args *a, size_t m, size_t n, int32_t acc)
{
    float scale = a->x_scale[m * a->x_scale_step] * a->w_scale[n * a->w_scale_step];
    float y = (float)acc * scale;
    return a->bias ? y + a->bias[n] : y;
}

/* Raises *bits to those of max_abs >= 0. */
static inline void qb__raise_max_abs(uint32_t *bits, float max_abs)
{
    _Atomic(uint32_t) *shared = (_Atomic(uint32_t) *)bits;
    uint32_t mine = qb_f32_bits(max_abs), seen = atomic_load_explicit(shared, memory_order_relaxed);
    while (seen < mine && !atomic_compare_exchange_weak_explicit(
                              shared, &seen, mine, memory_order_relaxed, memory_order_relaxed)) {
    }
}

size_t qb__gemm_s8_packed_bytes_avx512vnni(size_t n, size_t k);
void qb__gemm_s8_pack_avx512vnni(const int8_t *w_rows, size_t n0, size_t n1, size_t n, size_t k,
                                 void *packed);
size_t qb__gemm_s8_n_tasks_avx512vnni(const qb_gemm_s8_args *args, size_t n_threads);
void qb__gemm_s8_task_avx512vnni(const qb_gemm_s8_args *args, size_t i, size_t n_tasks);

size_t qb__gemm_s8_packed_bytes_avx2(size_t n, size_t k);
void qb__gemm_s8_pack_avx2(const int8_t *w_rows, size_t n0, size_t n1, size_t n, size_t k,
                           void *packed);
size_t qb__gemm_s8_n_tasks_avx2(const qb_gemm_s8_args *args, size_t n_threads);
void qb__gemm_s8_task_avx2(const qb_gemm_s8_args *args, size_t i, size_t n_tasks);

#endif
