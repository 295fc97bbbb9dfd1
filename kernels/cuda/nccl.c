/* kernels/cuda/nccl.c - see nccl.h. */
#include "kernels/cuda/nccl.h"

#include "kernels/cuda/library.h"

#include <pthread.h>
#include <stdio.h>

static struct {
    const char *refusal;
    char refusal_text[96];
    qb_nccl api;
    pthread_once_t once;
} nccl = {.once = PTHREAD_ONCE_INIT};

static void load(void)
{
    static const char *const names[] = {"libnccl.so.2"};
#define ENTRY(name)                                                                                \
    {                                                                                              \
        "nccl" #name, &nccl.api.name                                                               \
    }
    const qb_library_entry entries[] = {
        ENTRY(GetErrorString),    ENTRY(GetUniqueId), ENTRY(CommInitRank), ENTRY(CommAbort),
        ENTRY(GroupStart),        ENTRY(GroupEnd),    ENTRY(Send),         ENTRY(Recv),
        ENTRY(CommGetAsyncError), ENTRY(Reduce),      ENTRY(Broadcast),
    };
#undef ENTRY
    const char *missing =
        qb_cuda_library_load("QB_NCCL_PATH", names, QB_COUNT(names), entries, QB_COUNT(entries));
    if (!missing) return;
    snprintf(nccl.refusal_text, sizeof nccl.refusal_text, "needs NCCL: %s not found", missing);
    nccl.refusal = nccl.refusal_text;
}

const char *qb_nccl_refusal(void)
{
    pthread_once(&nccl.once, load);
    return nccl.refusal;
}

const qb_nccl *qb_nccl_get(void)
{
    return qb_nccl_refusal() ? NULL : &nccl.api;
}

qb_status qb_nccl_check(int result, const char *what)
{
    if (result == QB_NCCL_SUCCESS || result == QB_NCCL_IN_PROGRESS) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE, "cuda: %.120s: %s", what, nccl.api.GetErrorString(result));
}
