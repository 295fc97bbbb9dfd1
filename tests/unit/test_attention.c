/* tests/unit/test_attention.c - every row of attention against the formulas in double, for every
 * kind of softmax and with free prefixes, and the promise that a query's bits depend on its own
 * keys alone. */
#include "support.h"

#include "core/memory.h"
#include "kernels/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define U 0x1p-24

typedef struct shape {
    size_t batch, n_q, n_past, n_heads, n_kv_heads, head_dim, gap;
    qb_softmax_kind softmax;
    size_t free_prefix;
} shape;

typedef struct attention_case {
    qb_attention_args args;
    float *q, *k, *v, *out, *sink;
    size_t q_elems, kv_elems;
} attention_case;

static const float untouched = 777.0f;

/* All operands end at a guard page; the gaps between tokens must stay as they are. */
static attention_case case_create(shape s)
{
    size_t q_stride = s.n_heads * s.head_dim + s.gap, kv_stride = s.n_kv_heads * s.head_dim + s.gap;
    size_t kv_batch_stride = (s.n_past + s.n_q + 2) * kv_stride;
    attention_case c = {.q_elems = (s.batch * s.n_q - 1) * q_stride + s.n_heads * s.head_dim,
                        .kv_elems = (s.batch - 1) * kv_batch_stride +
                                    (s.n_past + s.n_q - 1) * kv_stride + s.n_kv_heads * s.head_dim};
    c.q = qb_test_guarded_alloc(c.q_elems * sizeof(float));
    c.out = qb_test_guarded_alloc(c.q_elems * sizeof(float));
    c.k = qb_test_guarded_alloc(c.kv_elems * sizeof(float));
    c.v = qb_test_guarded_alloc(c.kv_elems * sizeof(float));
    qb_test_fill_f32(c.q, c.q_elems, 1);
    qb_test_fill_f32(c.k, c.kv_elems, 2);
    qb_test_fill_f32(c.v, c.kv_elems, 3);
    for (size_t i = 0; i < c.q_elems; i++) c.out[i] = untouched;
    c.sink = qb_test_guarded_alloc(s.n_heads * sizeof(float));
    qb_test_fill_f32(c.sink, s.n_heads, 4);
    /* Both ends are reached: weights below 1 / (8 n) by few keys, above 1 / 4 by early queries. */
    float gamma = -0.5f / (float)(s.n_past + s.n_q), zeta = 4;
    c.args = (qb_attention_args){.batch = s.batch,
                                 .n_q = s.n_q,
                                 .n_past = s.n_past,
                                 .n_heads = s.n_heads,
                                 .n_kv_heads = s.n_kv_heads,
                                 .head_dim = s.head_dim,
                                 .softmax = s.softmax,
                                 .gamma = gamma,
                                 .zeta = zeta,
                                 .sink = c.sink,
                                 .free_prefix = s.free_prefix,
                                 .scale = 0.3f / sqrtf((float)s.head_dim),
                                 .q = c.q,
                                 .q_stride = q_stride,
                                 .k = c.k,
                                 .v = c.v,
                                 .kv_stride = kv_stride,
                                 .kv_batch_stride = kv_batch_stride,
                                 .out = c.out,
                                 .out_stride = q_stride};
    return c;
}

static void case_destroy(attention_case *c)
{
    qb_test_guarded_free(c->q, c->q_elems * sizeof(float));
    qb_test_guarded_free(c->out, c->q_elems * sizeof(float));
    qb_test_guarded_free(c->k, c->kv_elems * sizeof(float));
    qb_test_guarded_free(c->v, c->kv_elems * sizeof(float));
    qb_test_guarded_free(c->sink, c->args.n_heads * sizeof(float));
}

/* Runs all tasks as one thread that stands last of three would, with scratch at a guard page. */
static void run(const qb_attention_row *row, qb_attention_args args, size_t n_threads)
{
    size_t elems = row->scratch_elems(&args), n_tasks = row->n_tasks(&args, n_threads);
    assert_int_equal(elems % 16, 0);
    args.scratch = qb_test_guarded_alloc(3 * elems * sizeof(float));
    memset(args.scratch, 0xff, 3 * elems * sizeof(float)); /* NaN: nothing may be read unwritten */
    for (size_t i = n_tasks; i-- > 0;) row->task(&args, i, n_tasks, 2);
    qb_test_guarded_free(args.scratch, 3 * elems * sizeof(float));
}

/* A weight of the formulas and how far an f32 computation may be from it. */
typedef struct weight {
    double p, error;
} weight;

/* Scores of n keys become weights. An exponential errs by its score's error, u |s - m| and 2 u
 * more, the sum of them by the mean of that; sums of n terms in chains of 64, added over blocks
 * with a factor each, err by chain = (64 + 3 n / 64 + 8) u. ReLU has no exponential. Clipping has
 * slope zeta - gamma and rounds twice. */
