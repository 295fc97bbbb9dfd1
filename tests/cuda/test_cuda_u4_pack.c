/* tests/cuda/test_cuda_u4_pack.c - the packed layout of gemm_u4.h read back code by code, on the
 * host: needs no GPU. */
#include "gpu.h"

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/cuda/gemm_u4.h"
#include "kernels/cuda/gemm_u4_pack.h"

#include <string.h>

enum { MAX_N = 150, MAX_K = 400 };
static uint8_t codes[MAX_N * MAX_K];
static float scale[MAX_N * MAX_K], fill[MAX_N * MAX_K];
static int32_t zero_point[MAX_N * MAX_K];

static qb_u4_weights weights_of(size_t n, size_t k, size_t n_step, size_t k_group, size_t k_step)
{
    qb_test_fill_bytes(codes, sizeof codes, n + k);
    for (size_t s = 0; s < QB_COUNT(scale); s++) {
        uint32_t r = qb_rng_u32(n, QB_STREAM_TEST, s);
        scale[s] = r % 7 == 0 ? 0.0f : 0.01f * (float)(r % 100 + 1);
        fill[s] = (float)(r % 5) - 2.0f;
        zero_point[s] = (int32_t)(r / 128 % 241) - 120;
    }
    return (qb_u4_weights){.n = n,
                           .k = k,
                           .codes = codes,
                           .n_step = n_step,
                           .k_group = k_group,
                           .k_step = k_step,
                           .scale = scale,
                           .zero_point = zero_point,
                           .fill = fill};
}

static unsigned code_of(const qb_u4_weights *w, size_t n, size_t k)
{
    uint8_t byte = w->codes[n * ((w->k + 1) / 2) + k / 2];
    return k % 2 ? byte >> 4 : byte & 15;
}

/* By the words of gemm_u4.h: register a_i of word j of lane 4 g + t. */
static unsigned packed_code(const qb__cuda_u4_host *h, size_t n, size_t k)
{
    const uint32_t *tile = h->codes + (n / 16 * (h->k_pad / 64) + k / 64) * 128;
    size_t row = n % 16, in_word = k % 16;
    size_t lane = row % 8 * 4 + in_word % 8 / 2;
    size_t i = row / 8 + in_word / 8 * 2;
    return tile[lane * 4 + k % 64 / 16] >> (4 * i + 16 * (k % 2)) & 15;
}

static void check_codes(const qb__cuda_u4_host *h, const qb_u4_weights *w, size_t first)
{
    for (size_t n = 0; n < w->n; n++)
        for (size_t k = 0; k < h->k_pad; k++)
            if (packed_code(h, first + n, k) != (k < w->k ? code_of(w, n, k) : 0))
                fail_msg("%zu x %zu: code %zu,%zu", w->n, w->k, n, k);
}

/* A constant slice is (0 + 1) * its value. */
static void check_slice(float got_scale, int got_zero, size_t s)
{
    assert_true(got_scale == (scale[s] != 0.0f ? scale[s] : fill[s]));
    assert_int_equal(got_zero, scale[s] != 0.0f ? zero_point[s] : -1);
}

static qb__cuda_u4_host pack(const qb_u4_weights *w, size_t n_weights)
{
    qb__cuda_u4_host h = {0};
    const char *why = "unset";
    QB_CHECK_OK(qb__cuda_u4_pack_host(w, n_weights, &h, &why));
    if (why) fail_msg("refused: %s", why);
    return h;
}

static void codes_lie_where_the_header_says(void **state)
{
    (void)state;
    static const size_t ns[] = {1, 15, 16, 17, 64, 130}, ks[] = {1, 2, 63, 64, 65, 129, 383};
    for (size_t i = 0; i < QB_COUNT(ns); i++)
        for (size_t j = 0; j < QB_COUNT(ks); j++) {
            qb_u4_weights w = weights_of(ns[i], ks[j], 1, 1, 0);
            qb__cuda_u4_host h = pack(&w, 1);
            assert_int_equal(h.n_pad % 64, 0);
            assert_true(h.n_pad >= w.n && h.n_pad < w.n + 64);
            assert_int_equal(h.n_groups, 1);
            assert_int_equal(h.group, h.k_pad);
            assert_null(h.x_scale);
            check_codes(&h, &w, 0);
            for (size_t n = 0; n < h.n_pad; n++)
                if (n < w.n)
                    check_slice(h.scale[n], h.zero_point[n], n);
                else
                    assert_true(h.scale[n] == 0.0f && h.zero_point[n] == 0 &&
                                packed_code(&h, n, 0) == 0);
            qb__cuda_u4_host_free(&h);
        }
}

