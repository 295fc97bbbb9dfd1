/* kernels/x86/pointwise_avx512.c - the AVX-512 row of pointwise. */
#include "kernels/x86/pointwise_body_internal.h"
