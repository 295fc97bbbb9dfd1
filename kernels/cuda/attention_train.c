/* kernels/cuda/attention_train.c - the table of attention_train.h and the choice of a row. */
#include "kernels/cuda/attention_train_internal.h"

#include "core/memory.h"

size_t qb_cuda_attention_train_workspace(const qb_cuda_attention_train_args *args)
{
    return args->batch * args->n_heads * qb_round_up(args->n_tokens, 128) * 2 * sizeof(float) +
           qb__attention_train_whole_workspace(args);
}

const qb_cuda_attention_train_row qb_cuda_attention_train_kernels[] = {
    {{"attention_train/sm90", "cuda", QB_CUDA_SM90A},
     qb__cuda_attention_train_refuse_sm90,
     qb__cuda_attention_train_forward_sm90,
     qb__cuda_attention_train_backward_sm90},
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
