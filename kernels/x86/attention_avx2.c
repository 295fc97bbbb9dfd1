/* kernels/x86/attention_avx2.c - the AVX2 row of attention. */
#include "kernels/x86/attention_body_internal.h"
