/* bench/cuda/bench_gemm_u4_cuda.c - bf16 activations with 4-bit weights (scales by output channel)
 * on the GPU. Up to 16 tokens: cold, since there the weights come from memory. */
#include "bench/products.h"

#include "core/cuda.h"
#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"
#include "kernels/cuda/gemm_u4.h"

#include <math.h>
#include <string.h>

static const struct {
    size_t n, k;
} layers[] = {
    {6144, 2048}, {2048, 2048}, {8192, 2048}, {2048, 8192}, /* gpt2-1.4b: qkv, out, up, down */
    {2304, 768},  {768, 768},   {3072, 768},  {768, 3072},  /* gpt2-124m */
};
static const size_t token_counts[] = {1, 8, 16, 64, 512, 2048, 16384};
enum { COLD_TOKENS = 16, CHECKED_CHANNELS = 40, ROWS = 8 };

typedef struct product_params {
    const qb_cuda_gemm_u4_row *row;
    size_t m, n, k;
} product_params;

typedef struct product_state {
    product_params params;
    uint8_t *codes;
    float *scales, *numbers;
    int32_t *zero_points;
    uint16_t *x; /* (ROWS, k): the tokens repeat these */
    qb_cuda_u4 w;
    void *x_dev, *y_dev;
    qb_cuda_gemm_u4_args args;
    qb_status status; /* of the last run */
} product_state;

static void product_run(void *state)
{
    product_state *s = state;
    s->status = s->params.row->run(&s->args, NULL);
}

static void product_teardown(void *state)
{
    product_state *s = state;
    void *host[] = {s->codes, s->scales, s->numbers, s->zero_points, s->x};
    for (size_t i = 0; i < QB_COUNT(host); i++) qb_free(host[i]);
    qb_cuda_u4_free(&s->w);
    qb_cuda_free(s->x_dev);
    qb_cuda_free(s->y_dev);
}

static qb_status make_weights(product_state *s)
{
    const product_params *p = &s->params;
    const size_t code_bytes = p->n * ((p->k + 1) / 2);
    const char *why;
    QB_TRY(QB_NEW(&s->codes, code_bytes, "codes"));
    QB_TRY(QB_NEW(&s->scales, p->n, "scales"));
    QB_TRY(QB_NEW(&s->zero_points, p->n, "zero points"));
    for (size_t i = 0; i < p->n; i++) {
        s->scales[i] = 0.01f + 0.001f * (float)(i % 13);
        s->zero_points[i] = (int32_t)(i % 16);
    }
    for (size_t i = 0; i < code_bytes; i++)
        s->codes[i] = (uint8_t)(qb_rng_u32(2, QB_STREAM_TEST, i / 997) + i * 31);
    const qb_u4_weights w = {.n = p->n,
                             .k = p->k,
                             .codes = s->codes,
                             .n_step = 1,
                             .k_group = 1,
                             .scale = s->scales,
                             .zero_point = s->zero_points};
    QB_TRY(qb_cuda_u4_pack(&w, &s->w, &why));
    return why ? QB_FAIL(QB_ERR_UNSUPPORTED, "%s: %s", p->row->info.name, why) : QB_OK;
}

static qb_status make_activations(product_state *s)
{
    const product_params *p = &s->params;
    const size_t stride = qb_cuda_stride(p->k), rows = p->m + QB_CUDA_ROW_PAD;
    QB_TRY(QB_NEW(&s->numbers, ROWS * p->k, "numbers"));
    QB_TRY(QB_NEW_ZERO(&s->x, ROWS * stride, "x"));
    qb_rng_normal_f32(1, QB_STREAM_TEST, 0, ROWS * p->k, 1.0f, s->numbers);
    for (size_t i = 0; i < ROWS * p->k; i++)
        s->x[i / p->k * stride + i % p->k] = qb_bf16_from_f32(s->numbers[i]);
    QB_TRY(qb_cuda_alloc(&s->x_dev, rows * stride, 2, "x"));
    QB_TRY(qb_cuda_alloc(&s->y_dev, rows * qb_cuda_stride(p->n), 4, "y"));
    for (size_t m = 0; m < p->m; m += ROWS)
        QB_TRY(qb_cuda_upload((char *)s->x_dev + m * stride * 2, s->x, ROWS * stride * 2, NULL));
    s->args = (qb_cuda_gemm_u4_args){.m = p->m,
                                     .x = s->x_dev,
                                     .x_stride = stride,
                                     .w = &s->w,
                                     .out = QB_CUDA_BF16,
                                     .y = s->y_dev,
                                     .y_stride = qb_cuda_stride(p->n)};
    return QB_OK;
}

/* The last token's first channels against a plain loop; the tests have a sharper bound. */
static qb_status check(product_state *s)
{
    const product_params *p = &s->params;
    uint16_t y[CHECKED_CHANNELS];
    const uint16_t *x = s->x + (p->m - 1) % ROWS * s->args.x_stride;
    product_run(s);
    QB_TRY(s->status);
    QB_TRY(
        qb_cuda_download(y, (uint16_t *)s->y_dev + (p->m - 1) * s->args.y_stride, sizeof y, NULL));
    QB_TRY(qb_cuda_sync(NULL));
    for (size_t n = 0; n < CHECKED_CHANNELS; n++) {
        double want = 0.0, passed = 0.0;
        for (size_t k = 0; k < p->k; k++) {
            uint8_t byte = s->codes[n * ((p->k + 1) / 2) + k / 2];
            int code = (k % 2 ? byte >> 4 : byte & 15) - s->zero_points[n];
            double term = (double)qb_f32_from_bf16(x[k]) * code * (double)s->scales[n];
            want += term;
            passed += fabs(term);
        }
        if (!(fabs((double)qb_f32_from_bf16(y[n]) - want) <= 0x1p-8 * fabs(want) + 1e-4 * passed))
            return QB_FAIL(QB_ERR_DEVICE, "%s: wrong result at channel %zu", p->row->info.name, n);
    }
    return QB_OK;
}

static qb_status product_setup(void *state, const void *params, qb_pool *pool)
{
    product_state *s = state;
    (void)pool;
    memcpy(&s->params, params, sizeof s->params);
    QB_TRY(make_weights(s));
    QB_TRY(make_activations(s));
    const char *why = s->params.row->refuse(&s->args);
    if (why) return QB_FAIL(QB_ERR_UNSUPPORTED, "%s: %s", s->params.row->info.name, why);
    return check(s);
}

static void add_case(const product_params *p)
{
    const double m = (double)p->m, n = (double)p->n, k = (double)p->k;
    qb_bench_case c = {.n_threads = 1,
                       .state_bytes = sizeof(product_state),
                       .setup = product_setup,
                       .run = product_run,
                       .teardown = product_teardown,
                       .bytes_per_iter = 0.5 * n * k + 2.0 * m * k + 2.0 * m * n,
                       .on_gpu = true,
                       .cold = p->m <= COLD_TOKENS};
    memcpy(c.params, p, sizeof *p);
    qb_bench_add_product(c, p->row->info.name, p->m, p->n, p->k, c.cold);
}

void qb_bench_gemm_u4_cuda(void)
{
    for (const qb_cuda_gemm_u4_row *row = qb_cuda_gemm_u4_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (size_t i = 0; i < QB_COUNT(layers); i++)
            for (size_t j = 0; j < QB_COUNT(token_counts); j++)
                add_case(&(product_params){row, token_counts[j], layers[i].n, layers[i].k});
    }
}
