/* kernels/cuda/cublaslt.h - cuBLASLt, found when the program runs.
 *
 * Nothing is linked: the library is large, versioned by its own rules and absent on machines that
 * have only a driver. Looked for in the folder $QB_CUBLASLT_PATH, then where the loader looks, then
 * where CUDA installs itself. Thread-safe; a handle and a workspace are made at first use and live
 * as long as the process. */
#ifndef QB_KERNELS_CUDA_CUBLASLT_H
#define QB_KERNELS_CUDA_CUBLASLT_H

#include "core/cuda.h"

#if defined(QB_WITH_CUDA) && __has_include(<cublasLt.h>)
#define QB_HAVE_CUBLASLT 1
#ifndef __cplusplus /* it declares a function as f() */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#endif
#include <cublasLt.h>
#ifndef __cplusplus
#pragma GCC diagnostic pop
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* NULL = loaded; else why not, in one line ("needs cuBLASLt: libcublasLt.so.13 not found"). */
const char *qb_cublaslt_refusal(void);
/* Frees the stream's workspace, before the stream is destroyed and after its work has ended. */
void qb_cublaslt_forget(qb_cuda_stream stream);

#ifdef QB_HAVE_CUBLASLT
typedef struct qb_cublaslt { /* the functions by their own names less the prefix cublasLt */
    cublasStatus_t (*Create)(cublasLtHandle_t *);
    size_t (*GetVersion)(void);
    const char *(*GetStatusName)(cublasStatus_t);
    cublasStatus_t (*Matmul)(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *alpha,
                             const void *a, cublasLtMatrixLayout_t, const void *b,
                             cublasLtMatrixLayout_t, const void *beta, const void *c,
                             cublasLtMatrixLayout_t, void *d, cublasLtMatrixLayout_t,
                             const cublasLtMatmulAlgo_t *, void *workspace, size_t workspace_bytes,
                             cudaStream_t);
    cublasStatus_t (*MatmulAlgoGetHeuristic)(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                             cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                             cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                             cublasLtMatmulPreference_t, int requested,
                                             cublasLtMatmulHeuristicResult_t *, int *returned);
    cublasStatus_t (*MatmulDescCreate)(cublasLtMatmulDesc_t *, cublasComputeType_t, cudaDataType_t);
    cublasStatus_t (*MatmulDescDestroy)(cublasLtMatmulDesc_t);
    cublasStatus_t (*MatmulDescSetAttribute)(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
                                             const void *, size_t);
    cublasStatus_t (*MatrixLayoutCreate)(cublasLtMatrixLayout_t *, cudaDataType, uint64_t rows,
                                         uint64_t cols, int64_t ld);
    cublasStatus_t (*MatrixLayoutDestroy)(cublasLtMatrixLayout_t);
    cublasStatus_t (*MatrixLayoutSetAttribute)(cublasLtMatrixLayout_t,
                                               cublasLtMatrixLayoutAttribute_t, const void *,
                                               size_t);
    cublasStatus_t (*MatmulPreferenceCreate)(cublasLtMatmulPreference_t *);
    cublasStatus_t (*MatmulPreferenceDestroy)(cublasLtMatmulPreference_t);
    cublasStatus_t (*MatmulPreferenceSetAttribute)(cublasLtMatmulPreference_t,
                                                   cublasLtMatmulPreferenceAttributes_t,
                                                   const void *, size_t);
} qb_cublaslt;

#define QB_CUBLASLT_WORKSPACE_BYTES ((size_t)33 << 20)

/* The functions; NULL where qb_cublaslt_refusal has a reason. */
const qb_cublaslt *qb_cublaslt_get(void);
/* The handle of the calling thread's current device. */
qb_status qb_cublaslt_handle(cublasLtHandle_t *out);
/* QB_CUBLASLT_WORKSPACE_BYTES of device memory that calls on `stream` of the current device share.
 * Allocated at the first call: not while the stream is captured. */
qb_status qb_cublaslt_workspace(qb_cuda_stream stream, void **out_dev);
/* QB_OK for success, else QB_ERR_DEVICE "what: cuBLASLt's name for the status". */
qb_status qb_cublaslt_check(cublasStatus_t code, const char *what);
#define QB_CUBLASLT_TRY(call) QB_TRY(qb_cublaslt_check((call), #call))
#endif

#ifdef __cplusplus
}
#endif
#endif
