/* kernels/x86/reflections_avx2.c - the AVX2 row of reflections. */
#include "kernels/x86/reflections_body_internal.h"
