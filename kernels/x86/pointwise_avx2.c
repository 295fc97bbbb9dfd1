/* kernels/x86/pointwise_avx2.c - the AVX2 row of pointwise. */
#include "kernels/x86/pointwise_body_internal.h"
