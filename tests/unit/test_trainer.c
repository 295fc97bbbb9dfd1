/* tests/unit/test_trainer.c - the training step on the processor: gradients against differences of
 * a loss in double for every flag of the architecture table, the loss against the engine's, the
 * update against its formula, and that results do not depend on how the work is cut. */
#include "support.h"
#include "tiny_model.h"

#include "core/memory.h"
#include "core/rng.h"
#include "infer/engine.h"
#include "train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOWS = 4, CONTEXT = 11 };

/* A model with tokens, and a trainer that has its weights. */
typedef struct fixture {
    qb_model *model;
    qb_trainer *trainer;
    const qb_params *params;
    int32_t *tokens; /* (WINDOWS, context + 1) */
    size_t context;
    float *weights, *gradients;
} fixture;

static qb_trainer_options options_of(const char *optimizer)
{
    const qb_optimizer *o = qb_optimizer_find(optimizer);
    return (qb_trainer_options){.device = "cpu",
                                .micro_batch = 2,
                                .context = CONTEXT,
                                .optimizer = o,
                                .settings = o->defaults,
                                .n_threads = 2};
}

static fixture fixture_create(const qb_config *config, const qb_trainer_options *options)
{
    fixture f = {.model = qb_test_tiny_model(config, 11), .context = options->context};
    QB_CHECK_OK(qb_trainer_create(config, options, &f.trainer));
    f.params = qb_trainer_params(f.trainer);
    size_t n_tokens = WINDOWS * (f.context + 1);
    QB_CHECK_OK(QB_NEW(&f.tokens, n_tokens, "tokens"));
    QB_CHECK_OK(QB_NEW(&f.weights, f.params->n_elems, "weights"));
    QB_CHECK_OK(QB_NEW(&f.gradients, f.params->n_elems, "gradients"));
    qb_test_tokens(config, f.tokens, n_tokens, 5);
    QB_CHECK_OK(qb_params_from_model(f.params, f.model, f.weights));
    QB_CHECK_OK(qb_trainer_set_weights(f.trainer, f.weights));
    return f;
}

static void fixture_destroy(fixture *f)
{
    qb_trainer_destroy(f->trainer);
    qb_model_close(f->model);
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

/* ---- the loss in double ---- */

static double nll_of(const double *logits, size_t vocab, size_t target)
{
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < vocab; i++) max = fmax(max, logits[i]);
    for (size_t i = 0; i < vocab; i++) sum += exp(logits[i] - max);
    return max + log(sum) - logits[target];
}

static double loss_of(const fixture *f)
{
    const qb_config *c = &f->model->config;
    size_t first = c->free_prefix ? c->free_prefix - 1 : 0;
    double *logits = malloc(f->context * c->vocab * sizeof *logits), loss = 0;
    for (size_t w = 0; w < WINDOWS; w++) {
        const int32_t *tokens = f->tokens + w * (f->context + 1);
        qb_test_forward(f->model, tokens, 1, f->context, logits);
        for (size_t t = first; t < f->context; t++)
            loss += nll_of(logits + t * c->vocab, c->vocab, (size_t)tokens[t + 1]);
    }
    free(logits);
    return loss / (double)(WINDOWS * (f->context - first));
}

/* ---- gradients ---- */

/* Moves the model's tensor by sign * step along a direction of random signs. */
static void move(float *w, const float *from, size_t n, uint64_t seed, double size)
{
    for (size_t i = 0; i < n; i++)
        w[i] = (float)((double)from[i] + (qb_rng_u32(seed, 3, i) & 1 ? size : -size));
}

/* The loss's change between both sides of the weights against the gradient along that way, for each
 * tensor as a whole: an error of one element shows, since all have a part. The floats' own steps
 * are counted, so their rounding does not matter; the way is so short that next to no score or
 * hidden unit crosses a kink. */
