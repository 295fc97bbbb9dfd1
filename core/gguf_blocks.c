/* core/gguf_blocks.c - see gguf_blocks.h. Each function opens with the block's fields in the order
 * of the file; numbers are little-endian. Codes lie in planes: byte l of a plane holds a few bits
 * of the elements l, l + 32, ... (in blocks of 32: l, l + 16), so that a run is one shift of many
 * bytes.
 */
#include "core/gguf_blocks.h"

#include "core/dtype.h"

static float f16_at(const uint8_t *p)
{
    return qb_f32_from_f16((uint16_t)(p[0] | p[1] << 8));
}

static uint32_t u32_at(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* ---- blocks of 32 ---- */

/* f16 d | s8 q[32] */
void qb__block_q8_0(const uint8_t *block, float *w)
{
    float d = f16_at(block);
    for (int i = 0; i < 32; i++) w[i] = d * (float)(int8_t)block[2 + i];
}

static void nibbles(const uint8_t *q, float d, int offset, float m, float *w)
{
    for (int i = 0; i < 16; i++) {
        w[i] = d * (float)((q[i] & 15) - offset) + m;
        w[i + 16] = d * (float)((q[i] >> 4) - offset) + m;
    }
}

/* f16 d | u4 q[32] */
void qb__block_q4_0(const uint8_t *block, float *w)
{
    nibbles(block + 2, f16_at(block), 8, 0.0f, w);
}

/* f16 d | f16 m | u4 q[32] */
void qb__block_q4_1(const uint8_t *block, float *w)
{
    nibbles(block + 4, f16_at(block), 0, f16_at(block + 2), w);
}

/* The fifth bit of element i is bit i of `fifth`. */
static void nibbles_and_bits(const uint8_t *q, uint32_t fifth, float d, int offset, float m,
                             float *w)
{
    for (int i = 0; i < 16; i++) {
        int first = (q[i] & 15) | (int)(fifth >> i & 1) << 4;
        int second = q[i] >> 4 | (int)(fifth >> (i + 16) & 1) << 4;
        w[i] = d * (float)(first - offset) + m;
        w[i + 16] = d * (float)(second - offset) + m;
    }
}

/* f16 d | u32 fifth bits | u4 q[32] */
void qb__block_q5_0(const uint8_t *block, float *w)
{
    nibbles_and_bits(block + 6, u32_at(block + 2), f16_at(block), 16, 0.0f, w);
}

/* f16 d | f16 m | u32 fifth bits | u4 q[32] */
void qb__block_q5_1(const uint8_t *block, float *w)
{
    nibbles_and_bits(block + 8, u32_at(block + 4), f16_at(block), 0, f16_at(block + 2), w);
}

/* What the codes of IQ4_NL and IQ4_XS stand for: denser around 0, as weights are. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

static void iq4_nibbles(const uint8_t *q, float scale, float *w)
{
    for (int i = 0; i < 16; i++) {
        w[i] = scale * (float)iq4_values[q[i] & 15];
        w[i + 16] = scale * (float)iq4_values[q[i] >> 4];
    }
}

/* f16 d | u4 q[32] */
void qb__block_iq4_nl(const uint8_t *block, float *w)
{
    iq4_nibbles(block + 2, f16_at(block), w);
}

/* ---- blocks of 256 ---- */

/* Where the 16 elements of run r stand: planes of 32 bytes, each with the runs of 4 shifts. */
typedef struct run16 {
    int half;  /* of the block: elements 0..127 or 128..255 */
    int plane; /* elements 32 * plane .. 32 * plane + 31 of the half */
    int l;     /* first byte in the plane: 0 or 16 */
} run16;

static run16 run_at(int r)
{
    return (run16){r / 8, r / 2 % 4, r % 2 * 16};
}

/* u4 scale, u4 min [16] | u2 q[256] | f16 d | f16 dmin */
void qb__block_q2_k(const uint8_t *block, float *w)
{
    float d = f16_at(block + 80), dmin = f16_at(block + 82);
    for (int r = 0; r < 16; r++, w += 16) {
        run16 at = run_at(r);
        const uint8_t *q = block + 16 + 32 * at.half + at.l;
        float scale = d * (float)(block[r] & 15), min = dmin * (float)(block[r] >> 4);
        for (int i = 0; i < 16; i++) w[i] = scale * (float)(q[i] >> 2 * at.plane & 3) - min;
    }
}

/* Sixteen scales of 6 bits in 12 bytes: 8 bytes of low nibbles (scale r and r + 8), then 4 bytes of
 * high bits (r, r + 4, r + 8, r + 12). */
static int q3_k_scale(const uint8_t *scales, int r)
{
    int low = scales[r % 8] >> (r < 8 ? 0 : 4) & 15, high = scales[8 + r % 4] >> 2 * (r / 4) & 3;
    return low | high << 4;
}

/* third bits [256] | low 2 bits [256] | u6 scale [16] | f16 d; scale - 32, q - 4 */
void qb__block_q3_k(const uint8_t *block, float *w)
{
    float d = f16_at(block + 108);
    for (int r = 0; r < 16; r++, w += 16) {
        run16 at = run_at(r);
        const uint8_t *third = block + at.l, *low = block + 32 + 32 * at.half + at.l;
        float scale = d * (float)(q3_k_scale(block + 96, r) - 32);
        for (int i = 0; i < 16; i++) {
            int q = (low[i] >> 2 * at.plane & 3) | (third[i] >> (4 * at.half + at.plane) & 1) << 2;
            w[i] = scale * (float)(q - 4);
        }
    }
}

/* low 4 bits [256] | high 2 bits [256] | s8 scale [16] | f16 d; q - 32 */
void qb__block_q6_k(const uint8_t *block, float *w)
{
    float d = f16_at(block + 208);
    for (int r = 0; r < 16; r++, w += 16) {
        run16 at = run_at(r);
        const uint8_t *low = block + 64 * at.half + at.plane % 2 * 32 + at.l;
        const uint8_t *high = block + 128 + 32 * at.half + at.l;
        float scale = d * (float)(int8_t)block[192 + r];
        for (int i = 0; i < 16; i++) {
            int q = (low[i] >> at.plane / 2 * 4 & 15) | (high[i] >> 2 * at.plane & 3) << 4;
            w[i] = scale * (float)(q - 32);
        }
    }
}

/* Eight scales and eight minima of 6 bits in 12 bytes: scales 0..3, minima 0..3 in the low 6 bits
 * of bytes 0..7; the others have their low nibbles in bytes 8..11 and their high 2 bits above
 * those. */
static void q4_k_scale_min(const uint8_t *s, int r, int *scale, int *min)
{
    if (r < 4) {
        *scale = s[r] & 63;
        *min = s[r + 4] & 63;
    } else {
        *scale = (s[r + 4] & 15) | s[r - 4] >> 6 << 4;
        *min = s[r + 4] >> 4 | s[r] >> 6 << 4;
    }
}

/* Q4_K, and Q5_K, which has fifth bits: of run r bit r of 32 bytes. */
static void q4_k_runs(const uint8_t *block, const uint8_t *fifth, const uint8_t *q, float *w)
{
    float d = f16_at(block), dmin = f16_at(block + 2);
    for (int r = 0; r < 8; r++, w += 32) {
        int scale_code, min_code;
        q4_k_scale_min(block + 4, r, &scale_code, &min_code);
        float scale = d * (float)scale_code, min = dmin * (float)min_code;
        const uint8_t *low = q + 32 * (r / 2);
        for (int i = 0; i < 32; i++) {
            int code = low[i] >> 4 * (r % 2) & 15;
            if (fifth) code |= (fifth[i] >> r & 1) << 4;
            w[i] = scale * (float)code - min;
        }
    }
}

/* f16 d | f16 dmin | u6 scale [8], u6 min [8] | u4 q[256] */
void qb__block_q4_k(const uint8_t *block, float *w)
{
    q4_k_runs(block, NULL, block + 16, w);
}

/* f16 d | f16 dmin | u6 scale [8], u6 min [8] | fifth bits [256] | low 4 bits [256] */
void qb__block_q5_k(const uint8_t *block, float *w)
{
    q4_k_runs(block, block + 16, block + 48, w);
}

/* f16 d | high 2 bits of the scales [8] | low 4 bits of the scales [8] | u4 q[256]; scale - 32 */
void qb__block_iq4_xs(const uint8_t *block, float *w)
{
    float d = f16_at(block);
    int high = block[2] | block[3] << 8;
    for (int r = 0; r < 8; r++) {
        int scale = (block[4 + r / 2] >> 4 * (r % 2) & 15) | (high >> 2 * r & 3) << 4;
        iq4_nibbles(block + 8 + 16 * r, d * (float)(scale - 32), w + 32 * r);
    }
}

/* ---- blocks of 256 ternary codes; q - 1 ---- */

/* A byte is the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded up to 8 bits: times 3^n the digits
 * before n leave at the top, and digit n is what times 3 carries out of 8 bits. */
static void trits(const uint8_t *bytes, int n_bytes, int n_trits, float d, float *w)
{
    unsigned power = 1;
    for (int n = 0; n < n_trits; n++, power *= 3)
        for (int i = 0; i < n_bytes; i++) {
            unsigned rest = bytes[i] * power & 255;
            w[n * n_bytes + i] = d * (float)((int)(rest * 3 >> 8) - 1);
        }
}

/* 5 trits a byte [48]: 32 bytes, then 16 | 4 trits a byte [4] | f16 d */
void qb__block_tq1_0(const uint8_t *block, float *w)
{
    float d = f16_at(block + 52);
    trits(block, 32, 5, d, w);
    trits(block + 32, 16, 5, d, w + 160);
    trits(block + 48, 4, 4, d, w + 240);
}

/* u2 q[256] | f16 d */
void qb__block_tq2_0(const uint8_t *block, float *w)
{
    float d = f16_at(block + 64);
    for (int e = 0; e < 256; e++) {
        int code = block[e / 128 * 32 + e % 32] >> e % 128 / 32 * 2 & 3;
        w[e] = d * (float)(code - 1);
    }
}
