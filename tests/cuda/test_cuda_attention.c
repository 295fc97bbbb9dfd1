/* tests/cuda/test_cuda_attention.c - every row of attention on the GPU against the reference in
 * double: all kinds of softmax, grouped heads, head sizes, lengths and layouts. */
#include "gpu.h"

#include "core/dtype.h"
#include "core/memory.h"
#include "core/rng.h"
#include "core/threads.h"
#include "kernels/attention.h"
#include "kernels/cuda/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define U 0x1p-24

typedef struct shape {
    size_t batch, n_q, n_past, n_heads, n_kv_heads, head_dim;
    qb_softmax_kind softmax;
    qb_cuda_dtype type;
    bool fused;       /* q, k and v in one matrix, as a product leaves them */
    bool past_on_gpu; /* n_past_dev, with n_past larger than what it holds */
    size_t free_prefix;
} shape;

typedef struct attention_case {
    shape s;
    qb_attention_args cpu;
    qb_cuda_attention_args gpu;
    size_t in_elems, kv_elems, out_elems, k_at, v_at; /* kv_elems: of k or of v */
    float *in, *want, *size; /* in: q, then k, then v; size: sum of p |v| for each output, p before
                                it is clipped */
    float *sink;             /* (n_heads) */
    void *in_dev, *out_dev, *work_dev, *past_dev, *sink_dev;
    double max_v, max_score;
} attention_case;

static qb_pool *pool;

/* The elements as `type`; the caller frees. */
static void *packed(const float *x, size_t n, qb_cuda_dtype type)
{
    void *out = malloc(n * qb_cuda_dtype_bytes(type));
    assert_non_null(out);
    if (type == QB_CUDA_F32)
        memcpy(out, x, n * sizeof *x);
    else
        for (size_t i = 0; i < n; i++) ((uint16_t *)out)[i] = qb_bf16_from_f32(x[i]);
    return out;
}

static double largest_norm(const float *x, size_t n_rows, size_t stride, size_t width)
{
    double max = 0;
    for (size_t i = 0; i < n_rows; i++) {
        double sum = 0;
        for (size_t d = 0; d < width; d++) {
            double e = x[i * stride + d];
            if (e == e) sum += e * e;
        }
        max = fmax(max, sum);
    }
    return sqrt(max);
}

/* Where q, k and v lie. Past the keys that are used the cache holds NaN. */
static void lay_out(attention_case *c)
{
    const shape *s = &c->s;
    size_t q_width = s->n_heads * s->head_dim, kv_width = s->n_kv_heads * s->head_dim;
    size_t n_tokens = s->batch * s->n_q, n_keys = s->n_past + s->n_q, context = n_keys + 70;
    qb_attention_args *a = &c->cpu;
    if (s->fused) {
        a->q_stride = a->kv_stride = qb_cuda_stride(q_width + 2 * kv_width);
        a->kv_batch_stride = s->n_q * a->kv_stride;
        c->k_at = q_width;
        c->v_at = q_width + kv_width;
        c->in_elems = n_tokens * a->q_stride;
    } else {
        a->q_stride = qb_cuda_stride(q_width);
        a->kv_stride = qb_cuda_stride(kv_width);
        a->kv_batch_stride = context * a->kv_stride;
        c->k_at = n_tokens * a->q_stride;
        c->v_at = c->k_at + s->batch * a->kv_batch_stride;
        c->in_elems = c->v_at + s->batch * a->kv_batch_stride;
    }
    a->out_stride = qb_cuda_stride(q_width);
    c->out_elems = n_tokens * a->out_stride;
}

