/* core/cuda.h - the CUDA device layer: which GPUs there are, their memory, errors as qb_status.
 *
 * In every build: without CUDA (QB_WITH_CUDA not defined) no device is there and each call says so.
 * The driver is found at run time; a machine without one runs everything else. All pointers named
 * dev live on the current device of the calling thread (qb_cuda_use). */
#ifndef QB_CORE_CUDA_H
#define QB_CORE_CUDA_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *qb_cuda_stream; /* = cudaStream_t */

/* What a kernel row needs of a GPU (qb_kernel_info.needs of rows whose device is "cuda"). */
enum { QB_CUDA_SM80 = 1, QB_CUDA_SM89 = 2, QB_CUDA_SM90A = 4, QB_CUDA_BLASLT = 8 };

typedef struct qb_cuda_info {
    char name[64];
    int major, minor; /* compute capability */
    int n_sms;
    size_t memory_bytes, smem_bytes; /* smem: most shared memory a block */
    int driver, runtime;             /* 13000 = 13.0; 0 = none */
    char pci[32];                    /* "0000:06:00.0" */
} qb_cuda_info;

/* GPUs that the driver shows; 0 without CUDA or without a driver. */
size_t qb_cuda_count(void);
/* How many of them, from device 0 on, can be used and are of the same kind: those over which work
 * can be shared out without a change of its results. */
size_t qb_cuda_count_alike(void);
/* NULL = device `index` can be used; else why not, in one line: "this build has no CUDA engine",
 * "no CUDA driver", "driver 12.2 is older than CUDA 13.0", "no GPU", "GPU 3: found 2 GPUs,
 * counted from 0", "GPU 0: compute capability 7.5, needs 8.0", "disabled by QB_DISABLE". Borrowed;
 * the text stays until the thread's next call. */
const char *qb_cuda_refusal(int index);
/* QB_CUDA_SM* bits of the device, without QB_CUDA_BLASLT; 0 if it cannot be used. Asked for once,
 * then cheap. */
uint32_t qb_cuda_features(int index);
qb_status qb_cuda_info_get(int index, qb_cuda_info *out);
/* Makes the device current for the calling thread. QB_ERR_DEVICE with the refusal's text. */
qb_status qb_cuda_use(int index);
/* The device of the thread's last qb_cuda_use that succeeded; before that 0, and in use is -1. */
int qb_cuda_current(void);
int qb_cuda_in_use(void);

/* Device memory, 256-byte aligned, not cleared; elems * elem_bytes is checked. QB_ERR_MEMORY: the
 * message has the bytes needed and the bytes free. *out is NULL for 0 bytes. */
qb_status qb_cuda_alloc(void **out_dev, size_t elems, size_t elem_bytes, const char *what);
qb_status qb_cuda_alloc_zero(void **out_dev, size_t elems, size_t elem_bytes, const char *what);
void qb_cuda_free(void *dev); /* accepts NULL */
/* Page-locked host memory, for copies that do not wait. */
qb_status qb_cuda_host_alloc(void **out, size_t elems, size_t elem_bytes, const char *what);
void qb_cuda_host_free(void *host); /* accepts NULL */
#define QB_CUDA_NEW(ptr, n, what) (qb_cuda_alloc((void **)(ptr), (n), sizeof **(ptr), (what)))
#define QB_CUDA_NEW_ZERO(ptr, n, what)                                                             \
    (qb_cuda_alloc_zero((void **)(ptr), (n), sizeof **(ptr), (what)))

/* Copies in the order of the stream; host memory that is not page-locked is copied before return.
 */
qb_status qb_cuda_upload(void *dev, const void *host, size_t bytes, qb_cuda_stream stream);
qb_status qb_cuda_download(void *host, const void *dev, size_t bytes, qb_cuda_stream stream);
qb_status qb_cuda_zero(void *dev, size_t bytes, qb_cuda_stream stream);
qb_status qb_cuda_sync(qb_cuda_stream stream); /* a fault of a kernel surfaces here */

qb_status qb_cuda_stream_create(qb_cuda_stream *out);
void qb_cuda_stream_destroy(qb_cuda_stream stream); /* accepts NULL */

/* QB_OK for code 0, else QB_ERR_DEVICE "what: CUDA's name for the error". `code` is a cudaError_t.
 */
qb_status qb_cuda_check(int code, const char *what);
#define QB_CUDA_TRY(call) QB_TRY(qb_cuda_check((int)(call), #call))

#ifdef __cplusplus
}
#endif
#endif
