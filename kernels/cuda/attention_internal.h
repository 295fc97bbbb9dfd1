/* kernels/cuda/attention_internal.h - the rows of attention.h, between its files. */
#ifndef QB_KERNELS_CUDA_ATTENTION_INTERNAL_H
#define QB_KERNELS_CUDA_ATTENTION_INTERNAL_H

#include "kernels/cuda/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB__CUDA_ATTENTION_ROW(isa)                                                                \
    const char *qb__cuda_attention_refuse_##isa(const qb_cuda_attention_args *args);               \
    qb_status qb__cuda_attention_run_##isa(const qb_cuda_attention_args *args,                     \
                                           qb_cuda_stream stream);
QB__CUDA_ATTENTION_ROW(step)
QB__CUDA_ATTENTION_ROW(splitkv)
QB__CUDA_ATTENTION_ROW(sm90)
QB__CUDA_ATTENTION_ROW(sm80)
QB__CUDA_ATTENTION_ROW(f32)
#undef QB__CUDA_ATTENTION_ROW

/* attention/splitkv: fewest keys of a part, parts that a query's keys are cut into, blocks that the
 * current GPU should have. */
#define QB__CUDA_ATTENTION_PART 64
size_t qb__cuda_attention_splits(const qb_cuda_attention_args *args);
size_t qb__cuda_attention_blocks(void);

/* Why a row that has the common arithmetic alone cannot be used, or NULL. */
const char *qb__cuda_attention_uncommon(const qb_cuda_attention_args *args);

/* Why 16-byte accesses to q, k, v and out cannot be used, or NULL. */
const char *qb__cuda_attention_misaligned(const qb_cuda_attention_args *args);

#ifdef __cplusplus
}
#endif
#endif