static void check_tensor(fixture *f, const qb_param *p, const char *what)
{
    const float *from = f->weights + p->offset, *g = f->gradients + p->offset;
    float *w = (float *)(uintptr_t)qb_model_tensor(f->model, p->role, p->layer_idx)->data;
    size_t n = p->rows * p->cols;
    double want = 0, g_size = 0, way = 0, size = 1e-6, change;
    float *plus = malloc(n * sizeof *plus), *minus = malloc(n * sizeof *minus);
    move(plus, from, n, 21, size);
    move(minus, from, n, 21, -size);
    for (size_t i = 0; i < n; i++) {
        double d = (double)plus[i] - (double)minus[i];
        want += d * (double)g[i];
        g_size += (double)g[i] * (double)g[i];
        way += d * d;
    }
    memcpy(w, plus, n * sizeof *w);
    change = loss_of(f);
    memcpy(w, minus, n * sizeof *w);
    change -= loss_of(f);
    memcpy(w, from, n * sizeof *w);
    /* The floor is for the bias of keys without rotary positions: no softmax sees it, so its
     * gradient is what rounding leaves of a sum that is 0. */
    double allowed = 2e-4 * sqrt(g_size * way) + 1e-8 * sqrt(way);
    if (!(fabs(change - want) <= allowed)) {
        char name[64];
        qb_role_name(p->role, p->layer_idx, name, sizeof name);
        fail_msg("%s, %s: the loss changes by %g, the gradient says %g (allowed %g)", what, name,
                 change, want, allowed);
    }
    free(plus);
    free(minus);
}

/* Sanitizers watch the trainer's step, which is whole; what compares it is code of this test, slow
 * under them, and the plain build runs it for every tensor. */
#ifdef __SANITIZE_ADDRESS__
enum { TENSOR_STEP = 7 };
#else
enum { TENSOR_STEP = 1 };
#endif

static void check_gradients(const qb_config *config, size_t context, const char *what)
{
    qb_trainer_options options = options_of("sgd");
    options.context = context;
    fixture f = fixture_create(config, &options);
    qb_step_stats stats = step(&f, 0, 1);
    double loss = loss_of(&f);
    if (!(fabs(stats.loss / loss - 1) < 1e-5))
        fail_msg("%s: loss %.9g, not %.9g", what, stats.loss, loss);
    QB_CHECK_OK(qb_trainer_get_gradients(f.trainer, f.gradients));
    for (size_t i = 0; i < f.params->n; i += TENSOR_STEP)
        check_tensor(&f, &f.params->list[i], what);
    fixture_destroy(&f);
}

static void check_config(const qb_config *config, const char *what)
{
    bool no_mask = config->free_prefix == config->context;
    check_gradients(config, no_mask ? config->context : CONTEXT, what);
}

static void gradients_are_differences_of_the_loss(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_config);
}

/* More queries than attention takes at a time, several heads a key head. */
static void gradients_of_long_windows(void **state)
{
    (void)state;
    for (int i = 0; i < QB_SOFTMAX_COUNT; i++) {
        qb_config c = qb_test_tiny_config("llama");
        c.context = 150;
        c.n_layers = 1;
        c.softmax = (qb_softmax_kind)i;
        c.free_prefix = i == QB_SOFTMAX1 ? 80 : 0;
        check_gradients(&c, c.context, qb_softmax_names[i]);
    }
}

/* ---- the same model as the engine's ---- */

static double engine_loss(const fixture *f)
{
    const qb_config *c = &f->model->config;
    qb_backbone *backbone;
    qb_engine *engine;
    size_t vocab = c->vocab, first = c->free_prefix ? c->free_prefix - 1 : 0;
    double *row = malloc(vocab * sizeof *row), loss = 0;
    float *logits = malloc(f->context * vocab * sizeof *logits);
    qb_backbone_options options = {.max_tokens = f->context};
    QB_CHECK_OK(qb_backbone_create(f->model, &options, &backbone));
    QB_CHECK_OK(qb_engine_create(backbone, &(qb_engine_options){.scheme = qb_scheme_find("full")},
                                 &engine));
    for (size_t w = 0; w < WINDOWS; w++) {
        const int32_t *tokens = f->tokens + w * (f->context + 1);
        QB_CHECK_OK(qb_engine_prefill(engine, tokens, 1, f->context));
        QB_CHECK_OK(qb_engine_logits(engine, 0, f->context, logits));
        for (size_t t = first; t < f->context; t++) {
            for (size_t i = 0; i < vocab; i++) row[i] = (double)logits[t * vocab + i];
            loss += nll_of(row, vocab, (size_t)tokens[t + 1]);
        }
    }
    qb_engine_destroy(engine);
    qb_backbone_destroy(backbone);
    free(row);
    free(logits);
    return loss / (double)(WINDOWS * (f->context - first));
}