static void weigh(const qb_attention_args *a, size_t h, weight *w, size_t n, double chain)
{
    double max = -INFINITY, total = 0, mean_error = 0;
    if (a->softmax == QB_SOFTMAX_RELU) {
        for (size_t j = 0; j < n; j++)
            w[j] = (weight){fmax(0, w[j].p) / (double)n, w[j].error / (double)n};
        return;
    }
    for (size_t j = 0; j < n; j++) max = fmax(max, w[j].p);
    if (a->softmax == QB_SOFTMAX1) max = fmax(max, 0);
    if (a->softmax == QB_SOFTMAX_SINK) max = fmax(max, a->sink[h]);
    for (size_t j = 0; j < n; j++) {
        double p = exp(w[j].p - max);
        w[j] = (weight){p, p * (w[j].error + U * (max - w[j].p) + 2 * U)};
        total += p;
        mean_error += w[j].error;
    }
    if (a->softmax == QB_SOFTMAX1) total += exp(-max);
    if (a->softmax == QB_SOFTMAX_SINK) total += exp((double)a->sink[h] - max);
    for (size_t j = 0; j < n; j++) {
        double p = w[j].p / total;
        w[j] = (weight){p, w[j].error / total + p * (mean_error / total + chain)};
        if (a->softmax != QB_SOFTMAX_CLIPPED) continue;
        double slope = (double)a->zeta - a->gamma;
        w[j].p = fmin(1, fmax(0, slope * p + a->gamma));
        w[j].error = slope * (w[j].error + 2 * U * p) + U * fabs(a->gamma);
    }
}

/* One head of one query in double, and the bound of an f32 computation: a score errs by
 * (D + 2) u scale sum|q k|, a sum of weighted values by what the weights do and chain more. */
static void check_query(const attention_case *c, const char *name, size_t b, size_t i, size_t h)
{
    const qb_attention_args *a = &c->args;
    size_t token = b * a->n_q + i, D = a->head_dim, n = a->n_past + i + 1;
    size_t free_prefix = a->free_prefix;
    if (free_prefix > a->n_past + a->n_q) free_prefix = a->n_past + a->n_q;
    if (n < free_prefix) n = free_prefix;
    size_t kv = b * a->kv_batch_stride + h / (a->n_heads / a->n_kv_heads) * D;
    weight *w = malloc(n * sizeof *w);
    double chain = (72 + 3 * (double)n / 64) * U;
    for (size_t j = 0; j < n; j++) {
        double size = w[j].p = 0;
        for (size_t d = 0; d < D; d++) {
            double x =
                (double)a->q[token * a->q_stride + h * D + d] * a->k[kv + j * a->kv_stride + d];
            w[j].p += a->scale * x;
            size += a->scale * fabs(x);
        }
        w[j].error = (double)(D + 2) * U * size;
    }
    weigh(a, h, w, n, chain);
    for (size_t d = 0; d < D; d++) {
        double sum = 0, bound = 0;
        for (size_t j = 0; j < n; j++) {
            double v = a->v[kv + j * a->kv_stride + d];
            sum += w[j].p * v;
            bound += (w[j].error + w[j].p * chain) * fabs(v);
        }
        float got = a->out[token * a->out_stride + h * D + d];
        if (!(fabs(got - sum) <= bound))
            fail_msg("%s softmax %d D %zu at (b %zu, i %zu, h %zu, d %zu): %.8g, not %.8g (bound "
                     "%.2g)",
                     name, a->softmax, D, b, i, h, d, got, sum, bound);
    }
    free(w);
}

static void check_case(const attention_case *c, const char *name)
{
    const qb_attention_args *a = &c->args;
    for (size_t b = 0; b < a->batch; b++)
        for (size_t i = 0; i < a->n_q; i++)
            for (size_t h = 0; h < a->n_heads; h++) check_query(c, name, b, i, h);
    for (size_t token = 0; token + 1 < a->batch * a->n_q; token++)
        for (size_t e = a->n_heads * a->head_dim; e < a->out_stride; e++)
            assert_true(a->out[token * a->out_stride + e] == untouched);
}

