/* kernels/cuda/attention.c - the table of attention.h, the choice of a row, what rows share on the
 * host. */
#include "kernels/cuda/attention_internal.h"
#include "kernels/running.h"

const char *qb__cuda_attention_misaligned(const qb_cuda_attention_args *a)
{
    size_t bytes = qb_cuda_dtype_bytes(a->type);
    size_t strides = a->head_dim | a->q_stride | a->kv_stride | a->kv_batch_stride | a->out_stride;
    size_t bases = (size_t)a->q | (size_t)a->k | (size_t)a->v | (size_t)a->out;
    if (strides * bytes % 16) return "a stride is no multiple of 16 bytes";
    if (bases % 16) return "a pointer is not 16-byte aligned";
    return NULL;
}

const char *qb__cuda_attention_uncommon(const qb_cuda_attention_args *a)
{
    if (a->softmax > QB_SOFTMAX_RELU) return "the softmax is clipped or has sink logits";
    if (a->free_prefix > 1 && a->n_q > 1) return "a free prefix";
    return NULL;
}

/* Parts that the keys of one query are cut into. */
size_t qb__cuda_attention_splits(const qb_cuda_attention_args *args)
{
    size_t most = args->n_past / QB__CUDA_ATTENTION_PART + 1;
    size_t wanted = qb__cuda_attention_blocks() / (args->batch * args->n_kv_heads);
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

size_t qb_cuda_attention_workspace(const qb_cuda_attention_args *args)
{
    size_t most = args->n_past / QB__CUDA_ATTENTION_PART + 1, blocks = qb__cuda_attention_blocks();
    if (args->n_q != 1 || most == 1) return 0;
    if (blocks > args->batch * args->n_kv_heads * most)
        blocks = args->batch * args->n_kv_heads * most;
    return blocks * (args->n_heads / args->n_kv_heads) * (args->head_dim + 2) * sizeof(float);
}

const qb_cuda_attention_row qb_cuda_attention_kernels[] = {
    {{"attention/step", "cuda", QB_CUDA_SM80},
     qb__cuda_attention_refuse_step,
     qb__cuda_attention_run_step,
     true},
    {{"attention/splitkv", "cuda", QB_CUDA_SM80},
     qb__cuda_attention_refuse_splitkv,
     qb__cuda_attention_run_splitkv,
     false},
    {{"attention/sm90", "cuda", QB_CUDA_SM90A},
     qb__cuda_attention_refuse_sm90,
     qb__cuda_attention_run_sm90,
     false},
    {{"attention/sm80", "cuda", QB_CUDA_SM80},
     qb__cuda_attention_refuse_sm80,
     qb__cuda_attention_run_sm80,
     false},
    {{"attention/f32", "cuda", QB_CUDA_SM80},
     qb__cuda_attention_refuse_f32,
     qb__cuda_attention_run_f32,
     false},
    {{0}, 0, 0, false},
};

static const qb_cuda_attention_row *row_for(const qb_cuda_attention_args *args)
{
    for (const qb_cuda_attention_row *row = qb_cuda_attention_kernels; row->info.name; row++)
        if (!qb_kernel_refusal(&row->info) && (row->appends || !args->k_new) && !row->refuse(args))
            return row;
    return NULL;
}

bool qb_cuda_attention_takes(const qb_cuda_attention_args *args)
{
    return row_for(args) != NULL;
}

qb_status qb_cuda_attention(const qb_cuda_attention_args *args, qb_cuda_stream stream)
{
    if (args->batch == 0 || args->n_q == 0) return QB_OK;
    const qb_cuda_attention_row *row = row_for(args);
    if (!row)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "attention on the GPU: no row for head_dim %zu, type %d",
                       args->head_dim, (int)args->type);
    qb_kernel_runs(&row->info);
    return row->run(args, stream);
}
