/* core/cuda.c - see cuda.h. */
#include "core/cuda.h"

#include "core/cpu_features.h"
#include "core/memory.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static _Thread_local int in_use = -1;

int qb_cuda_in_use(void)
{
    return in_use;
}

int qb_cuda_current(void)
{
    return in_use < 0 ? 0 : in_use;
}

#ifdef QB_WITH_CUDA
#include <cuda_runtime_api.h>

static _Thread_local char refusal_text[160];

static int device_count(const char **why)
{
    int driver = 0, count = 0;
    if (qb_is_disabled("cuda")) {
        *why = "disabled by QB_DISABLE";
        return 0;
    }
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        *why = "no CUDA driver";
        return 0;
    }
    if (driver / 1000 < CUDART_VERSION / 1000) {
        snprintf(refusal_text, sizeof refusal_text, "driver %d.%d is older than CUDA %d.%d",
                 driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                 CUDART_VERSION % 1000 / 10);
        *why = refusal_text;
        return 0;
    }
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaSuccess && count > 0) return count;
    cudaGetLastError(); /* the failed probe is not the next call's error */
    *why = "no GPU";
    if (code != cudaSuccess && code != cudaErrorNoDevice) {
        snprintf(refusal_text, sizeof refusal_text, "the driver does not start: %.100s",
                 cudaGetErrorString(code));
        *why = refusal_text;
    }
    return 0;
}

size_t qb_cuda_count(void)
{
    const char *why;
    return (size_t)device_count(&why);
}

static int attribute(enum cudaDeviceAttr which, int index)
{
    int value = 0;
    cudaDeviceGetAttribute(&value, which, index);
    return value;
}

const char *qb_cuda_refusal(int index)
{
    const char *why = NULL;
    int count = device_count(&why);
    if (why) return why;
    if (index < 0 || index >= count) {
        snprintf(refusal_text, sizeof refusal_text, "GPU %d: found %d GPU%s, counted from 0", index,
                 count, count == 1 ? "" : "s");
        return refusal_text;
    }
    int major = attribute(cudaDevAttrComputeCapabilityMajor, index),
        minor = attribute(cudaDevAttrComputeCapabilityMinor, index);
    if (major >= 8) return NULL;
    snprintf(refusal_text, sizeof refusal_text, "GPU %d: compute capability %d.%d, needs 8.0",
             index, major, minor);
    return refusal_text;
}

static uint32_t probe_features(int index)
{
    if (qb_cuda_refusal(index)) return 0;
    int major = attribute(cudaDevAttrComputeCapabilityMajor, index),
        minor = attribute(cudaDevAttrComputeCapabilityMinor, index);
    uint32_t features = QB_CUDA_SM80;
    if (major > 8 || minor >= 9) features |= QB_CUDA_SM89;
    if (major == 9) features |= QB_CUDA_SM90A; /* "a": Hopper's own, not in later ones */
    return features;
}

/* Rows are chosen by it at each call: a device that can be used stays usable, so its answer is kept
 * (what QB_DISABLE takes away is asked for at each row). */
uint32_t qb_cuda_features(int index)
{
    enum { KEPT = 64 };
    static _Atomic uint32_t known[KEPT];
    if (index < 0 || index >= KEPT) return probe_features(index);
    uint32_t features = atomic_load_explicit(&known[index], memory_order_relaxed);
    if (features) return features;
    features = probe_features(index);
    atomic_store_explicit(&known[index], features, memory_order_relaxed);
    return features;
}

qb_status qb_cuda_info_get(int index, qb_cuda_info *out)
{
    const char *why = qb_cuda_refusal(index);
    if (why) return QB_FAIL(QB_ERR_DEVICE, "cuda: %s", why);
    struct cudaDeviceProp p;
    QB_CUDA_TRY(cudaGetDeviceProperties(&p, index));
    *out = (qb_cuda_info){.major = p.major,
                          .minor = p.minor,
                          .n_sms = p.multiProcessorCount,
                          .memory_bytes = p.totalGlobalMem,
                          .smem_bytes = p.sharedMemPerBlockOptin,
                          .runtime = CUDART_VERSION};
    snprintf(out->name, sizeof out->name, "%.63s", p.name);
    cudaDriverGetVersion(&out->driver);
    QB_CUDA_TRY(cudaDeviceGetPCIBusId(out->pci, (int)sizeof out->pci, index));
    return QB_OK;
}

size_t qb_cuda_count_alike(void)
{
    size_t count = qb_cuda_count(), n = 0;
    qb_cuda_info first, info;
    while (n < count && qb_cuda_info_get((int)n, &info) == QB_OK) {
        if (!n) first = info;
        if (strcmp(first.name, info.name)) break;
        n++;
    }
    return n;
}

