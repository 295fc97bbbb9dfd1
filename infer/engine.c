/* infer/engine.c - what engines of all backends have in common: arguments are checked here, what is
 * known about an engine is told from here. The work is done by the rows of qb_backends. */
#include "infer/backend.h"

#include "core/cuda.h"
#include "core/memory.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const qb_backend *const qb_backends[] = {&qb__cpu_backend,
#ifdef QB_WITH_CUDA
                                         &qb__cuda_backend,
#endif
                                         NULL};

/* ---- devices ---- */

static const qb_backend *find_backend(const char *name, size_t n_chars)
{
    for (const qb_backend *const *row = qb_backends; *row; row++)
        if (strlen((*row)->name) == n_chars && !strncmp((*row)->name, name, n_chars)) return *row;
    return NULL;
}

static qb_status parse_index(const char *name, const char *digits, int *out)
{
    char *end;
    long index = strtol(digits, &end, 10);
    if (*digits < '0' || *digits > '9' || *end || index > 1023)
        return QB_FAIL(QB_ERR_USAGE, "--device: found %.40s, expected auto, cpu, cuda or cuda:N",
                       name);
    *out = (int)index;
    return QB_OK;
}

/* A GPU where one can be used. A build without CUDA has nothing to say: nobody expects one. */
static void find_auto(qb_device *out, const char **note)
{
    *out = (qb_device){.backend = &qb__cpu_backend};
    const qb_backend *cuda = find_backend("cuda", 4);
    if (!cuda) return;
    *note = cuda->refusal(0);
    if (!*note) *out = (qb_device){.backend = cuda, .n_shared = cuda->count()};
}

qb_status qb_device_find(const char *name, qb_device *out, const char **note)
{
    *note = NULL;
    if (!strcmp(name, "auto")) {
        find_auto(out, note);
        return QB_OK;
    }
    size_t n_chars = strcspn(name, ":");
    int index = 0;
    bool is_cuda = n_chars == 4 && !strncmp(name, "cuda", 4);
    if (name[n_chars]) QB_TRY(parse_index(name, is_cuda ? name + 5 : "", &index));
    const qb_backend *backend = find_backend(name, n_chars);
    if (!backend && !is_cuda)
        return QB_FAIL(QB_ERR_USAGE, "--device: found %.40s, expected auto, cpu, cuda or cuda:N",
                       name);
    const char *why = backend ? backend->refusal(index) : qb_cuda_refusal(index);
    if (why) return QB_FAIL(QB_ERR_DEVICE, "--device %s: %s, expected auto or cpu", name, why);
    *out = (qb_device){.backend = backend, .index = index};
    if (!name[n_chars]) out->n_shared = backend->count();
    return QB_OK;
}

static const qb_backend *backend_of(const qb_device *device)
{
    return device->backend ? device->backend : &qb__cpu_backend;
}

const char *qb_device_backend_name(const qb_device *device)
{
    return backend_of(device)->name;
}

bool qb_device_is_cpu(const qb_device *device)
{
    return backend_of(device) == &qb__cpu_backend;
}

bool qb_device_full_is_f32(const qb_device *device)
{
    return backend_of(device)->full_is_f32;
}

size_t qb_device_logit_rows(const qb_device *device, size_t vocab)
{
    enum { STEP = 16, MOST = 2048 };
    size_t rows = backend_of(device)->logit_bytes / (vocab * sizeof(float)) / STEP * STEP;
    return rows > MOST ? MOST : rows < STEP ? STEP : rows;
}

/* ---- making ---- */

qb_status qb_backbone_create(const qb_model *model, const qb_backbone_options *options,
                             qb_backbone **out)
{
    qb_backbone base = {.backend = backend_of(&options->device),
                        .device_idx = options->device.index,
                        .model = model,
                        .config = &model->config,
                        .pool = options->pool,
                        .max_tokens = options->max_tokens,
                        .logit_slots = options->logit_slots,
                        .logit_rows = options->logit_rows};
    return base.backend->backbone_create(&base, out);
}

void qb_backbone_destroy(qb_backbone *b)
{
    if (b) b->backend->backbone_destroy(b);
}

static qb_status check_cache(const qb_backbone *b, const qb_engine_options *o)
{
    if (o->cache_context > qb_config_longest(b->config))
        return QB_FAIL(QB_ERR_SHAPE, "%s: context: found %zu, at most %zu (%s)", b->model->path,
                       o->cache_context, qb_config_longest(b->config), qb_config_limit(b->config));
    return QB_OK;
}

