/* kernels/cuda/decode_internal.h - what the host tells the persistent decode kernel.
 *
 * The host (decode_plan.c) flattens a qb_cuda_decode_model into these descriptions once and cuts
 * the shared memory for each batch; the kernel (decode_sm90.cu) reads nothing else. */
#ifndef QB_KERNELS_CUDA_DECODE_INTERNAL_H
#define QB_KERNELS_CUDA_DECODE_INTERNAL_H

#include "kernels/cuda/decode.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB__DECODE_WARPS = 8,                           /* that compute */
    QB__DECODE_CONSUMERS = QB__DECODE_WARPS * 32,   /* threads */
    QB__DECODE_THREADS = QB__DECODE_CONSUMERS + 64, /* and a warp that streams weights, a clerk */
    QB__DECODE_TILE = 16,                           /* output channels of a tile */
    QB__DECODE_FLUSH = 4,                           /* tiles between two reductions */
    QB__DECODE_MAX_STAGES = 64,
    QB__DECODE_STEP = QB__DECODE_CONSUMERS * 4, /* elements that the threads stage at once */
    QB__DECODE_MAX_K = 8192,
    QB__DECODE_MAX_SPLITS = 4,
    QB__DECODE_HEADER_BYTES = 8192,
    QB__DECODE_RED_BYTES = QB__DECODE_WARPS * 256 * 4 + 256
};

typedef struct qb__decode_linear {
    const void *w;
    const float *w_scale;      /* S8, U4 */
    const int16_t *zero_point; /* U4 */
    const float *bias, *in_scale, *out_scale;
    const float *x_scale; /* U4, scales per input channel */
    const int16_t *x_zero_point;
    uint32_t n, k;
    uint32_t tile_bytes;            /* memory from one tile to the next */
    uint32_t row_bytes;             /* of w where it is row-major; U4: 0 */
    uint32_t chunk_bytes, n_chunks; /* of a row (row-major) or of a tile (U4) */
    uint32_t x_bytes;               /* of a staged row */
    uint32_t x_chunk;               /* bytes of a staged row that a chunk of w meets */
    uint32_t n_tiles, rotate;
    uint32_t group, n_pad; /* U4 in groups: channels of one, row stride of the scales; or 0 */
    int32_t seg_n, seg_end[QB_CUDA_SEGMENTS];
    uint8_t kind, input, requant;
    uint8_t paired; /* tiles of up and gate in turn, so that one block has both */
    uint32_t slot;  /* in max_bits: its segments' output, then its input */
} qb__decode_linear;

/* Scales and zero points of one group's 16 output channels, behind a chunk's codes. */
enum { QB__DECODE_GROUP_BYTES = 16 * 4 + 16 * 2 };
enum { QB__DECODE_SLOTS = QB_CUDA_SEGMENTS + 1 }; /* words of max_bits a linear layer */

typedef struct qb__decode_layer {
    qb__decode_linear linear[4]; /* qkv, o, up, down */
    const float *norm1_gain, *norm1_bias, *norm2_gain, *norm2_bias;
    void *k_cache, *v_cache;
} qb__decode_layer;

typedef struct qb__decode_divisor {
    uint32_t magic; /* ceil(2^32 / d); 0 for d = 1 */
} qb__decode_divisor;

typedef struct qb__decode_params {  /* one launch */
    const qb__decode_layer *layers; /* n_layers, and one whose first
                                       linear is the head and whose first norm is the last */
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab, context, batch;
    uint32_t norm, act, softmax;
    float eps, scale, inverse_d;
    const uint16_t *tok_embd, *pos_embd;
    uint32_t table_stride;
    const float *cosine, *sine;
    const int32_t *tokens, *position;
    float *hidden, *logits;
    uint64_t logits_stride;
    /* scratch */
    float *qkv, *o, *up, *down; /* outputs of the products, (16, stride) */
    uint32_t qkv_stride, o_stride, up_stride;
    float *att;    /* (16, H D), or partial sums (16 H splits, D) */
    float *att_ml; /* (16 H splits, 2) maximum and sum */
    char *staged;  /* (16, staged_stride) bytes */
    uint32_t staged_stride;
    float *staged_scale; /* (16) */
    float *staged_sums;  /* (16, warps, 2) sum and correction */
    uint32_t *max_bits;
    uint32_t n_max_bits;
    uint32_t *counters; /* 0 the grid's barrier, 32 the rows' barrier, 64 blocks that are done */
    /* cut of the work and of shared memory */
    uint32_t n_blocks, n_splits, act_in_epilogue;
    uint32_t max_in_epilogue; /* of the input of down, where one sequence is decoded */
    uint32_t repeat;          /* heads that share a key head */
    uint32_t lanes_shift;     /* log2 of the lanes that share a key, 8 channels each */
    qb__decode_divisor by_splits, by_heads, by_head_dim, by_repeat, by_stages;
    qb__decode_divisor by_lines;               /* twice the 128-byte lines of a key */
    uint32_t n_stages, stage_bytes, row_pitch; /* row_pitch: of a row-major chunk in a stage */
    uint32_t x_row_off, x_off, x_space, ring_off, smem_bytes;
} qb__decode_params;

typedef struct qb__decode_limits {
    uint32_t n_blocks;       /* one on each SM */
    uint32_t smem_bytes;     /* of a block */
    uint32_t chunk_bytes[3]; /* QB_CUDA_LINEAR_*: most bytes of a chunk; 0 = the default */
    uint32_t splits;         /* of a sequence's keys; 0 = the default */
} qb__decode_limits;

/* NULL = the persistent kernel takes it. */
const char *qb__decode_refuse(const qb_cuda_decode_model *model);
/* What params take from the model alone. */
void qb__decode_set_shape(const qb_cuda_decode_model *model, qb__decode_params *params);
/* Flattens one layer; slots and rotation follow each other through *n_slots and *rotate. */
void qb__decode_flatten(const qb_cuda_linear *in, const qb__decode_limits *limits,
                        uint32_t *n_slots, uint32_t *rotate, qb__decode_linear *out);
/* How attention is shared out: n_splits, and the divisors that follow from the model. */
void qb__decode_split(qb__decode_params *params, const qb__decode_limits *limits, uint32_t batch);
/* The parts of params that depend on the batch; layers as in params. QB_ERR_UNSUPPORTED: shared
 * memory is too small. */
qb_status qb__decode_plan(qb__decode_params *params, const qb__decode_layer *layers,
                          const qb__decode_limits *limits, uint32_t batch);

qb_status qb__decode_launch_sm90(const qb__decode_params *params, qb_cuda_stream stream);
qb_status qb__decode_limits_sm90(qb__decode_limits *out);

#ifdef __cplusplus
}
#endif
#endif
