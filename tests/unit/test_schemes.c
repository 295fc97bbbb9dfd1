/* tests/unit/test_schemes.c - the scheme table, overrides, and weights to codes against golden
 * data. */
#include "support.h"

#include "core/memory.h"
#include "quant/linear.h"
#include "quant/quantize_model.h"
#include "quant/schemes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void overrides_follow_the_arithmetic(void **state)
{
    (void)state;
    qb_scheme s;
    const qb_scheme *fine = qb_scheme_find("fine"), *coarse = qb_scheme_find("coarse");
    const qb_scheme *zp = qb_scheme_find("zeropoint4"), *full = qb_scheme_find("full");
    QB_CHECK_OK(qb_scheme_override(fine, &(qb_scheme_overrides){.weight_axis = "tensor"}, &s));
    assert_int_equal(s.weights.axis, QB_AXIS_TENSOR);
    QB_CHECK_OK(qb_scheme_override(zp, &(qb_scheme_overrides){.weight_axis = "group:64"}, &s));
    assert_int_equal(s.weights.group_elems, 64);
    QB_CHECK_OK(qb_scheme_override(fine, &(qb_scheme_overrides){.act_axis = "channel"}, &s));
    assert_true(s.weights.fold_inputs && s.input.is_static && qb_scheme_needs_calibration(&s));
    QB_CHECK_OK(qb_scheme_override(coarse, &(qb_scheme_overrides){.act_scale = "static"}, &s));
    assert_true(s.input.is_static && s.output.is_static);
    static const qb_scheme_overrides bad[] = {
        {.weight_axis = "in"},       {.weight_axis = "group:8"}, {.weight_axis = "group:0"},
        {.weight_axis = "sideways"}, {.act_axis = "x"},          {.act_scale = "static"}};
    for (size_t i = 0; i < QB_COUNT(bad); i++)
        assert_int_equal(qb_scheme_override(fine, &bad[i], &s), QB_ERR_USAGE);
    assert_int_equal(qb_scheme_override(zp, &bad[4], &s), QB_ERR_USAGE);
    assert_int_equal(qb_scheme_override(full, &bad[0], &s), QB_ERR_USAGE);
    assert_null(qb_scheme_find("nope"));
    const qb_scheme *llm = qb_scheme_find("llm-int8"), *smooth = qb_scheme_find("smoothquant");
    assert_true(qb_scheme_needs_calibration(smooth) && !qb_scheme_needs_calibration(llm));
    QB_CHECK_OK(qb_scheme_override(smooth, &(qb_scheme_overrides){.act_axis = "token"}, &s));
    QB_CHECK_OK(qb_scheme_override(smooth, &(qb_scheme_overrides){.act_scale = "static"}, &s));
    static const qb_scheme_overrides not_split[] = {
        {.act_axis = "tensor"}, {.act_axis = "channel"}, {.act_scale = "static"}};
    for (size_t i = 0; i < QB_COUNT(not_split); i++)
        assert_int_equal(qb_scheme_override(llm, &not_split[i], &s), QB_ERR_USAGE);
    assert_int_equal(qb_scheme_override(smooth, &not_split[1], &s), QB_ERR_USAGE);
}

static void static_scales_hold_the_largest_value_behind_smoothing(void **state)
{
    (void)state;
    float channel_max[] = {12.7f, 4.0f};
    const float smooth[] = {10.0f, 1.0f};
    const qb_calibration_linear c = {.cols = 2, .in_max = 12.7f, .in_channel_max = channel_max};
    assert_true(qb_static_in_scale(&c, NULL) == 12.7f / 127.0f);
    assert_true(qb_static_in_scale(&c, smooth) == 4.0f / 127.0f); /* of 1.27 and 4 */
}

