/* kernels/cuda/gemm_s8_wide_sm90.cu - the variants QB__GEMM_S8_WIDE of gemm_s8_variants.h. */
#include "kernels/cuda/gemm_s8_launch.cuh"
#include "kernels/cuda/gemm_s8_variants.h"

extern const qb__gemm_s8_variant qb__gemm_s8_wide[] = {QB__GEMM_S8_WIDE(QB__GEMM_S8_ROW){}};
