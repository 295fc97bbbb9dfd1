/* model/safetensors_internal.h - the dtype table that reader and writer share. */
#ifndef QB_MODEL_SAFETENSORS_INTERNAL_H
#define QB_MODEL_SAFETENSORS_INTERNAL_H

#include "core/dtype.h"

typedef struct qb__st_dtype {
    const char *name;
    unsigned bits;
    qb_dtype as; /* QB_DTYPE_COUNT = none here */
} qb__st_dtype;
extern const qb__st_dtype qb__st_dtypes[]; /* ends with a zero row */

#endif