static const shape shapes[] = {
    {1, 1, 0, 1, 1, 1, 0, 0, 0},      {2, 3, 5, 2, 1, 5, 3, 0, 7},
    {1, 14, 63, 4, 2, 16, 0, 0, 70},  {1, 15, 64, 3, 3, 17, 1, 0, 900},
    {3, 70, 0, 6, 2, 31, 0, 0, 10},   {1, 130, 1, 2, 2, 32, 5, 0, 64},
    {2, 57, 100, 4, 1, 33, 0, 0, 99}, {1, 129, 70, 9, 3, 64, 0, 0, 130},
    {1, 1, 200, 9, 3, 64, 2, 0, 300}, {2, 20, 0, 20, 1, 80, 0, 0, 19},
    {1, 66, 3, 2, 1, 128, 0, 0, 5},   {1, 5, 64, 1, 1, 255, 1, 0, 65},
    {1, 40, 0, 2, 2, 256, 0, 0, 40},  {4, 1, 65, 3, 1, 48, 0, 0, 1},
};

/* Each shape with its free prefix and without. */
static void rows_agree_with_double(void **state)
{
    (void)state;
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (size_t i = 0; i < QB_COUNT(shapes); i++)
            for (int kind = 0; kind < 2 * QB_SOFTMAX_COUNT; kind++) {
                shape s = shapes[i];
                s.softmax = (qb_softmax_kind)(kind / 2);
                if (kind % 2) s.free_prefix = 0;
                attention_case c = case_create(s);
                run(row, c.args, 1 + i % 4);
                check_case(&c, row->info.name);
                case_destroy(&c);
            }
    }
}

/* Queries [q0, q1) of sequence b of a case, as a call of their own. */
static qb_attention_args part_of(const attention_case *c, size_t b, size_t q0, size_t q1)
{
    qb_attention_args p = c->args;
    size_t token = b * p.n_q + q0;
    p.batch = 1;
    p.n_q = q1 - q0;
    p.n_past += q0;
    p.q += token * p.q_stride;
    p.out += token * p.out_stride;
    p.k += b * p.kv_batch_stride;
    p.v += b * p.kv_batch_stride;
    return p;
}

static void bits_depend_on_the_query_alone(void **state)
{
    (void)state;
    static const size_t steps[] = {1, 2, 14, 15, 63, 64, 100};
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (int kind = 0; kind < QB_SOFTMAX_COUNT; kind++) {
            shape s = {2, 150, 9, 6, 2, 40, 0, (qb_softmax_kind)kind, 0};
            attention_case c = case_create(s);
            size_t bytes = c.q_elems * sizeof(float);
            float *want = malloc(bytes);
            run(row, c.args, 1);
            memcpy(want, c.out, bytes);
            for (size_t n_threads = 2; n_threads <= 32; n_threads *= 4) {
                memset(c.out, 0, bytes);
                run(row, c.args, n_threads);
                assert_memory_equal(c.out, want, bytes);
            }
            for (size_t i = 0; i < QB_COUNT(steps); i++) {
                memset(c.out, 0, bytes);
                for (size_t b = 0; b < s.batch; b++)
                    for (size_t q = 0; q < s.n_q; q += steps[i]) {
                        size_t end = q + steps[i] < s.n_q ? q + steps[i] : s.n_q;
                        run(row, part_of(&c, b, q, end), 1 + i % 3);
                    }
                assert_memory_equal(c.out, want, bytes);
            }
            free(want);
            case_destroy(&c);
        }
    }
}

static void softmax_of_extreme_scores(void **state)
{
    (void)state;
    enum { D = 8, T = 70 };
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (int kind = 0; kind < QB_SOFTMAX_COUNT; kind++) {
            shape s = {1, T, 0, 1, 1, D, 0, (qb_softmax_kind)kind, 0};
            attention_case c = case_create(s);
            float *last = c.out + (T - 1) * D;
            c.args.scale = 1;
            c.args.gamma = -0.005f;
            c.args.zeta = 1;
            for (size_t i = 0; i < T * D; i++) c.q[i] = 1, c.k[i] = -INFINITY;
            run(row, c.args, 2); /* an empty row */
            for (size_t i = 0; i < T * D; i++) assert_true(c.out[i] == 0);
            for (size_t i = 0; i < T * D; i++) c.k[i] = -1e4f; /* far below 0, all equal */
            run(row, c.args, 2);
            for (size_t d = 0; d < D; d++) {
                double mean = 0;
                for (size_t j = 0; j < T; j++) mean += c.v[j * D + d] / (double)T;
                double want = kind == QB_SOFTMAX           ? mean
                              : kind == QB_SOFTMAX_CLIPPED ? (1.005 / T - 0.005) * T * mean
                                                           : 0;
                assert_true(fabs(last[d] - want) < 1e-4);
            }
            for (size_t d = 0; d < D; d++) c.k[5 * D + d] = 1e4f; /* one takes it all */
            run(row, c.args, 2);
            for (size_t d = 0; d < D; d++) {
                double v = c.v[5 * D + d], want = kind == QB_SOFTMAX_RELU ? v * 8e4 / T : v;
                assert_true(fabs(last[d] - want) <= 1e-6 * fabs(want));
            }
            for (size_t d = 0; d < D; d++) c.k[6 * D + d] = NAN;
            run(row, c.args, 2);
            assert_true(isnan(last[0]) && !isnan(c.out[5 * D])); /* seen from query 6 on */
            case_destroy(&c);
        }
    }
}

