/* kernels/x86/gradient_avx512.c - the AVX-512 row of gradient. */
#include "kernels/x86/gradient_body_internal.h"
