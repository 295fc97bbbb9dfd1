/* kernels/cuda/library.h - NVIDIA's libraries, found when the program runs (core/library.h). */
#ifndef QB_KERNELS_CUDA_LIBRARY_H
#define QB_KERNELS_CUDA_LIBRARY_H

#include "core/library.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Opens the first of the names in the folder that the environment variable holds, where the loader
 * looks, or where CUDA installs itself, and fills all slots. NULL = done, else the first name or
 * entry that is missing. */
const char *qb_cuda_library_load(const char *variable, const char *const *names, size_t n_names,
                                 const qb_library_entry *entries, size_t n_entries);

#ifdef __cplusplus
}
#endif
#endif
