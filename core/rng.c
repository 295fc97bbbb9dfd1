/* core/rng.c - Philox4x32-10 and what is drawn from it. */
#include "core/rng.h"

#include <math.h>

static inline void philox_round(uint32_t c[4], const uint32_t key[2])
{
    uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t hi0 = (uint32_t)(p0 >> 32), hi1 = (uint32_t)(p1 >> 32);
    uint32_t c1 = c[1], c3 = c[3];
    c[0] = hi1 ^ c1 ^ key[0];
    c[1] = (uint32_t)p1;
    c[2] = hi0 ^ c3 ^ key[1];
    c[3] = (uint32_t)p0;
}

void qb_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4])
{
    uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream,
                     (uint32_t)(stream >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        philox_round(c, key);
        key[0] += 0x9E3779B9u; /* the Weyl constants of the paper */
        key[1] += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++) out[i] = c[i];
}

static uint64_t draw_u64(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t w[4];
    qb_philox(seed, stream, index, w);
    return (uint64_t)w[1] << 32 | w[0];
}

uint32_t qb_rng_u32(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (uint32_t)draw_u64(seed, stream, index);
}

uint64_t qb_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n)
{
    return (uint64_t)((unsigned __int128)draw_u64(seed, stream, index) * n >> 64);
}

double qb_rng_double(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (double)(draw_u64(seed, stream, index) >> 11) * 0x1p-53;
}

static void normal_block(uint64_t seed, uint64_t stream, uint64_t block, float out[4])
{
    uint32_t w[4];
    qb_philox(seed, stream, block, w);
    for (int pair = 0; pair < 2; pair++) {
        double u = ((double)w[2 * pair] + 0.5) * 0x1p-32, v = (double)w[2 * pair + 1] * 0x1p-32;
        double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
        out[2 * pair] = (float)(radius * cos(angle));
        out[2 * pair + 1] = (float)(radius * sin(angle));
    }
}

void qb_rng_normal_f32(uint64_t seed, uint64_t stream, uint64_t first, size_t n,
                       float standard_deviation, float *dst)
{
    float four[4];
    uint64_t have = UINT64_MAX;
    for (size_t i = 0; i < n; i++) {
        uint64_t at = first + i;
        if (at / 4 != have) normal_block(seed, stream, have = at / 4, four);
        dst[i] = standard_deviation * four[at % 4];
    }
}
