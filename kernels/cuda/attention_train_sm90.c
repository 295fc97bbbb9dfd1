/* kernels/cuda/attention_train_sm90.c - the Hopper row of attention_train.h: which kernel does
 * what. Forward is attention/sm90, which gives lse. */
#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/attention_train_internal.h"

const char *qb__cuda_attention_train_refuse_sm90(const qb_cuda_attention_train_args *args)
{
    const qb_cuda_attention_args forward = qb__attention_train_forward_args(args);
    if (args->softmax > QB_SOFTMAX_RELU) return "neither softmax nor softmax-1 nor ReLU";
    if (args->free_prefix > 1) return "a free prefix";
    const char *why = qb__attention_train_misaligned(args);
    if (!why) why = qb__cuda_attention_refuse_sm90(&forward);
    return why ? why : qb__attention_train_refuse_long(args);
}

qb_status qb__cuda_attention_train_forward_sm90(const qb_cuda_attention_train_args *args,
                                                qb_cuda_stream stream)
{
    const qb_cuda_attention_args forward = qb__attention_train_forward_args(args);
    return qb__cuda_attention_run_sm90(&forward, stream);
}

qb_status qb__cuda_attention_train_backward_sm90(const qb_cuda_attention_train_args *args,
                                                 qb_cuda_stream stream)
{
    if (!qb__attention_train_refuse_short(args))
        return qb__attention_train_backward_short(args, stream);
    if (!qb__attention_train_refuse_whole(args))
        return qb__attention_train_backward_whole(args, stream);
    return qb__attention_train_backward_long(args, stream);
}
