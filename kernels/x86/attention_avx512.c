/* kernels/x86/attention_avx512.c - the AVX-512 row of attention. */
#include "kernels/x86/attention_body_internal.h"
