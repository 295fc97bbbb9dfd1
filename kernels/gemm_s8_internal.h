/* kernels/gemm_s8_internal.h - what the rows of gemm_s8 share: the epilogue and the row list. */
#ifndef QB_KERNELS_GEMM_S8_INTERNAL_H
#define QB_KERNELS_GEMM_S8_INTERNAL_H

#include "kernels/gemm_s8.h"
#include "kernels/max_abs_internal.h"

#include <math.h>

/* Equation (2) of gemm_s8.h. */
static inline float qb__gemm_s8_value(const qb_gemm_s8_args *a, size_t m, size_t n, int32_t acc)
{
    float scale = a->x_scale[m * a->x_scale_step] * a->w_scale[n * a->w_scale_step];
    float y = (float)acc * scale;
    return a->bias ? y + a->bias[n] : y;
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
