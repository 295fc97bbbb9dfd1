/* core/gguf_blocks.h - GGUF's block formats (ggml/docs/gguf.md and the block structures of ggml),
 * one function each: the elements of one block as f32. Rows of the table in dtype.c call them.
 *
 * w = scale * q, or scale * q + m. Every product here is exact in f32 (11 bits of an f16; a run's
 * scale and a code have at most 12 together); where a minimum is added the sum rounds, once. So the
 * results are the format's, whatever the order or the fusing of the operations. */
#ifndef QB_CORE_GGUF_BLOCKS_H
#define QB_CORE_GGUF_BLOCKS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Blocks of 32 elements. */
void qb__block_q8_0(const uint8_t *block, float *w);
void qb__block_q4_0(const uint8_t *block, float *w);
void qb__block_q4_1(const uint8_t *block, float *w);
void qb__block_q5_0(const uint8_t *block, float *w);
void qb__block_q5_1(const uint8_t *block, float *w);
void qb__block_iq4_nl(const uint8_t *block, float *w);
/* Blocks of 256: runs of 16 or 32 with small integer scales of their own. */
void qb__block_q2_k(const uint8_t *block, float *w);
void qb__block_q3_k(const uint8_t *block, float *w);
void qb__block_q4_k(const uint8_t *block, float *w);
void qb__block_q5_k(const uint8_t *block, float *w);
void qb__block_q6_k(const uint8_t *block, float *w);
void qb__block_iq4_xs(const uint8_t *block, float *w);
void qb__block_tq1_0(const uint8_t *block, float *w);
void qb__block_tq2_0(const uint8_t *block, float *w);

#ifdef __cplusplus
}
#endif
#endif