static void check_engine(const qb_config *config, const char *what)
{
    qb_trainer_options options = options_of("sgd");
    if (config->free_prefix == config->context) options.context = config->context;
    options.micro_batch = 3; /* the last pass is partly filled */
    fixture f = fixture_create(config, &options);
    double loss, want = engine_loss(&f);
    QB_CHECK_OK(qb_trainer_evaluate(f.trainer, f.tokens, WINDOWS, &loss));
    if (!(fabs(loss / want - 1) < 1e-6)) fail_msg("%s: %.9g, not %.9g", what, loss, want);
    fixture_destroy(&f);
}

static void evaluation_is_the_engines(void **state)
{
    (void)state;
    qb_test_each_tiny_config(check_engine);
}

/* ---- how the work is cut ---- */

/* Weights after three steps. */
static float *trained(const qb_config *config, qb_trainer_options options)
{
    fixture f = fixture_create(config, &options);
    for (uint64_t t = 1; t <= 3; t++) step(&f, 1e-2, t);
    QB_CHECK_OK(qb_trainer_get_weights(f.trainer, f.weights));
    float *w = f.weights;
    f.weights = NULL;
    fixture_destroy(&f);
    return w;
}

static size_t n_elems_of(const qb_config *config)
{
    qb_params p;
    QB_CHECK_OK(qb_params_create(config, &p));
    size_t n = p.n_elems;
    qb_params_destroy(&p);
    return n;
}

static void bits_do_not_depend_on_threads_or_recomputation(void **state)
{
    (void)state;
    static const char *const archs[] = {"gpt2", "llama"};
    for (size_t a = 0; a < QB_COUNT(archs); a++) {
        qb_config config = qb_test_tiny_config(archs[a]);
        config.attn_gate = true;
        size_t bytes = n_elems_of(&config) * sizeof(float);
        qb_trainer_options options = options_of("orthoadam");
        options.n_threads = 1;
        float *want = trained(&config, options);
        for (size_t n_threads = 2; n_threads <= 4; n_threads += 2)
            for (int recompute = 0; recompute < 2; recompute++) {
                options.n_threads = n_threads;
                options.recompute = recompute;
                float *got = trained(&config, options);
                assert_memory_equal(got, want, bytes);
                qb_free(got);
            }
        qb_free(want);
    }
}

static void micro_batches_add_up(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_trainer_options options = options_of("sgd");
    options.micro_batch = 4;
    float *want = trained(&config, options);
    options.micro_batch = 1;
    float *got = trained(&config, options);
    size_t at;
    assert_true(qb_test_max_diff(got, want, n_elems_of(&config), &at) < 1e-6);
    qb_free(got);
    qb_free(want);
}

