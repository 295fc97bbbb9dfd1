/* kernels/x86/reflections_avx512.c - the AVX-512 row of reflections. */
#include "kernels/x86/reflections_body_internal.h"
