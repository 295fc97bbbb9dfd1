/* kernels/x86/attention_body_internal.h - attention.h for AVX2 and AVX-512: one text, compiled
 * twice.
 *
 * A task has one key head of one sequence, some of the query heads that share it, and a block of
 * queries. It goes through the keys in blocks of KEY_BLOCK from 0 upwards (Dao et al. 2022,
 * arXiv:2205.14135): packs a block of keys and values once, and for each tile of rows computes
 * scores, exponentials against the running maximum, and adds the weighted values:
 *
 *     m' = max(m, max_j s_j)   c = e^(m - m')   l = l c + sum_j e^(s_j - m')
 *     out = out c + sum_j e^(s_j - m') v_j                            at the end out / l        (1)
 *
 * A clipped softmax needs m and l before its weights, so it goes through the keys twice: once for
 * m and l alone, once for out = out + sum_j clip((zeta - gamma) e^(s_j - m) / l + gamma) v_j.
 *
 * The blocks start at multiples of KEY_BLOCK and (1) goes in one order within a block, so a query's
 * bits depend on its own keys alone: keys past its own have weight 0, which changes no sum of
 * finite values. Blocks that no row of a tile may see are skipped. */
#include "kernels/attention_internal.h"
#include "kernels/x86/tile_f32_internal.h"
#include "kernels/x86/vector_math_internal.h"

#include "core/memory.h"

#include <string.h>

enum {
    KEY_BLOCK = 64,
    TASK_ROWS = 168,   /* 12 tiles of 14: packing a block of keys costs 4 % of using it */
    TASKS_A_THREAD = 8 /* of unequal cost, the largest first */
};

/* A thread's scratch. */
typedef struct buffers {
    float *keys;    /* [KEY_BLOCK / PANEL][head_dim][PANEL] */
    float *values;  /* [out_stride / PANEL][KEY_BLOCK][PANEL] */
    float *q;       /* [rows][head_dim]: side by side, since rows a power of two apart share few
                       lines of the first cache level */
    float *weights; /* [TILE_ROWS][KEY_BLOCK] scores, then their exponentials */
    float *out;     /* [rows][out_stride] */
    float *sums;    /* [rows][LANES] l of (1), lane by lane; then (zeta - gamma) / l in each */
    float *maxima;  /* [rows] m of (1) */
} buffers;

static size_t out_stride(const qb_attention_args *a)
{
    return qb_round_up(a->head_dim, PANEL);
}

static size_t group_heads(const qb_attention_args *a)
{
    return a->n_heads / a->n_kv_heads;
}

/* The most queries of a task: whole tiles. */
static size_t max_queries(const qb_attention_args *a)
{
    size_t queries = TASK_ROWS / group_heads(a) / TILE_ROWS * TILE_ROWS;
    return queries ? queries : TILE_ROWS;
}

static size_t max_rows(const qb_attention_args *a)
{
    size_t queries = max_queries(a);
    return group_heads(a) * (a->n_q < queries ? a->n_q : queries);
}

size_t QB_ISA(qb__attention_scratch_elems)(const qb_attention_args *a)
{
    size_t shared = KEY_BLOCK * (a->head_dim + out_stride(a) + TILE_ROWS);
    return qb_round_up(shared + max_rows(a) * (a->head_dim + out_stride(a) + LANES + 1), 16);
}

static buffers buffers_at(const qb_attention_args *a, float *p)
{
    buffers s;
    s.keys = p;
    s.values = s.keys + KEY_BLOCK * a->head_dim;
    s.weights = s.values + KEY_BLOCK * out_stride(a);
    s.q = s.weights + KEY_BLOCK * TILE_ROWS;
    s.out = s.q + max_rows(a) * a->head_dim;
    s.sums = s.out + max_rows(a) * out_stride(a);
    s.maxima = s.sums + max_rows(a) * LANES;
    return s;
}

/* Many queries are cut into blocks of queries; a few are kept together, and only where there are
 * fewer key heads than threads the query heads of a key head are shared out. */
static bool cuts_queries(const qb_attention_args *a)
{
    return a->n_q > TILE_ROWS;
}

size_t QB_ISA(qb__attention_n_tasks)(const qb_attention_args *a, size_t n_threads)
{
    size_t n_shared = a->batch * a->n_kv_heads;
    if (!cuts_queries(a)) {
        size_t parts = (n_threads + n_shared - 1) / n_shared;
        return n_shared * (parts < group_heads(a) ? parts : group_heads(a));
    }
    size_t want = n_threads > 1 ? TASKS_A_THREAD * n_threads : 1;
    size_t blocks = (want + n_shared - 1) / n_shared;
    size_t least = (a->n_q + max_queries(a) - 1) / max_queries(a), most = a->n_q / TILE_ROWS;
    blocks = blocks < most ? blocks : most;
    return n_shared * (blocks > least ? blocks : least);
}

