/* kernels/x86/gemm_u4_avx2.c - gemm_u4_f32_internal.h with 8 lanes. */
#include "kernels/gemm_u4_internal.h"

#include <immintrin.h>

enum { LANES = 8 };
typedef __m256 vec;
#define ROW(name) qb__gemm_u4_##name##_avx2
#define KEEP(v) "+x"(v)
#define zero _mm256_setzero_ps
#define set1 _mm256_set1_ps
#define load _mm256_load_ps
#define store _mm256_store_ps
#define add _mm256_add_ps
#define fmadd _mm256_fmadd_ps

static inline __m256i mask_below(size_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < LANES ? (int)n : LANES), lane);
}
static inline vec load_some(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, mask_below(n));
}
static inline void store_some(float *p, vec v, size_t n)
{
    _mm256_maskstore_ps(p, mask_below(n), v);
}
static inline vec weight_of(const uint8_t *codes, unsigned shift, vec zero_point, vec scale)
{
    const __m256i v =
        _mm256_srl_epi32(_mm256_load_si256((const __m256i *)codes), _mm_cvtsi32_si128((int)shift));
    const vec code = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(v, _mm256_set1_epi32(15)),
                                                         _mm256_set1_epi32(QB__U4_CENTRE)));
    return _mm256_mul_ps(_mm256_sub_ps(code, zero_point), scale);
}

#include "kernels/x86/gemm_u4_f32_internal.h"