static void fill(attention_case *c, uint64_t seed)
{
    const shape *s = &c->s;
    const qb_attention_args *a = &c->cpu;
    c->in = malloc(c->in_elems * sizeof *c->in);
    assert_non_null(c->in);
    qb_rng_normal_f32(seed, QB_STREAM_TEST, 0, c->in_elems, 1.5f, c->in);
    if (s->type == QB_CUDA_BF16)
        for (size_t i = 0; i < c->in_elems; i++)
            c->in[i] = qb_f32_from_bf16(qb_bf16_from_f32(c->in[i]));
    size_t used = (s->n_past + s->n_q) * a->kv_stride;
    for (size_t b = 0; !s->fused && b < s->batch; b++)
        for (size_t i = used; i < a->kv_batch_stride; i++)
            c->in[c->k_at + b * a->kv_batch_stride + i] =
                c->in[c->v_at + b * a->kv_batch_stride + i] = NAN;
}

/* want and, with |v| in place of v, size. */
static void reference(attention_case *c)
{
    const qb_attention_row *row = qb_attention_kernels;
    while (row[1].info.name) row++;
    qb_attention_args *a = &c->cpu;
    c->want = calloc(c->out_elems, sizeof *c->want);
    c->size = calloc(c->out_elems, sizeof *c->size);
    float *abs_v = malloc((c->in_elems - c->v_at) * sizeof *abs_v);
    size_t scratch = row->scratch_elems(a) * qb_pool_n_threads(pool);
    QB_CHECK_OK(QB_NEW(&a->scratch, scratch, "scratch"));
    for (size_t i = 0; i < c->in_elems - c->v_at; i++) abs_v[i] = fabsf(c->in[c->v_at + i]);
    a->q = c->in, a->k = c->in + c->k_at, a->v = c->in + c->v_at, a->out = c->want;
    qb_attention_run(row, a, pool);
    a->v = abs_v, a->out = c->size;
    if (c->s.softmax == QB_SOFTMAX_CLIPPED) a->softmax = QB_SOFTMAX;
    qb_attention_run(row, a, pool);
    free(abs_v);
    qb_free(a->scratch);
    for (size_t i = c->v_at; i < c->in_elems; i++)
        if (c->in[i] == c->in[i]) c->max_v = fmax(c->max_v, fabs(c->in[i]));
    size_t n_tokens = c->s.batch * c->s.n_q, n_keys = c->s.n_past + c->s.n_q;
    double q_norm = 0, k_norm = 0;
    for (size_t h = 0; h < c->s.n_heads; h++)
        q_norm = fmax(
            q_norm, largest_norm(c->in + h * c->s.head_dim, n_tokens, a->q_stride, c->s.head_dim));
    for (size_t b = 0; b < c->s.batch; b++)
        for (size_t h = 0; h < c->s.n_kv_heads; h++)
            k_norm = fmax(k_norm, largest_norm(a->k + b * a->kv_batch_stride + h * c->s.head_dim,
                                               n_keys, a->kv_stride, c->s.head_dim));
    c->max_score = a->scale * q_norm * k_norm;
}

