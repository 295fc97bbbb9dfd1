/* kernels/cuda/attention_train_sm90.c - the Hopper row of attention_train.h: which kernel does
 * what. Forward is attention/sm90, which gives lse. */
#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/attention_train_internal.h"

static qb_cuda_attention_args forward_args(const qb_cuda_attention_train_args *a)
{
    return (qb_cuda_attention_args){.type = a->type,
                                    .batch = a->batch,
                                    .n_q = a->n_tokens,
                                    .n_heads = a->n_heads,
                                    .n_kv_heads = a->n_kv_heads,
                                    .head_dim = a->head_dim,
                                    .softmax = a->softmax,
                                    .scale = a->scale,
                                    .q = a->q,
                                    .q_stride = a->qkv_stride,
                                    .k = a->k,
                                    .v = a->v,
                                    .kv_stride = a->qkv_stride,
                                    .kv_batch_stride = a->n_tokens * a->qkv_stride,
                                    .out = a->out,
                                    .out_stride = a->out_stride,
                                    .lse = a->softmax == QB_SOFTMAX_RELU ? NULL : a->lse};
}

const char *qb__cuda_attention_train_refuse_sm90(const qb_cuda_attention_train_args *args)
{
    const qb_cuda_attention_args forward = forward_args(args);
    size_t strides = args->d_out_stride | args->d_qkv_stride;
    size_t bases = (size_t)args->d_out | (size_t)args->d_q | (size_t)args->d_k | (size_t)args->d_v;
    if (args->softmax > QB_SOFTMAX_RELU) return "neither softmax nor softmax-1 nor ReLU";
    if (args->free_prefix > 1) return "a free prefix";
    if (strides % 8) return "a stride is no multiple of 16 bytes";
    if (bases % 16) return "a pointer is not 16-byte aligned";
    const char *why = qb__cuda_attention_refuse_sm90(&forward);
    return why ? why : qb__attention_train_refuse_long(args);
}

qb_status qb__cuda_attention_train_forward_sm90(const qb_cuda_attention_train_args *args,
                                                qb_cuda_stream stream)
{
    const qb_cuda_attention_args forward = forward_args(args);
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
