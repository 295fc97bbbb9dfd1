/* kernels/attention_internal.h - the functions of the rows that stand in kernels/x86. */
#ifndef QB_KERNELS_ATTENTION_INTERNAL_H
#define QB_KERNELS_ATTENTION_INTERNAL_H

#include "kernels/attention.h"

#define QB_ATTENTION_DECLARE(isa)                                                                  \
    size_t qb__attention_scratch_elems_##isa(const qb_attention_args *args);                       \
    size_t qb__attention_n_tasks_##isa(const qb_attention_args *args, size_t n_threads);           \
    void qb__attention_task_##isa(const qb_attention_args *args, size_t i, size_t n_tasks,         \
                                  size_t thread_idx);
QB_ATTENTION_DECLARE(avx2)
QB_ATTENTION_DECLARE(avx512)
#undef QB_ATTENTION_DECLARE

#endif
