/* kernels/cuda/cublaslt_matmul.c - see cublaslt_matmul.h.
 *
 * cuBLASLt's matrices are column-major: our row-major d (m, n) is its d^T (n, m) = w (n, k) . x^T
 * (k, m), with w stored as a (k, n) matrix that is transposed, or the other way round. */
#include "kernels/cuda/cublaslt_matmul.h"

#ifdef QB_HAVE_CUBLASLT
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <string.h>

/* What the choice of an algorithm depends on. Compared as bytes: cleared before it is filled. */
typedef struct shape_key {
    size_t m, n, k, batch, x_stride, w_stride, d_stride, aux_stride;
    uint32_t x_align, w_align, d_align;
    int device, in, out, arithmetic, transposed, epilogue, has_bias, has_beta, on_device;
} shape_key;

typedef struct plan {
    shape_key key;
    cublasComputeType_t compute;
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

/* ---- descriptors ---- */

static qb_status set(const call *c, cublasLtMatmulDescAttributes_t what, const void *value,
                     size_t bytes)
{
    return qb_cublaslt_check(c->api->MatmulDescSetAttribute(c->desc, what, value, bytes),
                             "cublasLtMatmulDescSetAttribute");
}

static qb_status set_epilogue(const call *c, const qb_lt_matmul_args *a)
{
    static const cublasLtEpilogue_t table[][2] = {
        [QB_LT_NONE] = {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS},
        [QB_LT_GELU] = {CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS},
        [QB_LT_RELU] = {CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS},
        [QB_LT_GELU_AUX] = {CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS},
        [QB_LT_DGELU] = {CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU},
    };
    cublasLtEpilogue_t epilogue = table[a->epilogue][a->bias != NULL];
    int32_t type = data_type(a->out);
    QB_TRY(set(c, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (a->bias) {
        QB_TRY(set(c, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &a->bias, sizeof a->bias));
        QB_TRY(set(c, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
    }
    if (a->aux) {
        int64_t stride = (int64_t)a->aux_stride;
        QB_TRY(set(c, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &a->aux, sizeof a->aux));
        QB_TRY(set(c, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &stride, sizeof stride));
        QB_TRY(set(c, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, &type, sizeof type));
    }
    return QB_OK;
}

/* A row-major (rows, cols) matrix, or `batch` of them. */
static qb_status make_layout(const call *c, cublasLtMatrixLayout_t *out, qb_cuda_dtype type,
                             size_t rows, size_t cols, size_t stride, size_t batch,
                             size_t batch_stride)
{
    QB_CUBLASLT_TRY(c->api->MatrixLayoutCreate(out, data_type(type), cols, rows, (int64_t)stride));
    if (batch <= 1) return QB_OK;
    int32_t n = (int32_t)batch;
    int64_t distance = (int64_t)batch_stride;
    QB_CUBLASLT_TRY(
        c->api->MatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n, sizeof n));
    QB_CUBLASLT_TRY(c->api->MatrixLayoutSetAttribute(
        *out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &distance, sizeof distance));
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
static qb_status call_init(call *c, const qb_lt_matmul_args *a, cublasComputeType_t compute)
{
    const int32_t transposed = CUBLAS_OP_T;
    QB_CUBLASLT_TRY(c->api->MatmulDescCreate(&c->desc, compute, CUDA_R_32F));
    if (!a->w_is_kn) QB_TRY(set(c, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (a->x_is_km) QB_TRY(set(c, CUBLASLT_MATMUL_DESC_TRANSB, &transposed, sizeof transposed));
    if (a->alpha_dev) {
        int32_t mode = CUBLASLT_POINTER_MODE_DEVICE;
        QB_TRY(set(c, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, sizeof mode));
    }
    QB_TRY(make_layout(c, &c->w, a->in, a->w_is_kn ? a->k : a->n, a->w_is_kn ? a->n : a->k,
                       a->w_stride, a->batch, a->w_batch_stride));
    QB_TRY(make_layout(c, &c->x, a->in, a->x_is_km ? a->k : a->m, a->x_is_km ? a->m : a->k,
                       a->x_stride, a->batch, a->x_batch_stride));
    QB_TRY(make_layout(c, &c->d, a->out, a->m, a->n, a->d_stride, a->batch, a->d_batch_stride));
    return set_epilogue(c, a);
}

/* ---- the plan of a shape ---- */

/* Of every matrix of a batch. */
static uint32_t alignment(const void *p, size_t batch_stride, qb_cuda_dtype type)
{
    uintptr_t bits = (uintptr_t)p | batch_stride * qb_cuda_dtype_bytes(type);
    uintptr_t low = bits & -bits;
    return low == 0 || low > 256 ? 256 : (uint32_t)low;
}

static shape_key make_key(const qb_lt_matmul_args *a, int device)
{
    shape_key key;
    memset(&key, 0, sizeof key);
    size_t batch = a->batch > 1 ? a->batch : 1, many = batch > 1;
    key.m = a->m, key.n = a->n, key.k = a->k, key.batch = batch;
    key.x_stride = a->x_stride, key.w_stride = a->w_stride, key.d_stride = a->d_stride;
    key.aux_stride = a->aux ? a->aux_stride : 0;
    key.x_align = alignment(a->x, many * a->x_batch_stride, a->in);
    key.w_align = alignment(a->w, many * a->w_batch_stride, a->in);
    key.d_align = alignment(a->d, many * a->d_batch_stride, a->out);
    key.device = device, key.in = a->in, key.out = a->out, key.arithmetic = a->arithmetic;
    key.transposed = 2 * a->x_is_km + a->w_is_kn;
    key.epilogue = a->epilogue, key.has_bias = a->bias != NULL;
    key.has_beta = a->beta_dev || a->beta != 0.0f, key.on_device = a->alpha_dev != NULL;
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
    uint64_t bytes = QB_LT_BYTES;
    QB_CUBLASLT_TRY(api->MatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    for (size_t i = 0; i < QB_COUNT(alignments); i++)
        QB_CUBLASLT_TRY(api->MatmulPreferenceSetAttribute(preference, alignments[i].attribute,
                                                          &alignments[i].bytes, sizeof(uint32_t)));
    return QB_OK;
}

static qb_status ask(const qb_lt_matmul_args *a, cublasLtHandle_t handle, plan *p,
                     cublasLtMatmulPreference_t preference, bool *found)
{
    call c = {.api = qb_cublaslt_get()};
    cublasLtMatmulHeuristicResult_t result;
    int n = 0;
    qb_status status = call_init(&c, a, p->compute);
    if (status == QB_OK) {
        cublasStatus_t code = c.api->MatmulAlgoGetHeuristic(handle, c.desc, c.w, c.x, c.d, c.d,
                                                            preference, 1, &result, &n);
        *found = code == CUBLAS_STATUS_SUCCESS && n > 0 && result.state == CUBLAS_STATUS_SUCCESS;
        if (*found) p->algo = result.algo;
    }
    call_deinit(&c);
    return status;
}

/* For f32 the strictest arithmetic before the default, which has no tf32 either. */
static qb_status make_plan(const qb_lt_matmul_args *a, cublasLtHandle_t handle, plan *p,
                           bool *found)
{
    static const cublasComputeType_t strict[] = {CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F};
    static const cublasComputeType_t tf32[] = {CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_32F};
    const bool is_f32 = a->in == QB_CUDA_F32;
    const cublasComputeType_t *computes = is_f32 && a->arithmetic == QB_LT_TF32 ? tf32 : strict;
    const qb_cublaslt *api = qb_cublaslt_get();
    cublasLtMatmulPreference_t preference = NULL;
    *found = false;
    QB_CUBLASLT_TRY(api->MatmulPreferenceCreate(&preference));
    qb_status status = set_preference(api, preference, &p->key);
    for (size_t i = !is_f32; status == QB_OK && !*found && i < 2; i++) {
        p->compute = computes[i];
        status = ask(a, handle, p, preference, found);
    }
    api->MatmulPreferenceDestroy(preference);
    return status;
}

static qb_status find_plan(const qb_lt_matmul_args *a, cublasLtHandle_t handle, plan *out,
                           bool *found)
{
    int device;
    QB_CUDA_TRY(cudaGetDevice(&device));
    out->key = make_key(a, device);
    pthread_mutex_lock(&cache.mutex);
    size_t i = 0;
    while (i < cache.n && memcmp(&cache.plans[i].key, &out->key, sizeof out->key)) i++;
    *found = i < cache.n;
    if (*found) *out = cache.plans[i];
    pthread_mutex_unlock(&cache.mutex);
    if (*found) return QB_OK;
    QB_TRY(make_plan(a, handle, out, found));
    if (!*found) return QB_OK;
    pthread_mutex_lock(&cache.mutex);
    cache.plans[cache.next] = *out;
    cache.next = (cache.next + 1) % MAX_PLANS;
    if (cache.n < MAX_PLANS) cache.n++;
    pthread_mutex_unlock(&cache.mutex);
    return QB_OK;
}

qb_status qb_lt_matmul_prepare(const qb_lt_matmul_args *args, bool *found)
{
    cublasLtHandle_t handle;
    plan p;
    QB_TRY(qb_cublaslt_handle(&handle));
    return find_plan(args, handle, &p, found);
}

qb_status qb_lt_matmul(const qb_lt_matmul_args *a, qb_cuda_stream stream)
{
    cublasLtHandle_t handle;
    void *workspace;
    plan p;
    bool found;
    QB_TRY(qb_cublaslt_handle(&handle));
    QB_TRY(qb_cublaslt_workspace(stream, &workspace));
    QB_TRY(find_plan(a, handle, &p, &found));
    if (!found)
        return QB_FAIL(QB_ERR_DEVICE, "cuda: cuBLASLt has no algorithm for %zu x %zu x %zu", a->m,
                       a->n, a->k);
    const void *alpha = a->alpha_dev ? a->alpha_dev : &a->alpha;
    const void *beta = a->alpha_dev ? a->beta_dev : &a->beta;
    call c = {.api = qb_cublaslt_get()};
    qb_status status = call_init(&c, a, p.compute);
    if (status == QB_OK)
        status = qb_cublaslt_check(c.api->Matmul(handle, c.desc, alpha, a->w, c.w, a->x, c.x, beta,
                                                 a->d, c.d, a->d, c.d, &p.algo, workspace,
                                                 QB_LT_BYTES, stream),
                                   "cublasLtMatmul");
    call_deinit(&c);
    return status;
}

#endif
