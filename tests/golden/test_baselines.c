/* tests/golden/test_baselines.c - LLM.int8() and SmoothQuant against what make_baselines.py
 * computed with NumPy: factors, codes, scales, outliers and outputs bit for bit, from every kernel
 * row. */
#include "tiny_model.h"

#include "support.h"

#include "core/memory.h"
#include "quant/linear.h"
#include "quant/quantize_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { M = 9, K = 40, N = 40 };
static const size_t segment_rows[] = {24, 8, 8};

static void *tensor(const char *name, const char *dtype, size_t n_expected)
{
    size_t n = 0;
    void *data =
        qb_test_safetensor(QB_SOURCE_DIR "/tests/golden/baselines.safetensors", name, dtype, &n);
    if (n != n_expected) fail_msg("%s: %zu elements, expected %zu", name, n, n_expected);
    return data;
}

static void same(const char *name, const char *dtype, const void *got, size_t n)
{
    void *want = tensor(name, dtype, n);
    if (memcmp(got, want, n * (dtype[0] == 'I' && dtype[1] == '8' ? 1 : 4)))
        fail_msg("%s differs with %s", name, getenv("QB_DISABLE"));
    qb_free(want);
}

/* A Llama whose first block's q, k and v are the golden w, as codes of the scheme. */
typedef struct rig {
    qb_model *model, *codes;
    qb_calibration *calibration;
    const qb_scheme *scheme;
    qb_pool *pool;
    float *w, *bias, *maxima;
} rig;

static rig rig_create(const char *scheme)
{
    qb_config config = qb_test_tiny_config("llama");
    config.d_model = K;
    config.n_heads = 3;
    config.n_kv_heads = 1;
    config.head_dim = 8;
    rig r = {.scheme = qb_scheme_find(scheme),
             .w = tensor("w", "F32", N * K),
             .bias = tensor("bias", "F32", N),
             .maxima = tensor("in_channel_max", "F32", K)};
    r.model = qb_test_tiny_model(&config, 3);
    r.calibration = qb_test_constant_calibration(&config);
    const qb_role roles[] = {QB_ROLE_Q, QB_ROLE_K, QB_ROLE_V};
    for (size_t i = 0, row = 0; i < 3; row += segment_rows[i++]) {
        qb_tensor *t = (qb_tensor *)qb_model_tensor(r.model, roles[i], 0);
        t->dtype = QB_F32;
        t->data = r.w + row * K;
        t->bytes = segment_rows[i] * K * sizeof *r.w;
        memcpy(qb_calibration_at(r.calibration, roles[i], 0)->in_channel_max, r.maxima,
               K * sizeof *r.maxima);
    }
    QB_CHECK_OK(qb_pool_create(2, &r.pool));
    QB_CHECK_OK(qb_quantize_model(r.model, r.scheme, r.calibration, false, r.pool, &r.codes));
    return r;
}

static void rig_destroy(rig *r)
{
    qb_model_close(r->codes);
    qb_model_close(r->model);
    qb_calibration_destroy(r->calibration);
    qb_pool_destroy(r->pool);
    qb_free(r->w);
    qb_free(r->bias);
    qb_free(r->maxima);
}

/* The three layers with the golden bias, staged and run together; codes and scales stay in scratch.
 */
static void run(rig *r, qb_linear *layers, qb_linear_scratch *scratch, float *y)
{
    const qb_role roles[] = {QB_ROLE_Q, QB_ROLE_K, QB_ROLE_V};
    qb_linear_need need = {0};
    qb_linear_output outputs[3];
    qb_linear *all[3];
    float *x = tensor("x", "F32", M * K);
    for (size_t i = 0, row = 0; i < 3; row += segment_rows[i++]) {
        qb_tensor bias = {.dtype = QB_F32,
                          .rows = 1,
                          .cols = segment_rows[i],
                          .data = r->bias + row,
                          .bytes = segment_rows[i] * sizeof(float)};
        QB_CHECK_OK(qb_linear_create(qb_model_tensor(r->codes, roles[i], 0), &bias, r->scheme,
                                     false, r->calibration, r->pool, &layers[i]));
        qb_linear_need_add(&layers[i], M, 2, &need);
        all[i] = &layers[i];
        outputs[i] = (qb_linear_output){y + row, N};
    }
    QB_CHECK_OK(qb_linear_scratch_grow(scratch, M, &need));
    qb_linear_input input = {.x = x, .m = M, .k = K, .scratch = scratch};
    qb_linear_stage_rows(&layers[0], &input, 4, M);
    qb_linear_stage_rows(&layers[0], &input, 0, 4);
    qb_linear_stage_finish(&layers[0], &input, r->pool);
    qb_linear_run(all, outputs, 3, &input, r->pool);
    qb_free(x);
}