static void groups_are_rows_of_scales(void **state)
{
    (void)state;
    qb_u4_weights w = weights_of(35, 300, 3, 128, 1);
    qb__cuda_u4_host h = pack(&w, 1);
    assert_int_equal(h.n_groups, 3);
    assert_int_equal(h.group, 128);
    check_codes(&h, &w, 0);
    for (size_t g = 0; g < 3; g++)
        for (size_t n = 0; n < w.n; n++)
            check_slice(h.scale[g * h.n_pad + n], h.zero_point[g * h.n_pad + n], n * 3 + g);
    qb__cuda_u4_host_free(&h);

    w = weights_of(35, 300, 1, 1000, 1); /* a group longer than the row is none */
    h = pack(&w, 1);
    assert_int_equal(h.n_groups, 1);
    assert_int_equal(h.group, h.k_pad);
    qb__cuda_u4_host_free(&h);
}

static void scales_per_input_channel_lie_apart(void **state)
{
    (void)state;
    qb_u4_weights w = weights_of(20, 100, 0, 1, 1);
    qb__cuda_u4_host h = pack(&w, 1);
    check_codes(&h, &w, 0);
    for (size_t k = 0; k < h.k_pad; k++)
        if (k < w.k)
            check_slice(h.x_scale[k], h.x_zero_point[k], k);
        else
            assert_true(h.x_scale[k] == 0.0f && h.x_zero_point[k] == 0);
    for (size_t n = 0; n < w.n; n++) assert_true(h.scale[n] == 1.0f && h.zero_point[n] == 0);
    qb__cuda_u4_host_free(&h);
}

static void layers_follow_each_other(void **state)
{
    (void)state;
    qb_u4_weights w[3];
    for (size_t i = 0; i < 3; i++) w[i] = weights_of(20 + 13 * i, 200, 1, 1, 0);
    qb__cuda_u4_host h = pack(w, 3);
    assert_int_equal(h.n, 20 + 33 + 46);
    check_codes(&h, &w[0], 0);
    check_codes(&h, &w[1], 20);
    check_codes(&h, &w[2], 53);
    check_slice(h.scale[53 + 7], h.zero_point[53 + 7], 7);
    qb__cuda_u4_host_free(&h);
}

static void what_cannot_be_held_is_refused(void **state)
{
    (void)state;
    qb__cuda_u4_host h = {0};
    const char *why = NULL;
    qb_u4_weights w = weights_of(20, 100, 1, 1, 0);
    scale[3] = 1.0f;
    zero_point[3] = 121;
    QB_CHECK_OK(qb__cuda_u4_pack_host(&w, 1, &h, &why));
    assert_non_null(why);
    scale[3] = 0.0f; /* a constant slice has no zero point */
    QB_CHECK_OK(qb__cuda_u4_pack_host(&w, 1, &h, &why));
    assert_null(why);
    qb__cuda_u4_host_free(&h);

    w = weights_of(20, 100, 4, 32, 1);
    QB_CHECK_OK(qb__cuda_u4_pack_host(&w, 1, &h, &why));
    assert_non_null(why);

    qb_u4_weights two[2] = {weights_of(20, 100, 0, 1, 1), weights_of(20, 100, 0, 1, 1)};
    static float other[100];
    memcpy(other, scale, sizeof other);
    other[99] += 1.0f;
    two[1].scale = other;
    QB_CHECK_OK(qb__cuda_u4_pack_host(two, 2, &h, &why));
    assert_non_null(why);
    assert_null(h.codes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_lie_where_the_header_says),
        cmocka_unit_test(groups_are_rows_of_scales),
        cmocka_unit_test(scales_per_input_channel_lie_apart),
        cmocka_unit_test(layers_follow_each_other),
        cmocka_unit_test(what_cannot_be_held_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