/* Weights and states are all that a run needs to go on. */
static void a_run_goes_on_from_its_states(void **state)
{
    (void)state;
    for (const qb_optimizer *o = qb_optimizers; o->name; o++) {
        qb_config config = qb_test_tiny_config("gpt2");
        qb_trainer_options options = options_of(o->name);
        float *want = trained(&config, options), *states[2] = {NULL, NULL};
        fixture a = fixture_create(&config, &options), b = fixture_create(&config, &options);
        size_t n = a.params->n_elems;
        for (uint64_t t = 1; t <= 2; t++) step(&a, 1e-2, t);
        QB_CHECK_OK(qb_trainer_get_weights(a.trainer, a.weights));
        QB_CHECK_OK(qb_trainer_set_weights(b.trainer, a.weights));
        for (size_t i = 0; i < o->n_states; i++) {
            QB_CHECK_OK(QB_NEW(&states[i], n, "state"));
            QB_CHECK_OK(qb_trainer_get_state(a.trainer, i, states[i]));
            QB_CHECK_OK(qb_trainer_set_state(b.trainer, i, states[i]));
            qb_free(states[i]);
        }
        step(&b, 1e-2, 3);
        QB_CHECK_OK(qb_trainer_get_weights(b.trainer, b.weights));
        assert_memory_equal(b.weights, want, n * sizeof *want);
        assert_int_equal(qb_trainer_get_state(a.trainer, o->n_states, a.weights), QB_ERR_USAGE);
        fixture_destroy(&a);
        fixture_destroy(&b);
        qb_free(want);
    }
}

/* ---- parts that are left out ---- */

enum { MOST_LAYERS = 3 };

/* The streams after the blocks, then the head's input, of all windows; which layers attended. */
typedef struct seen {
    float *values[MOST_LAYERS + 1];
    unsigned attended;
    size_t width;
} seen;

static void keep(seen *s, size_t place, const qb_observed *o)
{
    size_t row = CONTEXT * s->width;
    memcpy(s->values[place] + o->first * row, o->values, o->batch * row * sizeof(float));
}
static qb_status see_attention(void *context, const qb_observed *qkv)
{
    ((seen *)context)->attended |= 1u << qkv->layer;
    return QB_OK;
}
static qb_status see_stream(void *context, const qb_observed *x)
{
    keep(context, x->layer, x);
    return QB_OK;
}
static qb_status see_head_input(void *context, const qb_observed *h)
{
    keep(context, MOST_LAYERS, h);
    return QB_OK;
}

static seen look(fixture *f, const qb_walk_skip *skip)
{
    seen s = {.width = f->params->config.d_model};
    for (size_t i = 0; i <= MOST_LAYERS; i++)
        QB_CHECK_OK(QB_NEW_ZERO(&s.values[i], WINDOWS * CONTEXT * s.width, "seen"));
    const qb_observer observer = {see_attention, see_stream, see_head_input, &s, *skip};
    QB_CHECK_OK(qb_trainer_observe(f->trainer, f->tokens, WINDOWS, &observer));
    return s;
}

static void silence(fixture *f, qb_role role, size_t layer)
{
    for (int bias = 0; bias < 2; bias++) {
        const qb_param *p = qb_params_find(f->params, (qb_role)((int)role + bias), layer);
        if (p) memset(f->weights + p->offset, 0, p->rows * p->cols * sizeof *f->weights);
    }
}

/* What is skipped adds as much as what has zeros for its last weights: nothing. */
static void check_skip(const qb_config *config, const qb_trainer_options *options,
                       const qb_walk_skip *skip)
{
    fixture f = fixture_create(config, options);
    seen got = look(&f, skip);
    unsigned bit = 1u << skip->layer;
    assert_true(!(got.attended & bit) == (skip->attention || config->no_attention & bit));
    if (skip->attention) silence(&f, QB_ROLE_O, skip->layer);
    if (skip->mlp) silence(&f, QB_ROLE_DOWN, skip->layer);
    QB_CHECK_OK(qb_trainer_set_weights(f.trainer, f.weights));
    seen want = look(&f, &(qb_walk_skip){.layer = 0});
    for (size_t i = 0; i <= MOST_LAYERS; i++) {
        size_t at, n = WINDOWS * CONTEXT * got.width;
        if (qb_test_max_diff(got.values[i], want.values[i], n, &at) > 0)
            fail_msg("block %zu, attention %d, MLP %d left out: stream %zu differs", skip->layer,
                     skip->attention, skip->mlp, i);
        qb_free(got.values[i]);
        qb_free(want.values[i]);
    }
    fixture_destroy(&f);
}

