/* tests/cuda/test_cuda_train.c - the training step on the GPU against the processor's: losses,
 * gradients and updates for every flag of the architecture table, in f32 and in bf16; the same bits
 * every time; steps whose gradient is no number. */
#include "gpu.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "train/trainer.h"

#include <math.h>
#include <string.h>

enum { WINDOWS = 4, CONTEXT = 11 };

typedef struct fixture {
    qb_trainer *trainer;
    const qb_params *params;
    int32_t *tokens; /* (WINDOWS, context + 1) */
    float *weights, *gradients;
} fixture;

static qb_trainer_options options_of(const char *optimizer, const char *device, bool full_f32)
{
    const qb_optimizer *o = qb_optimizer_find(optimizer);
    return (qb_trainer_options){.device = device,
                                .micro_batch = 2,
                                .context = CONTEXT,
                                .optimizer = o,
                                .settings = o->defaults,
                                .clip = 1,
                                .full_f32 = full_f32,
                                .n_threads = 2};
}

static fixture fixture_create(const qb_config *config, const qb_trainer_options *options)
{
    fixture f = {0};
    qb_model *model = qb_test_tiny_model(config, 11);
    size_t n_tokens = WINDOWS * (options->context + 1);
    QB_CHECK_OK(qb_trainer_create(config, options, &f.trainer));
    f.params = qb_trainer_params(f.trainer);
    QB_CHECK_OK(QB_NEW(&f.tokens, n_tokens, "tokens"));
    QB_CHECK_OK(QB_NEW(&f.weights, f.params->n_elems, "weights"));
    QB_CHECK_OK(QB_NEW(&f.gradients, f.params->n_elems, "gradients"));
    qb_test_tokens(config, f.tokens, n_tokens, 5);
    QB_CHECK_OK(qb_params_from_model(f.params, model, f.weights));
    QB_CHECK_OK(qb_trainer_set_weights(f.trainer, f.weights));
    qb_model_close(model);
    return f;
}

static void fixture_destroy(fixture *f)
{
    qb_trainer_destroy(f->trainer);
    qb_free(f->tokens);
    qb_free(f->weights);
    qb_free(f->gradients);
}

static qb_step_stats step(fixture *f, double lr, uint64_t t)
{
    qb_step_stats stats;
    QB_CHECK_OK(qb_trainer_step(f->trainer, f->tokens, WINDOWS, lr, t, &stats));
    return stats;
}

static size_t context_of(const qb_config *config)
{
    return config->free_prefix == config->context ? config->context : CONTEXT;
}

/* ---- one step's loss and gradients ---- */

/* A constant added to every key moves all scores of a query alike, so without rotary positions
 * softmax has no gradient for the keys' bias: what either device has there is rounding, and is
 * measured by the queries' bias, whose gradient is made of the same terms. */
static const qb_param *measure_of(const qb_config *config, const qb_params *params, size_t i)
{
    const qb_param *p = &params->list[i];
    if (p->role != QB_ROLE_K_B || config->pos == QB_POS_ROPE) return p;
    for (size_t j = 0; j < params->n; j++)
        if (params->list[j].role == QB_ROLE_Q_B && params->list[j].layer_idx == p->layer_idx)
            return &params->list[j];
    return p;
}

/* The norm of p's |a - b| over that of b in `measure`, and the same of the largest entries */
static void differences(const qb_param *p, const qb_param *measure, const float *a, const float *b,
                        double *by_norm, double *by_max)
{
    double d2 = 0, b2 = 0, d_max = 0, b_max = 0;
    for (size_t i = p->offset; i < p->offset + p->rows * p->cols; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        d2 += d * d, d_max = fmax(d_max, d);
    }
    for (size_t i = measure->offset; i < measure->offset + measure->rows * measure->cols; i++) {
        const double v = fabs((double)b[i]);
        b2 += v * v, b_max = fmax(b_max, v);
    }
    *by_norm = d2 == 0 ? 0 : sqrt(d2 / b2);
    *by_max = d_max == 0 ? 0 : d_max / b_max;
}

