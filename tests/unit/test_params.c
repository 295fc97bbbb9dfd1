/* tests/unit/test_params.c - the flat buffer of parameters: layout, fresh weights, models. */
#include "support.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "train/params.h"
#include "train/presets.h"
#include "train/torch_random.h"

#include <math.h>
#include <string.h>

static bool follows(const qb_param *a, const qb_param *b)
{
    return b->offset == a->offset + a->rows * a->cols;
}

static void check_layout(const qb_config *config, const char *what)
{
    qb_params p;
    QB_CHECK_OK(qb_params_create(config, &p));
    size_t n_elems = 0, end = 0;
    for (size_t i = 0; i < p.n; i++) {
        const qb_param *q = &p.list[i];
        size_t rows, cols;
        assert_true(qb_config_shape(config, q->role, &rows, &cols));
        assert_true(rows == q->rows && cols == q->cols);
        assert_ptr_equal(qb_params_find(&p, q->role, q->layer_idx), q);
        assert_true(q->offset >= end); /* no overlap */
        assert_true(q->offset == end || q->offset % QB_PARAM_ALIGN == 0);
        if (q->residual == QB_RESIDUAL_COLS) assert_int_equal(cols, config->d_model);
        if (q->residual == QB_RESIDUAL_ROWS) assert_int_equal(rows, config->d_model);
        end = q->offset + rows * cols;
        n_elems += rows * cols;
    }
    if (n_elems != qb_config_n_params(config)) fail_msg("%s: parameters are missing", what);
    assert_true(end <= p.n_elems && p.n_elems % QB_PARAM_ALIGN == 0);
    for (size_t l = 0; l < config->n_layers && !config->fused_qkv; l++) {
        assert_true(qb_config_has_attention(config, l) == !!qb_params_find(&p, QB_ROLE_Q, l));
        if (!qb_config_has_attention(config, l)) continue;
        assert_true(follows(qb_params_find(&p, QB_ROLE_Q, l), qb_params_find(&p, QB_ROLE_K, l)));
        assert_true(follows(qb_params_find(&p, QB_ROLE_K, l), qb_params_find(&p, QB_ROLE_V, l)));
    }
    if (config->act == QB_ACT_SWIGLU)
        assert_true(
            follows(qb_params_find(&p, QB_ROLE_GATE, 1), qb_params_find(&p, QB_ROLE_UP, 1)));
    qb_params_destroy(&p);
}

static void every_parameter_has_its_place(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_layout);
    qb_config c = qb_test_tiny_config("gpt2");
    c.softmax = QB_SOFTMAX_SINK;
    c.attn_gate = true;
    check_layout(&c, "sink, gate");
}

static double deviation(const float *w, size_t n)
{
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += (double)w[i];
    for (size_t i = 0; i < n; i++) squares += pow((double)w[i] - sum / (double)n, 2);
    return sqrt(squares / (double)n);
}

static void expect_deviation(const qb_params *p, const float *w, qb_role role, double want)
{
    const qb_param *q = qb_params_find(p, role, 0);
    double got = deviation(w + q->offset, q->rows * q->cols);
    if (fabs(got / want - 1) > 0.1) fail_msg("role %d: %g, not %g", role, got, want);
}

