/* infer/cpu_work.c - what parts of a pass on the processor did, for infer/timeline.h: rows of
 * kernels, operations, and the bytes that have to move at least. */
#include "infer/cpu_engine.h"

/* Between requantising, the pass itself and staging a row stays in the cache. */
size_t qb__cpu_row_works(const cpu_pass *pass, const qb_linear *before, const qb_linear *after,
                         qb_work works[QB_ROW_WORKS])
{
    size_t n = 0;
    double elems = (double)(pass->m * (after ? after->k : pass->width));
    bool quantises = after && after->input.bits;
    if (before && before->output.bits)
        works[n++] = (qb_work){.phase = QB_PHASE_REQUANTISE,
                               .layer = pass->layer,
                               .role = -1,
                               .kernel = before->quantize->info.name,
                               .bytes = (double)(pass->m * before->n) * sizeof(float)};
    if (pass->phase != QB_PHASE_QUANTISE)
        works[n++] = (qb_work){.phase = pass->phase,
                               .layer = pass->layer,
                               .role = -1,
                               .kernel = pass->kernel,
                               .bytes = elems * sizeof(float) * (quantises ? 2 : 3)};
    const bool alone = !n; /* reads the row itself; else it is in the cache */
    if (quantises)
        works[n++] = (qb_work){.phase = QB_PHASE_QUANTISE,
                               .layer = pass->layer,
                               .role = -1,
                               .kernel = after->quantize->info.name,
                               .bytes = elems * (alone ? 1 + sizeof(float) : 1)};
    return n;
}

/* Scores and sums of the keys that each query sees; keys and values are read once a sequence. */
qb_work qb__cpu_attention_work(const qb_attention_args *args, const qb_attention_row *row,
                               int layer)
{
    double pairs = 0, head_dim = (double)args->head_dim, batch = (double)args->batch;
    for (size_t i = 0; i < args->n_q; i++) pairs += (double)qb_attention_n_keys(args, i);
    double kv = 2.0 * (double)((args->n_past + args->n_q) * args->n_kv_heads) * head_dim;
    double rows = 2.0 * (double)(args->n_q * args->n_heads) * head_dim;
    return (qb_work){.phase = QB_PHASE_ATTENTION,
                     .layer = layer,
                     .role = -1,
                     .kernel = row->info.name,
                     .rate = QB_RATE_F32,
                     .bytes = batch * (kv + rows) * sizeof(float),
                     .ops = 4.0 * batch * (double)args->n_heads * head_dim * pairs};
}

qb_work qb__cpu_product_work(qb_linear *const *linears, size_t n, size_t m, int layer, int role)
{
    const qb_linear *l = linears[0];
    bool is_s8 = l->kind == QB_LINEAR_S8, is_u4 = l->kind == QB_LINEAR_U4;
    bool in_integers = is_s8 || (is_u4 && l->u4->prepared_bytes(m, l->k));
    qb_work work = {.phase = QB_PHASE_GEMM,
                    .layer = layer,
                    .role = role,
                    .kernel = is_s8   ? l->s8->info.name
                              : is_u4 ? l->u4->info.name
                                      : l->f32->info.name,
                    .rate = in_integers ? QB_RATE_S8 : QB_RATE_F32,
                    .bytes = (double)(m * l->k) * (is_s8 ? 1 : sizeof(float))};
    for (size_t i = 0; i < n; i++) {
        work.ops += 2.0 * (double)m * (double)linears[i]->n * (double)l->k;
        work.bytes +=
            (double)qb_linear_bytes(linears[i]) + (double)(m * linears[i]->n) * sizeof(float);
    }
    return work;
}
