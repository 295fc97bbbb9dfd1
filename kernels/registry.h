/* kernels/registry.h - which implementation of each operation runs here.
 *
 * Every operation has a table of rows for the processor, best first, the portable reference last
 * (it refuses nothing), and in a build with CUDA one for the GPU, whose rows may also refuse shapes
 * and whose calls differ. Some operations have only one of them. Each row type starts with a
 * qb_kernel_info. A row is usable if its device has what it needs and QB_DISABLE does not name the
 * feature, the device or the row. `infer` picks the processor's rows once, in prepare. */
#ifndef QB_KERNELS_REGISTRY_H
#define QB_KERNELS_REGISTRY_H

#include "core/cpu_features.h"
#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_kernel_info {
    const char *name;   /* "gemm_s8/avx512vnni"; NULL ends a table */
    const char *device; /* "cpu", "cuda" */
    uint32_t needs;     /* QB_CPU_* bits; of a "cuda" row QB_CUDA_* (core/cuda.h) */
} qb_kernel_info;

typedef struct qb_kernel_table {
    const void *rows; /* NULL = the operation has none for the device */
    size_t row_bytes;
} qb_kernel_table;

enum { QB_KERNEL_CPU, QB_KERNEL_CUDA, QB_KERNEL_TABLES };
typedef struct qb_kernel_op {
    const char *name; /* "gemm_s8"; NULL ends qb_kernel_ops */
    const char *what; /* one line for `qbench kernels` */
    qb_kernel_table tables[QB_KERNEL_TABLES];
} qb_kernel_op;
extern const qb_kernel_op qb_kernel_ops[];
/* Row i of the table; its name is NULL at the end. */
const qb_kernel_info *qb_kernel_row(const qb_kernel_table *table, size_t i);

/* NULL = usable; else why not: "needs avx512vnni", "disabled by QB_DISABLE", "not forced". Rows of
 * the GPU are judged for the thread's current device: "no CUDA driver", "needs compute capability
 * 9.0a (Hopper)". Cheap. Borrowed until the thread's next call. */
const char *qb_kernel_refusal(const qb_kernel_info *row);
/* False where a word of QB_DISABLE is neither a feature, nor a device, nor a row of this build and
 * so takes nothing away: `text` then says which, and what was probably meant. */
bool qb_kernel_check_disabled(char *text, size_t capacity);
/* Restricts the operations named in the comma list ("gemm_s8/ref,attention/avx2") to those rows, on
 * the device that the rows are of; NULL lifts it. Process-wide, before engines are made.
 * QB_ERR_USAGE: no such row, or refused here.
 */
qb_status qb_kernel_force(const char *list);
/* The first usable row of a processor's table; never NULL, since the reference refuses nothing. */
const void *qb_kernel_pick(const void *rows, size_t row_bytes);
#define QB_KERNEL_PICK(table) (qb_kernel_pick((table), sizeof(table)[0]))

#ifdef __cplusplus
}
#endif
#endif
