/* kernels/attention_internal.h - the functions of the rows that stand in kernels/x86, and what they
 * share with the reference. */
#ifndef QB_KERNELS_ATTENTION_INTERNAL_H
#define QB_KERNELS_ATTENTION_INTERNAL_H

#include "kernels/attention.h"

#include <math.h>
#include <stdbool.h>

/* The logit beside the keys' that takes weight and gives nothing: 0 of softmax-1, learned of sink,
 * -inf where there is none. */
static inline float qb__attention_silent_logit(const qb_attention_args *args, size_t head)
{
    if (args->softmax == QB_SOFTMAX_SINK) return args->sink[head];
    return args->softmax == QB_SOFTMAX1 ? 0 : -INFINITY;
}

#define QB_ATTENTION_DECLARE(isa)                                                                  \
    size_t qb__attention_scratch_elems_##isa(const qb_attention_args *args);                       \
    size_t qb__attention_n_tasks_##isa(const qb_attention_args *args, size_t n_threads);           \
    void qb__attention_task_##isa(const qb_attention_args *args, size_t i, size_t n_tasks,         \
                                  size_t thread_idx);
QB_ATTENTION_DECLARE(avx2)
QB_ATTENTION_DECLARE(avx512)
#undef QB_ATTENTION_DECLARE

#endif
