/* kernels/cuda/attention_train_internal.h - the rows of attention_train.h, between its files. */
#ifndef QB_KERNELS_CUDA_ATTENTION_TRAIN_INTERNAL_H
#define QB_KERNELS_CUDA_ATTENTION_TRAIN_INTERNAL_H

#include "kernels/cuda/attention_train.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB__CUDA_ATTENTION_TRAIN_ROW(isa)                                                          \
    const char *qb__cuda_attention_train_refuse_##isa(const qb_cuda_attention_train_args *args);   \
    qb_status qb__cuda_attention_train_forward_##isa(const qb_cuda_attention_train_args *args,     \
                                                     qb_cuda_stream stream);                       \
    qb_status qb__cuda_attention_train_backward_##isa(const qb_cuda_attention_train_args *args,    \
                                                      qb_cuda_stream stream);
QB__CUDA_ATTENTION_TRAIN_ROW(plain)
#undef QB__CUDA_ATTENTION_TRAIN_ROW

#ifdef __cplusplus
}
#endif
#endif
