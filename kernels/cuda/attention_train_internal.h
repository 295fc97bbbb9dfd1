/* kernels/cuda/attention_train_internal.h - the rows of attention_train.h, between its files. */
#ifndef QB_KERNELS_CUDA_ATTENTION_TRAIN_INTERNAL_H
#define QB_KERNELS_CUDA_ATTENTION_TRAIN_INTERNAL_H

#include "kernels/cuda/attention.h"
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
QB__CUDA_ATTENTION_TRAIN_ROW(sm90)
QB__CUDA_ATTENTION_TRAIN_ROW(sm80)
QB__CUDA_ATTENTION_TRAIN_ROW(plain)
#undef QB__CUDA_ATTENTION_TRAIN_ROW

/* The forward pass as attention.h has it. */
qb_cuda_attention_args qb__attention_train_forward_args(const qb_cuda_attention_train_args *args);
/* Why 16-byte accesses to the gradients cannot be used, or NULL. */
const char *qb__attention_train_misaligned(const qb_cuda_attention_train_args *args);
/* attention_train.h (3), given delta (batch, n_heads, n_tokens) in the workspace; nothing where
 * there is no sink. */
qb_status qb__attention_train_sink_gradient(const qb_cuda_attention_train_args *args,
                                            qb_cuda_stream stream);

/* Backward of attention_train/sm90: all of a head in one block. At most this many tokens. */
#define QB__ATTENTION_TRAIN_SHORT 256
const char *qb__attention_train_refuse_short(const qb_cuda_attention_train_args *args);
qb_status qb__attention_train_backward_short(const qb_cuda_attention_train_args *args,
                                             qb_cuda_stream stream);
/* The same for some hundred tokens, two tiles of keys at a time; workspace. */
#define QB__ATTENTION_TRAIN_WHOLE                                                                  \
    640 /* tokens; what blocks keep beyond them leaves the L2 cache */
#define QB__ATTENTION_TRAIN_BLOCKS 132 /* at most */
const char *qb__attention_train_refuse_whole(const qb_cuda_attention_train_args *args);
size_t qb__attention_train_whole_workspace(const qb_cuda_attention_train_args *args);
qb_status qb__attention_train_backward_whole(const qb_cuda_attention_train_args *args,
                                             qb_cuda_stream stream);
/* Any number of tokens, in two passes; workspace. */
const char *qb__attention_train_refuse_long(const qb_cuda_attention_train_args *args);
qb_status qb__attention_train_backward_long(const qb_cuda_attention_train_args *args,
                                            qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