static void parts_can_be_left_out(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * 2 * MOST_LAYERS * 4; i++) {
        qb_config config = qb_test_tiny_config("gpt2");
        qb_trainer_options options = options_of("sgd");
        config.n_layers = MOST_LAYERS;
        config.no_attention = i & 1 ? 2 : 0;
        options.recompute = i & 2;
        const qb_walk_skip skip = {(size_t)i / 16, i & 4, i & 8};
        check_skip(&config, &options, &skip);
    }
}

/* ---- the update ---- */

/* to (rows, cols) = basis of the axis (its transpose where back) times from along that axis */
static void turn(const qb_param *p, const float *q, size_t axis, bool back, const double *from,
                 double *to)
{
    size_t n = axis ? p->cols : p->rows;
    for (size_t r = 0; r < p->rows; r++)
        for (size_t c = 0; c < p->cols; c++) {
            double sum = 0;
            for (size_t k = 0; k < n; k++) {
                size_t at = axis ? c : r;
                sum += (double)(back ? q[k * n + at] : q[at * n + k]) *
                       (axis ? from[r * p->cols + k] : from[k * p->cols + c]);
            }
            to[r * p->cols + c] = sum;
        }
}

/* The first step of Adam from g along p's rotated axes: m / (1 - b1) = g, v / (1 - b2) = g^2. */
static void check_rotated_step(const fixture *f, const qb_rotation *rotation, const qb_param *p,
                               const float *after, double lr)
{
    size_t n = p->rows * p->cols;
    double *a = malloc(n * sizeof *a), *b = malloc(n * sizeof *b), *swap;
    float *bases[2] = {NULL, NULL};
    for (size_t i = 0; i < n; i++) a[i] = (double)f->gradients[p->offset + i];
    for (size_t axis = 0; axis < 2; axis++) {
        size_t size = qb_rotation_axis_elems(rotation, p, axis);
        if (!size) continue;
        bases[axis] = malloc(size * size * sizeof *bases[axis]);
        QB_CHECK_OK(qb_rotation_fill(rotation, p, axis, size, bases[axis]));
        turn(p, bases[axis], axis, false, a, b);
        swap = a, a = b, b = swap;
    }
    for (size_t i = 0; i < n; i++) a[i] /= fabs(a[i]) + 1e-8;
    for (size_t axis = 0; axis < 2; axis++) {
        if (!bases[axis]) continue;
        turn(p, bases[axis], axis, true, a, b);
        swap = a, a = b, b = swap;
        free(bases[axis]);
    }
    for (size_t i = 0; i < n; i++) {
        double want = (double)f->weights[p->offset + i] - lr * a[i];
        if (!(fabs((double)after[p->offset + i] - want) < 1e-3 * lr))
            fail_msg("role %d at %zu: %g, not %g", p->role, i, (double)after[p->offset + i], want);
    }
    free(a);
    free(b);
}

static void rotated_steps_follow_their_formula(void **state)
{
    (void)state;
    for (int kind = 0; kind < QB_ROTATION_COUNT; kind++)
        for (int both = 0; both < 2; both++) {
            qb_config config = qb_test_tiny_config("gpt2");
            qb_trainer_options options = options_of("orthoadam");
            options.rotation = (qb_rotation){
                .kind = (qb_rotation_kind)kind, .block_elems = 7, .both_axes = both, .seed = 4};
            fixture f = fixture_create(&config, &options);
            float *after;
            QB_CHECK_OK(QB_NEW(&after, f.params->n_elems, "weights"));
            step(&f, 1e-2, 1);
            QB_CHECK_OK(qb_trainer_get_gradients(f.trainer, f.gradients));
            QB_CHECK_OK(qb_trainer_get_weights(f.trainer, after));
            static const qb_role roles[] = {QB_ROLE_QKV, QB_ROLE_DOWN, QB_ROLE_POS_EMBD};
            for (size_t i = 0; i < QB_COUNT(roles); i++)
                check_rotated_step(&f, &options.rotation, qb_params_find(f.params, roles[i], 0),
                                   after, 1e-2);
            qb_free(after);
            fixture_destroy(&f);
        }
}

