/* tests/cuda/test_cuda_decode_plan.c - how the decode chain cuts its work and its shared memory:
 * host arithmetic, tested without a GPU. */
#include "support.h"

#include "kernels/cuda/decode_chain.h"

#include <string.h>

static qb_cuda_linear make_linear(qb_cuda_linear_kind kind, size_t n, size_t k, size_t group)
{
    qb_cuda_linear l = {.kind = kind, .n = n, .k = k, .type = QB_CUDA_BF16};
    l.w_stride = qb_cuda_stride(k);
    l.input = kind == QB_CUDA_LINEAR_S8 ? QB_STAGE_TOKEN : QB_STAGE_FLOAT;
    l.segments = (qb_cuda_segments){1, {(int)n, 0, 0}};
    l.u4.k_pad = qb_cuda_stride(k), l.u4.n_pad = (n + 63) / 64 * 64;
    l.u4.group = group ? group : l.u4.k_pad, l.u4.n_groups = l.u4.k_pad / l.u4.group;
    return l;
}

typedef struct model {
    qb_cuda_decode_layer layer;
    qb_cuda_decode_model m;
} model;

static void make_model(model *x, qb_cuda_linear_kind kind, size_t d, size_t ff, size_t group)
{
    memset(x, 0, sizeof *x);
    x->layer.qkv = make_linear(kind, 3 * d, d, group);
    x->layer.o = make_linear(kind, d, d, group);
    x->layer.up = make_linear(kind, ff, d, group);
    x->layer.down = make_linear(kind, d, ff, group);
    x->m = (qb_cuda_decode_model){.n_layers = 1, .d_model = d, .d_ff = ff, .vocab = 50304};
    x->m.n_heads = x->m.n_kv_heads = d / 64, x->m.head_dim = 64;
    x->m.layers = &x->layer;
    x->m.head = make_linear(QB_CUDA_LINEAR_FLOAT, 50304, d, 0);
}

enum { SMEM_BYTES = 227 << 10 }; /* of a block of compute capability 9.0 */

/* The chunks cover what is streamed; blocks cover the tiles; the parts of shared memory follow each
 * other without overlap. */
static void check_cut(const qb__chain_product *p, uint32_t n_sms)
{
    const qb__chain_linear *l = &p->l;
    const bool u4 = l->kind == QB_CUDA_LINEAR_U4;
    const uint32_t streamed = u4 ? l->tile_bytes : l->x_bytes;
    assert_true((l->n_chunks - 1) * l->chunk_bytes < streamed);
    assert_true(l->n_chunks * l->chunk_bytes >= streamed);
    assert_true(l->chunk_bytes % (u4 ? 512 : 64) == 0);
    assert_true(l->n_tiles * 16 >= l->n && l->n_tiles * 16 < l->n + 16);
    assert_true((u4 ? l->chunk_bytes : 15 * p->pitch + l->chunk_bytes) <= p->slot_bytes);
    assert_true(p->n_blocks % p->n_ranks == 0);
    const uint32_t units = l->n_tiles >> l->paired, blocks = p->n_blocks / p->n_ranks;
    const uint32_t most = ((units + blocks - 1) / blocks) << l->paired;
    assert_true(blocks <= units && (blocks <= n_sms || (blocks - 1) * 128 < l->n_tiles));
    assert_int_equal(p->n_ranks * p->rank_chunks, l->n_chunks);
    if (p->n_ranks > 1)
        assert_true((most + p->n_ranks - 1) / p->n_ranks * 16 <= QB__CHAIN_OWN_ROWS);
    /* whose input the kernel keeps in registers: a tile is one chunk of 32 windows at most */
    const uint32_t kept = l->kind == QB_CUDA_LINEAR_FLOAT ? 1024 : 2048;
    if ((!l->group && l->k / p->n_ranks <= kept) || p->whole) {
        assert_int_equal(p->rank_chunks, 1);
        assert_true(l->chunk_bytes <= 32 * (u4 ? 512 : 64));
    }
    if (p->whole) assert_true(p->n_slots == most && l->k / p->n_ranks <= (u4 ? 2048 : 1024));
    const uint32_t x_bytes = p->n_ranks == 1 ? l->x_bytes : p->rank_chunks * l->x_chunk;
    assert_true(p->sums_off >= QB__CHAIN_HEADER_BYTES + x_bytes);
    assert_true(p->ranks_off >= p->sums_off + most * 16 * QB__CHAIN_WARPS * 4);
    assert_true(p->n_ranks == 1 ||
                p->ring_off >= p->ranks_off + p->n_ranks * QB__CHAIN_OWN_ROWS * 4);
    assert_true(p->ring_off >= p->ranks_off && p->ring_off % 128 == 0);
    assert_true(p->n_slots >= 1 && p->n_slots <= QB__CHAIN_MAX_SLOTS);
    assert_int_equal(p->smem_bytes, p->ring_off + p->n_slots * p->slot_bytes);
    assert_true(p->smem_bytes <= SMEM_BYTES);
}

