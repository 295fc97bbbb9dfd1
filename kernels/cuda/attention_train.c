/* kernels/cuda/attention_train.c - the table of attention_train.h, the choice of a row, what rows
 * share on the host. */
#include "kernels/cuda/attention_train_internal.h"

#include "core/memory.h"

size_t qb_cuda_attention_train_workspace(const qb_cuda_attention_train_args *args)
{
    return args->batch * args->n_heads * qb_round_up(args->n_tokens, 128) * 2 * sizeof(float) +
           qb__attention_train_whole_workspace(args);
}

qb_cuda_attention_args qb__attention_train_forward_args(const qb_cuda_attention_train_args *a)
{
    return (qb_cuda_attention_args){.type = a->type,
                                    .batch = a->batch,
                                    .n_q = a->n_tokens,
                                    .n_heads = a->n_heads,
                                    .n_kv_heads = a->n_kv_heads,
                                    .head_dim = a->head_dim,
                                    .softmax = a->softmax,
                                    .gamma = a->gamma,
                                    .zeta = a->zeta,
                                    .sink = a->sink,
                                    .free_prefix = a->free_prefix,
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

const char *qb__attention_train_misaligned(const qb_cuda_attention_train_args *a)
{
    size_t strides = a->d_out_stride | a->d_qkv_stride;
    size_t bases = (size_t)a->d_out | (size_t)a->d_q | (size_t)a->d_k | (size_t)a->d_v;
    if (strides % 8) return "a stride is no multiple of 16 bytes";
    if (bases % 16) return "a pointer is not 16-byte aligned";
    return NULL;
}

const qb_cuda_attention_train_row qb_cuda_attention_train_kernels[] = {
    {{"attention_train/sm90", "cuda", QB_CUDA_SM90A},
     qb__cuda_attention_train_refuse_sm90,
     qb__cuda_attention_train_forward_sm90,
     qb__cuda_attention_train_backward_sm90},
    {{"attention_train/sm80", "cuda", QB_CUDA_SM80},
     qb__cuda_attention_train_refuse_sm80,
     qb__cuda_attention_train_forward_sm80,
     qb__cuda_attention_train_backward_sm80},
    {{"attention_train/plain", "cuda", QB_CUDA_SM80},
     qb__cuda_attention_train_refuse_plain,
     qb__cuda_attention_train_forward_plain,
     qb__cuda_attention_train_backward_plain},
    {{0}, 0, 0, 0},
};

static qb_status pick(const qb_cuda_attention_train_args *args,
                      const qb_cuda_attention_train_row **out)
{
    const qb_cuda_attention_train_row *row = qb_cuda_attention_train_kernels;
    for (; row->info.name; row++)
        if (!qb_kernel_refusal(&row->info) && !row->refuse(args)) {
            *out = row;
            return QB_OK;
        }
    return QB_FAIL(QB_ERR_UNSUPPORTED, "attention_train: no row for head_dim %zu, type %d",
                   args->head_dim, (int)args->type);
}

qb_status qb_cuda_attention_train_forward(const qb_cuda_attention_train_args *args,
                                          qb_cuda_stream stream)
{
    const qb_cuda_attention_train_row *row;
    if (args->batch == 0 || args->n_tokens == 0) return QB_OK;
    QB_TRY(pick(args, &row));
    return row->forward(args, stream);
}

qb_status qb_cuda_attention_train_backward(const qb_cuda_attention_train_args *args,
                                           qb_cuda_stream stream)
{
    const qb_cuda_attention_train_row *row;
    if (args->batch == 0 || args->n_tokens == 0) return QB_OK;
    QB_TRY(pick(args, &row));
    return row->backward(args, stream);
}