/* A free prefix changes the queries within it alone, and none where it has no later key: a decoded
 * token sees what is there. */
static void free_prefix_ends_where_it_says(void **state)
{
    (void)state;
    enum { PREFIX = 40, T = 150, WIDTH = 6 * 40 };
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        for (int kind = 0; kind < QB_SOFTMAX_COUNT; kind++) {
            attention_case c = case_create((shape){1, T, 0, 6, 2, 40, 0, (qb_softmax_kind)kind, 0});
            float *plain = malloc(T * WIDTH * sizeof *plain);
            run(row, c.args, 2);
            memcpy(plain, c.out, T * WIDTH * sizeof *plain);
            c.args.free_prefix = PREFIX;
            run(row, c.args, 2);
            for (size_t i = 0; i < T; i++)
                assert_int_equal(i >= PREFIX - 1, !memcmp(plain + i * WIDTH, c.out + i * WIDTH,
                                                          WIDTH * sizeof *plain));
            qb_attention_args step = part_of(&c, 0, 20, 21);
            run(row, step, 1);
            assert_memory_equal(step.out, plain + 20 * WIDTH, WIDTH * sizeof *plain);
            free(plain);
            case_destroy(&c);
        }
    }
}

/* exp(log 3) = 3 beside one key with score 0 is 1 / (1 + 3); 0 and -inf are softmax-1 and softmax,
 * bit for bit; a huge sink takes all. */
static void sink_logits_take_their_share(void **state)
{
    (void)state;
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        attention_case c = case_create((shape){1, 1, 0, 1, 1, 3, 0, QB_SOFTMAX_SINK, 0});
        memset(c.k, 0, 3 * sizeof(float));
        c.sink[0] = logf(3);
        run(row, c.args, 1);
        for (size_t d = 0; d < 3; d++)
            assert_true(fabsf(c.out[d] - c.v[d] / 4) <= 1e-6f * fabsf(c.v[d]));
        c.sink[0] = 1e30f;
        run(row, c.args, 1);
        for (size_t d = 0; d < 3; d++) assert_true(c.out[d] == 0);
        case_destroy(&c);
        c = case_create((shape){1, 80, 3, 2, 1, 16, 0, QB_SOFTMAX_SINK, 0});
        for (int one = 0; one < 2; one++) {
            float want[80 * 32];
            c.args.softmax = one ? QB_SOFTMAX1 : QB_SOFTMAX;
            run(row, c.args, 1);
            memcpy(want, c.out, sizeof want);
            c.args.softmax = QB_SOFTMAX_SINK;
            c.sink[0] = c.sink[1] = one ? 0 : -INFINITY;
            run(row, c.args, 1);
            assert_memory_equal(c.out, want, sizeof want);
        }
        case_destroy(&c);
    }
}

/* Softmax-1 of one key with score 0 is 1 / (1 + 1). */
static void softmax1_has_a_silent_key(void **state)
{
    (void)state;
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        attention_case c = case_create((shape){1, 1, 0, 1, 1, 3, 0, QB_SOFTMAX1, 0});
        memset(c.k, 0, 3 * sizeof(float));
        run(row, c.args, 1);
        for (size_t d = 0; d < 3; d++) assert_true(c.out[d] == c.v[d] / 2);
        case_destroy(&c);
    }
}

static void pool_runs_all_tasks(void **state)
{
    (void)state;
    qb_pool *pool;
    QB_CHECK_OK(qb_pool_create(3, &pool));
    for (const qb_attention_row *row = qb_attention_kernels; row->info.name; row++) {
        if (qb_kernel_refusal(&row->info)) continue;
        attention_case c = case_create((shape){2, 60, 3, 4, 2, 24, 0, QB_SOFTMAX, 0});
        QB_CHECK_OK(QB_NEW(&c.args.scratch, 3 * row->scratch_elems(&c.args), "scratch"));
        qb_attention_run(row, &c.args, pool);
        check_case(&c, row->info.name);
        qb_free(c.args.scratch);
        case_destroy(&c);
    }
    qb_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_agree_with_double),
        cmocka_unit_test(bits_depend_on_the_query_alone),
        cmocka_unit_test(softmax_of_extreme_scores),
        cmocka_unit_test(free_prefix_ends_where_it_says),
        cmocka_unit_test(sink_logits_take_their_share),
        cmocka_unit_test(softmax1_has_a_silent_key),
        cmocka_unit_test(pool_runs_all_tasks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
