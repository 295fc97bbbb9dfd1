/* kernels/cuda/gemm_float_cublaslt.c - float products through cuBLASLt.
 *
 * Its matrices are column-major: our row-major y (m, n) is its y^T (n, m) = w (n, k) . x^T (k, m),
 * with w stored as a (k, n) matrix that is transposed. The first algorithm of the heuristics is
 * taken and kept a shape: timing would choose differently from run to run, and with it the bits.
 *
 * A bias is added in the type of the output, in the epilogue, where there is one for the case:
 * for bf16 it is rounded to bf16 first. Otherwise a pass of our own follows. */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemm_float_internal.h"

#ifdef QB_HAVE_CUBLASLT
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <string.h>

/* At the end of the workspace: the bias in bf16. What is left are the 32 MiB that cuBLASLt's best
 * algorithms for Hopper ask for. */
#define BIAS_BYTES ((size_t)1 << 20)
#define LT_BYTES (QB_CUBLASLT_WORKSPACE_BYTES - BIAS_BYTES)

/* What the choice of an algorithm depends on. Compared as bytes: cleared before it is filled. */
typedef struct shape_key {
    size_t m, n, k, x_stride, w_stride, d_stride;
    uint32_t x_align, w_align, d_align;
    int device, in, out, act, has_bias, has_residual;
} shape_key;

typedef struct plan {
    shape_key key;
    cublasComputeType_t compute;
    bool fused; /* bias and act in the epilogue */
    cublasLtMatmulAlgo_t algo;
} plan;

enum { MAX_PLANS = 512 };
static struct {
    pthread_mutex_t mutex;
    size_t n, next; /* when full, the oldest goes */
    plan plans[MAX_PLANS];
} cache = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* One call's descriptors. */
typedef struct call {
    const qb_cublaslt *api;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, d;
} call;

