/* bench/bench_quantize.c - the absmax and quantise passes over the activations of a prompt. Warm.
 */
#include "bench/shim.h"

#include "core/rng.h"
#include "kernels/quantize.h"

#include <stdio.h>
#include <string.h>

enum { M = 512, K = 576 };

typedef enum { ABSMAX, QUANTIZE, QUANTIZE_CHANNELS, REQUANTIZE, N_PASSES } pass;
static const char *const pass_names[N_PASSES] = {"absmax", "quantize_s8", "quantize_s8_channels",
                                                 "requantize"};

typedef struct pass_params {
    const qb_quantize_row *row;
    pass pass;
} pass_params;

typedef struct pass_state {
    pass_params params;
    float x[M * K], scale[K];
    int8_t q[M * K];
    volatile float sink;
} pass_state;

static void pass_run(void *state)
{
    pass_state *s = state;
    const qb_quantize_row *row = s->params.row;
    for (size_t m = 0; m < M; m++) {
        float *x = s->x + m * K;
        int8_t *q = s->q + m * K;
        switch (s->params.pass) {
        case ABSMAX:
            s->sink = row->absmax(x, K);
            break;
        case QUANTIZE:
            row->quantize_s8(x, K, s->scale[0], q);
            break;
        case QUANTIZE_CHANNELS:
            row->quantize_s8_channels(x, K, s->scale, q);
            break;
        default:
            row->requantize(x, K, s->scale[0], NULL);
        }
    }
}

static qb_status pass_setup(void *state, const void *params, qb_pool *pool)
{
    pass_state *s = state;
    (void)pool;
    memcpy(&s->params, params, sizeof s->params);
    qb_rng_normal_f32(1, QB_STREAM_TEST, 0, M * K, 1.0f, s->x);
    for (size_t k = 0; k < K; k++) s->scale[k] = 4.0f / 127.0f;
    return QB_OK;
}

void qb_bench_quantize(void)
{
    for (const qb_quantize_row *row = qb_quantize_kernels; row->info.name; row++)
        for (int p = 0; p < N_PASSES; p++) {
            if (qb_kernel_refusal(&row->info)) continue;
            const pass_params params = {row, (pass)p};
            qb_bench_case c = {.n_threads = 1,
                               .state_bytes = sizeof(pass_state),
                               .setup = pass_setup,
                               .run = pass_run,
                               .bytes_per_iter = 4.0 * M * K};
            snprintf(c.name, sizeof c.name, "%s/%s/M:%d/K:%d", row->info.name, pass_names[p], M, K);
            memcpy(c.params, &params, sizeof params);
            qb_bench_add(&c);
        }
}
