/* core/dtype.c - the dtype table and widening to f32. Plain loops: loading is bound by memory, and
 * the compiler turns them into vector code. */
#include "core/dtype.h"

#include "core/gguf_blocks.h"
#include "core/memory.h"

static const qb_dtype_info infos[QB_DTYPE_COUNT] = {
    [QB_F32] = {"f32", 1, 4, true, NULL},
    [QB_F16] = {"f16", 1, 2, true, NULL},
    [QB_BF16] = {"bf16", 1, 2, true, NULL},
    [QB_F64] = {"f64", 1, 8, true, NULL},
    [QB_S8] = {"s8", 1, 1, false, NULL},
    [QB_U8] = {"u8", 1, 1, false, NULL},
    [QB_S16] = {"s16", 1, 2, false, NULL},
    [QB_S32] = {"s32", 1, 4, false, NULL},
    [QB_S64] = {"s64", 1, 8, false, NULL},
    [QB_U4] = {"u4", 2, 1, false, NULL},
    [QB_Q8_0] = {"q8_0", 32, 34, true, qb__block_q8_0},
    [QB_Q4_0] = {"q4_0", 32, 18, true, qb__block_q4_0},
    [QB_Q4_1] = {"q4_1", 32, 20, true, qb__block_q4_1},
    [QB_Q5_0] = {"q5_0", 32, 22, true, qb__block_q5_0},
    [QB_Q5_1] = {"q5_1", 32, 24, true, qb__block_q5_1},
    [QB_Q2_K] = {"q2_k", 256, 84, true, qb__block_q2_k},
    [QB_Q3_K] = {"q3_k", 256, 110, true, qb__block_q3_k},
    [QB_Q4_K] = {"q4_k", 256, 144, true, qb__block_q4_k},
    [QB_Q5_K] = {"q5_k", 256, 176, true, qb__block_q5_k},
    [QB_Q6_K] = {"q6_k", 256, 210, true, qb__block_q6_k},
    [QB_IQ4_NL] = {"iq4_nl", 32, 18, true, qb__block_iq4_nl},
    [QB_IQ4_XS] = {"iq4_xs", 256, 136, true, qb__block_iq4_xs},
    [QB_TQ1_0] = {"tq1_0", 256, 54, true, qb__block_tq1_0},
    [QB_TQ2_0] = {"tq2_0", 256, 66, true, qb__block_tq2_0},
};

const qb_dtype_info *qb_dtype_get(qb_dtype dtype)
{
    return &infos[dtype];
}

bool qb_dtype_from_name(const char *name, qb_dtype *out)
{
    for (int i = 0; i < QB_DTYPE_COUNT; i++)
        if (!strcmp(infos[i].name, name)) {
            *out = (qb_dtype)i;
            return true;
        }
    return false;
}

bool qb_dtype_bytes(qb_dtype dtype, size_t n_rows, size_t row_elems, size_t *bytes)
{
    const qb_dtype_info *t = &infos[dtype];
    if (dtype != QB_U4 && row_elems % t->block_elems) return false;
    size_t blocks = row_elems / t->block_elems + (row_elems % t->block_elems != 0);
    size_t row_bytes;
    return qb_mul_size(blocks, t->block_bytes, &row_bytes) && qb_mul_size(row_bytes, n_rows, bytes);
}

float qb_f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return qb_f32_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return qb_f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float f = (float)mantissa * 0x1p-24f; /* zero and subnormals, exact */
    return sign ? -f : f;
}

uint16_t qb_bf16_from_f32(float f)
{
    uint32_t bits = qb_f32_bits(f);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t qb_f16_from_f32(float f)
{
    uint32_t bits = qb_f32_bits(f), sign = bits >> 16 & 0x8000, a = bits & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (a >= 0x47800000) return (uint16_t)(sign | 0x7c00); /* >= 65536 */
    if (a < 0x38800000) { /* below 2^-14: adding 0.5 puts the f16 subnormal into the low bits */
        uint32_t rounded = qb_f32_bits(qb_f32_from_bits(a) + 0.5f);
        return (uint16_t)(sign | (rounded - 0x3f000000));
    }
    return (uint16_t)(sign | ((a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13));
}

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

void qb_dtype_to_f32(qb_dtype dtype, const void *source, size_t n, float *dst)
{
    const uint8_t *src = source;
    const qb_dtype_info *t = &infos[dtype];
    for (size_t i = 0; t->block_to_f32 && i < n; i += t->block_elems, src += t->block_bytes)
        t->block_to_f32(src, dst + i);
    switch (dtype) {
    case QB_F32:
        memcpy(dst, src, n * 4);
        break;
    case QB_F16:
        for (size_t i = 0; i < n; i++) dst[i] = qb_f32_from_f16(load_u16(src + 2 * i));
        break;
    case QB_BF16:
        for (size_t i = 0; i < n; i++) dst[i] = qb_f32_from_bf16(load_u16(src + 2 * i));
        break;
    case QB_F64:
        for (size_t i = 0; i < n; i++) {
            double d;
            memcpy(&d, src + 8 * i, 8);
            dst[i] = (float)d;
        }
        break;
    default:
        break;
    }
}
