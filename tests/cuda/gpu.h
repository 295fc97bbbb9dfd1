/* tests/cuda/gpu.h - what the GPU tests share: skipping without a GPU, device buffers that notice
 * writes beside them, smaller sizes under a sanitiser. */
#ifndef QB_TESTS_CUDA_GPU_H
#define QB_TESTS_CUDA_GPU_H

#include "support.h"

#include "core/cuda.h"

#include <stdbool.h>

/* First line of a test: skips with the reason where GPU 0 cannot be used. */
#define QB_NEEDS_GPU()                                                                             \
    do {                                                                                           \
        const char *no_gpu_ = qb_cuda_refusal(0);                                                  \
        if (no_gpu_) QB_SKIP("%s", no_gpu_);                                                       \
        QB_CHECK_OK(qb_cuda_use(0));                                                               \
    } while (0)

/* QB_TEST_SMALL is set, as under compute-sanitizer, which slows launches and calls by a hundred
 * times: a test takes the least that still runs each kernel and each of its branches. */
bool qb_test_is_small(void);
/* QB_TEST_BARE is set: what no kernel has to write is left as it was allocated. */
bool qb_test_is_bare(void);

/* Device memory between two guard zones. upload: with a copy of `host`; poison: filled with bytes
 * 0xA5, so that what a kernel leaves out is seen. Failing to get it fails the test.
 *
 * With QB_TEST_SMALL there are no guard zones, since the sanitiser knows the exact end of each
 * allocation, and with QB_TEST_BARE no poison, since a buffer that was filled counts as
 * initialised: initcheck is to see what a kernel reads before one has written it. */
void *qb_gpu_upload(const void *host, size_t bytes);
void *qb_gpu_poison(size_t bytes);
/* Waits for the device, fails on a kernel's fault and copies the buffer's first `bytes` back. */
void qb_gpu_fetch(void *host, const void *dev, size_t bytes);
/* Fails if a guard zone was written; NULL is accepted. */
void qb_gpu_free(void *dev);
/* True where all bytes still are poison, so nothing was written; with QB_TEST_BARE it is not known
 * and true. */
bool qb_gpu_is_poison(const void *host, size_t bytes);

#endif