qb_status qb_engine_create(qb_backbone *backbone, const qb_engine_options *options, qb_engine **out)
{
    QB_TRY(check_cache(backbone, options));
    bool cached = options->cache_batch && options->cache_context;
    qb_engine base = {.backbone = backbone,
                      .scheme = *options->scheme,
                      .cache_batch = cached ? options->cache_batch : 0,
                      .cache_context = cached ? options->cache_context : 0};
    return backbone->backend->engine_create(&base, options, out);
}

void qb_engine_destroy(qb_engine *e)
{
    if (e) e->backbone->backend->engine_destroy(e);
}

/* ---- mixing ---- */

qb_status qb_engine_create_mixed(qb_engine *full, qb_engine *part, qb_engine **out)
{
    assert(full->backbone == part->backbone && !full->scheme.weights.bits);
    qb_engine base = {
        .backbone = full->backbone, .scheme = part->scheme, .full = full, .part = part};
    size_t n = full->backbone->config->n_layers * QB_ROLE_COUNT;
    uint8_t *none;
    qb_engine *mixed = NULL;
    memcpy(base.kernels, part->kernels, sizeof base.kernels);
    QB_TRY(QB_NEW_ZERO(&none, n, "mixed layers"));
    qb_status status = full->backbone->backend->mixed_create(&base, &mixed);
    if (status == QB_OK) status = qb_engine_mix(mixed, none);
    qb_free(none);
    if (status != QB_OK)
        qb_engine_destroy(mixed);
    else
        *out = mixed;
    return status;
}

bool qb_engine_mixes_singly(const qb_engine *mixed)
{
    return mixed->backbone->backend->mixes_singly && !(mixed->scheme.weights.smooth_alpha > 0);
}

static bool mixes_whole_groups(const qb_model *model, size_t layer, const uint8_t *from_part)
{
    for (int a = 0; a < QB_ROLE_COUNT; a++)
        for (int b = 0; b < a; b++) {
            bool together = qb_roles[a].norm && qb_roles[a].norm == qb_roles[b].norm &&
                            qb_model_tensor(model, (qb_role)a, layer)->data &&
                            qb_model_tensor(model, (qb_role)b, layer)->data;
            if (together && from_part[a] != from_part[b]) return false;
        }
    return true;
}

qb_status qb_engine_mix(qb_engine *mixed, const uint8_t *from_part)
{
    const qb_backbone *b = mixed->backbone;
    for (size_t layer = 0; !qb_engine_mixes_singly(mixed) && layer < b->config->n_layers; layer++)
        if (!mixes_whole_groups(b->model, layer, from_part + layer * QB_ROLE_COUNT))
            return QB_FAIL(QB_ERR_UNSUPPORTED,
                           "mixed layers: block %zu: layers behind one norm are found apart, "
                           "expected together",
                           layer);
    mixed->linears = mixed->linears_quantised = 0;
    mixed->macs = mixed->macs_quantised = 0;
    return b->backend->mix(mixed, from_part);
}

qb_status qb_engine_product(qb_engine *e, qb_role role, size_t layer, float *x, size_t m, float *y)
{
    const qb_backbone *b = e->backbone;
    if (!b->backend->product)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "one product alone: not on %s", b->backend->name);
    assert(m <= b->max_tokens && layer < b->config->n_layers && qb_roles[role].linear);
    return b->backend->product(e, role, layer, x, m, y);
}

void qb__engine_count_linear(qb_engine *e, size_t n, size_t k, bool quantised)
{
    double macs = (double)n * (double)k;
    e->linears++;
    e->macs += macs;
    if (!quantised) return;
    e->linears_quantised++;
    e->macs_quantised += macs;
}

void qb__engine_name_kernel(qb_engine *e, const char *name)
{
    size_t n = strlen(e->kernels), n_name = strlen(name);
    for (const char *at = e->kernels; (at = strstr(at, name)); at += n_name)
        if (!at[n_name] || at[n_name] == ' ') return;
    snprintf(e->kernels + n, sizeof e->kernels - n, "%s%s", n ? " " : "", name);
}

size_t qb__float_weights_bytes(const qb_model *model)
{
    size_t bytes = 0;
    for (size_t layer = 0; layer < model->config.n_layers; layer++)
        for (int role = 0; role < QB_ROLE_COUNT; role++) {
            const qb_tensor *t = qb_model_tensor(model, (qb_role)role, layer);
            bool shared = !qb_roles[role].per_layer && layer > 0;
            bool counted = qb_roles[role].linear || role == QB_ROLE_HEAD || shared;
            if (t->data && !counted) bytes += t->bytes;
        }
    return bytes;
}

