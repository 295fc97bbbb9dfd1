/* kernels/cuda/gemm_u4.h - bf16 activations times 4-bit zero-point weights (W4A16).
 *
 *     y[m, n] = sum over k of x[m, k] * (q[n, k] - zp[s]) * scale[s] + bias[n],  z = act(y) (1)
 *
 * q - zp is an integer that bf16 holds exactly; sums are f32; scales per output channel, tensor or
 * group are applied to sums. Scales per input channel are multiplied into x first (qb_cuda_u4_x).
 * Slices: kernels/gemm_u4.h.
 *
 * Packed layout: tiles of 16 output channels x 64 input channels, 512 bytes, ordered
 * [n / 16][k / 64]; lane l of a warp owns 16 bytes = 4 words, word j for input channels
 * 16 j .. 16 j + 15 of the tile: the A fragment of mma.m16n8k16 with g = l / 4, t = l % 4. Nibble i
 * (bits 4 i) of a word's low half is the first and bits 16 + 4 i the second element of register
 * a_i: a0 = (row g, k 2 t), a1 = (row g + 8, k 2 t), a2 = (row g, k 2 t + 8), a3 = (row g + 8,
 * k 2 t + 8). So (word >> 4 i) & 0x000f000f | 0x43004300 is a_i + 128 as a bf16 pair. Padding
 * channels (n and k to multiples of 64) hold code 0; their outputs have the scale 0 and their
 * inputs are 0 (matrix.h). A constant slice is code 0, zero point -1, its value as the scale. */
#ifndef QB_KERNELS_CUDA_GEMM_U4_H
#define QB_KERNELS_CUDA_GEMM_U4_H

#include "kernels/cuda/gemm_s8.h"
#include "kernels/gemm_u4.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_CUDA_U4_MAX_ZP 120 /* |zp| <= this, so that 128 + zp is exact in bf16 */

typedef struct qb_cuda_u4 {    /* a layer's weights on the device; owned by whoever packed them */
    size_t n, k, n_pad, k_pad; /* n_pad multiple of 64, k_pad of 64 */
    uint32_t *codes;           /* packed layout, n_pad * k_pad / 2 bytes */
    float *scale;              /* (n_groups, n_pad): group-major */
    int16_t *zero_point;       /* (n_groups, n_pad) */
    float *x_scale;            /* (k_pad) scales per input channel, NULL = none */
    int16_t *x_zero_point;     /* (k_pad) zero points per input channel, NULL = none */
    size_t group, n_groups;    /* input channels a group (k_pad if one); a multiple of 64 */
    size_t bytes;              /* device bytes in all */
} qb_cuda_u4;

/* Packs and uploads host weights. *why is set, and nothing made, where the layout cannot hold them
 * (a zero point beyond QB_CUDA_U4_MAX_ZP, groups not of 64 n): the caller then takes dequantised
 * bf16 weights. With scales per input channel, scale is 1 and zero_point 0 for every output. */
qb_status qb_cuda_u4_pack(const qb_u4_weights *weights, qb_cuda_u4 *out, const char **why);
/* Several layers with the same input as one (output channels one after the other). Refused besides:
 * unequal groups, unequal scales per input channel. */
qb_status qb_cuda_u4_pack_many(const qb_u4_weights *weights, size_t n_weights, qb_cuda_u4 *out,
                               const char **why);
void qb_cuda_u4_free(qb_cuda_u4 *weights);

typedef struct qb_cuda_gemm_u4_args {
    size_t m;
    const void *x; /* (m, k) bf16; with x_scale: already multiplied */
    size_t x_stride;
    const qb_cuda_u4 *w;
    const float *bias; /* (n) or NULL */
    qb_epilogue_act act;
    qb_cuda_dtype out; /* F32 or BF16 */
    void *y; /* columns from n to the next 16 bytes may be written with 0 (added to the residual) */
    size_t y_stride;
    float *residual; /* += z in f32; y may then be NULL */
    size_t residual_stride;
} qb_cuda_gemm_u4_args;

typedef struct qb_cuda_gemm_u4_row {
    qb_kernel_info info;
    const char *(*refuse)(const qb_cuda_gemm_u4_args *args);
    qb_status (*run)(const qb_cuda_gemm_u4_args *args, qb_cuda_stream stream);
    /* NULL, or whether a later row takes the arguments and is as fast. */
    bool (*is_slower)(const qb_cuda_gemm_u4_args *args);
} qb_cuda_gemm_u4_row;
extern const qb_cuda_gemm_u4_row qb_cuda_gemm_u4_kernels[];
qb_status qb_cuda_gemm_u4(const qb_cuda_gemm_u4_args *args, qb_cuda_stream stream);

/* x'[m, k] = bf16(x[m, k] * x_scale[k]) for weights with scales per input channel. */
qb_status qb_cuda_u4_x(const void *x, size_t x_stride, size_t m, const qb_cuda_u4 *w, void *out,
                       size_t out_stride, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