static void fresh_weights_have_their_spread(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_params p;
    QB_CHECK_OK(qb_params_create(&config, &p));
    float *w, *again;
    QB_CHECK_OK(QB_NEW(&w, p.n_elems, "weights"));
    QB_CHECK_OK(QB_NEW(&again, p.n_elems, "weights"));
    qb_params_init(&p, QB_INIT_GPT2, 5, w);
    expect_deviation(&p, w, QB_ROLE_QKV, 0.02);
    expect_deviation(&p, w, QB_ROLE_TOK_EMBD, 0.02);
    expect_deviation(&p, w, QB_ROLE_DOWN, 0.02 / sqrt(4.0));
    assert_true(w[qb_params_find(&p, QB_ROLE_NORM_F, 0)->offset] == 1);
    assert_true(w[qb_params_find(&p, QB_ROLE_QKV_B, 1)->offset] == 0);
    qb_params_init(&p, QB_INIT_GPT2, 5, again);
    assert_memory_equal(w, again, p.n_elems * sizeof *w);
    qb_params_init(&p, QB_INIT_GPT2, 6, again);
    assert_memory_not_equal(w, again, p.n_elems * sizeof *w);
    qb_params_init(&p, QB_INIT_PYTORCH, 5, w);
    expect_deviation(&p, w, QB_ROLE_POS_EMBD, 1);
    expect_deviation(&p, w, QB_ROLE_UP, 1 / sqrt(3.0 * 30));
    expect_deviation(&p, w, QB_ROLE_DOWN, 1 / sqrt(3.0 * 75));
    qb_free(w);
    qb_free(again);
    qb_params_destroy(&p);
}

static void expect_weight(const qb_params *p, const float *w, qb_role role, size_t layer_idx,
                          size_t i, double want)
{
    double got = w[qb_params_find(p, role, layer_idx)->offset + i];
    if (!(fabs(got - want) <= 2e-7 * (1 + 10 * fabs(want))))
        fail_msg("role %d, element %zu: found %.9g, expected %.9g", role, i, got, want);
}

static float *weights_of_preset(const char *name, qb_params *p)
{
    qb_train_config c;
    float *w;
    qb_train_config_init(&c);
    QB_CHECK_OK(qb_preset_apply(name, &c));
    QB_CHECK_OK(qb_train_config_resolve(&c, 67));
    QB_CHECK_OK(qb_params_create(&c.model, p));
    QB_CHECK_OK(QB_NEW(&w, p->n_elems, "weights"));
    qb_params_init(p, c.init, c.seed, w);
    return w;
}

/* What PyTorch 2.11 draws after torch.manual_seed(42) for the published models. */
static void pytorch_weights_are_pytorchs(void **state)
{
    (void)state;
    qb_params p;
    float *w = weights_of_preset("bb-1l", &p);
    expect_weight(&p, w, QB_ROLE_TOK_EMBD, 0, 0, 1.9269152879714966);
    expect_weight(&p, w, QB_ROLE_TOK_EMBD, 0, 67 * 256 - 1, -1.0321465730667114);
    expect_weight(&p, w, QB_ROLE_POS_EMBD, 0, 1, -0.47253450751304626);
    expect_weight(&p, w, QB_ROLE_QKV, 0, 0, -0.03489914536476135);
    expect_weight(&p, w, QB_ROLE_QKV, 0, 256 * 256 + 1, -0.021240442991256714);
    expect_weight(&p, w, QB_ROLE_O, 0, 2, 0.028271786868572235);
    expect_weight(&p, w, QB_ROLE_UP, 0, 0, -0.03856527805328369);
    expect_weight(&p, w, QB_ROLE_DOWN, 0, 256 * 1024 - 1, 0.0033551231026649475);
    expect_weight(&p, w, QB_ROLE_HEAD, 0, 67 * 256 - 3, -0.008892126381397247);
    qb_free(w);
    qb_params_destroy(&p);
    w = weights_of_preset("bb-3l-minimal", &p); /* draws the last attention, too */
    expect_weight(&p, w, QB_ROLE_QKV, 1, 0, 0.035181425511837006);
    expect_weight(&p, w, QB_ROLE_UP, 2, 0, 0.020717300474643707);
    expect_weight(&p, w, QB_ROLE_HEAD, 0, 0, 0.013047568500041962);
    qb_free(w);
    qb_params_destroy(&p);
}

