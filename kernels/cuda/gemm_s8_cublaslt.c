/* kernels/cuda/gemm_s8_cublaslt.c - the row gemm_s8/cublaslt: sums by cuBLASLt, the epilogue as a
 * pass of our own.
 *
 * Its matrices are column-major: our row-major sums (m, n) are its (n, m) = w (n, k) . x^T (k, m),
 * with w stored as a (k, n) matrix that is transposed. Sums are exact, so the algorithm of a shape
 * is free: the fastest of the heuristics' list, timed at the first call and kept. */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemm_s8_internal.h"

#ifdef QB_HAVE_CUBLASLT
#include <cuda_runtime_api.h>
#include <pthread.h>

enum { MAX_PLANS = 256, MAX_SCRATCH = 64, MAX_ALGOS = 16, TIMED_CALLS = 5 };

/* What the choice depends on. */
typedef struct shape {
    size_t m, n, k, x_stride, w_stride, acc_stride;
    int device;
} shape;

typedef struct plan {
    shape shape;
    cublasLtMatmulAlgo_t algo;
} plan;

static struct {
    pthread_mutex_t mutex;
    size_t n_plans, n_scratch;
    plan plans[MAX_PLANS];
    struct {
        int device;
        qb_cuda_stream stream;
        void *dev;
        size_t elems;
    } scratch[MAX_SCRATCH];
} cache = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* One product's descriptors. */
typedef struct call {
    const qb_cublaslt *api;
    cublasLtHandle_t handle;
    void *workspace;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, acc;
    qb_cuda_stream stream;
} call;

const char *qb__gemm_s8_refuse_cublaslt(const qb_cuda_gemm_s8_args *a)
{
    const char *why = qb_cublaslt_refusal();
    if (why) return why;
    return a->n % 4 ? "cuBLASLt wants n to be a multiple of 4" : qb__gemm_s8_refuse_cache(a);
}

/* It wants a multiple of 4, and is faster with 16; the padding codes are 0. */
static size_t padded_k(const qb_cuda_gemm_s8_args *a)
{
    return (a->k + 15) / 16 * 16;
}

static void call_deinit(call *c)
{
    if (c->acc) c->api->MatrixLayoutDestroy(c->acc);
    if (c->x) c->api->MatrixLayoutDestroy(c->x);
    if (c->w) c->api->MatrixLayoutDestroy(c->w);
    if (c->desc) c->api->MatmulDescDestroy(c->desc);
}

/* The caller deinits it in any case. */
static qb_status call_init(call *c, const qb_cuda_gemm_s8_args *a, size_t acc_stride)
{
    const int32_t transposed = CUBLAS_OP_T;
    const size_t k = padded_k(a);
    QB_TRY(qb_cublaslt_handle(&c->handle));
    QB_TRY(qb_cublaslt_workspace(c->stream, &c->workspace));
    QB_CUBLASLT_TRY(c->api->MatmulDescCreate(&c->desc, CUBLAS_COMPUTE_32I, CUDA_R_32I));
    QB_CUBLASLT_TRY(c->api->MatmulDescSetAttribute(c->desc, CUBLASLT_MATMUL_DESC_TRANSA,
                                                   &transposed, sizeof transposed));
    QB_CUBLASLT_TRY(c->api->MatrixLayoutCreate(&c->w, CUDA_R_8I, k, a->n, (int64_t)a->w_stride));
    QB_CUBLASLT_TRY(c->api->MatrixLayoutCreate(&c->x, CUDA_R_8I, k, a->m, (int64_t)a->x_stride));
    QB_CUBLASLT_TRY(
        c->api->MatrixLayoutCreate(&c->acc, CUDA_R_32I, a->n, a->m, (int64_t)acc_stride));
    return QB_OK;
}

static cublasStatus_t multiply(const call *c, const qb_cuda_gemm_s8_args *a, int32_t *acc,
                               const cublasLtMatmulAlgo_t *algo)
{
    const int32_t one = 1, zero = 0;
    return c->api->Matmul(c->handle, c->desc, &one, a->w, c->w, a->x, c->x, &zero, acc, c->acc, acc,
                          c->acc, algo, c->workspace, QB_CUBLASLT_WORKSPACE_BYTES, c->stream);
}

/* ---- the plan of a shape ---- */

static qb_status ask(const call *c, cublasLtMatmulHeuristicResult_t *results, int *n)
{
    const size_t bytes = QB_CUBLASLT_WORKSPACE_BYTES;
    cublasLtMatmulPreference_t preference = NULL;
    QB_CUBLASLT_TRY(c->api->MatmulPreferenceCreate(&preference));
    cublasStatus_t code = c->api->MatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = c->api->MatmulAlgoGetHeuristic(c->handle, c->desc, c->w, c->x, c->acc, c->acc,
                                              preference, MAX_ALGOS, results, n);
    c->api->MatmulPreferenceDestroy(preference);
    return qb_cublaslt_check(code, "cublasLtMatmulAlgoGetHeuristic");
}

/* Milliseconds of the calls between two events; negative where the algorithm does not run. */
static float time_algo(const call *c, const qb_cuda_gemm_s8_args *a, int32_t *acc,
                       const cublasLtMatmulAlgo_t *algo, cudaEvent_t begin, cudaEvent_t end)
{
    float ms = -1.0f;
    bool ok = multiply(c, a, acc, algo) == CUBLAS_STATUS_SUCCESS;
    cudaEventRecord(begin, c->stream);
    for (int i = 0; ok && i < TIMED_CALLS; i++)
        ok = multiply(c, a, acc, algo) == CUBLAS_STATUS_SUCCESS;
    cudaEventRecord(end, c->stream);
    if (cudaEventSynchronize(end) != cudaSuccess || !ok) return -1.0f;
    return cudaEventElapsedTime(&ms, begin, end) == cudaSuccess ? ms : -1.0f;
}

