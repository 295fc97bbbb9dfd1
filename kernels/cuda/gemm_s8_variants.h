/* kernels/cuda/gemm_s8_variants.h - the variants of gemm_s8/sm90 that are compiled: one row each.
 *
 * X(group, name, MI, BN, WGS, CM, CN, SPLIT, PP, SLOTS), the parameters of gemm_s8_sm90.cuh. Groups
 * are files, so that they compile side by side. */
#ifndef QB_KERNELS_CUDA_GEMM_S8_VARIANTS_H
#define QB_KERNELS_CUDA_GEMM_S8_VARIANTS_H

#define QB__GEMM_S8_WIDE(X)                                                                        \
    X("128x256", 1, 256, 2, 1, 1, 1, false, 2)                                                     \
    X("128x256/c2x1", 1, 256, 2, 2, 1, 1, false, 2)                                                \
    X("128x256/c1x2", 1, 256, 2, 1, 2, 1, false, 2)                                                \
    X("256x128/c1x2", 2, 128, 2, 1, 2, 1, false, 2)                                                \
    X("64x256/pp/c2x1", 1, 256, 2, 2, 1, 1, true, 3)
#define QB__GEMM_S8_PING_PONG(X)                                                                   \
    X("128x128/pp", 2, 128, 2, 1, 1, 1, true, 4)                                                   \
    X("128x128/pp/c2x1", 2, 128, 2, 2, 1, 1, true, 4)                                              \
    X("128x128/pp/c1x2", 2, 128, 2, 1, 2, 1, true, 4)                                              \
    X("128x192/pp", 2, 192, 2, 1, 1, 1, true, 3)                                                   \
    X("128x192/pp/c2x1", 2, 192, 2, 2, 1, 1, true, 3)
#define QB__GEMM_S8_SMALL(X)                                                                       \
    X("64x64", 1, 64, 1, 1, 1, 1, false, 2)                                                        \
    X("64x64/k4", 1, 64, 1, 1, 1, 4, false, 2)                                                     \
    X("64x128", 1, 128, 1, 1, 1, 1, false, 2)                                                      \
    X("128x64", 1, 64, 2, 1, 1, 1, false, 2)                                                       \
    X("128x128", 1, 128, 2, 1, 1, 1, false, 2)                                                     \
    X("128x192", 1, 192, 2, 1, 1, 1, false, 2)                                                     \
    X("128x256/k4", 1, 256, 2, 1, 1, 4, false, 2)

#endif