static void check_codes(const rig *r, const char *scheme)
{
    const qb_role roles[] = {QB_ROLE_Q, QB_ROLE_K, QB_ROLE_V};
    const bool per_row = r->scheme->weights.axis == QB_AXIS_OUT;
    int8_t codes[N * K];
    float scales[N];
    char name[64];
    size_t n_scales = 0;
    for (size_t i = 0, row = 0; i < 3; row += segment_rows[i++]) {
        const qb_tensor *t = qb_model_tensor(r->codes, roles[i], 0);
        memcpy(codes + row * K, t->data, t->rows * K);
        for (size_t s = 0; s < t->quant.n_slices; s++) scales[n_scales++] = t->quant.scale[s];
    }
    assert_int_equal(n_scales, per_row ? N : 3);
    snprintf(name, sizeof name, "%s.qw", scheme);
    same(name, "I8", codes, sizeof codes);
    snprintf(name, sizeof name, "%s.sw", scheme);
    same(name, "F32", scales, n_scales);
}

static void check(const char *scheme)
{
    rig r = rig_create(scheme);
    const bool per_token = r.scheme->input.span == QB_SPAN_TOKEN;
    qb_linear layers[3] = {{0}};
    qb_linear_scratch scratch = {0};
    float y[M * N];
    int8_t codes[M * K];
    char name[64];
    check_codes(&r, scheme);
    run(&r, layers, &scratch, y);
    for (size_t m = 0; m < M; m++) memcpy(codes + m * K, scratch.q + m * qb_gemm_s8_x_stride(K), K);
    snprintf(name, sizeof name, "%s.qx", scheme);
    same(name, "I8", codes, sizeof codes);
    snprintf(name, sizeof name, "%s.sx", scheme);
    same(name, "F32", scratch.q_scale, per_token ? M : 1);
    snprintf(name, sizeof name, "%s.y", scheme);
    same(name, "F32", y, M * N);
    if (r.scheme->input.outlier_min > 0) {
        assert_int_equal(scratch.outliers.n, 3);
        same("llm-int8.channels", "I32", scratch.outliers.channel, 3);
    }
    if (layers[0].smooth) same("smoothquant.s", "F32", layers[1].smooth, K);
    assert_true(!layers[0].smooth == !(r.scheme->weights.smooth_alpha > 0));
    for (size_t i = 0; i < 3; i++) qb_linear_deinit(&layers[i]);
    qb_linear_scratch_deinit(&scratch);
    rig_destroy(&r);
}

static void baselines_equal_numpy(void **state)
{
    (void)state;
    static const char *const disabled[] = {"", "avx512vnni", "avx512vnni,avx512",
                                           "avx512vnni,avx512,avx2"};
    for (size_t i = 0; i < QB_COUNT(disabled); i++) {
        setenv("QB_DISABLE", disabled[i], 1);
        check("llm-int8");
        check("smoothquant");
    }
    setenv("QB_DISABLE", "", 1);
}

/* The factors undo each other: a smoothed tensor read as floats is the weight it was made of, up to
 * the rounding of its codes; o and down have no norm before them and no factors. */
static void smoothed_weights_keep_their_meaning(void **state)
{
    (void)state;
    rig r = rig_create("smoothquant");
    for (int role = 0; role < QB_ROLE_COUNT; role++) {
        const qb_tensor *t = qb_model_tensor(r.codes, (qb_role)role, 0);
        const qb_tensor *from = qb_model_tensor(r.model, (qb_role)role, 0);
        if (!qb_roles[role].linear || !t->data) continue;
        assert_true((t->quant.fold != NULL) == (qb_roles[role].norm != 0));
        float want[96], got[96];
        assert_true(t->cols <= 96);
        for (size_t row = 0; row < t->rows; row++) {
            qb_tensor_rows_f32(t, row, 1, got);
            qb_tensor_rows_f32(from, row, 1, want);
            for (size_t c = 0; c < t->cols; c++) {
                float factor = t->quant.fold ? t->quant.fold[c] : 1;
                assert_true(fabsf(got[c] - want[c]) <= 0.5001f * t->quant.scale[0] / factor);
            }
        }
    }
    rig_destroy(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(baselines_equal_numpy),
        cmocka_unit_test(smoothed_weights_keep_their_meaning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