static void compare_step(const qb_config *config, const char *what, bool full_f32)
{
    static size_t n_before[2];
    if (qb_test_is_small() && n_before[full_f32]++ % 4 != 1) return;
    qb_trainer_options on_cpu = options_of("sgd", "cpu", false);
    qb_trainer_options on_gpu = options_of("sgd", "cuda", full_f32);
    on_cpu.context = on_gpu.context = context_of(config);
    fixture cpu = fixture_create(config, &on_cpu), gpu = fixture_create(config, &on_gpu);
    const qb_step_stats want = step(&cpu, 0, 1), got = step(&gpu, 0, 1);
    double loss, worst = 0;
    char worst_name[48] = "";
    QB_CHECK_OK(qb_trainer_get_gradients(cpu.trainer, cpu.gradients));
    QB_CHECK_OK(qb_trainer_get_gradients(gpu.trainer, gpu.gradients));
    for (size_t i = 0; i < cpu.params->n; i++) {
        double by_norm, by_max;
        differences(&cpu.params->list[i], measure_of(config, cpu.params, i), gpu.gradients,
                    cpu.gradients, &by_norm, &by_max);
        const double error = full_f32 ? by_max : by_norm;
        if (error <= worst && error == error) continue;
        worst = error;
        qb_role_name(cpu.params->list[i].role, cpu.params->list[i].layer_idx, worst_name,
                     sizeof worst_name);
    }
    QB_CHECK_OK(qb_trainer_evaluate(gpu.trainer, gpu.tokens, WINDOWS, &loss));
    printf("%-28s %s: loss %.7g against %.7g, gradients within %.2g (%s)\n", what,
           full_f32 ? "f32 " : "bf16", got.loss, want.loss, worst, worst_name);
    assert_true(fabs(got.loss / want.loss - 1) < (full_f32 ? 1e-5 : 2e-2));
    assert_true(fabs(loss / got.loss - 1) < 1e-6);
    /* f32: other orders of sums. bf16: each factor of a product has 8 bits, and the tiny models'
     * gradients are sums of few of them; single small tensors may be mostly rounding. */
    assert_true(worst < (full_f32 ? 5e-5 : 0.15));
    assert_true(fabs(got.grad_norm / want.grad_norm - 1) < (full_f32 ? 1e-4 : 5e-2));
    fixture_destroy(&cpu);
    fixture_destroy(&gpu);
}

static void compare_f32(const qb_config *config, const char *what)
{
    compare_step(config, what, true);
}
static void compare_bf16(const qb_config *config, const char *what)
{
    compare_step(config, what, false);
}

static void steps_in_f32_are_the_processors(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_test_each_tiny_config(compare_f32);
}

static void steps_in_bf16_are_near_the_processors(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_test_each_tiny_config(compare_bf16);
}

/* As a run starts: the tiny models' few large weights make losses that bf16 is no measure of. */
static void draw_weights(fixture *f)
{
    qb_params_init(f->params, QB_INIT_GPT2, 7, f->weights);
    QB_CHECK_OK(qb_trainer_set_weights(f->trainer, f->weights));
}

/* Under Adam every weight of the last block moves in the first step, by about lr. */
static void check_moved(fixture *f, double lr)
{
    const qb_param *p = qb_params_find(f->params, QB_ROLE_DOWN, f->params->config.n_layers - 1);
    size_t n = p->rows * p->cols, n_moved = 0;
    QB_CHECK_OK(qb_trainer_get_weights(f->trainer, f->gradients));
    for (size_t i = p->offset; i < p->offset + n; i++)
        n_moved += fabs((double)f->gradients[i] - (double)f->weights[i]) > 0.5 * lr;
    assert_true(n_moved > n / 10 * 9);
}

