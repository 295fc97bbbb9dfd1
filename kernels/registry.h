/* kernels/registry.h - which implementation of each operation runs here.
 *
 * Every operation has a table of rows, best first, the portable reference last (it refuses
 * nothing). Each row type starts with a qb_kernel_info. A row is usable if the processor has what
 * it needs and QB_DISABLE does not name the feature or the row. `infer` picks rows once, in
 * prepare. */
#ifndef QB_KERNELS_REGISTRY_H
#define QB_KERNELS_REGISTRY_H

#include "core/cpu_features.h"
#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_kernel_info {
    const char *name;   /* "gemm_s8/avx512vnni"; NULL ends a table */
    const char *device; /* "cpu", "cuda" */
    uint32_t needs;     /* QB_CPU_* bits */
} qb_kernel_info;

typedef struct qb_kernel_op {
    const char *name; /* "gemm_s8"; NULL ends qb_kernel_ops */
    const char *what; /* one line for `qbench kernels` */
    const void *rows; /* the table */
    size_t row_bytes;
} qb_kernel_op;
extern const qb_kernel_op qb_kernel_ops[];

/* NULL = usable; else why not: "needs avx512vnni", "disabled by QB_DISABLE", "not forced". */
const char *qb_kernel_refusal(const qb_kernel_info *row);
/* Restricts the operations named in the comma list ("gemm_s8/ref,attention/avx2") to those rows;
 * NULL lifts it. Process-wide, before engines are made. QB_ERR_USAGE: no such row, or refused here.
 */
qb_status qb_kernel_force(const char *list);
/* The first usable row of the table; never NULL, since the reference refuses nothing. */
const void *qb_kernel_pick(const void *rows, size_t row_bytes);
#define QB_KERNEL_PICK(table) (qb_kernel_pick((table), sizeof(table)[0]))

#ifdef __cplusplus
}
#endif
#endif
