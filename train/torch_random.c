/* train/torch_random.c - see torch_random.h. */
#include "train/torch_random.h"

#include <math.h>
#include <string.h>

enum { WORDS = QB_TWISTER_WORDS, MIDDLE = 397, BLOCK = 16 };

void qb_torch_seed(qb_torch_random *r, uint64_t seed)
{
    r->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < WORDS; i++) {
        uint32_t before = r->state[i - 1];
        r->state[i] = 1812433253u * (before ^ before >> 30) + i;
    }
    r->at = WORDS;
}

static void twist(uint32_t *s)
{
    for (size_t i = 0; i < WORDS; i++) {
        uint32_t joined = (s[i] & 0x80000000u) | (s[(i + 1) % WORDS] & 0x7fffffffu);
        s[i] = s[(i + MIDDLE) % WORDS] ^ joined >> 1 ^ (joined & 1 ? 0x9908b0dfu : 0);
    }
}

static uint32_t next(qb_torch_random *r)
{
    if (r->at == WORDS) {
        twist(r->state);
        r->at = 0;
    }
    uint32_t x = r->state[r->at++];
    x ^= x >> 11;
    x ^= x << 7 & 0x9d2c5680u;
    x ^= x << 15 & 0xefc60000u;
    return x ^ x >> 18;
}

void qb_torch_skip(qb_torch_random *r, size_t n)
{
    while (n--) next(r);
}

static float unit(qb_torch_random *r)
{
    return (float)(next(r) & 0xffffff) * 0x1p-24f;
}

void qb_torch_uniform(qb_torch_random *r, float bound, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = unit(r) * (bound + bound) - bound;
}

/* 16 uniform numbers become normal ones in place (Box and Muller 1958), the i-th with the (i +
 * 8)-th. */
static void make_normal(float *x)
{
    for (size_t i = 0; i < BLOCK / 2; i++) {
        float radius = sqrtf(-2 * logf(1 - x[i])), angle = 2 * (float)M_PI * x[i + BLOCK / 2];
        x[i] = radius * cosf(angle);
        x[i + BLOCK / 2] = radius * sinf(angle);
    }
}

/* All uniform numbers come first; a last block that is not full is one that reaches back, drawn
 * anew. */
void qb_torch_normal(qb_torch_random *r, size_t n, float *out)
{
    float block[BLOCK];
    for (size_t i = 0; i < n; i++) out[i] = unit(r);
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK) make_normal(out + i);
    if (n % BLOCK == 0) return;
    for (size_t i = 0; i < BLOCK; i++) block[i] = unit(r);
    make_normal(block);
    size_t kept = n < BLOCK ? n : BLOCK;
    memcpy(out + n - kept, block + BLOCK - kept, kept * sizeof *out);
}
