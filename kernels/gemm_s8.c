/* kernels/gemm_s8.c - the reference of gemm_s8.h, the table, and several products as one loop. */
#include "kernels/gemm_s8_internal.h"
#include "kernels/jobs.h"

#include <string.h>

/* Packed as it comes: (n, k) row-major. */
static size_t packed_bytes_ref(size_t n, size_t k)
{
    return n * k;
}

static void pack_ref(const int8_t *w_rows, size_t n0, size_t n1, size_t n, size_t k, void *packed)
{
    (void)n;
    memcpy((int8_t *)packed + n0 * k, w_rows, (n1 - n0) * k);
}

static size_t n_tasks_ref(const qb_gemm_s8_args *a, size_t n_threads)
{
    size_t most = 4 * n_threads;
    return a->n < most ? a->n : most;
}

/* Unsigned, since a partial sum may pass 2^31 on its way to a total that does not. */
static int32_t dot_s8(const int8_t *x, const int8_t *w, size_t k)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < k; i++) sum += (uint32_t)(x[i] * w[i]);
    return (int32_t)sum;
}

static void task_ref(const qb_gemm_s8_args *a, size_t i, size_t n_tasks)
{
    const int8_t *w = a->w;
    float max_abs = 0.0f;
    for (size_t m = 0; m < a->m; m++)
        for (size_t n = a->n * i / n_tasks; n < a->n * (i + 1) / n_tasks; n++) {
            int32_t acc = dot_s8(a->x + m * a->x_stride, w + n * a->k, a->k); /* (1) */
            if (a->acc) a->acc[m * a->n + n] = acc;
            if (!a->y) continue;
            float y = qb__gemm_s8_value(a, m, n, acc); /* (2) */
            a->y[m * a->y_stride + n] = y;
            if (fabsf(y) > max_abs) max_abs = fabsf(y);
        }
    if (a->max_abs_bits) qb__raise_max_abs(a->max_abs_bits, max_abs);
}

const qb_gemm_s8_row qb_gemm_s8_kernels[] = {
#ifdef QB_WITH_X86
    {{"gemm_s8/avx512vnni", "cpu", QB_CPU_AVX2 | QB_CPU_AVX512 | QB_CPU_AVX512VNNI},
     qb__gemm_s8_packed_bytes_avx512vnni,
     qb__gemm_s8_pack_avx512vnni,
     32,
     qb__gemm_s8_n_tasks_avx512vnni,
     qb__gemm_s8_task_avx512vnni},
    {{"gemm_s8/avx2", "cpu", QB_CPU_AVX2},
     qb__gemm_s8_packed_bytes_avx2,
     qb__gemm_s8_pack_avx2,
     16,
     qb__gemm_s8_n_tasks_avx2,
     qb__gemm_s8_task_avx2},
#endif
    {{"gemm_s8/ref", "cpu", 0}, packed_bytes_ref, pack_ref, 1, n_tasks_ref, task_ref},
    {.info = {0}},
};

typedef struct product {
    const qb_gemm_s8_row *row;
    const qb_gemm_s8_args *jobs;
} product;

static void run_task(const void *context, size_t job, size_t i, size_t n_tasks)
{
    const product *p = context;
    p->row->task(&p->jobs[job], i, n_tasks);
}

void qb_gemm_s8_run(const qb_gemm_s8_row *row, const qb_gemm_s8_args *jobs, size_t n_jobs,
                    qb_pool *pool)
{
    const product p = {row, jobs};
    qb_jobs loop = {.n_jobs = n_jobs, .task = run_task, .context = &p};
    for (size_t j = 0; j < n_jobs; j++)
        loop.n_tasks[j] = row->n_tasks(&jobs[j], qb_pool_n_threads(pool));
    qb_jobs_run(&loop, pool);
}
