/* tests/fuzz/no_kernels.c - stands for kernels/ in the fuzz targets: the words of a configuration
 * bring train/rotation.c along, whose kernels no reader calls. */
#include "kernels/reflections.h"

#include <stdlib.h>

const qb_reflections_row qb_reflections_kernels[] = {{{0}, 0, 0}};

const void *qb_kernel_pick(const void *rows, size_t row_bytes)
{
    (void)rows, (void)row_bytes;
    abort();
}