static qb_status make_plan(const call *c, const qb_cuda_gemm_s8_args *a, int32_t *acc, plan *p)
{
    cublasLtMatmulHeuristicResult_t results[MAX_ALGOS];
    enum cudaStreamCaptureStatus capture;
    cudaEvent_t begin = NULL, end = NULL;
    int n = 0;
    float best = 0.0f;
    QB_TRY(ask(c, results, &n));
    if (n < 1)
        return QB_FAIL(QB_ERR_DEVICE, "cuda: cuBLASLt has no algorithm for s8 %zu x %zu x %zu",
                       a->m, a->n, a->k);
    p->algo = results[0].algo;
    QB_CUDA_TRY(cudaStreamIsCapturing(c->stream, &capture));
    if (capture != cudaStreamCaptureStatusNone) return QB_OK; /* no timing there */
    QB_CUDA_TRY(cudaEventCreate(&begin));
    qb_status status = qb_cuda_check((int)cudaEventCreate(&end), "cudaEventCreate");
    for (int i = 0; status == QB_OK && i < n; i++) {
        float ms = time_algo(c, a, acc, &results[i].algo, begin, end);
        if (ms < 0.0f || (best > 0.0f && ms >= best)) continue;
        best = ms;
        p->algo = results[i].algo;
    }
    cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    return status;
}

static bool same_shape(const shape *a, const shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->x_stride == b->x_stride &&
           a->w_stride == b->w_stride && a->acc_stride == b->acc_stride && a->device == b->device;
}

/* With the mutex held: calls of other threads wait while a shape is timed. */
static qb_status find_plan(const call *c, const qb_cuda_gemm_s8_args *a, int32_t *acc,
                           const shape *s, cublasLtMatmulAlgo_t *out)
{
    plan p = {.shape = *s};
    for (size_t i = 0; i < cache.n_plans; i++)
        if (same_shape(&cache.plans[i].shape, s)) {
            *out = cache.plans[i].algo;
            return QB_OK;
        }
    QB_TRY(make_plan(c, a, acc, &p));
    if (cache.n_plans < MAX_PLANS) cache.plans[cache.n_plans++] = p;
    *out = p.algo;
    return QB_OK;
}

/* ---- sums that are not the output ---- */

/* With the mutex held. Grows; the memory that it had may be in use until the stream is done. */
static qb_status find_scratch(int device, qb_cuda_stream stream, size_t elems, int32_t **out)
{
    size_t i = 0;
    while (i < cache.n_scratch &&
           (cache.scratch[i].device != device || cache.scratch[i].stream != stream))
        i++;
    if (i == MAX_SCRATCH)
        return QB_FAIL(QB_ERR_MEMORY, "gemm_s8/cublaslt: more than %d streams", MAX_SCRATCH);
    if (i == cache.n_scratch) {
        cache.scratch[i].device = device;
        cache.scratch[i].stream = stream;
        cache.scratch[i].dev = NULL;
        cache.scratch[i].elems = 0;
        cache.n_scratch++;
    }
    if (cache.scratch[i].elems < elems) {
        QB_TRY(qb_cuda_sync(stream));
        qb_cuda_free(cache.scratch[i].dev);
        cache.scratch[i].elems = 0;
        QB_TRY(qb_cuda_alloc(&cache.scratch[i].dev, elems, sizeof **out, "sums of cuBLASLt"));
        cache.scratch[i].elems = elems;
    }
    *out = cache.scratch[i].dev;
    return QB_OK;
}

static bool is_plain(const qb_cuda_gemm_s8_args *a)
{
    return a->out == QB_CUDA_S32 && a->y && !a->residual && !a->max_bits && !a->row_max_bits;
}

static qb_status sums(const qb_cuda_gemm_s8_args *a, call *c, int32_t **acc, size_t *acc_stride)
{
    shape s = {a->m, a->n, a->k, a->x_stride, a->w_stride, 0, 0};
    cublasLtMatmulAlgo_t algo;
    QB_CUDA_TRY(cudaGetDevice(&s.device));
    *acc = a->y;
    *acc_stride = is_plain(a) ? a->y_stride : qb_cuda_stride(a->n);
    if (!is_plain(a)) QB_TRY(find_scratch(s.device, c->stream, a->m * *acc_stride, acc));
    s.acc_stride = *acc_stride;
    QB_TRY(call_init(c, a, *acc_stride));
    QB_TRY(find_plan(c, a, *acc, &s, &algo));
    return qb_cublaslt_check(multiply(c, a, *acc, &algo), "cublasLtMatmul");
}

qb_status qb__gemm_s8_run_cublaslt(const qb_cuda_gemm_s8_args *a, qb_cuda_stream stream)
{
    call c = {.api = qb_cublaslt_get(), .stream = stream};
    int32_t *acc = NULL;
    size_t acc_stride = 0;
    pthread_mutex_lock(&cache.mutex);
    qb_status status = sums(a, &c, &acc, &acc_stride);
    call_deinit(&c);
    if (status == QB_OK && !is_plain(a)) status = qb__gemm_s8_finish(acc, acc_stride, a, stream);
    pthread_mutex_unlock(&cache.mutex);
    return status;
}

#else

const char *qb__gemm_s8_refuse_cublaslt(const qb_cuda_gemm_s8_args *args)
{
    (void)args;
    return qb_cublaslt_refusal();
}

qb_status qb__gemm_s8_run_cublaslt(const qb_cuda_gemm_s8_args *args, qb_cuda_stream stream)
{
    (void)stream;
    return QB_FAIL(QB_ERR_DEVICE, "gemm_s8: %s", qb__gemm_s8_refuse_cublaslt(args));
}

#endif