static attention_case case_create(shape s, uint64_t seed)
{
    attention_case c = {.s = s};
    c.cpu = (qb_attention_args){.batch = s.batch,
                                .n_q = s.n_q,
                                .n_past = s.n_past,
                                .n_heads = s.n_heads,
                                .n_kv_heads = s.n_kv_heads,
                                .head_dim = s.head_dim,
                                .softmax = s.softmax,
                                .gamma = -0.5f / (float)(s.n_past + s.n_q), /* both ends */
                                .zeta = 4,
                                .free_prefix = s.free_prefix,
                                .scale = 1 / sqrtf((float)s.head_dim)};
    c.cpu.sink = c.sink = malloc(s.n_heads * sizeof *c.sink);
    assert_non_null(c.sink);
    qb_rng_normal_f32(seed, QB_STREAM_TEST + 1, 0, s.n_heads, 3, c.sink);
    lay_out(&c);
    fill(&c, seed);
    reference(&c);
    size_t elem = qb_cuda_dtype_bytes(s.type);
    void *in = packed(c.in, c.in_elems, s.type);
    c.in_dev = qb_gpu_upload(in, c.in_elems * elem);
    free(in);
    int32_t past = (int32_t)s.n_past;
    c.sink_dev = qb_gpu_upload(c.sink, s.n_heads * sizeof *c.sink);
    if (s.past_on_gpu) c.past_dev = qb_gpu_upload(&past, sizeof past);
    char *base = c.in_dev;
    c.gpu = (qb_cuda_attention_args){.type = s.type,
                                     .batch = s.batch,
                                     .n_q = s.n_q,
                                     .n_past = s.n_past + (s.past_on_gpu ? 64 : 0),
                                     .n_past_dev = c.past_dev,
                                     .n_heads = s.n_heads,
                                     .n_kv_heads = s.n_kv_heads,
                                     .head_dim = s.head_dim,
                                     .softmax = s.softmax,
                                     .gamma = c.cpu.gamma,
                                     .zeta = c.cpu.zeta,
                                     .sink = c.sink_dev,
                                     .free_prefix = s.free_prefix,
                                     .scale = c.cpu.scale,
                                     .q = base,
                                     .q_stride = c.cpu.q_stride,
                                     .k = base + c.k_at * elem,
                                     .v = base + c.v_at * elem,
                                     .kv_stride = c.cpu.kv_stride,
                                     .kv_batch_stride = c.cpu.kv_batch_stride,
                                     .out_stride = c.cpu.out_stride};
    size_t work = qb_cuda_attention_workspace(&c.gpu);
    if (work) c.gpu.workspace = c.work_dev = qb_gpu_poison(work);
    return c;
}

static void case_destroy(attention_case *c)
{
    qb_gpu_free(c->in_dev);
    qb_gpu_free(c->work_dev);
    qb_gpu_free(c->past_dev);
    qb_gpu_free(c->sink_dev);
    free(c->sink);
    free(c->in);
    free(c->want);
    free(c->size);
}

/* A score errs by E = (D + 2) u max|q| max|k| scale, and so, relatively, does a weight; the two
 * enter once more by the sum. Sums over n keys add (64 + 3 n / 64 + 16) u. In bf16 the weights and
 * the result are rounded, 2^-8 each, and the tensor cores drop bits of a product's sum: 4 u for u.
 * ReLU's weights err by E absolutely, clipped ones by zeta - gamma times what they were. */
static double bound(const attention_case *c, size_t i)
{
    bool bf16 = c->s.type == QB_CUDA_BF16;
    double u = bf16 ? 4 * U : U, n = (double)(c->s.n_past + c->s.n_q);
    double score = (double)(c->s.head_dim + 2) * u * c->max_score + 4 * U;
    double spread = c->s.softmax == QB_SOFTMAX_RELU ? c->max_v : 2 * c->size[i];
    double total =
        score * spread + ((80 + 3 * n / 64) * u + (bf16 ? 1.01 * 0x1p-7 : 0)) * c->size[i] + 1e-30;
    if (c->s.softmax != QB_SOFTMAX_CLIPPED) return total;
    double slope = (double)c->cpu.zeta - c->cpu.gamma;
    return slope * (total + U * c->max_v); /* n roundings of |gamma| / 2 n */
}

/* Largest error as a share of its bound; infinite where something was not or wrongly written. */
static double worst(const attention_case *c, const char *out, double *error)
{
    size_t elem = qb_cuda_dtype_bytes(c->s.type), width = c->s.n_heads * c->s.head_dim;
    double share = 0;
    for (size_t i = 0; i < c->out_elems; i++) {
        if (i % c->cpu.out_stride >= width) {
            if (!qb_gpu_is_poison(out + i * elem, elem)) return INFINITY;
            continue;
        }
        float got;
        if (elem == 4)
            memcpy(&got, out + i * 4, 4);
        else {
            uint16_t half;
            memcpy(&half, out + i * 2, 2);
            got = qb_f32_from_bf16(half);
        }
        double e = fabs(got - (double)c->want[i]);
        if (!(e < INFINITY)) return INFINITY;
        *error = fmax(*error, e / c->max_v);
        share = fmax(share, e / bound(c, i));
    }
    return share;
}

