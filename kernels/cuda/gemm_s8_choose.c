/* kernels/cuda/gemm_s8_choose.c - which variant of gemm_s8/sm90 a product takes: the one that was
 * the fastest on the nearest of the measured shapes (gemm_s8_tuned.inc). */
#include "kernels/cuda/gemm_s8_internal.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

typedef enum { OUT_BF16, OUT_S8, OUT_F32, OUT_RESIDUAL } output_class;

typedef struct tuned {
    size_t m, n, k;
    int output; /* output_class */
    const char *variant;
    int raster;
} tuned;

static const tuned table[] = {
#include "kernels/cuda/gemm_s8_tuned.inc"
};
enum { N_TUNED = sizeof table / sizeof table[0] };

static struct {
    pthread_once_t once;
    const qb__gemm_s8_variant *variant[N_TUNED];
    float log_m[N_TUNED], log_n[N_TUNED], log_k[N_TUNED];
} prepared = {.once = PTHREAD_ONCE_INIT};

static qb__gemm_s8_plan forced;

void qb__gemm_s8_force(qb__gemm_s8_plan plan)
{
    forced = plan;
}

/* A name that is not compiled any more leaves its entry out. */
static const qb__gemm_s8_variant *find_variant(const char *name)
{
    const qb__gemm_s8_variant *v;
    for (size_t i = 0; (v = qb__gemm_s8_variant_at(i)); i++)
        if (!strcmp(v->name, name)) return v;
    return NULL;
}

static void prepare(void)
{
    for (size_t i = 0; i < N_TUNED; i++) {
        prepared.variant[i] = find_variant(table[i].variant);
        prepared.log_m[i] = log2f((float)table[i].m);
        prepared.log_n[i] = log2f((float)table[i].n);
        prepared.log_k[i] = log2f((float)table[i].k);
    }
}

static output_class class_of(const qb_cuda_gemm_s8_args *a)
{
    if (a->residual) return OUT_RESIDUAL;
    return a->out == QB_CUDA_BF16 ? OUT_BF16 : a->out == QB_CUDA_S8 ? OUT_S8 : OUT_F32;
}

/* Octaves apart; another kind of output counts as half of one. */
static qb__gemm_s8_plan nearest(const qb_cuda_gemm_s8_args *a)
{
    const float m = log2f((float)a->m), n = log2f((float)a->n), k = log2f((float)a->k);
    const size_t n_blocks_k = (a->k + 127) / 128;
    float best = INFINITY;
    qb__gemm_s8_plan plan = {qb__gemm_s8_variant_at(0), 8};
    for (size_t i = 0; i < N_TUNED; i++) {
        const qb__gemm_s8_variant *v = prepared.variant[i];
        if (!v || (size_t)v->split > n_blocks_k) continue;
        const float distance = fabsf(prepared.log_m[i] - m) + fabsf(prepared.log_n[i] - n) +
                               fabsf(prepared.log_k[i] - k) +
                               (table[i].output == (int)class_of(a) ? 0.0f : 0.5f);
        if (distance >= best) continue;
        best = distance;
        plan = (qb__gemm_s8_plan){v, table[i].raster};
    }
    return plan;
}

qb__gemm_s8_plan qb__gemm_s8_choose(const qb_cuda_gemm_s8_args *a)
{
    enum { N_RECENT = 64 };
    static _Thread_local struct {
        size_t m, n, k;
        output_class output;
        qb__gemm_s8_plan plan;
    } recent[N_RECENT];
    if (forced.variant) return forced;
    pthread_once(&prepared.once, prepare);
    const output_class output = class_of(a);
    const size_t slot = (a->m + 7 * a->n + 31 * a->k + 5 * (size_t)output) % N_RECENT;
    if (!recent[slot].plan.variant || recent[slot].m != a->m || recent[slot].n != a->n ||
        recent[slot].k != a->k || recent[slot].output != output) {
        recent[slot].m = a->m;
        recent[slot].n = a->n;
        recent[slot].k = a->k;
        recent[slot].output = output;
        recent[slot].plan = nearest(a);
    }
    return recent[slot].plan;
}
