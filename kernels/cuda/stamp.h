/* kernels/cuda/stamp.h - the time on the device once all that was queued before has ended: a kernel
 * of one thread, which does not keep the kernels beside it from overlapping. */
#ifndef QB_KERNELS_CUDA_STAMP_H
#define QB_KERNELS_CUDA_STAMP_H

#include "core/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *at_dev = nanoseconds of the device's timer. */
qb_status qb_cuda_stamp(uint64_t *at_dev, qb_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