/* ---- running ---- */

static qb_status check_tokens(const qb_engine *e, const int32_t *tokens, size_t n)
{
    size_t vocab = e->backbone->config->vocab;
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= vocab)
            return QB_FAIL(QB_ERR_SHAPE, "token %zu: found id %d, expected 0 to %zu", i,
                           (int)tokens[i], vocab - 1);
    return QB_OK;
}

/* One scale, or one set of outliers, for many rows: none of them can be left out. */
static bool spans_rows(const qb_act_quant *q)
{
    bool one_scale = q->span == QB_SPAN_TENSOR && !q->is_static;
    return q->bits && (one_scale || q->outlier_min > 0);
}

static qb_status run_forward(qb_engine *e, const int32_t *tokens, size_t batch, size_t n_tokens,
                             size_t past, bool last_only)
{
    bool all = !last_only || spans_rows(&e->scheme.input) || spans_rows(&e->scheme.output);
    QB_TRY(check_tokens(e, tokens, batch * n_tokens));
    QB_TRY(e->backbone->backend->forward(e, tokens, batch, n_tokens, past, !all));
    e->batch = batch;
    e->position = past + n_tokens;
    e->n_rows = all ? batch * n_tokens : batch;
    e->row_step = all && last_only ? n_tokens : 1;
    return QB_OK;
}

qb_status qb_engine_observe(qb_engine *e, const qb_taps *taps)
{
    const qb_backend *backend = e->backbone->backend;
    if (taps && (taps->sees & ~backend->taps))
        return QB_FAIL(
            QB_ERR_UNSUPPORTED,
            "--device %s: it does not show the inputs and outputs of linear layers, expected cpu",
            backend->name);
    e->taps = taps;
    return QB_OK;
}

qb_status qb__taps_show(const qb_taps *taps, const qb_tap_view *view)
{
    return taps->sees & QB_TAP_BIT(view->tap) ? taps->see(taps->context, view) : QB_OK;
}

static qb_status prefill(qb_engine *e, const int32_t *tokens, size_t batch, size_t n_tokens,
                         bool last_only)
{
    const qb_backbone *b = e->backbone;
    size_t rows;
    if (!batch || !n_tokens || !qb_mul_size(batch, n_tokens, &rows) || rows > b->max_tokens)
        return QB_FAIL(QB_ERR_SHAPE, "prefill: found %zu x %zu tokens, expected 1 to %zu", batch,
                       n_tokens, b->max_tokens);
    if (n_tokens > qb_config_longest(b->config))
        return QB_FAIL(QB_ERR_SHAPE, "prefill: found %zu tokens a sequence, at most %zu (%s)",
                       n_tokens, qb_config_longest(b->config), qb_config_limit(b->config));
    if (e->cache_batch && (batch > e->cache_batch || n_tokens > e->cache_context))
        return QB_FAIL(QB_ERR_SHAPE, "prefill: found %zu x %zu tokens, the cache holds %zu x %zu",
                       batch, n_tokens, e->cache_batch, e->cache_context);
    return run_forward(e, tokens, batch, n_tokens, 0, last_only);
}

qb_status qb_engine_prefill(qb_engine *e, const int32_t *tokens, size_t batch, size_t n_tokens)
{
    return prefill(e, tokens, batch, n_tokens, false);
}

bool qb_engine_resumes(const qb_engine *e)
{
    return e->backbone->backend->resumes && !e->cache_batch;
}

qb_status qb_engine_prefill_from(qb_engine *e, const int32_t *tokens, size_t batch, size_t n_tokens,
                                 size_t first_block, const float *stream)
{
    if (!qb_engine_resumes(e))
        return QB_FAIL(QB_ERR_UNSUPPORTED, "prefill from block %zu: not on %s", first_block,
                       e->backbone->backend->name);
    e->first_block = first_block;
    e->stream = stream;
    qb_status status = prefill(e, tokens, batch, n_tokens, false);
    e->first_block = 0;
    e->stream = NULL;
    return status;
}

qb_status qb_engine_prefill_last(qb_engine *e, const int32_t *tokens, size_t batch, size_t n_tokens)
{
    return prefill(e, tokens, batch, n_tokens, true);
}

qb_status qb_engine_decode_step(qb_engine *e, const int32_t *tokens)
{
    if (!e->cache_batch || !e->batch) return QB_FAIL(QB_ERR_SHAPE, "decode: no prefilled KV cache");
    if (e->position >= e->cache_context)
        return QB_FAIL(QB_ERR_SHAPE, "decode: position %zu, the cache holds %zu", e->position,
                       e->cache_context);
    return run_forward(e, tokens, e->batch, 1, e->position, false);
}