/* Widths that take the fast attention and the vector paths, and windows of many tokens. */
static void usual_sizes(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const struct {
        size_t d_model, n_heads, context;
    } sizes[] = {{128, 2, 64}, {256, 2, 128}, {256, 4, 256}, {512, 8, 96}};
    for (size_t i = 0; i < (qb_test_is_small() ? 1 : QB_COUNT(sizes)); i++)
        for (int softmax = 0; softmax < 2; softmax++) {
            qb_config c = qb_test_tiny_config("gpt2");
            c.d_model = sizes[i].d_model;
            c.n_heads = c.n_kv_heads = sizes[i].n_heads;
            c.head_dim = c.d_model / c.n_heads;
            c.d_ff = 4 * c.d_model;
            c.vocab = 320;
            c.context = sizes[i].context;
            c.softmax = softmax ? QB_SOFTMAX1 : QB_SOFTMAX;
            qb_trainer_options on_cpu = options_of("adam", "cpu", false);
            qb_trainer_options on_gpu = options_of("adam", "cuda", false);
            on_cpu.context = on_gpu.context = c.context;
            fixture cpu = fixture_create(&c, &on_cpu), gpu = fixture_create(&c, &on_gpu);
            draw_weights(&cpu);
            draw_weights(&gpu);
            const qb_step_stats want = step(&cpu, 1e-3, 1), got = step(&gpu, 1e-3, 1);
            printf("d %zu, %zu heads, T %zu, %s: loss %.6f against %.6f, norm %.5f against %.5f\n",
                   c.d_model, c.n_heads, c.context, qb_softmax_names[c.softmax], got.loss,
                   want.loss, got.grad_norm, want.grad_norm);
            assert_true(fabs(got.loss / want.loss - 1) < 1e-3);
            assert_true(fabs(got.grad_norm / want.grad_norm - 1) < 2e-2);
            check_moved(&cpu, 1e-3);
            check_moved(&gpu, 1e-3);
            fixture_destroy(&cpu);
            fixture_destroy(&gpu);
        }
}

/* Losses of a hundred: exponentials less the target's logit are too large, and are made again. */
static void large_logits(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_config c = qb_test_tiny_config("gpt2");
    c.d_model = c.head_dim = 64;
    c.n_heads = c.n_kv_heads = 1;
    c.d_ff = 256;
    c.vocab = 320;
    fixture both[2];
    qb_step_stats stats[2];
    double loss;
    for (int i = 0; i < 2; i++) {
        qb_trainer_options o = options_of("sgd", i ? "cuda" : "cpu", false);
        both[i] = fixture_create(&c, &o);
        qb_params_init(both[i].params, QB_INIT_GPT2, 7, both[i].weights);
        const qb_param *p =
            qb_params_find(both[i].params, c.tied_head ? QB_ROLE_TOK_EMBD : QB_ROLE_HEAD, 0);
        for (size_t j = p->offset; j < p->offset + p->rows * p->cols; j++)
            both[i].weights[j] *= 300;
        QB_CHECK_OK(qb_trainer_set_weights(both[i].trainer, both[i].weights));
        stats[i] = step(&both[i], 0, 1);
    }
    printf("loss %.5f against %.5f, norm %.5f against %.5f\n", stats[1].loss, stats[0].loss,
           stats[1].grad_norm, stats[0].grad_norm);
    assert_true(stats[0].loss > 60);
    assert_true(fabs(stats[1].loss / stats[0].loss - 1) < 1e-2);
    assert_true(fabs(stats[1].grad_norm / stats[0].grad_norm - 1) < 0.1);
    QB_CHECK_OK(qb_trainer_evaluate(both[1].trainer, both[1].tokens, WINDOWS, &loss));
    assert_true(fabs(loss / stats[1].loss - 1) < 1e-6);
    for (int i = 0; i < 2; i++) fixture_destroy(&both[i]);
}

/* ---- updates ---- */

static void compare_training(const char *optimizer, const qb_rotation *rotation, double decay)
{
    qb_config config = qb_test_tiny_config("gpt2");
    fixture both[2];
    qb_step_stats stats[2];
    for (int i = 0; i < 2; i++) {
        qb_trainer_options o = options_of(optimizer, i ? "cuda" : "cpu", true);
        o.rotation = *rotation;
        o.settings.weight_decay = decay;
        both[i] = fixture_create(&config, &o);
        for (uint64_t t = 1; t <= (qb_test_is_small() ? 2 : 5); t++)
            stats[i] = step(&both[i], 1e-3, t);
        QB_CHECK_OK(qb_trainer_get_weights(both[i].trainer, both[i].gradients));
    }
    double worst = 0, moved = 0;
    for (size_t i = 0; i < both[0].params->n_elems; i++) {
        worst = fmax(worst, fabs((double)both[0].gradients[i] - (double)both[1].gradients[i]));
        moved = fmax(moved, fabs((double)both[0].gradients[i] - (double)both[0].weights[i]));
    }
    printf("%s, %s%s, decay %g: weights within %.2g after moves of %.2g; loss %.7g against %.7g\n",
           optimizer, qb_rotation_names[rotation->kind], rotation->both_axes ? " on both axes" : "",
           decay, worst, moved, stats[1].loss, stats[0].loss);
    /* An entry whose gradient is about 0 may step either way under Adam's division. */
    assert_true(worst < 0.2 * moved);
    assert_true(fabs(stats[1].loss / stats[0].loss - 1) < 1e-4);
    for (int i = 0; i < 2; i++) fixture_destroy(&both[i]);
}

