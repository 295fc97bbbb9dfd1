/* bench/cuda/bench_gemm_s8_cuda.c - int8 products on the GPU, bf16 out with scales a row and a
 * column, beside what the chip allows: 1979 TOP/s (its data sheet), and every operand once at the
 * 2967 GB/s that a copy reaches. Cold: the L2 cache is emptied before each call. */
#include "bench/cuda/gemm_s8_operands.h"
#include "bench/shim.h"

#include <stdio.h>
#include <string.h>

#define PEAK_OPS_PER_S 1979e12
#define COPY_BYTES_PER_S 2967e9

typedef struct product_params {
    const qb_cuda_gemm_s8_row *row;
    qb_bench_product shape;
} product_params;

typedef struct product_state {
    const qb_cuda_gemm_s8_row *row;
    qb_bench_operands operands;
    qb_cuda_gemm_s8_args args;
} product_state;

static void product_teardown(void *state)
{
    product_state *s = state;
    qb_bench_operands_free(&s->operands);
}

static void product_run(void *state)
{
    product_state *s = state;
    s->row->run(&s->args, NULL);
}

static qb_status product_setup(void *state, const void *params, qb_pool *pool)
{
    product_params p;
    product_state *s = state;
    (void)pool;
    memcpy(&p, params, sizeof p);
    const qb_bench_product *d = &p.shape;
    s->row = p.row;
    QB_TRY(qb_bench_operands_make(&s->operands, d->m, d->n, d->k, false));
    s->args = qb_bench_operands_args(&s->operands, d->m, d->n, d->k, QB_BENCH_BF16);
    const char *why = s->row->refuse(&s->args);
    if (why) return QB_FAIL(QB_ERR_SHAPE, "%s: %s", s->row->info.name, why);
    QB_TRY(s->row->run(&s->args, NULL));
    return qb_cuda_sync(NULL);
}

static void add(const qb_cuda_gemm_s8_row *row, const qb_bench_product *d, bool cold)
{
    const product_params params = {row, *d};
    const double ops = 2.0 * (double)d->m * (double)d->n * (double)d->k,
                 bytes = qb_bench_gemm_s8_bytes(d->m, d->n, d->k, QB_BENCH_BF16),
                 by_ops = ops / PEAK_OPS_PER_S, by_bytes = bytes / COPY_BYTES_PER_S;
    qb_bench_case c = {.n_threads = 1,
                       .state_bytes = sizeof(product_state),
                       .setup = product_setup,
                       .run = product_run,
                       .teardown = product_teardown,
                       .ops_per_iter = ops,
                       .bytes_per_iter = bytes,
                       .floor_s = by_ops > by_bytes ? by_ops : by_bytes,
                       .on_gpu = true,
                       .cold = cold};
    snprintf(c.name, sizeof c.name, "%s/cuda/M:%zu/N:%zu/K:%zu/%s", row->info.name, d->m, d->n,
             d->k, cold ? "cold" : "warm");
    memcpy(c.params, &params, sizeof params);
    qb_bench_add(&c);
}

void qb_bench_gemm_s8_cuda(void)
{
    if (qb_cuda_refusal(0) || qb_cuda_use(0) != QB_OK) return;
    for (const qb_cuda_gemm_s8_row *row = qb_cuda_gemm_s8_kernels; row->info.name; row++)
        for (const qb_bench_product *d = qb_bench_products; d->m; d++)
            for (int cold = 0; cold < 2; cold++)
                if (!qb_kernel_refusal(&row->info)) add(row, d, cold);
}
