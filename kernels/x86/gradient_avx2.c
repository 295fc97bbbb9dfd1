/* kernels/x86/gradient_avx2.c - the AVX2 row of gradient. */
#include "kernels/x86/gradient_body_internal.h"
