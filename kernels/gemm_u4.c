/* kernels/gemm_u4.c - the reference of gemm_u4.h, the table, and several products as one loop. */
#include "kernels/gemm_u4_internal.h"
#include "kernels/jobs.h"

#include <string.h>

/* Packed as it comes: the shape, the slices, the codes row by row. Slices that all rows share are
 * written by the call that packs row 0, the others with their rows, so that ranges can be packed
 * side by side. */
typedef struct packed_ref {
    size_t n_step, k_group, k_step, n_slices;
    qb__u4_slice slices[]; /* then the codes, (n, ceil(k / 2)) */
} packed_ref;

static size_t n_slices_of(const qb_u4_weights *w)
{
    return qb__u4_slice_idx(w, w->n - 1, w->k - 1) + 1;
}

static uint8_t *codes_of(const packed_ref *p, size_t n_slices)
{
    return (uint8_t *)(p->slices + n_slices);
}

static size_t packed_bytes_ref(const qb_u4_weights *w)
{
    return sizeof(packed_ref) + n_slices_of(w) * sizeof(qb__u4_slice) + w->n * ((w->k + 1) / 2);
}

static const char *pack_ref(const qb_u4_weights *w, size_t n0, size_t n1, void *packed)
{
    packed_ref *p = packed;
    const size_t row_bytes = (w->k + 1) / 2;
    if (n0 == 0) {
        p->n_step = w->n_step;
        p->k_group = w->k_group;
        p->k_step = w->k_step;
        p->n_slices = n_slices_of(w);
    }
    const size_t n_end = w->n_step ? n1 : n0 == 0; /* of the rows whose slices are written here */
    for (size_t n = n0; n < n_end; n++)
        for (size_t k = 0; k < w->k; k += w->k_step ? w->k_group : w->k)
            p->slices[qb__u4_slice_idx(w, n, k)] = qb__u4_slice_at(w, n, k);
    memcpy(codes_of(p, n_slices_of(w)) + n0 * row_bytes, w->codes + n0 * row_bytes,
           (n1 - n0) * row_bytes);
    return NULL;
}

/* Of rows that read x itself. */
static size_t unprepared_bytes(size_t m, size_t k)
{
    (void)m, (void)k;
    return 0;
}

static void no_prepare(const float *x, size_t x_stride, size_t m0, size_t m1, size_t m, size_t k,
                       const void *packed, void *prepared)
{
    (void)x, (void)x_stride, (void)m0, (void)m1, (void)m, (void)k, (void)packed, (void)prepared;
}

static size_t n_tasks_ref(const qb_gemm_u4_args *a, size_t n_threads)
{
    size_t most = 4 * n_threads;
    return a->n < most ? a->n : most;
}

/* Equation (1) of gemm_u4.h. */
static double weight_at(const packed_ref *p, size_t n, size_t k, size_t n_k)
{
    const qb__u4_slice *s = &p->slices[n * p->n_step + k / p->k_group * p->k_step];
    int code = qb__u4_code(codes_of(p, p->n_slices) + n * ((n_k + 1) / 2), k);
    return (double)(code - (int64_t)s->zero_point) * (double)s->scale;
}

static void task_ref(const qb_gemm_u4_args *a, size_t i, size_t n_tasks)
{
    for (size_t n = a->n * i / n_tasks; n < a->n * (i + 1) / n_tasks; n++)
        for (size_t m = 0; m < a->m; m++) {
            double y = 0.0; /* (2) */
            for (size_t k = 0; k < a->k; k++)
                y += (double)a->x[m * a->x_stride + k] * weight_at(a->w, n, k, a->k);
            a->y[m * a->y_stride + n] = (float)(a->bias ? y + (double)a->bias[n] : y);
        }
}

const qb_gemm_u4_row qb_gemm_u4_kernels[] = {
#ifdef QB_WITH_X86
    {{"gemm_u4/avx512vnni", "cpu", QB_CPU_AVX2 | QB_CPU_AVX512 | QB_CPU_AVX512VNNI},
     qb__gemm_u4_packed_bytes_avx512vnni,
     qb__gemm_u4_pack_avx512vnni,
     32,
     qb__gemm_u4_prepared_bytes_avx512vnni,
     qb__gemm_u4_prepare_avx512vnni,
     qb__gemm_u4_n_tasks_avx512vnni,
     qb__gemm_u4_task_avx512vnni},
    {{"gemm_u4/avx512", "cpu", QB_CPU_AVX2 | QB_CPU_AVX512},
     qb__gemm_u4_packed_bytes_avx512,
     qb__gemm_u4_pack_avx512,
     32,
     unprepared_bytes,
     no_prepare,
     qb__gemm_u4_n_tasks_avx512,
     qb__gemm_u4_task_avx512},
    {{"gemm_u4/avx2", "cpu", QB_CPU_AVX2},
     qb__gemm_u4_packed_bytes_avx2,
     qb__gemm_u4_pack_avx2,
     32,
     unprepared_bytes,
     no_prepare,
     qb__gemm_u4_n_tasks_avx2,
     qb__gemm_u4_task_avx2},
#endif
    {{"gemm_u4/ref", "cpu", 0},
     packed_bytes_ref,
     pack_ref,
     1,
     unprepared_bytes,
     no_prepare,
     n_tasks_ref,
     task_ref},
    {.info = {0}},
};

typedef struct product {
    const qb_gemm_u4_row *row;
    const qb_gemm_u4_args *jobs;
} product;

static void run_task(const void *context, size_t job, size_t i, size_t n_tasks)
{
    const product *p = context;
    p->row->task(&p->jobs[job], i, n_tasks);
}

void qb_gemm_u4_run(const qb_gemm_u4_row *row, const qb_gemm_u4_args *jobs, size_t n_jobs,
                    qb_pool *pool)
{
    const product p = {row, jobs};
    qb_jobs loop = {.n_jobs = n_jobs, .task = run_task, .context = &p};
    for (size_t j = 0; j < n_jobs; j++)
        loop.n_tasks[j] = row->n_tasks(&jobs[j], qb_pool_n_threads(pool));
    qb_jobs_run(&loop, pool);
}
