/* core/hash.h - a fast hash of bytes for tables in memory. Not for files: it may change. Eight
 * bytes a step are mixed by the factors of MurmurHash3's last step; 0x9e37... is 2^64 / golden
 * ratio. */
#ifndef QB_CORE_HASH_H
#define QB_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline uint64_t qb_hash_bytes(const char *s, size_t n)
{
    uint64_t h = n * 0x9e3779b97f4a7c15u, w;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    w = 0;
    memcpy(&w, s, n);
    h = (h ^ w) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 29;
}

/* Of one number. */
static inline uint64_t qb_hash_u64(uint64_t v)
{
    v *= 0x9e3779b97f4a7c15u;
    return v ^ v >> 32;
}

#ifdef __cplusplus
}
#endif
#endif
