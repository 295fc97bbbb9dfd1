/* kernels/x86/gemm_f32_avx2.c - the AVX2 row of gemm_f32. */
#include "kernels/x86/gemm_f32_body_internal.h"
