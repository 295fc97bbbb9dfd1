/* kernels/x86/quantize_avx512.c - quantize.h, 64 or 16 elements a step, the tail under a mask.
 *
 * A division takes ten cycles a vector where the rest of a step takes three, so the quotient is
 * first estimated as x * (1 / scale): its error is below 2^-22 relative (two roundings and that of
 * the true quotient), 127 * 2^-22 < 2^-15 absolute within the clamp. Only where some estimate
 * lies within 2^-14 of a half are the vectors divided; everywhere else both round to the same code.
 */
#include "kernels/quantize_internal.h"

#include <immintrin.h>

static inline __mmask16 tail_mask(size_t n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/* maxps returns its second operand where either is a NaN: the maximum so far. */
static inline __m512 max_abs_step(__m512 x, __m512 max_abs)
{
    return _mm512_max_ps(_mm512_abs_ps(x), max_abs);
}

float qb__absmax_avx512(const float *x, size_t n)
{
    __m512 m[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
    size_t c = 0;
    for (; c + 64 <= n; c += 64)
        for (size_t j = 0; j < 4; j++) m[j] = max_abs_step(_mm512_loadu_ps(x + c + 16 * j), m[j]);
    for (; c < n; c += 16)
        m[0] = max_abs_step(_mm512_maskz_loadu_ps(tail_mask(n - c), x + c), m[0]);
    return _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3])));
}

void qb__absmax_channels_avx512(const float *x, size_t n, float *max_abs)
{
    for (size_t c = 0; c < n; c += 16) {
        __mmask16 mask = tail_mask(n - c);
        __m512 m = max_abs_step(_mm512_maskz_loadu_ps(mask, x + c),
                                _mm512_maskz_loadu_ps(mask, max_abs + c));
        _mm512_mask_storeu_ps(max_abs + c, mask, m);
    }
}

/* NaN to 0, clamp, round to even. */
static inline __m512i code_of_ratio(__m512 r)
{
    r = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(r, r, _CMP_ORD_Q), r);
    r = _mm512_max_ps(_mm512_min_ps(r, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f));
    return _mm512_cvtps_epi32(r);
}

/* Codes for scale > 0; scale == 0 lanes give 0. */
static inline __m512i codes_divided(__m512 x, __m512 scale)
{
    __mmask16 nonzero = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return code_of_ratio(_mm512_maskz_div_ps(nonzero, x, scale));
}

typedef struct one_scale {
    __m512 scale, inverse;
    bool can_estimate; /* the inverse is a normal number, so the bound above holds */
} one_scale;

static inline one_scale one_scale_of(float scale)
{
    float inverse = 1.0f / scale;
    return (one_scale){_mm512_set1_ps(scale), _mm512_set1_ps(inverse),
                       scale >= 0x1p-100f && scale <= 0x1p100f};
}

/* The codes of four vectors in code; true where the estimates will do. Distances to the nearest
 * integer are compared by their bits, of which those of a NaN (r infinite or NaN) are the largest.
 */
static inline bool estimate(const __m512 x[4], const one_scale *s, __m512i code[4])
{
    __m512i farthest = _mm512_setzero_si512();
    for (size_t j = 0; j < 4; j++) {
        const __m512 r = _mm512_mul_ps(x[j], s->inverse);
        const __m512 rounded = _mm512_roundscale_ps(r, _MM_FROUND_TO_NEAREST_INT);
        const __m512 distance = _mm512_abs_ps(_mm512_sub_ps(r, rounded));
        farthest = _mm512_max_epu32(farthest, _mm512_castps_si512(distance));
        code[j] = _mm512_cvtps_epi32(
            _mm512_max_ps(_mm512_min_ps(rounded, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f)));
    }
    const __m512i limit = _mm512_castps_si512(_mm512_set1_ps(0.5f - 0x1p-14f));
    return _mm512_cmpgt_epu32_mask(farthest, limit) == 0;
}