static cudaDataType_t data_type(qb_cuda_dtype t)
{
    return t == QB_CUDA_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static qb_cuda_dtype out_type(const qb_cuda_gemm_float_args *a)
{
    return a->residual ? QB_CUDA_F32 : a->out;
}

static void *out_matrix(const qb_cuda_gemm_float_args *a, size_t *stride)
{
    *stride = a->residual ? a->residual_stride : a->y_stride;
    return a->residual ? a->residual : a->y;
}

const char *qb__cuda_gemm_float_lt_refuse(const qb_cuda_gemm_float_args *a)
{
    const char *why = qb_cublaslt_refusal();
    if (why) return why;
    if (a->in == QB_CUDA_F32 && out_type(a) != QB_CUDA_F32) return "makes f32 of f32 only";
    if (a->residual && a->act != QB_EPI_NONE) return "adds no activation to a residual";
    if (a->n * 2 > BIAS_BYTES && a->bias) return "n too large for a bias";
    return NULL;
}

/* ---- descriptors ---- */

static cublasLtEpilogue_t epilogue_of(const qb_cuda_gemm_float_args *a)
{
    static const cublasLtEpilogue_t table[3][2] = {
        {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS},
        {CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS},
        {CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS},
    };
    return table[a->act][a->bias != NULL];
}

static qb_status set_epilogue(const call *c, const qb_cuda_gemm_float_args *a, const void *bias)
{
    cublasLtEpilogue_t epilogue = epilogue_of(a);
    QB_CUBLASLT_TRY(c->api->MatmulDescSetAttribute(c->desc, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                   &epilogue, sizeof epilogue));
    if (!a->bias) return QB_OK;
    int32_t type = data_type(out_type(a));
    QB_CUBLASLT_TRY(c->api->MatmulDescSetAttribute(c->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                   &bias, sizeof bias));
    QB_CUBLASLT_TRY(c->api->MatmulDescSetAttribute(c->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                                                   &type, sizeof type));
    return QB_OK;
}

static void call_deinit(call *c)
{
    if (c->d) c->api->MatrixLayoutDestroy(c->d);
    if (c->x) c->api->MatrixLayoutDestroy(c->x);
    if (c->w) c->api->MatrixLayoutDestroy(c->w);
    if (c->desc) c->api->MatmulDescDestroy(c->desc);
    *c = (call){.api = c->api};
}

/* The caller deinits it in any case. */
static qb_status call_init(call *c, const qb_cuda_gemm_float_args *a, cublasComputeType_t compute,
                           bool fused, const void *bias)
{
    const int32_t transposed = CUBLAS_OP_T;
    size_t d_stride;
    out_matrix(a, &d_stride);
    QB_CUBLASLT_TRY(c->api->MatmulDescCreate(&c->desc, compute, CUDA_R_32F));
    QB_CUBLASLT_TRY(c->api->MatmulDescSetAttribute(c->desc, CUBLASLT_MATMUL_DESC_TRANSA,
                                                   &transposed, sizeof transposed));
    QB_CUBLASLT_TRY(
        c->api->MatrixLayoutCreate(&c->w, data_type(a->in), a->k, a->n, (int64_t)a->w_stride));
    QB_CUBLASLT_TRY(
        c->api->MatrixLayoutCreate(&c->x, data_type(a->in), a->k, a->m, (int64_t)a->x_stride));
    QB_CUBLASLT_TRY(
        c->api->MatrixLayoutCreate(&c->d, data_type(out_type(a)), a->n, a->m, (int64_t)d_stride));
    return fused ? set_epilogue(c, a, bias) : QB_OK;
}

/* ---- the plan of a shape ---- */

static uint32_t alignment(const void *p)
{
    uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return low == 0 || low > 256 ? 256 : (uint32_t)low;
}

static shape_key make_key(const qb_cuda_gemm_float_args *a, int device)
{
    shape_key key;
    memset(&key, 0, sizeof key);
    const void *d = out_matrix(a, &key.d_stride);
    key.m = a->m, key.n = a->n, key.k = a->k;
    key.x_stride = a->x_stride, key.w_stride = a->w_stride;
    key.x_align = alignment(a->x), key.w_align = alignment(a->w), key.d_align = alignment(d);
    key.device = device, key.in = a->in, key.out = out_type(a), key.act = a->act;
    key.has_bias = a->bias != NULL, key.has_residual = a->residual != NULL;
    return key;
}

static qb_status set_preference(const qb_cublaslt *api, cublasLtMatmulPreference_t preference,
                                const shape_key *key)
{
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        uint32_t bytes;
    } alignments[] = {
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->w_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->x_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key->d_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key->d_align},
    };
    uint64_t bytes = LT_BYTES;
    QB_CUBLASLT_TRY(api->MatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    for (size_t i = 0; i < QB_COUNT(alignments); i++)
        QB_CUBLASLT_TRY(api->MatmulPreferenceSetAttribute(preference, alignments[i].attribute,
                                                          &alignments[i].bytes, sizeof(uint32_t)));
    return QB_OK;
}

/* *found = cuBLASLt has an algorithm for the case. */
static qb_status ask(const qb_cuda_gemm_float_args *a, cublasLtHandle_t handle, plan *p,
                     cublasLtMatmulPreference_t preference, const void *bias, bool *found)
{
    call c = {.api = qb_cublaslt_get()};
    cublasLtMatmulHeuristicResult_t result;
    int n = 0;
    qb_status status = call_init(&c, a, p->compute, p->fused, bias);
    if (status == QB_OK) {
        cublasStatus_t code = c.api->MatmulAlgoGetHeuristic(handle, c.desc, c.w, c.x, c.d, c.d,
                                                            preference, 1, &result, &n);
        *found = code == CUBLAS_STATUS_SUCCESS && n > 0 && result.state == CUBLAS_STATUS_SUCCESS;
        if (*found) p->algo = result.algo;
    }
    call_deinit(&c);
    return status;
}

/* Fused before not; for f32 the strictest arithmetic before the default, which has no tf32 either.
 */