static qb_status check_rows(const qb_engine *e, size_t first_row, size_t row_step, size_t n_rows)
{
    size_t n = e->n_rows ? e->n_rows / e->row_step : 0;
    if (n_rows && row_step && first_row < n && n_rows - 1 <= (n - 1 - first_row) / row_step)
        return QB_OK;
    return QB_FAIL(QB_ERR_SHAPE, "logits: found rows %zu + %zu x %zu, the last call had %zu",
                   first_row, n_rows, row_step, n);
}

/* The backend's number of a row that can be asked for. */
static size_t backend_row(const qb_engine *e, size_t row)
{
    return (row + 1) * e->row_step - 1;
}

qb_status qb_engine_logits(qb_engine *e, size_t first_row, size_t n_rows, float *logits)
{
    const qb_backend *backend = e->backbone->backend;
    size_t vocab = e->backbone->config->vocab;
    QB_TRY(check_rows(e, first_row, 1, n_rows));
    if (e->row_step == 1) return backend->logits(e, first_row, n_rows, logits);
    for (size_t i = 0; i < n_rows; i++)
        QB_TRY(backend->logits(e, backend_row(e, first_row + i), 1, logits + i * vocab));
    return QB_OK;
}

static qb_status check_slot(const qb_backbone *b, int slot, size_t n_rows)
{
    if (slot >= 0 && (size_t)slot < b->logit_slots && n_rows <= b->logit_rows) return QB_OK;
    return QB_FAIL(QB_ERR_SHAPE,
                   "logits: found %zu rows in slot %d, the backbone has %zu slots of %zu", n_rows,
                   slot, b->logit_slots, b->logit_rows);
}

qb_status qb_engine_head(qb_engine *e, size_t slot, size_t first_row, size_t row_step,
                         size_t n_rows)
{
    QB_TRY(check_rows(e, first_row, row_step, n_rows));
    QB_TRY(check_slot(e->backbone, (int)slot, n_rows));
    return e->backbone->backend->head(e, slot, backend_row(e, first_row), row_step * e->row_step,
                                      n_rows);
}

qb_status qb_backbone_compare(qb_backbone *b, int slot_a, int slot_b, size_t n_rows,
                              const int32_t *target, qb_logit_stats *out)
{
    QB_TRY(check_slot(b, slot_a, n_rows));
    if (slot_b >= 0) QB_TRY(check_slot(b, slot_b, n_rows));
    return b->backend->compare(b, slot_a, slot_b, n_rows, target, out);
}

qb_status qb_engine_sync(qb_engine *e)
{
    return e->backbone->backend->sync(e->backbone);
}

void qb_engine_set_timeline(qb_engine *e, qb_timeline *timeline)
{
    e->timeline = timeline;
    qb_pool_watch(e->backbone->pool, timeline ? qb__timeline_thread_ran : NULL, timeline);
}

/* ---- what is known ---- */

size_t qb_backbone_logit_rows(const qb_backbone *b)
{
    return b->logit_rows;
}

size_t qb_backbone_n_threads(const qb_backbone *b)
{
    return qb_pool_n_threads(b->pool);
}

void qb_engine_coverage(const qb_engine *e, qb_coverage *out)
{
    *out = (qb_coverage){.linears = e->linears,
                         .linears_quantised = e->linears_quantised,
                         .macs_share = e->macs_quantised / e->macs,
                         .bytes_share =
                             e->macs_quantised / (double)qb_config_n_params(e->backbone->config)};
    static const char *const kept[] = {"embedding", "norms", "softmax", "attention products",
                                       "residual stream"};
    size_t n = 0;
    for (size_t i = 0; i < QB_COUNT(kept); i++) out->kept_float[n++] = kept[i];
    if (e->backbone->config->softmax == QB_SOFTMAX_SINK) out->kept_float[n++] = "sink logits";
    if (e->backbone->config->attn_gate) out->kept_float[n++] = "attention gates";
    if (e->macs_quantised < e->macs) out->kept_float[n++] = "output projection";
}

void qb_engine_memory_get(const qb_engine *e, qb_engine_memory *out)
{
    e->backbone->backend->memory(e, out);
}

const char *qb_engine_kernels(const qb_engine *e)
{
    return e->kernels;
}

const qb_model *qb_engine_model(const qb_engine *e)
{
    return e->backbone->model;
}

qb_backbone *qb_engine_backbone(const qb_engine *e)
{
    return e->backbone;
}

size_t qb_engine_position(const qb_engine *e)
{
    return e->position;
}
