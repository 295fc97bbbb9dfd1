/* kernels/cuda/gemm_s8_tall_sm90.cu - the variants QB__GEMM_S8_TALL of gemm_s8_variants.h. */
#include "kernels/cuda/gemm_s8_launch.cuh"
#include "kernels/cuda/gemm_s8_variants.h"

extern const qb__gemm_s8_variant qb__gemm_s8_tall[] = {QB__GEMM_S8_TALL(QB__GEMM_S8_ROW){}};