/* What one task does; rows are numbered head by head, [head1 - head0][n_queries]. */
typedef struct span {
    size_t batch_idx, kv_head, head0, head1, query0, n_queries;
} span;

static span span_of(const qb_attention_args *a, size_t i, size_t n_tasks)
{
    size_t n_shared = a->batch * a->n_kv_heads, n_parts = n_tasks / n_shared;
    size_t shared = i % n_shared, part = i / n_shared, group = group_heads(a);
    span s = {.batch_idx = shared / a->n_kv_heads, .kv_head = shared % a->n_kv_heads};
    s.head0 = s.kv_head * group;
    if (cuts_queries(a)) {
        size_t size = qb_round_up((a->n_q + n_parts - 1) / n_parts, TILE_ROWS);
        s.query0 = (n_parts - 1 - part) * size; /* the late queries, with many keys, first */
        size_t left = s.query0 < a->n_q ? a->n_q - s.query0 : 0;
        s.n_queries = left < size ? left : size;
        s.head1 = s.head0 + group;
    } else {
        s.n_queries = a->n_q;
        s.head1 = s.head0 + group * (part + 1) / n_parts;
        s.head0 += group * part / n_parts;
    }
    return s;
}

/* n keys of a key head, in panels of PANEL keys. */
static void pack_keys(const float *k, size_t stride, size_t n, size_t head_dim, float *packed)
{
    for (size_t j = 0; j < n; j += PANEL)
        tile_pack(k + j * stride, stride, n - j, head_dim, packed + j * head_dim);
}

/* Values in panels of PANEL dimensions; missing dimensions become 0. */
static void pack_values(const float *v, size_t stride, size_t n, size_t head_dim, float *packed)
{
    for (size_t d = 0; d < head_dim; d += PANEL, packed += KEY_BLOCK * PANEL)
        for (size_t j = 0; j < n; j++) {
            const float *from = v + j * stride + d;
            size_t left = head_dim - d;
            vf_store(packed + j * PANEL, vf_load_n(from, left));
            vf right = left > LANES ? vf_load_n(from + LANES, left - LANES) : vf_set(0);
            vf_store(packed + j * PANEL + LANES, right);
        }
}

/* y[r] = (y[r] * scale[r] +) x[r] . panel, over PANEL columns. */
typedef struct product {
    const float *x;
    size_t x_stride;
    const float *panel;
    size_t k;
    float *y;
    size_t y_stride;
    const float *scale; /* NULL: y is overwritten */
} product;

QB_INLINE void multiply(const int rows, const product *p)
{
    vf acc[TILE_ROWS][2];
    tile_sum(rows, 0, p->x, p->x_stride, p->panel, p->k, acc);
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        float *y = p->y + (size_t)r * p->y_stride;
        if (p->scale) {
            vf scale = vf_set(p->scale[r]);
            acc[r][0] = vf_fma(vf_load(y), scale, acc[r][0]);
            acc[r][1] = vf_fma(vf_load(y + LANES), scale, acc[r][1]);
        }
        vf_store(y, acc[r][0]);
        vf_store(y + LANES, acc[r][1]);
    }
}

#define MULTIPLY(rows)                                                                             \
    static void multiply_##rows(const product *p)                                                  \
    {                                                                                              \
        multiply(rows, p);                                                                         \
    }
QB_TILE_LIST(MULTIPLY)
#undef MULTIPLY
#define MULTIPLY(rows) multiply_##rows,
static void (*const multipliers[])(const product *p) = {QB_TILE_LIST(MULTIPLY)};
#undef MULTIPLY

/* Some rows of a task against the block of keys that starts at j0. */
typedef struct tile {
    size_t row0, n_rows;
    size_t n_keys;              /* of the block that any row may see */
    size_t row_keys[TILE_ROWS]; /* that each row may see; may be 0 */
    float grown[TILE_ROWS];     /* c of (1); 1 without exponentials */
} tile;

QB_INLINE vf masked(const float *row, size_t j, size_t n_keys, float scale, vf other)
{
    size_t left = j < n_keys ? n_keys - j : 0;
    return vf_first(vf_mul(vf_load(row + j), vf_set(scale)), left, other);
}

/* The scores become max(0, s). */
static void rectify(const qb_attention_args *a, tile *t, const buffers *s)
{
    for (size_t r = 0; r < t->n_rows; r++) {
        float *row = s->weights + r * KEY_BLOCK;
        t->grown[r] = 1;
        for (size_t j = 0; j < t->n_keys; j += LANES)
            vf_store(row + j,
                     vf_max(vf_set(0), masked(row, j, t->row_keys[r], a->scale, vf_set(0))));
    }
}

