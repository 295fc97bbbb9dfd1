/* bench/cuda/gemm_s8_operands.h - random operands of an int8 product on the GPU, for timing. */
#ifndef QB_BENCH_CUDA_GEMM_S8_OPERANDS_H
#define QB_BENCH_CUDA_GEMM_S8_OPERANDS_H

#include "kernels/cuda/gemm_s8.h"

/* Codes are random over the whole range: with easy numbers the chip draws less power and clocks
 * higher than it does in use. */
typedef struct qb_bench_operands {
    int8_t *x, *w;
    float *x_scale, *w_scale, *out_scale, *residual;
    void *y;
} qb_bench_operands;

typedef enum { QB_BENCH_BF16, QB_BENCH_S8, QB_BENCH_F32, QB_BENCH_RESIDUAL } qb_bench_output;
extern const char *const qb_bench_output_names[];

/* The caller frees in any case. The residual is only there if asked for. */
qb_status qb_bench_operands_make(qb_bench_operands *o, size_t m, size_t n, size_t k,
                                 bool with_residual);
void qb_bench_operands_free(qb_bench_operands *o);
qb_cuda_gemm_s8_args qb_bench_operands_args(const qb_bench_operands *o, size_t m, size_t n,
                                            size_t k, qb_bench_output output);

/* Least bytes: each operand once. */
double qb_bench_gemm_s8_bytes(size_t m, size_t n, size_t k, qb_bench_output output);

/* The shapes that goals are set for. */
typedef struct qb_bench_product {
    size_t m, n, k; /* m = 0 ends the list */
} qb_bench_product;
extern const qb_bench_product qb_bench_products[];

#endif
