/* kernels/cuda/gemm_s8_ping_pong_sm90.cu - the variants QB__GEMM_S8_PING_PONG of
 * gemm_s8_variants.h. */
#include "kernels/cuda/gemm_s8_launch.cuh"
#include "kernels/cuda/gemm_s8_variants.h"

extern const qb__gemm_s8_variant qb__gemm_s8_ping_pong[] = {
    QB__GEMM_S8_PING_PONG(QB__GEMM_S8_ROW){}};