qb_status qb_cuda_use(int index)
{
    const char *why = qb_cuda_refusal(index);
    if (why) return QB_FAIL(QB_ERR_DEVICE, "cuda: %s", why);
    QB_CUDA_TRY(cudaSetDevice(index));
    in_use = index;
    return QB_OK;
}

qb_status qb_cuda_check(int code, const char *what)
{
    if (code == cudaSuccess) return QB_OK;
    cudaGetLastError();
    return QB_FAIL(QB_ERR_DEVICE, "cuda: %.120s: %s", what, cudaGetErrorString((cudaError_t)code));
}

/* ---- memory ---- */

static qb_status out_of_memory(const char *what, size_t bytes)
{
    size_t free_bytes = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total);
    return QB_FAIL(QB_ERR_MEMORY, "GPU memory for %s: needed %zu bytes, found %zu free of %zu",
                   what, bytes, free_bytes, total);
}

qb_status qb_cuda_alloc(void **out, size_t elems, size_t elem_bytes, const char *what)
{
    size_t bytes;
    *out = NULL;
    if (!qb_mul_size(elems, elem_bytes, &bytes))
        return QB_FAIL(QB_ERR_MEMORY, "GPU memory for %s: %zu x %zu bytes overflow", what, elems,
                       elem_bytes);
    if (!bytes) return QB_OK;
    cudaError_t code = cudaMalloc(out, bytes);
    if (code == cudaErrorMemoryAllocation) return out_of_memory(what, bytes);
    return qb_cuda_check((int)code, what);
}

qb_status qb_cuda_alloc_zero(void **out, size_t elems, size_t elem_bytes, const char *what)
{
    QB_TRY(qb_cuda_alloc(out, elems, elem_bytes, what));
    if (!*out) return QB_OK;
    /* It is queued on the default stream, for which our streams do not wait. */
    qb_status status = qb_cuda_check((int)cudaMemset(*out, 0, elems * elem_bytes), what);
    if (status == QB_OK) status = qb_cuda_check((int)cudaStreamSynchronize(cudaStreamLegacy), what);
    if (status == QB_OK) return QB_OK;
    qb_cuda_free(*out);
    *out = NULL;
    return status;
}

void qb_cuda_free(void *dev)
{
    if (dev) cudaFree(dev);
}

qb_status qb_cuda_host_alloc(void **out, size_t elems, size_t elem_bytes, const char *what)
{
    size_t bytes;
    *out = NULL;
    if (!qb_mul_size(elems, elem_bytes, &bytes))
        return QB_FAIL(QB_ERR_MEMORY, "%s: %zu x %zu bytes overflow", what, elems, elem_bytes);
    if (!bytes) return QB_OK;
    cudaError_t code = cudaMallocHost(out, bytes);
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return QB_FAIL(QB_ERR_MEMORY, "%s: needed %zu bytes of page-locked memory", what, bytes);
    }
    return qb_cuda_check((int)code, what);
}

void qb_cuda_host_free(void *host)
{
    if (host) cudaFreeHost(host);
}

qb_status qb_cuda_upload(void *dev, const void *host, size_t bytes, qb_cuda_stream stream)
{
    QB_CUDA_TRY(cudaMemcpyAsync(dev, host, bytes, cudaMemcpyHostToDevice, stream));
    return QB_OK;
}

qb_status qb_cuda_download(void *host, const void *dev, size_t bytes, qb_cuda_stream stream)
{
    QB_CUDA_TRY(cudaMemcpyAsync(host, dev, bytes, cudaMemcpyDeviceToHost, stream));
    return QB_OK;
}

qb_status qb_cuda_zero(void *dev, size_t bytes, qb_cuda_stream stream)
{
    QB_CUDA_TRY(cudaMemsetAsync(dev, 0, bytes, stream));
    return QB_OK;
}

/* ---- streams ---- */

qb_status qb_cuda_sync(qb_cuda_stream stream)
{
    QB_CUDA_TRY(cudaStreamSynchronize(stream));
    return QB_OK;
}

qb_status qb_cuda_stream_create(qb_cuda_stream *out)
{
    QB_CUDA_TRY(cudaStreamCreateWithFlags(out, cudaStreamNonBlocking));
    return QB_OK;
}

void qb_cuda_stream_destroy(qb_cuda_stream stream)
{
    if (stream) cudaStreamDestroy(stream);
}

#else

size_t qb_cuda_count(void)
{
    return 0;
}

size_t qb_cuda_count_alike(void)
{
    return 0;
}

const char *qb_cuda_refusal(int index)
{
    (void)index;
    return "this build has no CUDA engine";
}

uint32_t qb_cuda_features(int index)
{
    (void)index;
    return 0;
}

qb_status qb_cuda_info_get(int index, qb_cuda_info *out)
{
    *out = (qb_cuda_info){0};
    return qb_cuda_use(index);
}

qb_status qb_cuda_use(int index)
{
    return QB_FAIL(QB_ERR_DEVICE, "cuda: %s", qb_cuda_refusal(index));
}

#endif
