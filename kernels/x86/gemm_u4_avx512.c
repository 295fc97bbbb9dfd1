/* kernels/x86/gemm_u4_avx512.c - gemm_u4_f32_internal.h with 16 lanes. */
#include "kernels/gemm_u4_internal.h"

#include <immintrin.h>

enum { LANES = 16 };
typedef __m512 vec;
#define ROW(name) qb__gemm_u4_##name##_avx512
#define KEEP(v) "+v"(v)
#define zero _mm512_setzero_ps
#define set1 _mm512_set1_ps
#define load _mm512_load_ps
#define store _mm512_store_ps
#define add _mm512_add_ps
#define fmadd _mm512_fmadd_ps

static inline __mmask16 mask_below(size_t n)
{
    return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1);
}
static inline vec load_some(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(mask_below(n), p);
}
static inline void store_some(float *p, vec v, size_t n)
{
    _mm512_mask_storeu_ps(p, mask_below(n), v);
}
static inline vec weight_of(const uint8_t *codes, unsigned shift, vec zero_point, vec scale)
{
    const __m512i v = _mm512_srli_epi32(_mm512_load_si512(codes), shift);
    const vec code = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_and_si512(v, _mm512_set1_epi32(15)),
                                                         _mm512_set1_epi32(QB__U4_CENTRE)));
    return _mm512_mul_ps(_mm512_sub_ps(code, zero_point), scale);
}

#include "kernels/x86/gemm_u4_f32_internal.h"
