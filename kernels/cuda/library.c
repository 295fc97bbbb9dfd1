/* kernels/cuda/library.c - see library.h. */
#include "kernels/cuda/library.h"

#include "core/status.h"

#include <stdlib.h>

const char *qb_cuda_library_load(const char *variable, const char *const *names, size_t n_names,
                                 const qb_library_entry *entries, size_t n_entries)
{
    const char *const folders[] = {getenv(variable), "", "/usr/local/cuda/lib64",
                                   "/usr/local/cuda/targets/x86_64-linux/lib", "/opt/cuda/lib64"};
    return qb_library_load(folders, QB_COUNT(folders), names, n_names, entries, n_entries);
}