static void updates_are_the_processors(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    const qb_rotation haar = {.kind = QB_ROTATION_HAAR, .seed = 3};
    for (const qb_optimizer *o = qb_optimizers; o->name; o++) compare_training(o->name, &haar, 0.1);
    if (qb_test_is_small()) return;
    compare_training("orthoadam", &(qb_rotation){.kind = QB_ROTATION_HAAR, .both_axes = true}, 0);
    compare_training("orthoadam", &(qb_rotation){.kind = QB_ROTATION_BLOCK, .block_elems = 7}, 0);
    compare_training("orthoadam", &(qb_rotation){.kind = QB_ROTATION_HADAMARD}, 0.1);
}

static void bits_repeat(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    static const char *const archs[] = {"gpt2", "llama"};
    const bool small = qb_test_is_small();
    for (size_t a = small; a < QB_COUNT(archs); a++) {
        qb_config config = qb_test_tiny_config(archs[a]);
        float *first = NULL;
        for (int i = small; i < 3; i++) {
            qb_trainer_options o = options_of("orthoadam", "cuda", false);
            o.recompute = i == 2;
            fixture f = fixture_create(&config, &o);
            for (uint64_t t = 1; t <= (qb_test_is_small() ? 2 : 3); t++) step(&f, 1e-3, t);
            QB_CHECK_OK(qb_trainer_get_weights(f.trainer, f.weights));
            if (first) assert_memory_equal(first, f.weights, f.params->n_elems * sizeof *first);
            if (!first) first = f.weights, f.weights = NULL;
            fixture_destroy(&f);
        }
        qb_free(first);
    }
}

static void what_is_no_number_changes_nothing(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_config config = qb_test_tiny_config("gpt2");
    qb_trainer_options o = options_of("orthoadam", "cuda", false);
    fixture f = fixture_create(&config, &o);
    const qb_param *bad = qb_params_find(f.params, QB_ROLE_UP, 1);
    assert_non_null(bad);
    f.weights[bad->offset + 3] = INFINITY;
    QB_CHECK_OK(qb_trainer_set_weights(f.trainer, f.weights));
    const qb_step_stats stats = step(&f, 1e-3, 1);
    assert_false(stats.finite);
    assert_string_equal(stats.culprit, "weights of h.1.mlp.up");
    QB_CHECK_OK(qb_trainer_get_weights(f.trainer, f.gradients));
    assert_memory_equal(f.gradients, f.weights, f.params->n_elems * sizeof(float));
    fixture_destroy(&f);
}

/* ---- steps that are queued, and graphs ---- */

enum { STEPS = 20 };

/* With QB_TEST_SMALL one step of each sort: launched one by one, captured, and repeated. */
static size_t n_steps(void)
{
    return qb_test_is_small() ? 3 : STEPS;
}

static size_t n_windows(void)
{
    return qb_test_is_small() ? 2 : WINDOWS;
}

/* Other tokens and another rate in every step. */
static void queue_step(fixture *f, uint64_t t)
{
    const qb_config *c = &f->params->config;
    qb_test_tokens(c, f->tokens, WINDOWS * (context_of(c) + 1), 100 + t);
    QB_CHECK_OK(qb_trainer_queue(f->trainer, f->tokens, n_windows(), 1e-3 / (double)t, t));
}

typedef struct training {
    float *weights; /* after n_steps() steps */
    size_t n_bytes;
    double losses[STEPS], norms[STEPS];
} training;

