/* kernels/gemm_f32_internal.h - the functions of the rows that stand in kernels/x86. */
#ifndef QB_KERNELS_GEMM_F32_INTERNAL_H
#define QB_KERNELS_GEMM_F32_INTERNAL_H

#include "kernels/gemm_f32.h"

#define QB_GEMM_F32_DECLARE(isa)                                                                   \
    size_t qb__gemm_f32_packed_bytes_##isa(size_t n, size_t k);                                    \
    void qb__gemm_f32_pack_##isa(const float *w_rows, size_t n0, size_t n1, size_t n, size_t k,    \
                                 void *packed);                                                    \
    void qb__gemm_f32_pack_transposed_##isa(const float *w, size_t stride, size_t n0, size_t n1,   \
                                            size_t n, size_t k, void *packed);                     \
    size_t qb__gemm_f32_n_tasks_##isa(const qb_gemm_f32_args *args, size_t n_threads);             \
    void qb__gemm_f32_task_##isa(const qb_gemm_f32_args *args, size_t i, size_t n_tasks);
QB_GEMM_F32_DECLARE(avx2)
QB_GEMM_F32_DECLARE(avx512)
#undef QB_GEMM_F32_DECLARE

#endif
