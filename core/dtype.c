/* core/dtype.c - the dtype table and widening to f32. Plain loops: loading is bound by memory, and
 * the compiler turns them into vector code. */
#include "core/dtype.h"

#include "core/memory.h"

static const qb_dtype_info infos[QB_DTYPE_COUNT] = {
    [QB_F32] = {"f32", 1, 4, true},     [QB_F16] = {"f16", 1, 2, true},
    [QB_BF16] = {"bf16", 1, 2, true},   [QB_F64] = {"f64", 1, 8, true},
    [QB_S8] = {"s8", 1, 1, false},      [QB_U8] = {"u8", 1, 1, false},
    [QB_S16] = {"s16", 1, 2, false},    [QB_S32] = {"s32", 1, 4, false},
    [QB_S64] = {"s64", 1, 8, false},    [QB_U4] = {"u4", 2, 1, false},
    [QB_Q8_0] = {"q8_0", 32, 34, true}, [QB_Q4_0] = {"q4_0", 32, 18, true},
    [QB_Q4_1] = {"q4_1", 32, 20, true},
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

static void widen_q8_0(const uint8_t *src, size_t n_blocks, float *dst)
{
    for (size_t b = 0; b < n_blocks; b++, src += 34, dst += 32) {
        float d = qb_f32_from_f16(load_u16(src));
        for (int i = 0; i < 32; i++) dst[i] = d * (float)(int8_t)src[2 + i];
    }
}

static void widen_q4(const uint8_t *src, size_t n_blocks, float *dst, bool has_min)
{
    size_t head = has_min ? 4 : 2;
    for (size_t b = 0; b < n_blocks; b++, src += head + 16, dst += 32) {
        float d = qb_f32_from_f16(load_u16(src));
        float m = has_min ? qb_f32_from_f16(load_u16(src + 2)) : 0.0f;
        int offset = has_min ? 0 : 8;
        for (size_t i = 0; i < 16; i++) {
            dst[i] = d * (float)((src[head + i] & 15) - offset) + m;
            dst[i + 16] = d * (float)((src[head + i] >> 4) - offset) + m;
        }
    }
}

void qb_dtype_to_f32(qb_dtype dtype, const void *source, size_t n, float *dst)
{
    const uint8_t *src = source;
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
    case QB_Q8_0:
        widen_q8_0(src, n / 32, dst);
        break;
    case QB_Q4_0:
        widen_q4(src, n / 32, dst, false);
        break;
    case QB_Q4_1:
        widen_q4(src, n / 32, dst, true);
        break;
    default:
        break;
    }
}