static training train_steps(const qb_config *config, const qb_trainer_options *options, bool wait)
{
    fixture f = fixture_create(config, options);
    training out = {.n_bytes = f.params->n_elems * sizeof *out.weights};
    size_t n = 0, ahead = wait ? 0 : qb_trainer_steps_ahead(f.trainer);
    draw_weights(&f);
    for (uint64_t t = 1; t <= n_steps(); t++) {
        const bool all = wait || t == n_steps() / 2 || t == n_steps();
        queue_step(&f, t);
        while (qb_trainer_queued(f.trainer) > (all ? 0 : ahead)) {
            qb_step_stats stats;
            QB_CHECK_OK(qb_trainer_collect(f.trainer, &stats));
            assert_true(stats.finite);
            out.losses[n] = stats.loss;
            out.norms[n++] = stats.grad_norm;
        }
        double loss; /* a pass of another kind in between */
        if (all) QB_CHECK_OK(qb_trainer_evaluate(f.trainer, f.tokens, 3, &loss));
    }
    assert_int_equal(n, n_steps());
    QB_CHECK_OK(qb_trainer_get_weights(f.trainer, f.weights));
    out.weights = f.weights;
    f.weights = NULL;
    fixture_destroy(&f);
    return out;
}

static void compare_graphs(const qb_config *config, const char *what)
{
    static size_t n_before;
    if (qb_test_is_small() && n_before++) return;
    static const char *const optimizers[] = {"adamw", "orthoadam"};
    for (size_t micro_batch = 1; micro_batch <= n_windows(); micro_batch += n_windows() - 1)
        for (size_t i = 0; i < QB_COUNT(optimizers); i++) {
            if (qb_test_is_small() && i == (micro_batch == 1)) continue;
            qb_trainer_options o = options_of(optimizers[i], "cuda", false);
            o.context = context_of(config);
            o.micro_batch = micro_batch;
            o.recompute = micro_batch == 1;
            o.no_graphs = true;
            training want = train_steps(config, &o, true);
            o.no_graphs = false;
            training got = train_steps(config, &o, false);
            if (memcmp(want.weights, got.weights, want.n_bytes))
                printf("%s, %s, passes of %zu: ", what, optimizers[i], micro_batch);
            assert_memory_equal(want.weights, got.weights, want.n_bytes);
            assert_memory_equal(want.losses, got.losses, sizeof want.losses);
            assert_memory_equal(want.norms, got.norms, sizeof want.norms);
            qb_free(want.weights);
            qb_free(got.weights);
        }
}

static void graphs_and_queues_change_no_bit(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_test_each_tiny_config(compare_graphs);
}

/* Step 3 makes weights that are no numbers: step 4 finds them when 5 and 6 are queued already. */
static void a_queue_stops_at_what_is_no_number(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_config config = qb_test_tiny_config("gpt2");
    for (int graphs = qb_test_is_small(); graphs < 2; graphs++) {
        qb_step_stats stats;
        qb_trainer_options o = options_of("orthoadam", "cuda", false);
        o.no_graphs = !graphs;
        fixture f = fixture_create(&config, &o);
        for (uint64_t t = 1; t <= 6; t++) {
            QB_CHECK_OK(
                qb_trainer_queue(f.trainer, f.tokens, WINDOWS, t == 3 ? INFINITY : 1e-3, t));
            if (t < 4) QB_CHECK_OK(qb_trainer_collect(f.trainer, &stats));
            if (t < 4) assert_true(stats.finite);
            if (t == 3) QB_CHECK_OK(qb_trainer_get_weights(f.trainer, f.weights));
        }
        for (uint64_t t = 4; t <= 6; t++) {
            QB_CHECK_OK(qb_trainer_collect(f.trainer, &stats));
            assert_false(stats.finite);
            assert_string_equal(stats.culprit, "");
        }
        QB_CHECK_OK(qb_trainer_get_weights(f.trainer, f.gradients));
        assert_memory_equal(f.gradients, f.weights, f.params->n_elems * sizeof(float));
        stats = step(&f, 1e-3, 4);
        assert_false(stats.finite);
        assert_non_null(strstr(stats.culprit, "weights of "));
        /* and goes on with weights that are */
        draw_weights(&f);
        stats = step(&f, 1e-3, 4);
        assert_true(stats.finite);
        check_moved(&f, 1e-5);
        fixture_destroy(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_in_f32_are_the_processors),
        cmocka_unit_test(steps_in_bf16_are_near_the_processors),
        cmocka_unit_test(usual_sizes),
        cmocka_unit_test(large_logits),
        cmocka_unit_test(updates_are_the_processors),
        cmocka_unit_test(bits_repeat),
        cmocka_unit_test(what_is_no_number_changes_nothing),
        cmocka_unit_test(graphs_and_queues_change_no_bit),
        cmocka_unit_test(a_queue_stops_at_what_is_no_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
