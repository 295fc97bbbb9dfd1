/* kernels/cuda/nccl.h - NCCL, which moves arrays between GPUs, found when the program runs.
 *
 * The few functions and constants that are used are declared here, so that building needs no NCCL.
 * Looked for in the folder $QB_NCCL_PATH, then as kernels/cuda/library.h says. */
#ifndef QB_KERNELS_CUDA_NCCL_H
#define QB_KERNELS_CUDA_NCCL_H

#include "core/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As nccl.h of version 2 has them, by their own values. */
typedef struct qb_nccl_id {
    char bytes[128];
} qb_nccl_id;
typedef struct ncclComm *qb_nccl_comm;
enum { QB_NCCL_SUCCESS = 0, QB_NCCL_IN_PROGRESS = 7 }; /* ncclResult_t */
enum { QB_NCCL_U8 = 1, QB_NCCL_F32 = 7 };              /* ncclDataType_t */
enum { QB_NCCL_SUM = 0 };                              /* ncclRedOp_t */

typedef struct qb_nccl { /* the functions by their own names less the prefix nccl */
    const char *(*GetErrorString)(int result);
    int (*GetUniqueId)(qb_nccl_id *id);
    int (*CommInitRank)(qb_nccl_comm *comm, int n_ranks, qb_nccl_id id, int rank);
    int (*CommAbort)(qb_nccl_comm comm);
    int (*CommGetAsyncError)(qb_nccl_comm comm, int *result);
    int (*GroupStart)(void);
    int (*GroupEnd)(void);
    int (*Send)(const void *from, size_t n, int type, int peer, qb_nccl_comm, qb_cuda_stream);
    int (*Recv)(void *to, size_t n, int type, int peer, qb_nccl_comm, qb_cuda_stream);
    int (*Reduce)(const void *from, void *to, size_t n, int type, int op, int root, qb_nccl_comm,
                  qb_cuda_stream);
    int (*Broadcast)(const void *from, void *to, size_t n, int type, int root, qb_nccl_comm,
                     qb_cuda_stream);
} qb_nccl;

/* NULL = loaded; else why not, in one line ("needs NCCL: libnccl.so.2 not found"). */
const char *qb_nccl_refusal(void);
const qb_nccl *qb_nccl_get(void); /* NULL where it is refused */
/* QB_ERR_DEVICE with NCCL's words for the result. */
qb_status qb_nccl_check(int result, const char *what);
#define QB_NCCL_TRY(call) QB_TRY(qb_nccl_check((call), #call))

#ifdef __cplusplus
}
#endif
#endif
