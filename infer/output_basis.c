/* infer/output_basis.c - see output_basis.h. */
#include "infer/output_basis.h"

#include "core/json.h"
#include "core/memory.h"
#include "kernels/gemm_f32.h"
#include "quant/outliers.h"

#include <math.h>
#include <string.h>

enum {
    OWN,
    Q,
    Q_TRANSPOSED,
    SINGULAR,
    N_BASES,
    KEPT_ROWS = 128, /* of the first window, for its singular vectors */
    MOST_SWEEPS = 30,
};
static const char *const names[N_BASES] = {"own", "q", "qt", "v"};

typedef struct output {
    void *packed[N_BASES];                  /* Q and its transpose; NULL = the product has none */
    double kurt[N_BASES][2], n[N_BASES][2]; /* first tokens, others */
    double *kept;                           /* (C, n_kept): columns of the first window's X */
    size_t n_kept;
    bool is_turned; /* kept, into its singular vectors */
    bool is_there;
} output;

struct qb_output_basis {
    const qb_config *c;
    qb_pool *pool;
    const qb_gemm_f32_row *gemm;
    qb_taps taps;
    output *outputs; /* (n_layers, 2): attention, MLP */
    float *turned;   /* (max_rows, C) */
    qb_token_figures *tokens;
};

/* ---- singular vectors ---- */

/* Whether the pair had to be turned. */
static bool turn_pair(double *a, double *b, size_t n)
{
    double aa = 0, bb = 0, ab = 0;
    for (size_t i = 0; i < n; i++) {
        aa += a[i] * a[i];
        bb += b[i] * b[i];
        ab += a[i] * b[i];
    }
    if (fabs(ab) <= 1e-12 * sqrt(aa * bb) || aa <= 0 || bb <= 0) return false;
    double zeta = (bb - aa) / (2 * ab);
    double t = copysign(1, zeta) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    double cosine = 1 / sqrt(1 + t * t), sine = cosine * t;
    for (size_t i = 0; i < n; i++) {
        double x = a[i];
        a[i] = cosine * x - sine * b[i];
        b[i] = sine * x + cosine * b[i];
    }
    return true;
}

void qb_rotate_to_singular(double *x, size_t n_rows, size_t n_cols)
{
    bool turned = true;
    for (size_t sweep = 0; turned && sweep < MOST_SWEEPS; sweep++) {
        turned = false;
        for (size_t a = 0; a < n_cols; a++)
            for (size_t b = a + 1; b < n_cols; b++)
                turned |= turn_pair(x + a * n_rows, x + b * n_rows, n_rows);
    }
}

static void add_token(output *o, int which, bool rest, const qb_moments *m)
{
    if (m->m2 == 0) return; /* all channels are equal: there is no kurtosis */
    o->kurt[which][rest] += qb_moments_kurtosis(m);
    o->n[which][rest]++;
}

static void singular_task(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    qb_output_basis *basis = context;
    output *o = &basis->outputs[i];
    size_t width = basis->c->d_model;
    if (!o->n_kept || o->is_turned) return;
    o->is_turned = true;
    qb_rotate_to_singular(o->kept, o->n_kept, width);
    for (size_t row = 0; row < o->n_kept; row++) {
        qb_moments m = {0};
        for (size_t c = 0; c < width; c++) qb_moments_add(&m, o->kept[c * o->n_kept + row]);
        add_token(o, SINGULAR, row > 0, &m);
    }
}

/* ---- looking ---- */

static void add_kurtosis(qb_output_basis *basis, output *o, int which, const float *x,
                         const qb_tap_view *v)
{
    size_t rows = v->batch * v->n_tokens;
    qb_token_figures_of(x, rows, v->width, basis->pool, basis->tokens);
    for (size_t row = 0; row < rows; row++)
        add_token(o, which, row % v->n_tokens > 0, &basis->tokens[row].moments);
}

static qb_status keep(const qb_output_basis *basis, output *o, const qb_tap_view *v)
{
    size_t n = v->n_tokens < KEPT_ROWS ? v->n_tokens : KEPT_ROWS, width = basis->c->d_model;
    QB_TRY(QB_NEW(&o->kept, n * width, "first window"));
    o->n_kept = n;
    for (size_t row = 0; row < n; row++)
        for (size_t c = 0; c < width; c++) o->kept[c * n + row] = v->x[row * v->stride + c];
    return QB_OK;
}

static qb_status see(void *context, const qb_tap_view *v)
{
    qb_output_basis *basis = context;
    output *o = &basis->outputs[2 * v->layer + (v->role == QB_ROLE_DOWN)];
    size_t width = basis->c->d_model;
    o->is_there = true;
    if (!o->kept) QB_TRY(keep(basis, o, v));
    add_kurtosis(basis, o, OWN, v->x, v);
    for (int which = Q; which <= Q_TRANSPOSED; which++) {
        if (!o->packed[which]) continue;
        const qb_gemm_f32_args args = {.m = v->batch * v->n_tokens,
                                       .n = width,
                                       .k = width,
                                       .x = v->x,
                                       .x_stride = v->stride,
                                       .w = o->packed[which],
                                       .y = basis->turned,
                                       .y_stride = width};
        qb_gemm_f32_run(basis->gemm, &args, 1, basis->pool);
        add_kurtosis(basis, o, which, basis->turned, v);
    }
    return QB_OK;
}