/* The scores become e^(s - m'); m, c and l as in (1). A row without any score above -inf keeps
 * m = -inf and gets weights 0, because 0 stands for m' where it is subtracted. */
static void exponentiate(const qb_attention_args *a, tile *t, const buffers *s)
{
    const vf none = vf_set(-INFINITY);
    float *maxima = s->maxima + t->row0, subtract[LANES] = {0}, before[LANES] = {0};
    for (size_t r = 0; r < t->n_rows; r++) {
        float *row = s->weights + r * KEY_BLOCK;
        vf max = vf_set(maxima[r]);
        for (size_t j = 0; j < t->n_keys; j += LANES) {
            vf score = masked(row, j, t->row_keys[r], a->scale, none);
            vf_store(row + j, score);
            max = vf_max(max, score);
        }
        before[r] = maxima[r];
        maxima[r] = vf_hmax(max);
        subtract[r] = maxima[r] == -INFINITY ? 0 : maxima[r];
    }
    vf grown = vf_exp_neg(vf_sub(vf_load(before), vf_load(subtract)));
    vf_store_n(t->grown, grown, TILE_ROWS);
    for (size_t r = 0; r < t->n_rows; r++) {
        float *row = s->weights + r * KEY_BLOCK, *sums = s->sums + (t->row0 + r) * LANES;
        vf m = vf_set(subtract[r]), sum = vf_set(0);
        for (size_t j = 0; j < t->n_keys; j += LANES) {
            vf weight = vf_exp_neg(vf_sub(vf_load(row + j), m));
            vf_store(row + j, weight);
            sum = vf_add(sum, weight);
        }
        vf_store(sums, vf_fma(vf_load(sums), vf_set(t->grown[r]), sum));
    }
}

/* The scores become clipped weights; masked ones give clip(gamma) = 0, as gamma <= 0. */
static void clip(const qb_attention_args *a, tile *t, const buffers *s)
{
    const vf gamma = vf_set(a->gamma), none = vf_set(-INFINITY);
    for (size_t r = 0; r < t->n_rows; r++) {
        float *row = s->weights + r * KEY_BLOCK, max = s->maxima[t->row0 + r];
        vf m = vf_set(max == -INFINITY ? 0 : max);
        vf factor = vf_load(s->sums + (t->row0 + r) * LANES);
        t->grown[r] = 1;
        for (size_t j = 0; j < t->n_keys; j += LANES) {
            vf score = masked(row, j, t->row_keys[r], a->scale, none);
            vf p = vf_fma(vf_exp_neg(vf_sub(score, m)), factor, gamma);
            vf_store(row + j, vf_min(vf_set(1), vf_max(vf_set(0), p)));
        }
    }
}

/* What one way through the keys does with the scores. */
typedef void (*weigh_fn)(const qb_attention_args *a, tile *t, const buffers *s);
typedef struct pass {
    weigh_fn weigh;
    bool adds_values;
} pass;

static void run_tile(const qb_attention_args *a, const pass *p, tile *t, const buffers *s)
{
    product scores = {.x = s->q + t->row0 * a->head_dim,
                      .x_stride = a->head_dim,
                      .k = a->head_dim,
                      .y_stride = KEY_BLOCK};
    for (size_t j = 0; j < t->n_keys; j += PANEL) {
        scores.panel = s->keys + j * a->head_dim;
        scores.y = s->weights + j;
        multipliers[t->n_rows - 1](&scores);
    }
    p->weigh(a, t, s);
    if (!p->adds_values) return;
    product sums = {.x = s->weights,
                    .x_stride = KEY_BLOCK,
                    .k = t->n_keys,
                    .y_stride = out_stride(a),
                    .scale = t->grown};
    for (size_t d = 0; d < a->head_dim; d += PANEL) {
        sums.panel = s->values + d * KEY_BLOCK;
        sums.y = s->out + t->row0 * out_stride(a) + d;
        multipliers[t->n_rows - 1](&sums);
    }
}

static void tile_sees(tile *t, const qb_attention_args *a, const span *s, size_t j0)
{
    t->n_keys = 0;
    for (size_t r = 0; r < t->n_rows; r++) {
        size_t sees = qb_attention_n_keys(a, s->query0 + (t->row0 + r) % s->n_queries);
        size_t n = sees > j0 ? sees - j0 : 0;
        t->row_keys[r] = n < KEY_BLOCK ? n : KEY_BLOCK;
        if (t->row_keys[r] > t->n_keys) t->n_keys = t->row_keys[r];
    }
}

static void run_block(const qb_attention_args *a, const pass *p, const span *s, size_t j0,
                      const buffers *buf)
{
    size_t n_rows = (s->head1 - s->head0) * s->n_queries;
    for (size_t r0 = 0; r0 < n_rows; r0 += TILE_ROWS) {
        tile t = {.row0 = r0, .n_rows = n_rows - r0 < TILE_ROWS ? n_rows - r0 : TILE_ROWS};
        tile_sees(&t, a, s, j0);
        if (t.n_keys) run_tile(a, p, &t, buf);
    }
}

