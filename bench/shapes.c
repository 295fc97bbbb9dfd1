/* bench/shapes.c - see shapes.h. */
#include "bench/shapes.h"

#include "core/threads.h"

const qb_layer_shape qb_layer_shapes[] = {
    {"smollm2-135m attention q, out", 576, 576},
    {"smollm2-135m attention k, v", 192, 576},
    {"smollm2-135m gate, up", 1536, 576},
    {"smollm2-135m down", 576, 1536},
    {"smollm2-135m head", 49152, 576},
    {"gpt2-124m fused q, k, v", 2304, 768},
    {"gpt2-1.4b attention out", 2048, 2048},
    {"gpt2-1.4b down", 2048, 8192},
    {0},
};

const size_t qb_token_counts[] = {1, 8, 512, 0};

const size_t *qb_thread_counts(void)
{
    static size_t counts[3] = {1, 0, 0};
    if (qb_n_cpus() > 1) counts[1] = qb_n_cpus();
    return counts;
}