/* A number of elements that 16 does not divide; torch.manual_seed(7). */
static void pytorch_tails_are_pytorchs(void **state)
{
    (void)state;
    qb_torch_random random;
    float x[21];
    qb_torch_seed(&random, 7);
    qb_torch_normal(&random, 21, x);
    assert_true(fabs(x[0] + 0.8201345205307007) < 1e-6 && fabs(x[4] + 0.16699601709842682) < 1e-6);
    assert_true(fabs(x[5] - 0.7820726633071899) < 1e-6 && fabs(x[20] - 1.0955804586410522) < 1e-6);
}

static void models_go_there_and_back(void **state)
{
    (void)state;
    static const char *const archs[] = {"gpt2", "llama"};
    for (size_t i = 0; i < QB_COUNT(archs); i++) {
        qb_config config = qb_test_tiny_config(archs[i]);
        qb_model *model = qb_test_tiny_model(&config, 3), *copy;
        qb_params p;
        float *w, *back;
        QB_CHECK_OK(qb_params_create(&config, &p));
        QB_CHECK_OK(QB_NEW(&w, p.n_elems, "weights"));
        QB_CHECK_OK(QB_NEW(&back, p.n_elems, "weights"));
        QB_CHECK_OK(qb_params_from_model(&p, model, w));
        QB_CHECK_OK(qb_params_to_model(&p, w, "copy", &copy));
        QB_CHECK_OK(qb_params_from_model(&p, copy, back));
        assert_memory_equal(w, back, p.n_elems * sizeof *w);
        const qb_tensor *t = qb_model_tensor(model, QB_ROLE_DOWN, 1);
        assert_memory_equal(t->data, w + qb_params_find(&p, QB_ROLE_DOWN, 1)->offset, t->bytes);
        qb_config wider = config;
        wider.d_ff++;
        qb_params other;
        QB_CHECK_OK(qb_params_create(&wider, &other));
        assert_int_equal(qb_params_from_model(&other, model, w), QB_ERR_SHAPE);
        qb_params_destroy(&other);
        qb_model_close(model);
        qb_model_close(copy);
        qb_free(w);
        qb_free(back);
        qb_params_destroy(&p);
    }
}

/* Ranges follow each other, begin with a parameter, and are as long as whole parameters allow. */
static void check_cuts(const qb_params *p, size_t n_parts, const size_t *bounds)
{
    size_t longest = 0;
    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].rows * p->list[i].cols > longest)
            longest = p->list[i].rows * p->list[i].cols;
    assert_int_equal(bounds[0], 0);
    assert_int_equal(bounds[n_parts], p->n_elems);
    for (size_t part = 0; part < n_parts; part++) {
        assert_true(bounds[part] <= bounds[part + 1]);
        assert_true(bounds[part + 1] - bounds[part] <= p->n_elems / n_parts + 2 * longest);
        bool begins = false;
        for (size_t i = 0; i < p->n; i++) begins = begins || p->list[i].offset == bounds[part];
        assert_true(begins && bounds[part] % QB_PARAM_ALIGN == 0);
    }
}

static void parameters_are_cut_into_whole_ones(void **state)
{
    (void)state;
    static const char *const archs[] = {"gpt2", "llama"};
    for (size_t i = 0; i < QB_COUNT(archs); i++) {
        qb_config config = qb_test_tiny_config(archs[i]);
        qb_params p;
        size_t bounds[41];
        QB_CHECK_OK(qb_params_create(&config, &p));
        for (size_t n_parts = 1; n_parts <= 40; n_parts++) {
            qb_params_cut(&p, n_parts, bounds);
            check_cuts(&p, n_parts, bounds);
        }
        qb_params_destroy(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_parameter_has_its_place),
        cmocka_unit_test(fresh_weights_have_their_spread),
        cmocka_unit_test(pytorch_weights_are_pytorchs),
        cmocka_unit_test(pytorch_tails_are_pytorchs),
        cmocka_unit_test(parameters_are_cut_into_whole_ones),
        cmocka_unit_test(models_go_there_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