static char *run(attention_case *c, const qb_cuda_attention_row *row)
{
    size_t bytes = c->out_elems * qb_cuda_dtype_bytes(c->s.type);
    char *out = malloc(bytes);
    assert_non_null(out);
    c->gpu.out = c->out_dev = qb_gpu_poison(bytes);
    QB_CHECK_OK(row->run(&c->gpu, NULL));
    qb_gpu_fetch(out, c->out_dev, bytes);
    qb_gpu_free(c->out_dev);
    return out;
}

typedef struct tally {
    size_t n, n_wrong, n_refused;
    double share, error;
} tally;

/* The same with the last key and value not yet in the cache: equal output, and they are put there.
 */
static bool appended_equals(attention_case *c, const qb_cuda_attention_row *row, const char *want)
{
    const shape *s = &c->s;
    const qb_cuda_attention_args given = c->gpu;
    size_t width = s->n_kv_heads * s->head_dim, stride = qb_cuda_stride(2 * width);
    size_t elem = qb_cuda_dtype_bytes(s->type), bytes = c->in_elems * elem;
    char *in = packed(c->in, c->in_elems, s->type), *cached = malloc(bytes),
         *fresh = calloc(s->batch * stride, elem);
    memcpy(cached, in, bytes);
    for (size_t b = 0; b < s->batch; b++)
        for (size_t i = 0; i < 2; i++) {
            size_t at =
                (i ? c->v_at : c->k_at) + b * c->cpu.kv_batch_stride + s->n_past * c->cpu.kv_stride;
            memcpy(fresh + (b * stride + i * width) * elem, in + at * elem, width * elem);
            memset(cached + at * elem, 0xff, width * elem); /* NaN */
        }
    char *cached_dev = qb_gpu_upload(cached, bytes),
         *fresh_dev = qb_gpu_upload(fresh, s->batch * stride * elem);
    c->gpu.q = cached_dev;
    c->gpu.k = cached_dev + c->k_at * elem;
    c->gpu.v = cached_dev + c->v_at * elem;
    c->gpu.k_new = fresh_dev;
    c->gpu.v_new = fresh_dev + width * elem;
    c->gpu.new_stride = stride;
    c->gpu.past_is_constant = true;
    char *out = run(c, row);
    qb_gpu_fetch(cached, cached_dev, bytes);
    bool same = !memcmp(out, want, c->out_elems * elem) && !memcmp(cached, in, bytes);
    qb_gpu_free(cached_dev);
    qb_gpu_free(fresh_dev);
    free(in);
    free(cached);
    free(fresh);
    free(out);
    c->gpu = given;
    return same;
}

static void check(attention_case *c, const qb_cuda_attention_row *row, tally *t)
{
    const shape *s = &c->s;
    c->gpu.out = c->in_dev; /* as aligned as the real one */
    if (qb_kernel_refusal(&row->info) || row->refuse(&c->gpu)) {
        t->n_refused++;
        return;
    }
    char *once = run(c, row), *again = run(c, row);
    double share = worst(c, once, &t->error);
    bool same = qb_test_is_bare() || /* without poison the gaps differ */
                !memcmp(once, again, c->out_elems * qb_cuda_dtype_bytes(s->type));
    if (row->appends && !s->fused && !qb_test_is_bare())
        same = same && appended_equals(c, row, once);
    t->n++;
    t->share = fmax(t->share, share);
    if (share > 1 || !same) {
        t->n_wrong++;
        printf("FAIL %s %s D %zu n_q %zu past %zu batch %zu heads %zu:%zu softmax %d%s%s prefix "
               "%zu: error "
               "%.3g of the bound%s\n",
               row->info.name, s->type == QB_CUDA_F32 ? "f32" : "bf16", s->head_dim, s->n_q,
               s->n_past, s->batch, s->n_heads, s->n_kv_heads, s->softmax, s->fused ? " fused" : "",
               s->past_on_gpu ? " past on the GPU" : "", s->free_prefix, share,
               same ? "" : ", two runs differ");
    }
    free(once);
    free(again);
}

