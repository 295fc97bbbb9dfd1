/* tests/unit/test_evaluation.c - evaluations of models whose figures are known: one of which only
 * the embedding is not zero, and one that knows the bigrams of Bigram-Backcopy and nothing else. */
#include "support.h"

#include "core/memory.h"
#include "train/evaluation.h"

#include <math.h>
#include <string.h>

enum { T = 6, V = 67, BOS = 65, WINDOWS = 5, MICRO_BATCH = 2, SEED = 3 };

static qb_config config_of(size_t n_layers, size_t width, size_t n_heads)
{
    qb_config c = qb_arch_find("gpt2")->defaults;
    c.arch = qb_arch_find("gpt2");
    c.tied_head = false;
    c.n_layers = n_layers, c.d_model = width, c.n_heads = c.n_kv_heads = n_heads;
    c.head_dim = width / n_heads, c.d_ff = 16, c.vocab = V, c.context = T;
    return c;
}

/* What all tests share; weights are zero until set. */
typedef struct world {
    qb_bb bb;
    qb_batches *valid;
    qb_trainer *trainer;
    const qb_params *params;
    float *weights;
} world;

static world create(const qb_config *c, bool recompute)
{
    const qb_trainer_options options = {.device = "cpu",
                                        .micro_batch = MICRO_BATCH,
                                        .context = T,
                                        .optimizer = qb_optimizer_find("sgd"),
                                        .recompute = recompute,
                                        .n_threads = 2};
    world w;
    QB_CHECK_OK(qb_bb_open(NULL, &(qb_bb_options){.n_triggers = 3, .n_bos = 1}, &w.bb));
    QB_CHECK_OK(qb_trainer_create(c, &options, &w.trainer));
    w.params = qb_trainer_params(w.trainer);
    QB_CHECK_OK(QB_NEW_ZERO(&w.weights, w.params->n_elems, "weights"));
    return w;
}

static float *tensor(const world *w, qb_role role)
{
    return w->weights + qb_params_find(w->params, role, 0)->offset;
}

static qb_evaluation evaluate(world *w)
{
    qb_evaluation e;
    QB_CHECK_OK(
        qb_batches_open_bb(&w->bb, &(qb_batches_options){.context = T, .seed = SEED}, &w->valid));
    const qb_evaluation_plan plan = {.valid = w->valid,
                                     .bb = &w->bb,
                                     .n_windows = WINDOWS,
                                     .micro_batch = MICRO_BATCH,
                                     .n_observed = WINDOWS,
                                     .n_threads = 2};
    QB_CHECK_OK(qb_trainer_set_weights(w->trainer, w->weights));
    QB_CHECK_OK(qb_evaluate(&plan, w->trainer, &e));
    return e;
}

static void destroy(world *w)
{
    qb_batches_close(w->valid);
    qb_trainer_destroy(w->trainer);
    qb_free(w->weights);
    qb_bb_deinit(&w->bb);
}

static void check_near(double got, double want, double bound)
{
    if (!(fabs(got - want) <= bound)) fail_msg("found %.12g, expected %.12g", got, want);
}

/* The stream is the embedding after each block; all scores are 0, so attention is even and the
 * first key the largest (ties to the lower index); all logits are 0. */
static void model_of_an_embedding_alone(void **state)
{
    (void)state;
    enum { C = 8 };
    qb_config c = config_of(3, C, 2);
    for (int recompute = 0; recompute < 2; recompute++) {
        world w = create(&c, recompute);
        float *embedding = tensor(&w, QB_ROLE_TOK_EMBD);
        for (size_t i = 0; i < V * C; i++) embedding[i] = i % 2 ? 3.0f : -3.0f;
        memset(embedding + BOS * C, 0, C * sizeof *embedding);
        embedding[BOS * C + 2] = -16; /* one spike: kurtosis n - 2 + 1 / (n - 1) */
        qb_evaluation e = evaluate(&w);
        check_near(e.loss, log(V), 1e-6);
        check_near(e.outliers.kurt_token_first, C - 2 + 1.0 / (C - 1), 1e-9);
        check_near(e.outliers.kurt_token_rest, 1, 1e-9);
        assert_true(e.outliers.max_abs_first == 16 && e.outliers.max_abs_rest == 3);
        assert_true(e.outliers.attn_first_argmax == 1);
        check_near(e.outliers.attn_first_share,
                   (1 / 2.0 + 1 / 3.0 + 1 / 4.0 + 1 / 5.0 + 1 / 6.0) / 5, 1e-7);
        check_near(e.bb.backcopy_risk, log(V), 1e-6);
        check_near(e.bb.bigram_risk, log(V), 1e-6);
        assert_int_equal(e.bb.n_layers, 3);
        for (size_t l = 0; l < 3; l++) {
            const qb_bb_layer *layer = &e.bb.layers[l];
            assert_true(layer->score_gap == 0 && layer->value_bos == 0 && layer->value_rest == 0);
            check_near(layer->stream_bos, 16, 1e-6);
            check_near(layer->stream_rest, 3 * sqrt(C), 1e-6);
        }
        assert_true(isnan(e.bits_per_byte));
        destroy(&w);
    }
}

/* One-hot embeddings, a last norm that gives k times the one-hot vector, and a head of log p(v | x)
 * / k: logits are the true bigrams, wherever the token stands. */
