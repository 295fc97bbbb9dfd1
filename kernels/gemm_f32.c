/* kernels/gemm_f32.c - the reference of gemm_f32.h in plain C, its table, and the parallel loop. */
#include "kernels/gemm_f32.h"

#include "kernels/max_abs_internal.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static size_t ref_packed_bytes(size_t n, size_t k)
{
    return n * k * sizeof(float);
}

static void ref_pack(const float *w_rows, size_t n0, size_t n1, size_t n, size_t k, void *packed)
{
    (void)n;
    memcpy((float *)packed + n0 * k, w_rows, (n1 - n0) * k * sizeof(float));
}

static size_t ref_n_tasks(const qb_gemm_f32_args *args, size_t n_threads)
{
    size_t n_tasks = 4 * n_threads;
    return n_tasks < args->n ? n_tasks : args->n;
}

static double dot(const float *x, const float *w, size_t k)
{
    double sum = 0;
    for (size_t i = 0; i < k; i++) sum += (double)x[i] * w[i];
    return sum;
}

static void ref_task(const qb_gemm_f32_args *a, size_t i, size_t n_tasks)
{
    size_t n0 = a->n * i / n_tasks, n1 = a->n * (i + 1) / n_tasks;
    const float *w = a->w;
    float max_abs = 0;
    for (size_t m = 0; m < a->m; m++)
        for (size_t n = n0; n < n1; n++) {
            double sum = dot(a->x + m * a->x_stride, w + n * a->k, a->k);
            float y = (float)(a->bias ? sum + a->bias[n] : sum);
            a->y[m * a->y_stride + n] = y;
            if (fabsf(y) > max_abs) max_abs = fabsf(y);
        }
    if (a->max_abs_bits) qb__raise_max_abs(a->max_abs_bits, max_abs);
}

const qb_gemm_f32_row qb_gemm_f32_kernels[] = {
    {{"gemm_f32/ref", "cpu", 0}, ref_packed_bytes, ref_pack, 1, ref_n_tasks, ref_task},
    {{0}, 0, 0, 0, 0, 0},
};

enum { MAX_JOBS = 16 };

typedef struct run_context {
    const qb_gemm_f32_row *row;
    const qb_gemm_f32_args *jobs;
    size_t n_tasks[MAX_JOBS];
} run_context;

static void run_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const run_context *c = context;
    size_t job = 0;
    for (; i >= c->n_tasks[job]; job++) i -= c->n_tasks[job];
    c->row->task(&c->jobs[job], i, c->n_tasks[job]);
}

void qb_gemm_f32_run(const qb_gemm_f32_row *row, const qb_gemm_f32_args *jobs, size_t n_jobs,
                     qb_pool *pool)
{
    for (; n_jobs > 0;) {
        run_context c = {.row = row, .jobs = jobs};
        size_t now = n_jobs < MAX_JOBS ? n_jobs : MAX_JOBS, total = 0;
        for (size_t j = 0; j < now; j++) {
            bool empty = jobs[j].m == 0 || jobs[j].n == 0;
            c.n_tasks[j] = empty ? 0 : row->n_tasks(&jobs[j], qb_pool_n_threads(pool));
            total += c.n_tasks[j];
        }
        qb_parallel_for(pool, total, run_task, &c);
        jobs += now;
        n_jobs -= now;
    }
}