static void check_shape(shape s, uint64_t seed, tally *tallies)
{
    attention_case c = case_create(s, seed);
    const qb_cuda_attention_row *row = qb_cuda_attention_kernels;
    for (size_t r = 0; row[r].info.name; r++) check(&c, &row[r], &tallies[r]);
    case_destroy(&c);
}

/* A shape of that length and head size; the rest is drawn. */
static shape draw_shape(uint32_t draw, size_t n_q, size_t head_dim, qb_cuda_dtype type)
{
    static const size_t pasts[] = {0, 1, 63, 300};
    const bool small = qb_test_is_small();
    static const size_t heads[][2] = {{1, 1}, {2, 1}, {3, 3}, {4, 2}, {10, 1}, {40, 2}, {16, 16}};
    uint32_t x = qb_rng_u32(11, QB_STREAM_TEST, draw);
    const size_t *h = heads[x % (n_q > 200 || small ? 2 : n_q > 64 ? 4 : QB_COUNT(heads))];
    shape s = {.batch = n_q > 64 || x >> 8 & 1 ? 1 : 3,
               .n_q = n_q,
               .n_past = pasts[x >> 10 & 3],
               .n_heads = h[0],
               .n_kv_heads = h[1],
               .head_dim = head_dim,
               .softmax = (qb_softmax_kind)(draw % (QB_SOFTMAX_RELU + 1)),
               .type = type,
               .past_on_gpu = x >> 12 & 1};
    if (small && s.n_past == 300) s.n_past = n_q == 1 ? 140 : 64;
    if (n_q == 1 && x >> 14 & 1 && !small) s.n_past = 1000 + (x >> 20) % 1000;
    s.fused = s.n_past == 0 && !s.past_on_gpu && x >> 13 & 1;
    return s;
}

static void tell(const tally *tallies, qb_cuda_dtype type)
{
    size_t n_wrong = 0;
    for (size_t r = 0; qb_cuda_attention_kernels[r].info.name; r++) {
        const tally *t = &tallies[r];
        n_wrong += t->n_wrong;
        printf("%-20s %s: %zu run, %zu refused, %zu wrong; error at most %.2f of the bound, %.2g "
               "of the largest |v|\n",
               qb_cuda_attention_kernels[r].info.name, type == QB_CUDA_F32 ? "f32" : "bf16", t->n,
               t->n_refused, t->n_wrong, t->share, t->error);
    }
    assert_int_equal(n_wrong, 0);
}

/* Rows x head sizes x lengths. */
static void sweep(qb_cuda_dtype type)
{
    static const size_t dims[] = {16, 64, 80, 128, 5, 256, 1, 32, 48, 96, 192};
    bool small = qb_test_is_small();
    const size_t n_qs[] = {1, 17, small ? 70 : 100, 2, 64, 257, 1024};
    tally tallies[16] = {0};
    uint32_t draw = 0;
    for (size_t d = 0; d < (small ? 6 : QB_COUNT(dims)); d++)
        for (size_t q = 0; q < (small ? 3 : QB_COUNT(n_qs)); q++)
            for (size_t repeat = 0; repeat < (small || n_qs[q] > 200 ? 1 : 4); repeat++, draw++)
                check_shape(draw_shape(draw, n_qs[q], dims[d], type), draw, tallies);
    if (!small) /* enough heads for blocks to take several tiles */
    {
        for (size_t i = 0; i < 3; i++) /* and for all keys of a head to be one block's */
            check_shape((shape){.batch = i ? 64 : 17,
                                .n_q = 1,
                                .n_past = i ? 200 : 700,
                                .n_heads = 16,
                                .n_kv_heads = 16,
                                .head_dim = i ? 64 : 128,
                                .softmax = (qb_softmax_kind)i,
                                .type = type,
                                .past_on_gpu = true},
                        i, tallies);
        for (size_t i = 0; i < 2 + (type == QB_CUDA_BF16); i++)
            check_shape((shape){.batch = 2,
                                .n_q = i ? 257 : 130,
                                .n_past = i ? 0 : 100,
                                .n_heads = 144,
                                .n_kv_heads = i ? 144 : 12,
                                .head_dim = 128 >> i,
                                .softmax = (qb_softmax_kind)i,
                                .type = type},
                        i, tallies);
    }
    tell(tallies, type);
}

