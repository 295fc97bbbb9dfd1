/* kernels/cuda/cublaslt.c - see cublaslt.h. */
#include "kernels/cuda/cublaslt.h"

#ifdef QB_HAVE_CUBLASLT
#include "kernels/cuda/library.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>

enum { MAX_DEVICES = 64, MAX_WORKSPACES = 64 };

static struct {
    const char *refusal;
    char refusal_text[160];
    qb_cublaslt api;
    pthread_once_t once;
    pthread_mutex_t mutex; /* of what follows */
    cublasLtHandle_t handle[MAX_DEVICES];
    size_t n_workspaces;
    struct {
        int device;
        qb_cuda_stream stream;
        void *dev;
    } workspace[MAX_WORKSPACES];
} lt = {.once = PTHREAD_ONCE_INIT, .mutex = PTHREAD_MUTEX_INITIALIZER};

static void load(void)
{
#define ENTRY(name)                                                                                \
    {                                                                                              \
        "cublasLt" #name, &lt.api.name                                                             \
    }
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    const qb_library_entry entries[] = {
        ENTRY(Create),
        ENTRY(GetVersion),
        ENTRY(GetStatusName),
        ENTRY(Matmul),
        ENTRY(MatmulAlgoGetHeuristic),
        ENTRY(MatmulDescCreate),
        ENTRY(MatmulDescDestroy),
        ENTRY(MatmulDescSetAttribute),
        ENTRY(MatrixLayoutCreate),
        ENTRY(MatrixLayoutDestroy),
        ENTRY(MatrixLayoutSetAttribute),
        ENTRY(MatmulPreferenceCreate),
        ENTRY(MatmulPreferenceDestroy),
        ENTRY(MatmulPreferenceSetAttribute),
    };
#undef ENTRY
    const char *missing = qb_cuda_library_load("QB_CUBLASLT_PATH", names, QB_COUNT(names), entries,
                                               QB_COUNT(entries));
    if (!missing) return;
    snprintf(lt.refusal_text, sizeof lt.refusal_text, "needs cuBLASLt: %s not found", missing);
    lt.refusal = lt.refusal_text;
}

const char *qb_cublaslt_refusal(void)
{
    pthread_once(&lt.once, load);
    return lt.refusal;
}

const qb_cublaslt *qb_cublaslt_get(void)
{
    return qb_cublaslt_refusal() ? NULL : &lt.api;
}

qb_status qb_cublaslt_check(cublasStatus_t code, const char *what)
{
    if (code == CUBLAS_STATUS_SUCCESS) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE, "cuda: %.120s: %s", what, lt.api.GetStatusName(code));
}

static qb_status current_device(int *out)
{
    const char *why = qb_cublaslt_refusal();
    if (why) return QB_FAIL(QB_ERR_DEVICE, "cuda: %s", why);
    QB_CUDA_TRY(cudaGetDevice(out));
    if (*out >= MAX_DEVICES)
        return QB_FAIL(QB_ERR_DEVICE, "cuda: GPU %d: cuBLASLt rows know GPUs 0 to %d", *out,
                       MAX_DEVICES - 1);
    return QB_OK;
}

qb_status qb_cublaslt_handle(cublasLtHandle_t *out)
{
    int device;
    QB_TRY(current_device(&device));
    cublasStatus_t code = CUBLAS_STATUS_SUCCESS;
    pthread_mutex_lock(&lt.mutex);
    if (!lt.handle[device]) code = lt.api.Create(&lt.handle[device]);
    *out = lt.handle[device];
    pthread_mutex_unlock(&lt.mutex);
    return qb_cublaslt_check(code, "cublasLtCreate");
}

/* With the mutex held. */
static qb_status find_workspace(int device, qb_cuda_stream stream, void **out)
{
    for (size_t i = 0; i < lt.n_workspaces; i++)
        if (lt.workspace[i].device == device && lt.workspace[i].stream == stream) {
            *out = lt.workspace[i].dev;
            return QB_OK;
        }
    if (lt.n_workspaces == MAX_WORKSPACES)
        return QB_FAIL(QB_ERR_MEMORY, "cuBLASLt workspaces: more than %d streams", MAX_WORKSPACES);
    QB_TRY(qb_cuda_alloc(out, QB_CUBLASLT_WORKSPACE_BYTES, 1, "cuBLASLt's workspace"));
    lt.workspace[lt.n_workspaces].device = device;
    lt.workspace[lt.n_workspaces].stream = stream;
    lt.workspace[lt.n_workspaces++].dev = *out;
    return QB_OK;
}

qb_status qb_cublaslt_workspace(qb_cuda_stream stream, void **out_dev)
{
    int device;
    QB_TRY(current_device(&device));
    pthread_mutex_lock(&lt.mutex);
    qb_status status = find_workspace(device, stream, out_dev);
    pthread_mutex_unlock(&lt.mutex);
    return status;
}

void qb_cublaslt_forget(qb_cuda_stream stream)
{
    pthread_mutex_lock(&lt.mutex);
    for (size_t i = 0; i < lt.n_workspaces; i++)
        if (lt.workspace[i].stream == stream) {
            qb_cuda_free(lt.workspace[i].dev);
            lt.workspace[i--] = lt.workspace[--lt.n_workspaces];
        }
    pthread_mutex_unlock(&lt.mutex);
}

#else

const char *qb_cublaslt_refusal(void)
{
    return "needs cuBLASLt: built without cublasLt.h";
}

void qb_cublaslt_forget(qb_cuda_stream stream)
{
    (void)stream;
}

#endif