static void check_model(const model *x, uint32_t n_sms)
{
    const qb_cuda_linear *all[] = {&x->layer.qkv, &x->layer.o, &x->layer.up, &x->layer.down,
                                   &x->m.head};
    uint32_t maxima = 0, max = 0;
    assert_null(qb__chain_refuse(&x->m));
    for (size_t j = 0; j < QB_COUNT(all); j++)
        for (int down = 0; down < 2; down++) { /* as what stands before it is done with or not */
            qb__chain_product p = {.plain = 1, .source = QB__CHAIN_NORM, .in_max = &max};
            if (down) p.source = QB__CHAIN_ACT;
            qb__chain_flatten(all[j], &maxima, &p.l);
            qb__chain_cut(&p, n_sms);
            check_cut(&p, n_sms);
        }
    assert_int_equal(maxima, 2 * QB_COUNT(all) * QB__CHAIN_MAXIMA);
}

static void every_shape_fits(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {
        {64, 80}, {768, 3072}, {2048, 8192}, {576, 1536}, {8192, 8192}};
    static const uint32_t sms[] = {132, 114, 66, 16, 2};
    for (size_t s = 0; s < QB_COUNT(shapes); s++)
        for (int kind = 0; kind < 3; kind++)
            for (size_t i = 0; i < QB_COUNT(sms); i++) {
                model x;
                make_model(&x, (qb_cuda_linear_kind)kind, shapes[s][0], shapes[s][1], 0);
                check_model(&x, sms[i]);
                x.m.vocab = x.m.head.n = 1000003;
                x.m.head.segments.end[0] = 1000003;
                check_model(&x, sms[i]);
            }
}

static void heads_are_split_among_all_multiprocessors(void **state)
{
    (void)state;
    static const struct {
        uint32_t heads, n_sms, splits;
    } cases[] = {{12, 132, 8}, {16, 132, 8}, {17, 132, 4}, {64, 132, 2}, {200, 132, 1}};
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb__chain_attention a = {.n_heads = cases[i].heads, .n_kv_heads = 1, .head_dim = 72};
        qb__chain_split(&a, cases[i].n_sms);
        assert_int_equal(a.n_splits, cases[i].splits);
        assert_int_equal(a.repeat, cases[i].heads);
        assert_int_equal(1u << a.lanes_shift, 16); /* 9 of them have 8 channels each */
    }
}

/* What the chain refuses goes by single kernels. */
static void other_models_are_refused(void **state)
{
    (void)state;
    model x;
    make_model(&x, QB_CUDA_LINEAR_S8, 768, 8192, 0);
    assert_null(qb__chain_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_S8, 768, 8256, 0);
    assert_non_null(qb__chain_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_FLOAT, 768, 3072, 0);
    x.layer.up.type = QB_CUDA_F32;
    assert_non_null(qb__chain_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_U4, 768, 3072, 32);
    assert_non_null(qb__chain_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_U4, 768, 3072, 64);
    x.m.head_dim = 36;
    assert_non_null(qb__chain_refuse(&x.m));
    x.m.head_dim = 64, x.m.softmax = QB_SOFTMAX_CLIPPED;
    assert_non_null(qb__chain_refuse(&x.m));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_fits),
        cmocka_unit_test(heads_are_split_among_all_multiprocessors),
        cmocka_unit_test(other_models_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
