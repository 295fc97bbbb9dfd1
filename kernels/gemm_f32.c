/* kernels/gemm_f32.c - the reference of gemm_f32.h in plain C, its table, and the parallel loop. */
#include "kernels/gemm_f32.h"

#include "kernels/gemm_f32_internal.h"
#include "kernels/jobs.h"
#include "kernels/max_abs_internal.h"

#include <math.h>
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

static void ref_pack_transposed(const float *w, size_t stride, size_t n0, size_t n1, size_t n,
                                size_t k, void *packed)
{
    (void)n;
    for (size_t i = 0; i < k; i++)
        for (size_t c = n0; c < n1; c++) ((float *)packed)[c * k + i] = w[i * stride + c - n0];
}

static size_t ref_n_tasks(const qb_gemm_f32_args *args, size_t n_threads)
{
    size_t n_tasks = 4 * n_threads;
    return n_tasks < args->n ? n_tasks : args->n;
}

static double dot(const float *x, size_t x_step, const float *w, size_t k)
{
    double sum = 0;
    for (size_t i = 0; i < k; i++) sum += (double)x[i * x_step] * w[i];
    return sum;
}

static void ref_task(const qb_gemm_f32_args *a, size_t i, size_t n_tasks)
{
    size_t n0 = a->n * i / n_tasks, n1 = a->n * (i + 1) / n_tasks;
    const float *w = a->w;
    float max_abs = 0;
    for (size_t m = 0; m < a->m; m++)
        for (size_t n = n0; n < n1; n++) {
            const float *x = a->x + m * (a->x_transposed ? 1 : a->x_stride);
            double sum = dot(x, a->x_transposed ? a->x_stride : 1, w + n * a->k, a->k);
            float *at = a->y + m * a->y_stride + n;
            float y = (float)((a->bias ? sum + a->bias[n] : sum) + (a->accumulate ? *at : 0));
            *at = y;
            if (fabsf(y) > max_abs) max_abs = fabsf(y);
        }
    if (a->max_abs_bits) qb__raise_max_abs(a->max_abs_bits, max_abs);
}

const qb_gemm_f32_row qb_gemm_f32_kernels[] = {
#ifdef QB_WITH_X86
    {{"gemm_f32/avx512", "cpu", QB_CPU_AVX512},
     qb__gemm_f32_packed_bytes_avx512,
     qb__gemm_f32_pack_avx512,
     qb__gemm_f32_pack_transposed_avx512,
     32,
     qb__gemm_f32_n_tasks_avx512,
     qb__gemm_f32_task_avx512},
    {{"gemm_f32/avx2", "cpu", QB_CPU_AVX2},
     qb__gemm_f32_packed_bytes_avx2,
     qb__gemm_f32_pack_avx2,
     qb__gemm_f32_pack_transposed_avx2,
     16,
     qb__gemm_f32_n_tasks_avx2,
     qb__gemm_f32_task_avx2},
#endif
    {{"gemm_f32/ref", "cpu", 0},
     ref_packed_bytes,
     ref_pack,
     ref_pack_transposed,
     1,
     ref_n_tasks,
     ref_task},
    {{0}, 0, 0, 0, 0, 0, 0},
};

typedef struct run_context {
    const qb_gemm_f32_row *row;
    const qb_gemm_f32_args *args;
} run_context;

static void run_task(const void *context, size_t job, size_t i, size_t n_tasks)
{
    const run_context *c = context;
    c->row->task(&c->args[job], i, n_tasks);
}

void qb_gemm_f32_run(const qb_gemm_f32_row *row, const qb_gemm_f32_args *jobs, size_t n_jobs,
                     qb_pool *pool)
{
    while (n_jobs > 0) {
        size_t n_now = n_jobs < QB_MAX_JOBS ? n_jobs : QB_MAX_JOBS;
        run_context context = {row, jobs};
        qb_jobs loop = {.n_jobs = n_now, .task = run_task, .context = &context};
        for (size_t j = 0; j < n_now; j++)
            if (jobs[j].m && jobs[j].n)
                loop.n_tasks[j] = row->n_tasks(&jobs[j], qb_pool_n_threads(pool));
        qb_jobs_run(&loop, pool);
        jobs += n_now;
        n_jobs -= n_now;
    }
}
