/* core/dtype.h - element and block types of stored tensors: one table row each.
 *
 * A dtype stores `block_elems` elements in `block_bytes` bytes along the last (fastest) dimension.
 * The block formats are GGUF's (gguf_blocks.h): kept as they are in files, and widened to f32. */
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
    QB_Q8_0, /* this and the following: gguf_blocks.c */
    QB_Q4_0,
    QB_Q4_1,
    QB_Q5_0,
    QB_Q5_1,
    QB_Q2_K,
    QB_Q3_K,
    QB_Q4_K,
    QB_Q5_K,
    QB_Q6_K,
    QB_IQ4_NL,
    QB_IQ4_XS,
    QB_TQ1_0,
    QB_TQ2_0,
    QB_DTYPE_COUNT
} qb_dtype;

typedef struct qb_dtype_info {
    const char *name; /* in model.bin and messages: "f32", "q8_0", ... */
    size_t block_elems, block_bytes;
    bool is_float;                                        /* can be widened to f32 as a weight */
    void (*block_to_f32)(const uint8_t *block, float *w); /* NULL: elements, not blocks */
} qb_dtype_info;

/* The row of a dtype; and the dtype of a name, false where there is none. */
const qb_dtype_info *qb_dtype_get(qb_dtype dtype);
bool qb_dtype_from_name(const char *name, qb_dtype *out);

/* *bytes of n_elems elements whose rows have row_elems elements. false: overflow, or row_elems is
 * no multiple of the block (u4 rows may be odd: each row is padded to a whole byte). */
bool qb_dtype_bytes(qb_dtype dtype, size_t n_rows, size_t row_elems, size_t *bytes);

/* dst[0..n) = the n elements at src, exactly (f64 and sums with a minimum round to nearest). n is a
 * multiple of the block; src needs no alignment. Only dtypes with is_float. */
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