static void check_golden_weights(const char *path, const char *scheme, const char *prefix)
{
    const qb_weight_quant *q = &qb_scheme_find(scheme)->weights;
    enum { ROWS = 64, COLS = 96 };
    char name[64];
    size_t n, n_slices;
    float *w = qb_test_safetensor(path, "w", "F32", &n);
    snprintf(name, sizeof name, "%s.%s", prefix, q->bits == 8 ? "sw" : "scale");
    float *scale = qb_test_safetensor(path, name, "F32", &n_slices);
    assert_int_equal(n_slices, qb_axis_n_slices(q->axis, q->group_elems, ROWS, COLS));
    snprintf(name, sizeof name, "%s.%s", prefix, q->bits == 8 ? "qw" : "q");
    uint8_t *codes = qb_test_safetensor(path, name, q->bits == 8 ? "I8" : "U8", &n);
    uint8_t got[ROWS * COLS];
    float got_scale[96], fill[96];
    int32_t zero_point[96];
    QB_CHECK_OK(qb_quantize_matrix(q, w, ROWS, COLS, got, got_scale, zero_point, fill, NULL));
    assert_memory_equal(got_scale, scale, n_slices * sizeof *scale);
    if (q->bits == 8) {
        assert_memory_equal(got, codes, sizeof got);
    } else {
        snprintf(name, sizeof name, "%s.zp", prefix);
        int32_t *zp = qb_test_safetensor(path, name, "I32", &n);
        assert_memory_equal(zero_point, zp, n * sizeof *zp);
        for (size_t i = 0; i < ROWS * COLS; i++)
            assert_int_equal(got[i / 2] >> (i % 2 * 4) & 15, codes[i]);
        snprintf(name, sizeof name, "%s.w", prefix);
        float *deq = qb_test_safetensor(path, name, "F32", &n);
        qb_tensor t = {.dtype = QB_U4,
                       .rows = ROWS,
                       .cols = COLS,
                       .data = got,
                       .bytes = ROWS * COLS / 2,
                       .quant = {.axis = q->axis,
                                 .bits = 4,
                                 .n_slices = 1,
                                 .scale = got_scale,
                                 .zero_point = zero_point,
                                 .fill = fill}};
        static float back[ROWS * COLS];
        qb_tensor_rows_f32(&t, 0, ROWS, back);
        for (size_t i = 0; i < ROWS * COLS; i++)
            assert_true(fabs((double)back[i] - (double)deq[i]) <= 1e-6 * fabs((double)deq[i]));
        qb_free(zp);
        qb_free(deq);
    }
    qb_free(w);
    qb_free(scale);
    qb_free(codes);
}

static void weights_equal_golden_codes(void **state)
{
    (void)state;
    const char *path = qb_test_golden("a-quant.safetensors");
    if (!path) QB_SKIP("golden cases are absent");
    check_golden_weights(path, "fine", "fine");
    check_golden_weights(path, "moderate", "moderate");
    check_golden_weights(path, "coarse", "coarse");
    check_golden_weights(path, "zeropoint4", "zeropoint4_out");
    check_golden_weights(path, "zeropoint4-in", "zeropoint4_in");
    check_golden_weights(path, "zeropoint4-tensor", "zeropoint4_tensor");
}

static void constant_slices_keep_their_value(void **state)
{
    (void)state;
    qb_weight_quant q = {.bits = 4, .axis = QB_AXIS_GROUP, .group_elems = 3};
    float w[2 * 5] = {2.5f, 2.5f, 2.5f, 0, 0, 1, 2, 3, 7, -8};
    uint8_t codes[2 * 3];
    float scale[4], fill[4], back[10];
    int32_t zp[4];
    QB_CHECK_OK(qb_quantize_matrix(&q, w, 2, 5, codes, scale, zp, fill, NULL));
    assert_true(scale[0] == 0 && fill[0] == 2.5f && scale[1] == 0 && fill[1] == 0 && scale[2] > 0);
    qb_tensor t = {.dtype = QB_U4,
                   .rows = 2,
                   .cols = 5,
                   .data = codes,
                   .bytes = 6,
                   .quant = {.axis = QB_AXIS_GROUP,
                             .bits = 4,
                             .group_elems = 3,
                             .n_slices = 4,
                             .scale = scale,
                             .zero_point = zp,
                             .fill = fill}};
    qb_tensor_rows_f32(&t, 0, 2, back);
    assert_true(back[0] == 2.5f && back[4] == 0);
    for (size_t i = 5; i < 10; i++) assert_true(fabsf(back[i] - w[i]) <= 0.5f);
    w[3] = NAN;
    assert_int_equal(qb_quantize_matrix(&q, w, 2, 5, codes, scale, zp, fill, NULL), QB_ERR_FORMAT);
}

/* Finite numbers whose max - min is infinite: such a scale would make a file that no reader takes.
 */
static void ranges_beyond_f32_are_refused(void **state)
{
    (void)state;
    float w[] = {3e38f, -3e38f, 1, 2}, scale[2], fill[2];
    int32_t zp[2];
    uint8_t codes[4];
    static const qb_axis axes[] = {QB_AXIS_OUT, QB_AXIS_TENSOR};
    for (size_t i = 0; i < QB_COUNT(axes); i++) {
        qb_weight_quant q = {.bits = 4, .axis = axes[i]};
        assert_int_equal(qb_quantize_matrix(&q, w, 2, 2, codes, scale, zp, fill, NULL),
                         QB_ERR_FORMAT);
    }
    qb_weight_quant in = {.bits = 4, .axis = QB_AXIS_IN};
    QB_CHECK_OK(qb_quantize_matrix(&in, w, 2, 2, codes, scale, zp, fill, NULL));
    assert_true(isfinite(scale[0]) && isfinite(scale[1]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overrides_follow_the_arithmetic),
        cmocka_unit_test(static_scales_hold_the_largest_value_behind_smoothing),
        cmocka_unit_test(weights_equal_golden_codes),
        cmocka_unit_test(constant_slices_keep_their_value),
        cmocka_unit_test(ranges_beyond_f32_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