static void f32_equals_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    sweep(QB_CUDA_F32);
}

static void bf16_equals_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    sweep(QB_CUDA_BF16);
}

/* Every kind of softmax with free prefixes that end before, within and after the queries, and the
 * kinds that few models have without one. */
static void uncommon_kinds(qb_cuda_dtype type)
{
    static const size_t dims[] = {64, 5, 128, 80, 256}, prefixes[] = {0, 3, 70, 1000, 1};
    const bool small = qb_test_is_small();
    const size_t n_qs[] = {17, small ? 72 : 100, 1, small ? 40 : 257};
    tally tallies[16] = {0};
    uint32_t draw = 0;
    for (int kind = 0; kind < QB_SOFTMAX_COUNT; kind++)
        for (size_t p = kind <= QB_SOFTMAX_RELU; p < QB_COUNT(prefixes); p++)
            for (size_t i = 0; i < (small ? 1 : 6); i++, draw++) {
                shape s = draw_shape(draw, n_qs[draw % 4], dims[draw % 5], type);
                s.softmax = (qb_softmax_kind)kind;
                s.free_prefix = prefixes[p];
                check_shape(s, draw, tallies);
            }
    tell(tallies, type);
    bool plain_ran = false; /* one row at least takes them all */
    for (size_t r = 0; qb_cuda_attention_kernels[r].info.name; r++)
        plain_ran |= tallies[r].n == draw;
    assert_true(plain_ran);
}

static void uncommon_kinds_equal_the_reference(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    uncommon_kinds(QB_CUDA_F32);
    uncommon_kinds(QB_CUDA_BF16);
}

/* Every (type, head size) has a row, and no tokens are no work. */
static void some_row_takes_any_head(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    for (size_t i = 0; i < 6; i++) {
        shape s = {.batch = 1,
                   .n_q = i % 2 ? 1 : 3,
                   .n_past = 4,
                   .n_heads = 2,
                   .n_kv_heads = 1,
                   .head_dim = i / 2 == 0   ? 3
                               : i / 2 == 1 ? 64
                                            : 250,
                   .type = i % 3 ? QB_CUDA_BF16 : QB_CUDA_F32};
        attention_case c = case_create(s, i);
        size_t bytes = c.out_elems * qb_cuda_dtype_bytes(s.type);
        char *out = malloc(bytes);
        double error = 0;
        c.gpu.out = qb_gpu_poison(bytes);
        QB_CHECK_OK(qb_cuda_attention(&c.gpu, NULL));
        qb_gpu_fetch(out, c.gpu.out, bytes);
        assert_true(worst(&c, out, &error) <= 1);
        c.gpu.batch = 0;
        QB_CHECK_OK(qb_cuda_attention(&c.gpu, NULL));
        qb_gpu_free(c.gpu.out);
        free(out);
        case_destroy(&c);
    }
}

static int pool_create(void **state)
{
    (void)state;
    size_t n = qb_test_is_small() ? 2 : (size_t)sysconf(_SC_NPROCESSORS_ONLN);
    return qb_pool_create(n, &pool) != QB_OK;
}
static int pool_destroy(void **state)
{
    (void)state;
    qb_pool_destroy(pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_equals_the_reference),
        cmocka_unit_test(bf16_equals_the_reference),
        cmocka_unit_test(uncommon_kinds_equal_the_reference),
        cmocka_unit_test(some_row_takes_any_head),
    };
    return cmocka_run_group_tests(tests, pool_create, pool_destroy);
}