/* Plain SGD shows what the gradient was multiplied by, and what decayed. */
static void clipping_and_decay(void **state)
{
    (void)state;
    for (int all = 0; all < 2; all++) {
        qb_config config = qb_test_tiny_config("gpt2");
        qb_trainer_options options = options_of("sgd");
        options.clip = 0.25;
        options.settings.weight_decay = 0.5;
        options.settings.decay_all = all;
        fixture f = fixture_create(&config, &options);
        float *after;
        QB_CHECK_OK(QB_NEW(&after, f.params->n_elems, "weights"));
        double norm = step(&f, 0.1, 1).grad_norm, squares = 0;
        QB_CHECK_OK(qb_trainer_get_gradients(f.trainer, f.gradients));
        QB_CHECK_OK(qb_trainer_get_weights(f.trainer, after));
        for (size_t i = 0; i < f.params->n_elems; i++)
            squares += (double)f.gradients[i] * (double)f.gradients[i];
        assert_true(fabs(norm / sqrt(squares) - 1) < 1e-6 && norm > options.clip);
        for (size_t i = 0; i < f.params->n; i++) {
            const qb_param *p = &f.params->list[i];
            double decay = p->is_matrix || all ? 0.1 * 0.5 : 0;
            for (size_t k = p->offset; k < p->offset + p->rows * p->cols; k++) {
                double w = (double)f.weights[k],
                       want = w - 0.1 * 0.25 / norm * (double)f.gradients[k] - decay * w;
                assert_true(fabs((double)after[k] - want) < 1e-6 * (1 + fabs(w)));
            }
        }
        qb_free(after);
        fixture_destroy(&f);
    }
}

/* ---- what goes wrong ---- */

static void a_step_that_is_no_number_changes_nothing(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("llama");
    qb_trainer_options options = options_of("adam");
    fixture f = fixture_create(&config, &options);
    const qb_param *p = qb_params_find(f.params, QB_ROLE_UP, 1);
    float *after;
    QB_CHECK_OK(QB_NEW(&after, f.params->n_elems, "weights"));
    f.weights[p->offset + 3] = NAN;
    QB_CHECK_OK(qb_trainer_set_weights(f.trainer, f.weights));
    qb_step_stats stats = step(&f, 1e-3, 1);
    QB_CHECK_OK(qb_trainer_get_weights(f.trainer, after));
    assert_false(stats.finite);
    assert_string_equal(stats.culprit, "weights of h.1.mlp.up");
    assert_memory_equal(after, f.weights, f.params->n_elems * sizeof *after);
    f.weights[p->offset + 3] = 3e38f; /* overflows on the way */
    QB_CHECK_OK(qb_trainer_set_weights(f.trainer, f.weights));
    stats = step(&f, 1e-3, 1);
    assert_false(stats.finite);
    assert_non_null(strstr(stats.culprit, "gradient of "));
    qb_free(after);
    fixture_destroy(&f);
}

static void queue(fixture *f, double lr, uint64_t t)
{
    QB_CHECK_OK(qb_trainer_queue(f->trainer, f->tokens, WINDOWS, lr, t));
}

