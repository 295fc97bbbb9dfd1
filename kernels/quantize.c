/* kernels/quantize.c - the reference of quantize.h, and the table. */
#include "kernels/quantize_internal.h"

static float absmax_ref(const float *x, size_t n)
{
    float max_abs = 0.0f;
    for (size_t c = 0; c < n; c++) max_abs = qb__max_abs(max_abs, x[c]);
    return max_abs;
}

static void absmax_channels_ref(const float *x, size_t n, float *max_abs)
{
    for (size_t c = 0; c < n; c++) max_abs[c] = qb__max_abs(max_abs[c], x[c]);
}

static int32_t quantize_s8_ref(const float *x, size_t n, float scale, int8_t *q)
{
    int32_t sum = 0;
    for (size_t c = 0; c < n; c++) sum += q[c] = qb__code_s8(x[c], scale);
    return sum;
}

static int32_t quantize_s8_channels_ref(const float *x, size_t n, const float *scale, int8_t *q)
{
    int32_t sum = 0;
    for (size_t c = 0; c < n; c++) sum += q[c] = qb__code_s8(x[c], scale[c]);
    return sum;
}

static void requantize_ref(float *y, size_t n, float scale, int8_t *q)
{
    for (size_t c = 0; c < n; c++) {
        int8_t code = qb__code_s8(y[c], scale);
        y[c] = (float)code * scale;
        if (q) q[c] = code;
    }
}

static void requantize_channels_ref(float *y, size_t n, const float *scale, int8_t *q)
{
    for (size_t c = 0; c < n; c++) {
        int8_t code = qb__code_s8(y[c], scale[c]);
        y[c] = (float)code * scale[c];
        if (q) q[c] = code;
    }
}

const qb_quantize_row qb_quantize_kernels[] = {
#ifdef QB_WITH_X86
    {{"quantize/avx512", "cpu", QB_CPU_AVX2 | QB_CPU_AVX512},
     qb__absmax_avx512,
     qb__absmax_channels_avx512,
     qb__quantize_s8_avx512,
     qb__quantize_s8_channels_avx512,
     qb__requantize_avx512,
     qb__requantize_channels_avx512},
    {{"quantize/avx2", "cpu", QB_CPU_AVX2},
     qb__absmax_avx2,
     qb__absmax_channels_avx2,
     qb__quantize_s8_avx2,
     qb__quantize_s8_channels_avx2,
     qb__requantize_avx2,
     qb__requantize_channels_avx2},
#endif
    {{"quantize/ref", "cpu", 0},
     absmax_ref,
     absmax_channels_ref,
     quantize_s8_ref,
     quantize_s8_channels_ref,
     requantize_ref,
     requantize_channels_ref},
    {.info = {0}},
};
