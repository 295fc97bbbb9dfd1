/* kernels/x86/quantize_avx2.c - quantize.h, 8 elements a step, the tail in plain C. */
#include "kernels/quantize_internal.h"

#include <immintrin.h>

/* maxps returns its second operand where either is a NaN: the maximum so far. */
static inline __m256 max_abs_step(__m256 x, __m256 max_abs)
{
    return _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), max_abs);
}

float qb__absmax_avx2(const float *x, size_t n)
{
    __m256 a = _mm256_setzero_ps(), b = _mm256_setzero_ps();
    size_t c = 0;
    for (; c + 16 <= n; c += 16) {
        a = max_abs_step(_mm256_loadu_ps(x + c), a);
        b = max_abs_step(_mm256_loadu_ps(x + c + 8), b);
    }
    float lane[8], max_abs = 0.0f;
    _mm256_storeu_ps(lane, _mm256_max_ps(a, b));
    for (int j = 0; j < 8; j++) max_abs = qb__max_abs(max_abs, lane[j]);
    for (; c < n; c++) max_abs = qb__max_abs(max_abs, x[c]);
    return max_abs;
}

void qb__absmax_channels_avx2(const float *x, size_t n, float *max_abs)
{
    size_t c = 0;
    for (; c + 8 <= n; c += 8)
        _mm256_storeu_ps(max_abs + c,
                         max_abs_step(_mm256_loadu_ps(x + c), _mm256_loadu_ps(max_abs + c)));
    for (; c < n; c++) max_abs[c] = qb__max_abs(max_abs[c], x[c]);
}

/* The true quotient, NaN and zero scales to 0, clamped, rounded to even. */
static inline __m256i codes(__m256 x, __m256 scale)
{
    __m256 r = _mm256_div_ps(x, scale);
    __m256 valid = _mm256_and_ps(_mm256_cmp_ps(r, r, _CMP_ORD_Q),
                                 _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_NEQ_UQ));
    r = _mm256_and_ps(r, valid);
    r = _mm256_max_ps(_mm256_min_ps(r, _mm256_set1_ps(127.0f)), _mm256_set1_ps(-127.0f));
    return _mm256_cvtps_epi32(r);
}

static inline void store_codes(int8_t *q, __m256i code)
{
    __m128i s16 = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)q, _mm_packs_epi16(s16, s16));
}

static inline int32_t sum_lanes(__m256i v)
{
    int32_t lane[8], sum = 0;
    _mm256_storeu_si256((__m256i *)lane, v);
    for (int j = 0; j < 8; j++) sum += lane[j];
    return sum;
}

int32_t qb__quantize_s8_avx2(const float *x, size_t n, float scale, int8_t *q)
{
    __m256i sums = _mm256_setzero_si256();
    size_t c = 0;
    for (; c + 8 <= n; c += 8) {
        __m256i code = codes(_mm256_loadu_ps(x + c), _mm256_set1_ps(scale));
        sums = _mm256_add_epi32(sums, code);
        store_codes(q + c, code);
    }
    int32_t sum = sum_lanes(sums);
    for (; c < n; c++) sum += q[c] = qb__code_s8(x[c], scale);
    return sum;
}

int32_t qb__quantize_s8_channels_avx2(const float *x, size_t n, const float *scale, int8_t *q)
{
    __m256i sums = _mm256_setzero_si256();
    size_t c = 0;
    for (; c + 8 <= n; c += 8) {
        __m256i code = codes(_mm256_loadu_ps(x + c), _mm256_loadu_ps(scale + c));
        sums = _mm256_add_epi32(sums, code);
        store_codes(q + c, code);
    }
    int32_t sum = sum_lanes(sums);
    for (; c < n; c++) sum += q[c] = qb__code_s8(x[c], scale[c]);
    return sum;
}

static inline void requantize_tail(float *y, float scale, int8_t *q)
{
    int8_t code = qb__code_s8(*y, scale);
    *y = (float)code * scale;
    if (q) *q = code;
}

void qb__requantize_avx2(float *y, size_t n, float scale, int8_t *q)
{
    size_t c = 0;
    for (; c + 8 <= n; c += 8) {
        __m256 s = _mm256_set1_ps(scale);
        __m256i code = codes(_mm256_loadu_ps(y + c), s);
        _mm256_storeu_ps(y + c, _mm256_mul_ps(_mm256_cvtepi32_ps(code), s));
        if (q) store_codes(q + c, code);
    }
    for (; c < n; c++) requantize_tail(y + c, scale, q ? q + c : NULL);
}

void qb__requantize_channels_avx2(float *y, size_t n, const float *scale, int8_t *q)
{
    size_t c = 0;
    for (; c + 8 <= n; c += 8) {
        __m256 s = _mm256_loadu_ps(scale + c);
        __m256i code = codes(_mm256_loadu_ps(y + c), s);
        _mm256_storeu_ps(y + c, _mm256_mul_ps(_mm256_cvtepi32_ps(code), s));
        if (q) store_codes(q + c, code);
    }
    for (; c < n; c++) requantize_tail(y + c, scale[c], q ? q + c : NULL);
}
