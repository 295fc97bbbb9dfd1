/* kernels/attention.c - the reference of attention.h in plain C and in double, its table, and the
 * parallel loop. */
#include "kernels/attention_internal.h"

#include "core/memory.h"

/* A row of scores in double, padded to whole cache lines. */
static size_t ref_scratch_elems(const qb_attention_args *a)
{
    return qb_round_up(2 * (a->n_past + a->n_q), 16);
}

static size_t ref_n_tasks(const qb_attention_args *a, size_t n_threads)
{
    (void)n_threads;
    return a->batch * a->n_heads * a->n_q;
}

/* s[0..n) of one head becomes p, in place (core/kinds.h). */
static void softmax(const qb_attention_args *a, size_t head, double *s, size_t n)
{
    if (a->softmax == QB_SOFTMAX_RELU) {
        for (size_t j = 0; j < n; j++) s[j] = s[j] < 0 ? 0 : s[j] / (double)n;
        return;
    }
    double silent = qb__attention_silent_logit(a, head), max = silent, sum = 0;
    for (size_t j = 0; j < n; j++)
        if (s[j] > max) max = s[j];
    if (max == -INFINITY) max = 0; /* all masked: every exponential is 0 */
    for (size_t j = 0; j < n; j++) sum += s[j] = exp(s[j] - max);
    sum += exp(silent - max);
    for (size_t j = 0; j < n; j++) s[j] = sum > 0 ? s[j] / sum : 0 * sum;
    if (a->softmax != QB_SOFTMAX_CLIPPED) return;
    for (size_t j = 0; j < n; j++) {
        double p = ((double)a->zeta - a->gamma) * s[j] + a->gamma;
        s[j] = p < 0 ? 0 : p > 1 ? 1 : p;
    }
}

static void ref_task(const qb_attention_args *a, size_t task, size_t n_tasks, size_t thread_idx)
{
    (void)n_tasks;
    size_t i = task % a->n_q, h = task / a->n_q % a->n_heads, b = task / a->n_q / a->n_heads;
    size_t token = b * a->n_q + i, n_keys = qb_attention_n_keys(a, i);
    size_t kv = b * a->kv_batch_stride + h / (a->n_heads / a->n_kv_heads) * a->head_dim;
    const float *q = a->q + token * a->q_stride + h * a->head_dim;
    float *out = a->out + token * a->out_stride + h * a->head_dim;
    double *s = (double *)(a->scratch + thread_idx * ref_scratch_elems(a));

    for (size_t j = 0; j < n_keys; j++) {
        double dot = 0;
        for (size_t d = 0; d < a->head_dim; d++)
            dot += (double)q[d] * a->k[kv + j * a->kv_stride + d];
        s[j] = a->scale * dot;
    }
    softmax(a, h, s, n_keys);
    for (size_t d = 0; d < a->head_dim; d++) {
        double sum = 0;
        for (size_t j = 0; j < n_keys; j++) sum += s[j] * a->v[kv + j * a->kv_stride + d];
        out[d] = (float)sum;
    }
}

const qb_attention_row qb_attention_kernels[] = {
#ifdef QB_WITH_X86
    {{"attention/avx512", "cpu", QB_CPU_AVX512},
     qb__attention_scratch_elems_avx512,
     qb__attention_n_tasks_avx512,
     qb__attention_task_avx512},
    {{"attention/avx2", "cpu", QB_CPU_AVX2},
     qb__attention_scratch_elems_avx2,
     qb__attention_n_tasks_avx2,
     qb__attention_task_avx2},
#endif
    {{"attention/ref", "cpu", 0}, ref_scratch_elems, ref_n_tasks, ref_task},
    {{0}, 0, 0, 0},
};

typedef struct run_context {
    const qb_attention_row *row;
    const qb_attention_args *args;
    size_t n_tasks;
} run_context;

static void run_task(void *context, size_t i, size_t thread_idx)
{
    const run_context *c = context;
    c->row->task(c->args, i, c->n_tasks, thread_idx);
}

void qb_attention_run(const qb_attention_row *row, const qb_attention_args *args, qb_pool *pool)
{
    if (args->batch == 0 || args->n_q == 0) return;
    run_context c = {row, args, row->n_tasks(args, qb_pool_n_threads(pool))};
    qb_parallel_for(pool, c.n_tasks, run_task, &c);
}