/* ---- making ---- */

static qb_status pack(const qb_output_basis *basis, const float *q, void **out)
{
    size_t n = basis->c->d_model;
    QB_TRY(qb_alloc_zero(out, basis->gemm->packed_bytes(n, n), 1, "basis"));
    basis->gemm->pack(q, 0, n, n, n, *out);
    return QB_OK;
}

static void transpose(float *q, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) {
            float swapped = q[i * n + j];
            q[i * n + j] = q[j * n + i];
            q[j * n + i] = swapped;
        }
}

/* y = x w^T: with w = Q that is x Q^T, with its transpose x Q. */
static qb_status fill_output(const qb_output_basis *basis, qb_output_basis_fill fill, void *context,
                             size_t i, float *q)
{
    bool found = false;
    output *o = &basis->outputs[i];
    QB_TRY(fill(context, i % 2 ? QB_ROLE_DOWN : QB_ROLE_O, i / 2, q, &found));
    if (!found) return QB_OK;
    QB_TRY(pack(basis, q, &o->packed[Q_TRANSPOSED]));
    transpose(q, basis->c->d_model);
    return pack(basis, q, &o->packed[Q]);
}

static qb_status fill_outputs(qb_output_basis *basis, size_t max_rows, qb_output_basis_fill fill,
                              void *context)
{
    size_t n = 2 * basis->c->n_layers, width = basis->c->d_model;
    float *q;
    QB_TRY(QB_NEW_ZERO(&basis->outputs, n, "outputs"));
    QB_TRY(QB_NEW(&basis->turned, max_rows * width, "outputs in another basis"));
    QB_TRY(QB_NEW(&basis->tokens, max_rows, "figures of tokens"));
    QB_TRY(QB_NEW(&q, width * width, "basis"));
    qb_status status = QB_OK;
    for (size_t i = 0; i < n && status == QB_OK; i++)
        status = fill_output(basis, fill, context, i, q);
    qb_free(q);
    return status;
}

qb_status qb_output_basis_create(const qb_config *config, size_t max_rows, qb_pool *pool,
                                 qb_output_basis_fill fill, void *context, qb_output_basis **out)
{
    qb_output_basis *basis;
    QB_TRY(QB_NEW_ZERO(&basis, 1, "output basis"));
    *basis =
        (qb_output_basis){.c = config,
                          .pool = pool,
                          .gemm = QB_KERNEL_PICK(qb_gemm_f32_kernels),
                          .taps = {.sees = QB_TAP_BIT(QB_TAP_ADDED), .see = see, .context = basis}};
    qb_status status = fill_outputs(basis, max_rows, fill, context);
    if (status != QB_OK)
        qb_output_basis_destroy(basis);
    else
        *out = basis;
    return status;
}

void qb_output_basis_destroy(qb_output_basis *basis)
{
    if (!basis) return;
    for (size_t i = 0; basis->outputs && i < 2 * basis->c->n_layers; i++) {
        for (int which = 0; which < N_BASES; which++) qb_free(basis->outputs[i].packed[which]);
        qb_free(basis->outputs[i].kept);
    }
    qb_free(basis->outputs);
    qb_free(basis->turned);
    qb_free(basis->tokens);
    qb_free(basis);
}

const qb_taps *qb_output_basis_taps(const qb_output_basis *basis)
{
    return &basis->taps;
}

/* ---- JSON ---- */

static json_t *record(const output *o, size_t i)
{
    json_t *object = json_object();
    json_object_set_new(object, "layer", json_integer((json_int_t)(i / 2 + 1)));
    json_object_set_new(object, "part", json_string(i % 2 ? "mlp" : "attn"));
    for (int which = 0; which < N_BASES; which++) {
        json_t *kurt = json_object();
        json_object_set_new(kurt, "first", qb_json_real(o->kurt[which][0] / o->n[which][0]));
        json_object_set_new(kurt, "rest", qb_json_real(o->kurt[which][1] / o->n[which][1]));
        json_object_set_new(object, names[which], kurt);
    }
    return object;
}

qb_status qb_output_basis_to_json(qb_output_basis *basis, json_t **out)
{
    size_t n = 2 * basis->c->n_layers, mark = qb_json_mark();
    qb_parallel_for(basis->pool, n, singular_task, basis);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        if (basis->outputs[i].is_there) json_array_append_new(list, record(&basis->outputs[i], i));
    *out = list;
    return qb_json_check_memory(mark, "output basis");
}
