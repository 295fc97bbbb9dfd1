/* kernels/running.h - the row that an operation took, where it chooses by the shape: for whoever
 * times it. */
#ifndef QB_KERNELS_RUNNING_H
#define QB_KERNELS_RUNNING_H

#include "kernels/registry.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Said by the operation right before it runs the row. */
void qb_kernel_runs(const qb_kernel_info *row);
/* The name of the last row that this thread was told; NULL = none yet. */
const char *qb_kernel_last(void);

#ifdef __cplusplus
}
#endif
#endif
