/* kernels/x86/vector_internal.h - one spelling for the float vectors of AVX2 (8 lanes) and AVX-512
 * (16 lanes), so that a kernel is written once and compiled for both.
 *
 * A file *_avx2.c or *_avx512.c includes a *_body_internal.h, which includes this header; which of
 * the two halves it gets follows from the flags it is compiled with. The functions ending in
 * _n touch the first n lanes only (all where n >= LANES): lanes past n read 0 and never fault. */
#ifndef QB_KERNELS_X86_VECTOR_INTERNAL_H
#define QB_KERNELS_X86_VECTOR_INTERNAL_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define QB_INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__

#define QB_ISA(stem) stem##_avx512
enum { LANES = 16 };
typedef __m512 vf;      /* floats */
typedef __m512d vd;     /* half as many doubles */
typedef __mmask16 mask; /* one bit a lane */

QB_INLINE mask mask_first(size_t n) /* n <= LANES */
{
    return (mask)((1u << n) - 1);
}
QB_INLINE vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
QB_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
QB_INLINE vf vf_load_n(const float *p, size_t n)
{
    return n < LANES ? _mm512_maskz_loadu_ps(mask_first(n), p) : _mm512_loadu_ps(p);
}
QB_INLINE void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
QB_INLINE void vf_store_n(float *p, vf x, size_t n)
{
    if (n < LANES)
        _mm512_mask_storeu_ps(p, mask_first(n), x);
    else
        _mm512_storeu_ps(p, x);
}
QB_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
QB_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
QB_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
QB_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
QB_INLINE vf vf_fma(vf a, vf b, vf c) /* a * b + c, one rounding */
{
    return _mm512_fmadd_ps(a, b, c);
}
QB_INLINE vf vf_max(vf a, vf b) /* b where either is NaN */
{
    return _mm512_max_ps(a, b);
}
QB_INLINE vf vf_min(vf a, vf b) /* b where either is NaN */
{
    return _mm512_min_ps(a, b);
}
QB_INLINE vf vf_abs(vf x)
{
    return _mm512_abs_ps(x);
}
/* x * 2^n for integral n; below 2^-126 denormal or 0 */
QB_INLINE vf vf_scale2(vf x, vf n)
{
    return _mm512_scalef_ps(x, n);
}
QB_INLINE vf vf_round(vf x) /* to integers, halves to even */
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
QB_INLINE vf vf_first(vf x, size_t n, vf other) /* x in the first n lanes, else other */
{
    return n < LANES ? _mm512_mask_blend_ps(mask_first(n), other, x) : x;
}
QB_INLINE vf vf_zero_where_zero(vf x, vf z) /* 0 in the lanes where z is 0, else x */
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_NEQ_UQ), x);
}
QB_INLINE vf vf_where_at_most(vf a, vf b, vf x, vf y) /* x where a <= b, else y */
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), y, x);
}
QB_INLINE int vf_all_at_most(vf a, vf b) /* false at a NaN */
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ) == 0xffff;
}
QB_INLINE float vf_hmax(vf x)
{
    return _mm512_reduce_max_ps(x);
}
/* rows[i][j] becomes rows[j][i]: pairs, then fours, then the quarters of the vectors. */
QB_INLINE void vf_transpose(vf rows[16])
{
    __m512d t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
        t[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* rows[i + c]: columns c, c + 4, c + 8, c + 12 of rows i.. */
        rows[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i], t[i + 2]));
        rows[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i], t[i + 2]));
        rows[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i + 1], t[i + 3]));
        rows[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i + 1], t[i + 3]));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        vf even_low = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0x88);
        vf odd_low = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0xdd);
        vf even_high = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0x88);
        vf odd_high = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0xdd);
        rows[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        rows[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
        rows[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        rows[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
}
QB_INLINE vd vd_zero(void)
{
    return _mm512_setzero_pd();
}
QB_INLINE vd vd_set(double x)
{
    return _mm512_set1_pd(x);
}
QB_INLINE vd vd_load(const double *p)
{
    return _mm512_loadu_pd(p);
}
QB_INLINE void vd_store(double *p, vd x)
{
    _mm512_storeu_pd(p, x);
}
QB_INLINE vd vd_low(vf x) /* the first LANES / 2 lanes, exactly */
{
    return _mm512_cvtps_pd(_mm512_castps512_ps256(x));
}
QB_INLINE vd vd_high(vf x)
{
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}
QB_INLINE vf vf_from_vd(vd low, vd high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high),
                              1);
}
QB_INLINE vd vd_add(vd a, vd b)
{
    return _mm512_add_pd(a, b);
}
QB_INLINE vd vd_sub(vd a, vd b)
{
    return _mm512_sub_pd(a, b);
}
QB_INLINE vd vd_mul(vd a, vd b)
{
    return _mm512_mul_pd(a, b);
}
QB_INLINE vd vd_fma(vd a, vd b, vd c)
{
    return _mm512_fmadd_pd(a, b, c);
}
QB_INLINE double vd_hsum(vd x)
{
    return _mm512_reduce_add_pd(x);
}

#else

#define QB_ISA(stem) stem##_avx2
enum { LANES = 8 };
typedef __m256 vf;
typedef __m256d vd;

QB_INLINE __m256i mask_first(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
QB_INLINE vf vf_set(float x)
{
    return _mm256_set1_ps(x);
}
QB_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
QB_INLINE vf vf_load_n(const float *p, size_t n)
{
    return n < LANES ? _mm256_maskload_ps(p, mask_first(n)) : _mm256_loadu_ps(p);
}
QB_INLINE void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
QB_INLINE void vf_store_n(float *p, vf x, size_t n)
{
    if (n < LANES)
        _mm256_maskstore_ps(p, mask_first(n), x);
    else
        _mm256_storeu_ps(p, x);
}
QB_INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
QB_INLINE vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
QB_INLINE vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
QB_INLINE vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
QB_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
QB_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
QB_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
QB_INLINE vf vf_abs(vf x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}
QB_INLINE vf vf_scale2(vf x, vf n) /* by adding n to the exponent of x, 0.5 < x < 2 */
{
    __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), bits));
    return _mm256_and_ps(_mm256_cmp_ps(n, _mm256_set1_ps(-126), _CMP_NLT_UQ), y);
}
QB_INLINE vf vf_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
QB_INLINE vf vf_first(vf x, size_t n, vf other)
{
    return n < LANES ? _mm256_blendv_ps(other, x, _mm256_castsi256_ps(mask_first(n))) : x;
}
QB_INLINE vf vf_zero_where_zero(vf x, vf z)
{
    return _mm256_and_ps(_mm256_cmp_ps(z, _mm256_setzero_ps(), _CMP_NEQ_UQ), x);
}
QB_INLINE vf vf_where_at_most(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LE_OQ));
}
QB_INLINE int vf_all_at_most(vf a, vf b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)) == 0xff;
}
QB_INLINE float vf_hmax(vf x)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
QB_INLINE void vf_transpose(vf rows[8])
{
    __m256d t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
        t[i + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        rows[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(t[i], t[i + 2]));
        rows[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(t[i], t[i + 2]));
        rows[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(t[i + 1], t[i + 3]));
        rows[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(t[i + 1], t[i + 3]));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        vf low = rows[c], high = rows[4 + c];
        rows[c] = _mm256_permute2f128_ps(low, high, 0x20);
        rows[4 + c] = _mm256_permute2f128_ps(low, high, 0x31);
    }
}
QB_INLINE vd vd_zero(void)
{
    return _mm256_setzero_pd();
}
QB_INLINE vd vd_set(double x)
{
    return _mm256_set1_pd(x);
}
QB_INLINE vd vd_load(const double *p)
{
    return _mm256_loadu_pd(p);
}
QB_INLINE void vd_store(double *p, vd x)
{
    _mm256_storeu_pd(p, x);
}
QB_INLINE vd vd_low(vf x)
{
    return _mm256_cvtps_pd(_mm256_castps256_ps128(x));
}
QB_INLINE vd vd_high(vf x)
{
    return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}
QB_INLINE vf vf_from_vd(vd low, vd high)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high),
                                1);
}
QB_INLINE vd vd_add(vd a, vd b)
{
    return _mm256_add_pd(a, b);
}
QB_INLINE vd vd_sub(vd a, vd b)
{
    return _mm256_sub_pd(a, b);
}
QB_INLINE vd vd_mul(vd a, vd b)
{
    return _mm256_mul_pd(a, b);
}
QB_INLINE vd vd_fma(vd a, vd b, vd c)
{
    return _mm256_fmadd_pd(a, b, c);
}
QB_INLINE double vd_hsum(vd x)
{
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

#endif
#endif
