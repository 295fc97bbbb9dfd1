/* kernels/cuda/decode_chain.h - what the host tells the kernels of the decode chain.
 *
 * A layer is five kernels: norm + q, k, v | attention | o | norm + up + act | down; then norm +
 * head. Each is launched while the ones before it still run, fetches its weights into shared memory
 * and waits for its input only then (programmatic dependent launch). One sequence. */
#ifndef QB_KERNELS_CUDA_DECODE_CHAIN_H
#define QB_KERNELS_CUDA_DECODE_CHAIN_H

#include "kernels/cuda/decode.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB__CHAIN_WARPS = 8,                          /* that compute */
    QB__CHAIN_CONSUMERS = QB__CHAIN_WARPS * 32,   /* threads */
    QB__CHAIN_THREADS = QB__CHAIN_CONSUMERS + 32, /* and a warp that fetches weights */
    QB__CHAIN_TILE = 16,                          /* output channels of a tile */
    QB__CHAIN_MAX_K = 8192,
    QB__CHAIN_MAX_SLOTS = 32,
    QB__CHAIN_MAX_SPLITS = 8, /* of a head's keys, and blocks of a cluster */
    QB__CHAIN_MAX_RANKS = 4,  /* blocks of a cluster that share the input channels */
    QB__CHAIN_OWN_ROWS = 64,  /* most output channels of each of them */
    QB__CHAIN_HEADER_BYTES = 1024
};

/* Scales and zero points of one group's 16 output channels, behind a chunk's codes. */
enum { QB__CHAIN_GROUP_BYTES = 16 * 4 + 16 * 2 };
enum { QB__CHAIN_MAXIMA = QB_CUDA_SEGMENTS + 1 }; /* words of max_bits a linear layer */

typedef struct qb__chain_linear {
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
    uint32_t n_tiles;
    uint32_t group, n_pad; /* U4 in groups: channels of one, row stride of the scales; or 0 */
    int32_t seg_n, seg_end[QB_CUDA_SEGMENTS];
    uint8_t kind, input, requant;
    uint8_t paired; /* tiles of up and gate in turn, so that one block has both */
    uint32_t slot;  /* in max_bits: its segments' output, then its input */
} qb__chain_linear;

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
    qb__chain_linear l;
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
    /* cut of the work and of shared memory, by qb__chain_cut */
    uint32_t n_slots, slot_bytes, pitch; /* of the ring; pitch: of a row of a chunk */
    uint32_t sums_off, ranks_off, ring_off;
    uint32_t n_ranks, rank_chunks; /* blocks of a cluster that share the input channels */
    uint32_t whole;                /* shared memory holds all tiles of a block, a chunk each */
    uint32_t n_blocks, smem_bytes; /* of the launch */
} qb__chain_product;

typedef struct qb__chain_divisor {
    uint32_t magic; /* ceil(2^32 / d); 0 for d = 1 */
} qb__chain_divisor;

/* The heads of a layer. */
typedef struct qb__chain_attention {
    const float *qkv;
    qb__chain_requant pending; /* of qkv */
    float *out;                /* (n_heads, head_dim) */
    void *k_cache, *v_cache;
    const float *cosine, *sine;
    const int32_t *position;
    uint32_t n_heads, n_kv_heads, head_dim, softmax;
    float scale;
    /* by qb__chain_split */
    uint32_t n_splits;    /* of a head's keys: blocks of a cluster */
    uint32_t repeat;      /* heads that share a key head */
    uint32_t lanes_shift; /* log2 of the lanes that share a key, 8 channels each */
    qb__chain_divisor by_splits, by_repeat;
    qb__chain_divisor by_lines; /* twice the 128-byte lines of a key */
} qb__chain_attention;

/* Requantises a head's logits in place. */
typedef struct qb__chain_finish {
    float *y;
    uint32_t n;
    qb__chain_requant requant;
} qb__chain_finish;

/* ---- decode_chain_plan.c: arithmetic of the host ---- */

/* NULL = the chain takes it. */
const char *qb__chain_refuse(const qb_cuda_decode_model *model);
/* Flattens a layer; its words of max_bits follow each other through *n_maxima. */
void qb__chain_flatten(const qb_cuda_linear *in, uint32_t *n_maxima, qb__chain_linear *out);
/* How attention is shared out on that many multiprocessors. */
void qb__chain_split(qb__chain_attention *attention, uint32_t n_sms);
/* How a product is; all that it computes is known. */
void qb__chain_cut(qb__chain_product *product, uint32_t n_sms);

/* ---- decode_chain_sm90.cu ---- */

/* `first`: nothing stands before it in the graph that it could overlap. */
qb_status qb__chain_launch_product(const qb__chain_product *product, bool first,
                                   qb_cuda_stream stream);
qb_status qb__chain_launch_attention(const qb__chain_attention *attention, qb_cuda_stream stream);
qb_status qb__chain_launch_finish(const qb__chain_finish *finish, qb_cuda_stream stream);
/* Once for every product, and not while a stream is captured. */
qb_status qb__chain_prepare_product(const qb__chain_product *product);

#ifdef __cplusplus
}
#endif
#endif