static void set_bigrams(world *w)
{
    double n = V, mean = 1 / n, deviation = sqrt(mean * (1 - mean) + 1e-5), k = 1 / deviation;
    float *embedding = tensor(w, QB_ROLE_TOK_EMBD), *head = tensor(w, QB_ROLE_HEAD);
    for (size_t x = 0; x < V; x++) {
        embedding[x * V + x] = 1;
        tensor(w, QB_ROLE_NORM_F)[x] = 1;
        tensor(w, QB_ROLE_NORM_F_B)[x] = (float)(mean / deviation);
        for (size_t v = 0; v < V; v++) {
            double p = w->bb.conditional[x * V + v];
            head[v * V + x] = (float)((p > 0 ? log(p) : -40) / k);
        }
    }
}

static void model_that_knows_the_bigrams(void **state)
{
    (void)state;
    qb_config c = config_of(1, V, 1);
    world w = create(&c, false);
    set_bigrams(&w);
    qb_evaluation e = evaluate(&w);
    int32_t tokens[WINDOWS * (T + 1)];
    double backcopy = 0, oracle = 0, attention = 0, on_triggers = 0, n_triggers = 0, n_others = 0;
    qb_batches_fill(w.valid, 0, WINDOWS, tokens);
    for (size_t i = 0; i < WINDOWS * (T + 1); i++) {
        const double *p = w.bb.conditional + (size_t)tokens[i] * V;
        size_t t = i % (T + 1);
        if (t == T) continue; /* a target only */
        if (w.bb.is_trigger[tokens[i]]) {
            double q = p[tokens[i - 1]];
            backcopy += q > 0 ? -log(q) : 40;
            n_triggers++;
            continue;
        }
        for (size_t v = 0; v < V; v++) oracle -= p[v] > 0 ? p[v] * log(p[v]) : 0;
        attention += 1.0 / (double)(t + 1);
        for (size_t j = 1; j <= t; j++)
            on_triggers += w.bb.is_trigger[tokens[i - j]] / (double)(t + 1);
        n_others++;
    }
    assert_true(n_triggers > 2 && n_others > 10);
    check_near(e.bb.bigram_risk, oracle / n_others, 1e-4);
    check_near(e.bb.bigram_excess, 0, 1e-4);
    check_near(e.bb.backcopy_risk, backcopy / n_triggers, 1e-4);
    check_near(e.bb.layers[0].attn_bos, attention / n_others, 1e-6);
    check_near(e.bb.layers[0].attn_triggers, on_triggers / n_others, 1e-6);
    assert_true(e.bb.bigram_risk_rest < e.bb.bigram_risk); /* <s> has the least to go on */
    destroy(&w);
}

/* Values of <s> and the triggers, scores of <s> alone: norm1 passes on one-hot vectors. */
static void values_and_scores_by_token(void **state)
{
    (void)state;
    qb_config c = config_of(1, V, 1);
    c.norm = QB_NORM_RMSNORM, c.norm_bias = false;
    world w = create(&c, false);
    for (size_t x = 0; x < V; x++) tensor(&w, QB_ROLE_TOK_EMBD)[x * V + x] = 1;
    float *gain = tensor(&w, QB_ROLE_NORM1), *qkv = tensor(&w, QB_ROLE_QKV);
    double k = 1 / sqrt(1.0 / V + 1e-5); /* rms norm of a one-hot vector */
    for (size_t x = 0; x < V; x++) gain[x] = (float)(1 / k);
    for (size_t x = 0; x < V; x++) qkv[x] = 2; /* q_0 = 2 for every token */
    qkv[V * V + BOS] = 3;                      /* k_0 = 3 for <s>, else 0 */
    qkv[2 * V * V + BOS] = 5;                  /* v_0 = 5 for <s>, 2 for triggers, else 0 */
    for (size_t x = 0; x < V; x++)
        if (w.bb.is_trigger[x]) qkv[2 * V * V + x] = 2;
    tensor(&w, QB_ROLE_O)[4 * V] = 7; /* o_4 = 7 v_0 */
    qb_evaluation e = evaluate(&w);
    const qb_bb_layer *layer = &e.bb.layers[0];
    check_near(layer->score_gap, 6 / sqrt(V), 1e-5);
    check_near(layer->value_bos, 35, 1e-3);
    check_near(layer->value_triggers, 14, 1e-3);
    assert_true(layer->value_rest > 0 && layer->value_rest < 7); /* triggers are a minority */
    assert_true(e.outliers.attn_first_argmax == 1 && e.outliers.attn_first_share > 0.4);
    destroy(&w);
}

static void metrics_have_unique_names(void **state)
{
    (void)state;
    qb_evaluation e = {.bb = {.n_layers = QB_BB_MAX_LAYERS}};
    char names[QB_EVALUATION_MAX_METRICS][32];
    qb_metric metrics[QB_EVALUATION_MAX_METRICS];
    size_t n = qb_evaluation_metrics(&e, names, metrics);
    assert_true(n <= QB_EVALUATION_MAX_METRICS && n == 13 + 8 * QB_BB_MAX_LAYERS);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) assert_string_not_equal(metrics[i].name, metrics[j].name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_of_an_embedding_alone),
        cmocka_unit_test(model_that_knows_the_bigrams),
        cmocka_unit_test(values_and_scores_by_token),
        cmocka_unit_test(metrics_have_unique_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