/* Figures come in order, and steps behind one that is no number change nothing. */
static void queued_steps_are_collected_in_order(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_trainer_options options = options_of("adam");
    fixture f = fixture_create(&config, &options), twin = fixture_create(&config, &options);
    qb_step_stats stats;
    double loss;
    assert_int_equal(qb_trainer_collect(f.trainer, &stats), QB_ERR_USAGE);
    for (uint64_t t = 1; t <= 3; t++) queue(&f, 1e-3, t);
    assert_int_equal(qb_trainer_queued(f.trainer), 3);
    assert_int_equal(qb_trainer_step(f.trainer, f.tokens, WINDOWS, 0, 4, &stats), QB_ERR_USAGE);
    assert_int_equal(qb_trainer_evaluate(f.trainer, f.tokens, 1, &loss), QB_ERR_USAGE);
    queue(&f, INFINITY, 4);
    assert_int_equal(qb_trainer_queue(f.trainer, f.tokens, WINDOWS, 0, 5), QB_ERR_USAGE);
    for (uint64_t t = 1; t <= 4; t++) {
        qb_step_stats want = step(&twin, t == 4 ? INFINITY : 1e-3, t);
        QB_CHECK_OK(qb_trainer_collect(f.trainer, &stats));
        assert_true(stats.finite && stats.loss == want.loss && stats.grad_norm == want.grad_norm);
    }
    for (uint64_t t = 5; t <= 7; t++) queue(&f, 1e-3, t);
    for (uint64_t t = 5; t <= 7; t++) {
        QB_CHECK_OK(qb_trainer_collect(f.trainer, &stats));
        assert_false(stats.finite);
        assert_string_equal(stats.culprit, "");
    }
    stats = step(&f, 1e-3, 5);
    assert_false(stats.finite);
    assert_non_null(strstr(stats.culprit, "weights of "));
    QB_CHECK_OK(qb_trainer_set_weights(f.trainer, f.weights));
    stats = step(&f, 1e-3, 5);
    assert_true(stats.finite);
    QB_CHECK_OK(qb_trainer_get_weights(f.trainer, f.gradients));
    assert_memory_not_equal(f.gradients, f.weights, f.params->n_elems * sizeof(float));
    fixture_destroy(&f);
    fixture_destroy(&twin);
}

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_trainer_options options = options_of("adam"), wrong = options;
    qb_trainer *t;
    wrong.context = config.context + 1;
    assert_int_equal(qb_trainer_create(&config, &wrong, &t), QB_ERR_USAGE);
    wrong = options;
    wrong.micro_batch = 0;
    assert_int_equal(qb_trainer_create(&config, &wrong, &t), QB_ERR_USAGE);
    wrong = options;
    wrong.device = "tpu";
    assert_int_equal(qb_trainer_create(&config, &wrong, &t), QB_ERR_UNSUPPORTED);
    fixture f = fixture_create(&config, &options);
    qb_step_stats stats;
    assert_int_equal(qb_trainer_step(f.trainer, f.tokens, 3, 0, 1, &stats), QB_ERR_USAGE);
    f.tokens[5] = (int32_t)config.vocab;
    assert_int_equal(qb_trainer_step(f.trainer, f.tokens, WINDOWS, 0, 1, &stats), QB_ERR_FORMAT);
    assert_int_equal(qb_trainer_set_rotation(f.trainer, f.params->list, 1, f.weights),
                     QB_ERR_USAGE);
    fixture_destroy(&f);
}

static void counts(void **state)
{
    (void)state;
    qb_config config = qb_test_tiny_config("gpt2");
    qb_trainer_options options = options_of("adam");
    fixture f = fixture_create(&config, &options);
    double products = 2 * (4.0 * 30 * 30 + 2.0 * 30 * 75) + 61.0 * 30;
    double want = 6 * 3.0 * CONTEXT * (products + 2.0 * CONTEXT * 30);
    assert_true(fabs(qb_trainer_flops(f.trainer, 3) / want - 1) < 1e-12);
    assert_true(qb_trainer_memory_bytes(f.trainer) > 4 * f.params->n_elems * sizeof(float));
    fixture_destroy(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_differences_of_the_loss),
        cmocka_unit_test(gradients_of_long_windows),
        cmocka_unit_test(evaluation_is_the_engines),
        cmocka_unit_test(bits_do_not_depend_on_threads_or_recomputation),
        cmocka_unit_test(micro_batches_add_up),
        cmocka_unit_test(a_run_goes_on_from_its_states),
        cmocka_unit_test(parts_can_be_left_out),
        cmocka_unit_test(rotated_steps_follow_their_formula),
        cmocka_unit_test(clipping_and_decay),
        cmocka_unit_test(a_step_that_is_no_number_changes_nothing),
        cmocka_unit_test(queued_steps_are_collected_in_order),
        cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
