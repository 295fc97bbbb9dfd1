/* kernels/x86/gemm_f32_avx512.c - the AVX-512 row of gemm_f32. */
#include "kernels/x86/gemm_f32_body_internal.h"
