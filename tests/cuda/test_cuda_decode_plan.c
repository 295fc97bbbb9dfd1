/* tests/cuda/test_cuda_decode_plan.c - how the persistent decode kernel cuts its work and its
 * shared memory: host arithmetic, tested without a GPU. */
#include "support.h"

#include "kernels/cuda/decode_chain.h"

#include <string.h>

static const qb__decode_limits h100 = {.n_blocks = 132, .smem_bytes = 227 << 10};

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

static void make_model(model *x, qb_cuda_linear_kind kind, size_t d, size_t ff, size_t group,
                       size_t batch)
{
    memset(x, 0, sizeof *x);
    x->layer.qkv = make_linear(kind, 3 * d, d, group);
    x->layer.o = make_linear(kind, d, d, group);
    x->layer.up = make_linear(kind, ff, d, group);
    x->layer.down = make_linear(kind, d, ff, group);
    x->m = (qb_cuda_decode_model){.n_layers = 1, .d_model = d, .d_ff = ff, .vocab = 50304};
    x->m.n_heads = x->m.n_kv_heads = d / 64, x->m.head_dim = 64, x->m.max_batch = batch;
    x->m.layers = &x->layer;
    x->m.head = make_linear(QB_CUDA_LINEAR_FLOAT, 50304, d, 0);
}

static void check_linear(const qb__decode_linear *l, const qb__decode_params *p, uint32_t batch)
{
    const bool u4 = l->kind == QB_CUDA_LINEAR_U4;
    const uint32_t streamed = u4 ? l->tile_bytes : l->x_bytes;
    assert_true((l->n_chunks - 1) * l->chunk_bytes < streamed);
    assert_true(l->n_chunks * l->chunk_bytes >= streamed);
    assert_true(l->chunk_bytes % (u4 ? 512 : 64) == 0);
    assert_true(u4 || 16 * p->row_pitch <= p->stage_bytes);
    assert_true(l->chunk_bytes <= (u4 ? p->stage_bytes : p->row_pitch));
    assert_true(l->n_tiles * 16 >= l->n && l->n_tiles * 16 < l->n + 16);
    assert_true(l->rotate < p->n_blocks);
    /* a pass of all staged rows is at least one chunk */
    assert_true(batch * (l->x_chunk + 64) <= p->x_space);
}

static void every_shape_fits(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{48, 80}, {768, 3072}, {2048, 8192}, {576, 1536}};
    for (size_t s = 0; s < QB_COUNT(shapes); s++)
        for (int kind = 0; kind < 3; kind++)
            for (uint32_t batch = 1; batch <= 16; batch++) {
                model x;
                make_model(&x, (qb_cuda_linear_kind)kind, shapes[s][0], shapes[s][1], 0, batch);
                x.m.n_heads = x.m.n_kv_heads = 2;
                assert_null(qb__decode_refuse(&x.m));
                qb__decode_layer layers[2] = {0};
                uint32_t slots = 0, rotate = 0;
                const qb_cuda_linear *all[] = {&x.layer.qkv, &x.layer.o, &x.layer.up,
                                               &x.layer.down};
                for (int j = 0; j < 4; j++)
                    qb__decode_flatten(all[j], &h100, &slots, &rotate, &layers[0].linear[j]);
                qb__decode_flatten(&x.m.head, &h100, &slots, &rotate, &layers[1].linear[0]);
                qb__decode_params p = {.n_layers = 1, .d_model = (uint32_t)shapes[s][0]};
                p.n_heads = p.n_kv_heads = 2, p.head_dim = 64;
                QB_CHECK_OK(qb__decode_plan(&p, layers, &h100, batch));
                assert_true(p.n_stages >= 7 && p.n_stages <= QB__DECODE_MAX_STAGES);
                assert_true(p.smem_bytes <= h100.smem_bytes);
                assert_true(p.ring_off % 128 == 0 && p.x_off % 128 == 0);
                assert_true(p.x_off >= p.x_row_off + 4 * p.d_model);
                assert_int_equal(slots, 5 * QB__DECODE_SLOTS);
                for (int j = 0; j < 4; j++) check_linear(&layers[0].linear[j], &p, batch);
                check_linear(&layers[1].linear[0], &p, batch);
            }
}

/* What does not fit is refused before anything is made, so that another kernel takes it. */
static void too_wide_a_model_is_refused(void **state)
{
    (void)state;
    model x;
    make_model(&x, QB_CUDA_LINEAR_U4, 8192, 8192, 0, 16);
    assert_non_null(qb__decode_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_U4, 8192, 8192, 0, 1);
    assert_null(qb__decode_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_S8, 768, 8256, 0, 1);
    assert_non_null(qb__decode_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_S8, 768, 3072, 0, 17);
    assert_non_null(qb__decode_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_FLOAT, 768, 3072, 0, 1);
    x.layer.up.type = QB_CUDA_F32;
    assert_non_null(qb__decode_refuse(&x.m));
}

static void the_chain_takes_one_sequence(void **state)
{
    (void)state;
    model x;
    make_model(&x, QB_CUDA_LINEAR_S8, 768, 3072, 0, 1);
    assert_null(qb__chain_refuse(&x.m));
    x.m.vocab = (1 << 18) + 1;
    assert_non_null(qb__chain_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_S8, 768, 3072, 0, 2);
    assert_non_null(qb__chain_refuse(&x.m));
    make_model(&x, QB_CUDA_LINEAR_S8, 768, 8256, 0, 1);
    assert_non_null(qb__chain_refuse(&x.m));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_fits),
        cmocka_unit_test(too_wide_a_model_is_refused),
        cmocka_unit_test(the_chain_takes_one_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
