/* kernels/cuda/decode_chain.h - what the host tells the kernels of the decode chain.
 *
 * A layer is five kernels: norm + q, k, v | attention | o | norm + up + act | down; then norm +
 * head. Each is launched while the ones before it still run, fetches its weights into shared memory
 * and waits for its input only then (programmatic dependent launch). One sequence. */
#ifndef QB_KERNELS_CUDA_DECODE_CHAIN_H
#define QB_KERNELS_CUDA_DECODE_CHAIN_H

#include "kernels/cuda/decode_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB__CHAIN_WARPS = 8,                          /* that compute */
    QB__CHAIN_CONSUMERS = QB__CHAIN_WARPS * 32,   /* threads */
    QB__CHAIN_THREADS = QB__CHAIN_CONSUMERS + 32, /* and a warp that fetches weights */
    QB__CHAIN_MAX_SLOTS = 32,
    QB__CHAIN_MAX_SPLITS = 8, /* of a head's keys, and blocks of a cluster */
    QB__CHAIN_SHARE_BYTES = 256 * 4 + QB__CHAIN_MAX_SPLITS * 8 + 8,
    QB__CHAIN_MAX_RANKS = 4, /* blocks of a cluster that share the input channels */
    QB__CHAIN_OWN_ROWS = 64, /* most output channels of each of them */
    QB__CHAIN_HEADER_BYTES = 1024
};

typedef enum { QB__CHAIN_NORM, QB__CHAIN_ATTENTION, QB__CHAIN_ACT } qb__chain_source;

/* An output that is requantised when it is read. */
typedef struct qb__chain_requant {
    int32_t n; /* segments; 0 = none */
    int32_t end[QB_CUDA_SEGMENTS];
    const float *scale; /* one a segment, or NULL: of max_bits */
    const uint32_t *max_bits;
} qb__chain_requant;

/* A product and what stands before it. */
typedef struct qb__chain_product {
    qb__decode_linear l;
    uint32_t source;           /* qb__chain_source */
    uint32_t plain;            /* nothing but what most models need: see decode_chain_stage.cuh */
    const float *in;           /* NORM: joins the residual stream, may be NULL; ACT: up's output;
                                  ATTENTION: the heads' outputs */
    qb__chain_requant pending; /* of `in` */
    /* NORM */
    const uint16_t *tok_embd, *pos_embd; /* of the first layer: x is made of them */
    uint32_t table_stride;
    const int32_t *token, *position;
    const float *x_in, *gain, *bias, *mean_in; /* mean_in: of the norm before, near this one's */
    float *x_out, *mean_out, *hidden;          /* hidden: the normed row, or NULL */
    uint32_t norm;
    float eps, inverse_d;
    /* ACT */
    uint32_t act, activated; /* activated: `in` is behind the activation already */
    const uint32_t *in_max;  /* maximum of the input that is known before, or NULL */
    /* output */
    float *y;
    uint32_t activate; /* act in the epilogue */
    uint32_t n_max;    /* maxima to raise: of the segments, or one of all */
    uint32_t *out_max; /* n_max words */
    uint32_t *zero;    /* words that no kernel before or beside this one uses */
    uint32_t n_zero;
    /* cut of the work and of shared memory */
    uint32_t n_slots, slot_bytes, pitch; /* of the ring; pitch: of a row of a chunk */
    uint32_t sums_off, ranks_off, ring_off;
    uint32_t n_ranks, rank_chunks; /* blocks of a cluster that share the input channels */
} qb__chain_product;

typedef struct qb__chain_attention {
    qb__decode_params p;
    qb__decode_layer layer; /* its caches and linear[0] */
} qb__chain_attention;

/* Requantises a head's logits in place. */
typedef struct qb__chain_finish {
    float *y;
    uint32_t n;
    qb__chain_requant requant;
} qb__chain_finish;

/* `first`: nothing stands before it in the graph that it could overlap. */
qb_status qb__chain_launch_product(const qb__chain_product *product, uint32_t n_blocks,
                                   uint32_t smem_bytes, bool first, qb_cuda_stream stream);
qb_status qb__chain_launch_attention(const qb__chain_attention *attention, qb_cuda_stream stream);
qb_status qb__chain_launch_finish(const qb__chain_finish *finish, qb_cuda_stream stream);
/* Once for every product, and not while a stream is captured. */
qb_status qb__chain_prepare_product(const qb__chain_product *product);

/* The row of qb_cuda_decode_kernels. */
const char *qb__chain_refuse(const qb_cuda_decode_model *model);
qb_status qb__chain_create(const qb_cuda_decode_model *model, qb_cuda_decode **out);
void qb__chain_destroy(qb_cuda_decode *decode);
size_t qb__chain_scratch_bytes(const qb_cuda_decode *decode);
qb_status qb__chain_step(qb_cuda_decode *decode, size_t batch, const int32_t *tokens_dev,
                         const int32_t *position_dev, float *hidden_dev, float *logits_dev,
                         size_t logits_stride, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