/* The codes of x[0..64). */
static inline void codes64(const float *x, const one_scale *s, __m512i code[4])
{
    __m512 v[4];
    for (size_t j = 0; j < 4; j++) v[j] = _mm512_loadu_ps(x + 16 * j);
    if (estimate(v, s, code) && s->can_estimate) return;
    for (size_t j = 0; j < 4; j++) code[j] = codes_divided(v[j], s->scale);
}

/* Packing works in 128-bit lanes: the 32-bit parts come out transposed as 4 x 4. */
static inline void store64(int8_t *q, const __m512i code[4])
{
    const __m512i untwist = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(code[0], code[1]),
                                             _mm512_packs_epi32(code[2], code[3]));
    _mm512_storeu_si512(q, _mm512_permutexvar_epi32(untwist, bytes));
}

int32_t qb__quantize_s8_avx512(const float *x, size_t n, float scale, int8_t *q)
{
    const one_scale s = one_scale_of(scale);
    __m512i sum = _mm512_setzero_si512(), code[4];
    size_t c = 0;
    for (; c + 64 <= n; c += 64) {
        codes64(x + c, &s, code);
        store64(q + c, code);
        sum = _mm512_add_epi32(sum, _mm512_add_epi32(_mm512_add_epi32(code[0], code[1]),
                                                     _mm512_add_epi32(code[2], code[3])));
    }
    for (; c < n; c += 16) {
        __mmask16 mask = tail_mask(n - c);
        code[0] = codes_divided(_mm512_maskz_loadu_ps(mask, x + c), s.scale);
        sum = _mm512_add_epi32(sum, code[0]);
        _mm512_mask_cvtepi32_storeu_epi8(q + c, mask, code[0]);
    }
    return _mm512_reduce_add_epi32(sum);
}

int32_t qb__quantize_s8_channels_avx512(const float *x, size_t n, const float *scale, int8_t *q)
{
    __m512i sum = _mm512_setzero_si512();
    for (size_t c = 0; c < n; c += 16) {
        __mmask16 mask = tail_mask(n - c);
        __m512i code = codes_divided(_mm512_maskz_loadu_ps(mask, x + c),
                                     _mm512_maskz_loadu_ps(mask, scale + c));
        sum = _mm512_add_epi32(sum, code);
        _mm512_mask_cvtepi32_storeu_epi8(q + c, mask, code);
    }
    return _mm512_reduce_add_epi32(sum);
}

void qb__requantize_avx512(float *y, size_t n, float scale, int8_t *q)
{
    const one_scale s = one_scale_of(scale);
    __m512i code[4];
    size_t c = 0;
    for (; c + 64 <= n; c += 64) {
        codes64(y + c, &s, code);
        if (q) store64(q + c, code);
        for (size_t j = 0; j < 4; j++)
            _mm512_storeu_ps(y + c + 16 * j, _mm512_mul_ps(_mm512_cvtepi32_ps(code[j]), s.scale));
    }
    for (; c < n; c += 16) {
        __mmask16 mask = tail_mask(n - c);
        code[0] = codes_divided(_mm512_maskz_loadu_ps(mask, y + c), s.scale);
        _mm512_mask_storeu_ps(y + c, mask, _mm512_mul_ps(_mm512_cvtepi32_ps(code[0]), s.scale));
        if (q) _mm512_mask_cvtepi32_storeu_epi8(q + c, mask, code[0]);
    }
}

void qb__requantize_channels_avx512(float *y, size_t n, const float *scale, int8_t *q)
{
    for (size_t c = 0; c < n; c += 16) {
        __mmask16 mask = tail_mask(n - c);
        __m512 s = _mm512_maskz_loadu_ps(mask, scale + c);
        __m512i code = codes_divided(_mm512_maskz_loadu_ps(mask, y + c), s);
        _mm512_mask_storeu_ps(y + c, mask, _mm512_mul_ps(_mm512_cvtepi32_ps(code), s));
        if (q) _mm512_mask_cvtepi32_storeu_epi8(q + c, mask, code);
    }
}
