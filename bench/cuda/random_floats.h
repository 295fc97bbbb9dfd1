/* bench/cuda/random_floats.h - operands of the float passes on the GPU. */
#ifndef QB_BENCH_CUDA_RANDOM_FLOATS_H
#define QB_BENCH_CUDA_RANDOM_FLOATS_H

#include "kernels/cuda/matrix.h"

/* n seeded normal numbers of type F32 or BF16 to dev: one chunk again and again, at shifting
 * places. */
qb_status qb_bench_upload_random(void *dev, size_t n, qb_cuda_dtype type);

#endif