/* One way through all keys that the task's last query sees. */
static void run_pass(const qb_attention_args *a, const pass *p, const span *s, const buffers *buf)
{
    size_t n_keys = qb_attention_n_keys(a, s->query0 + s->n_queries - 1);
    const float *k = a->k + s->batch_idx * a->kv_batch_stride + s->kv_head * a->head_dim;
    const float *v = a->v + s->batch_idx * a->kv_batch_stride + s->kv_head * a->head_dim;
    for (size_t j0 = 0; j0 < n_keys; j0 += KEY_BLOCK) {
        size_t n = n_keys - j0 < KEY_BLOCK ? n_keys - j0 : KEY_BLOCK;
        pack_keys(k + j0 * a->kv_stride, a->kv_stride, n, a->head_dim, buf->keys);
        if (p->adds_values)
            pack_values(v + j0 * a->kv_stride, a->kv_stride, n, a->head_dim, buf->values);
        run_block(a, p, s, j0, buf);
    }
}

static void begin_row(const qb_attention_args *a, const span *s, size_t r, const buffers *buf)
{
    size_t token = s->batch_idx * a->n_q + s->query0 + r % s->n_queries;
    const float *q = a->q + token * a->q_stride + (s->head0 + r / s->n_queries) * a->head_dim;
    memcpy(buf->q + r * a->head_dim, q, a->head_dim * sizeof(float));
    memset(buf->out + r * out_stride(a), 0, out_stride(a) * sizeof(float));
    memset(buf->sums + r * LANES, 0, LANES * sizeof(float));
    buf->maxima[r] = qb__attention_silent_logit(a, s->head0 + r / s->n_queries);
}

/* What the sums of row r are divided by; 0 where there is nothing. */
static double denominator(const qb_attention_args *a, const span *s, size_t r, const buffers *buf)
{
    if (a->softmax == QB_SOFTMAX_RELU)
        return (double)qb_attention_n_keys(a, s->query0 + r % s->n_queries);
    double silent = qb__attention_silent_logit(a, s->head0 + r / s->n_queries);
    vf lanes = vf_load(buf->sums + r * LANES);
    double sum = vd_hsum(vd_add(vd_low(lanes), vd_high(lanes)));
    return silent == -INFINITY ? sum : sum + exp(silent - (double)buf->maxima[r]);
}

/* Between the two ways of a clipped softmax. */
static void make_factor(const qb_attention_args *a, const span *s, size_t r, const buffers *buf)
{
    double sum = denominator(a, s, r, buf);
    float factor = sum == 0 ? 0 : (float)(((double)a->zeta - a->gamma) / sum);
    vf_store(buf->sums + r * LANES, vf_set(factor));
}

static void write_row(const qb_attention_args *a, const span *s, size_t r, const buffers *buf)
{
    size_t token = s->batch_idx * a->n_q + s->query0 + r % s->n_queries;
    float *out = a->out + token * a->out_stride + (s->head0 + r / s->n_queries) * a->head_dim;
    const float *sums = buf->out + r * out_stride(a);
    double divisor = a->softmax == QB_SOFTMAX_CLIPPED ? 1 : denominator(a, s, r, buf);
    vf inverse = vf_set(divisor == 0 ? 0 : (float)(1 / divisor));
    for (size_t d = 0; d < a->head_dim; d += LANES)
        vf_store_n(out + d, vf_mul(vf_load(sums + d), inverse), a->head_dim - d);
}

void QB_ISA(qb__attention_task)(const qb_attention_args *a, size_t i, size_t n_tasks,
                                size_t thread_idx)
{
    size_t thread_elems = QB_ISA(qb__attention_scratch_elems)(a);
    buffers buf = buffers_at(a, a->scratch + thread_idx * thread_elems);
    span s = span_of(a, i, n_tasks);
    if (s.n_queries == 0) return;
    size_t n_rows = (s.head1 - s.head0) * s.n_queries;
    for (size_t r = 0; r < n_rows; r++) begin_row(a, &s, r, &buf);
    if (a->softmax == QB_SOFTMAX_CLIPPED) {
        run_pass(a, &(pass){exponentiate, false}, &s, &buf);
        for (size_t r = 0; r < n_rows; r++) make_factor(a, &s, r, &buf);
        run_pass(a, &(pass){clip, true}, &s, &buf);
    } else {
        run_pass(a, &(pass){a->softmax == QB_SOFTMAX_RELU ? rectify : exponentiate, true}, &s,
                 &buf);
    }
    for (size_t r = 0; r < n_rows; r++) write_row(a, &s, r, &buf);
}