static qb_status make_plan(const qb_cuda_gemm_float_args *a, cublasLtHandle_t handle,
                           const void *bias, plan *p)
{
    static const cublasComputeType_t computes[] = {CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F};
    const qb_cublaslt *api = qb_cublaslt_get();
    bool found = false, may_finish = !a->residual;
    cublasLtMatmulPreference_t preference = NULL;
    QB_CUBLASLT_TRY(api->MatmulPreferenceCreate(&preference));
    qb_status status = set_preference(api, preference, &p->key);
    for (int fused = 1; status == QB_OK && !found && fused >= !may_finish; fused--)
        for (size_t i = a->in == QB_CUDA_BF16; status == QB_OK && !found && i < 2; i++) {
            p->fused = fused;
            p->compute = computes[i];
            status = ask(a, handle, p, preference, bias, &found);
        }
    api->MatmulPreferenceDestroy(preference);
    if (status == QB_OK && !found)
        return QB_FAIL(QB_ERR_DEVICE, "cuda: cuBLASLt has no algorithm for %zu x %zu x %zu", a->m,
                       a->n, a->k);
    return status;
}

static qb_status find_plan(const qb_cuda_gemm_float_args *a, cublasLtHandle_t handle,
                           const void *bias, plan *out)
{
    int device;
    QB_CUDA_TRY(cudaGetDevice(&device));
    out->key = make_key(a, device);
    pthread_mutex_lock(&cache.mutex);
    size_t i = 0;
    while (i < cache.n && memcmp(&cache.plans[i].key, &out->key, sizeof out->key)) i++;
    bool known = i < cache.n;
    if (known) *out = cache.plans[i];
    pthread_mutex_unlock(&cache.mutex);
    if (known) return QB_OK;
    QB_TRY(make_plan(a, handle, bias, out));
    pthread_mutex_lock(&cache.mutex);
    cache.plans[cache.next] = *out;
    cache.next = (cache.next + 1) % MAX_PLANS;
    if (cache.n < MAX_PLANS) cache.n++;
    pthread_mutex_unlock(&cache.mutex);
    return QB_OK;
}

/* ---- run ---- */

static qb_status multiply(const qb_cuda_gemm_float_args *a, cublasLtHandle_t handle, const plan *p,
                          const void *bias, void *workspace, qb_cuda_stream stream)
{
    const float one = 1.0f, beta = a->residual ? 1.0f : 0.0f;
    size_t d_stride;
    void *d = out_matrix(a, &d_stride);
    call c = {.api = qb_cublaslt_get()};
    qb_status status = call_init(&c, a, p->compute, p->fused, bias);
    if (status == QB_OK)
        status =
            qb_cublaslt_check(c.api->Matmul(handle, c.desc, &one, a->w, c.w, a->x, c.x, &beta, d,
                                            c.d, d, c.d, &p->algo, workspace, LT_BYTES, stream),
                              "cublasLtMatmul");
    call_deinit(&c);
    return status;
}

qb_status qb__cuda_gemm_float_lt(const qb_cuda_gemm_float_args *a, qb_cuda_stream stream)
{
    cublasLtHandle_t handle;
    void *workspace;
    plan p;
    if (a->m == 0 || a->n == 0) return QB_OK;
    QB_TRY(qb_cublaslt_handle(&handle));
    QB_TRY(qb_cublaslt_workspace(stream, &workspace));
    const bool rounds_bias = a->bias && out_type(a) == QB_CUDA_BF16;
    const void *bias = rounds_bias ? (const char *)workspace + LT_BYTES : (const void *)a->bias;
    QB_TRY(find_plan(a, handle, bias, &p));
    if (p.fused && rounds_bias)
        QB_TRY(qb__cuda_bias_bf16(a->bias, a->n, (char *)workspace + LT_BYTES, stream));
    QB_TRY(multiply(a, handle, &p, bias, workspace, stream));
    if (p.fused) return QB_OK;
    return qb__cuda_gemm_float_finish(a->y, a->out, a->y_stride, a->m, a->n, a->bias, a->act,
                                      stream);
}

#else

const char *qb__cuda_gemm_float_lt_refuse(const qb_cuda_gemm_float_args *args)
{
    (void)args;
    return qb_cublaslt_refusal();
}

qb_status qb__cuda_gemm_float_lt(const qb_cuda_gemm_float_args *args, qb_cuda_stream stream)
{
    (void)stream;
    return QB_FAIL(QB_ERR_DEVICE, "gemm_float: %s", qb__cuda_gemm_float_lt_refuse(args));
}

#endif
