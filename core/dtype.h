/* core/dtype.h - element and block types of stored tensors: one table row each.
 *
 * A dtype stores `block_elems` elements in `block_bytes` bytes along the last (fastest) dimension.
 * The block formats are GGUF's (gguf.md): kept as they are in files and widened exactly to f32. */
#ifndef QB_CORE_DTYPE_H
#define QB_CORE_DTYPE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_dtype {
    QB_F32,
    QB_F16,
    QB_BF16,
    QB_F64,
    QB_S8,
    QB_U8,
    QB_S16,
    QB_S32,
    QB_S64,
    QB_U4,   /* two codes a byte along the last dimension: even index in the low nibble */
    QB_Q8_0, /* f16 d, 32 x s8:               w = d * q              34 bytes */
    QB_Q4_0, /* f16 d, 16 bytes (low nibbles are elements 0..15): w = d * (q - 8)  18 bytes */
    QB_Q4_1, /* f16 d, f16 m, 16 bytes:       w = d * q + m          20 bytes */
    QB_DTYPE_COUNT
} qb_dtype;

typedef struct qb_dtype_info {
    const char *name; /* in model.bin and messages: "f32", "q8_0", ... */
    size_t block_elems, block_bytes;
    bool is_float; /* can be widened to f32 as a weight */
} qb_dtype_info;

const qb_dtype_info *qb_dtype_get(qb_dtype dtype);
bool qb_dtype_from_name(const char *name, qb_dtype *out);

/* *bytes of n_elems elements whose rows have row_elems elements. false: overflow, or row_elems is
 * no multiple of the block (u4 rows may be odd: each row is padded to a whole byte). */
bool qb_dtype_bytes(qb_dtype dtype, size_t n_rows, size_t row_elems, size_t *bytes);

/* dst[0..n) = the n elements at src, exactly (f64 rounds to nearest). n is a multiple of the block;
 * src needs no alignment. Only dtypes with is_float. */
void qb_dtype_to_f32(qb_dtype dtype, const void *src, size_t n_elems, float *dst);

static inline float qb_f32_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint32_t qb_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
static inline float qb_f32_from_bf16(uint16_t h)
{
    return qb_f32_from_bits((uint32_t)h << 16);
}
float qb_f32_from_f16(uint16_t h);
uint16_t qb_bf16_from_f32(float f); /* round to nearest even; NaN stays NaN */
uint16_t qb_f16_from_f32(float f);  /* round to nearest even; overflow to inf */

#ifdef __cplusplus
}
#endif
#endif
