/* kernels/cuda/attention_device.cuh - what the attention kernels share on the device. */
#ifndef QB_KERNELS_CUDA_ATTENTION_DEVICE_CUH
#define QB_KERNELS_CUDA_ATTENTION_DEVICE_CUH

#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/scalar.cuh"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

/* qb_cuda_attention_args as a kernel parameter. */
struct attention_params {
    const void *q, *k, *v;
    void *out;
    size_t q_stride, kv_stride, kv_batch_stride, out_stride;
    const int32_t *n_past_dev;
    int n_q, n_past, n_heads, group, head_dim;
    qb_softmax_kind kind;
    float scale;
    float gamma, zeta;
    const float *sink;
    int free_prefix;
    float *lse; /* or NULL */

    __device__ int past() const
    {
        return n_past_dev ? *n_past_dev : n_past;
    }
};

static inline attention_params attention_params_of(const qb_cuda_attention_args *a)
{
    attention_params p = {};
    p.q = a->q, p.k = a->k, p.v = a->v, p.out = a->out;
    p.q_stride = a->q_stride, p.out_stride = a->out_stride;
    p.kv_stride = a->kv_stride, p.kv_batch_stride = a->kv_batch_stride;
    p.n_past_dev = a->n_past_dev, p.n_past = (int)a->n_past, p.n_q = (int)a->n_q;
    p.n_heads = (int)a->n_heads, p.group = (int)(a->n_heads / a->n_kv_heads);
    p.head_dim = (int)a->head_dim, p.kind = a->softmax, p.scale = a->scale;
    p.gamma = a->gamma, p.zeta = a->zeta, p.sink = a->sink, p.free_prefix = (int)a->free_prefix;
    p.lse = a->lse;
    return p;
}

/* The running softmax of one row: maximum and sum. Softmax-1 starts as if a logit of 0 with value 0
 * had been seen: its maximum is 0 and its sum e^0. ReLU needs neither. */
__device__ inline void attention_row_start(qb_softmax_kind kind, float *max, float *sum)
{
    *max = kind == QB_SOFTMAX ? -CUDART_INF_F : 0;
    *sum = kind == QB_SOFTMAX1 ? 1 : 0;
}

/* The same for a thread's two rows of a fragment, lane / 4 and lane / 4 + 8. The four threads of a
 * row sum their own keys. */
struct attention_running {
    float max[2], sum[2];
};

/* What a finished row is divided by: its sum, or for ReLU the number of its keys. 0 = no key. */
__device__ inline float attention_row_divisor(qb_softmax_kind kind, float sum, int n_keys)
{
    return kind == QB_SOFTMAX_RELU ? (float)n_keys : sum;
}

#endif
