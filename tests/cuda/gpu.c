/* tests/cuda/gpu.c - see gpu.h. */
#include "gpu.h"

#include "core/memory.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD = 1024, GUARD_BYTE = 0x5C, POISON_BYTE = 0xA5, MAX_BUFFERS = 256 };

/* Sizes of the live buffers, for the guard behind each. */
static struct {
    char *dev;
    size_t bytes;
} live[MAX_BUFFERS];

bool qb_test_is_small(void)
{
    return getenv("QB_TEST_SMALL") != NULL;
}

bool qb_test_is_bare(void)
{
    return getenv("QB_TEST_BARE") != NULL;
}

/* Guard zones are written from the host: there is no kernel here that could be wrong too. */
static void fill(void *dev, int byte, size_t bytes)
{
    void *host = malloc(bytes ? bytes : 1);
    assert_non_null(host);
    memset(host, byte, bytes);
    QB_CHECK_OK(qb_cuda_upload(dev, host, bytes, NULL));
    QB_CHECK_OK(qb_cuda_sync(NULL));
    free(host);
}

static void *guarded(size_t bytes)
{
    char *base;
    size_t slot = 0, span = qb_round_up(bytes, 256);
    if (qb_test_is_small()) {
        QB_CHECK_OK(qb_cuda_alloc((void **)&base, bytes ? bytes : 1, 1, "test buffer"));
        return base;
    }
    while (slot < MAX_BUFFERS && live[slot].dev) slot++;
    assert_true(slot < MAX_BUFFERS);
    QB_CHECK_OK(qb_cuda_alloc((void **)&base, GUARD + span + GUARD, 1, "test buffer"));
    fill(base, GUARD_BYTE, GUARD);
    fill(base + GUARD + bytes, GUARD_BYTE, span - bytes + GUARD);
    live[slot].dev = base + GUARD;
    live[slot].bytes = bytes;
    return base + GUARD;
}

void *qb_gpu_upload(const void *host, size_t bytes)
{
    void *dev = guarded(bytes);
    QB_CHECK_OK(qb_cuda_upload(dev, host, bytes, NULL));
    QB_CHECK_OK(qb_cuda_sync(NULL));
    return dev;
}

void *qb_gpu_poison(size_t bytes)
{
    void *dev = guarded(bytes);
    if (!qb_test_is_bare()) fill(dev, POISON_BYTE, bytes);
    return dev;
}

void qb_gpu_fetch(void *host, const void *dev, size_t bytes)
{
    QB_CHECK_OK(qb_cuda_sync(NULL));
    QB_CHECK_OK(qb_cuda_download(host, dev, bytes, NULL));
    QB_CHECK_OK(qb_cuda_sync(NULL));
}

static void check_guard(const char *dev, size_t bytes, const char *where)
{
    unsigned char guard[GUARD + 256];
    qb_gpu_fetch(guard, dev, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (guard[i] != GUARD_BYTE) fail_msg("byte %zu %s the buffer was written", i, where);
}

void qb_gpu_free(void *dev)
{
    if (!dev) return;
    if (qb_test_is_small()) {
        qb_cuda_free(dev);
        return;
    }
    size_t slot = 0;
    while (slot < MAX_BUFFERS && live[slot].dev != dev) slot++;
    assert_true(slot < MAX_BUFFERS);
    char *start = live[slot].dev;
    size_t bytes = live[slot].bytes;
    live[slot].dev = NULL;
    check_guard(start - GUARD, GUARD, "of the guard before");
    check_guard(start + bytes, qb_round_up(bytes, 256) - bytes + GUARD, "behind");
    qb_cuda_free(start - GUARD);
}

bool qb_gpu_is_poison(const void *host, size_t bytes)
{
    const unsigned char *p = host;
    if (qb_test_is_bare()) return true;
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != POISON_BYTE) return false;
    return true;
}
