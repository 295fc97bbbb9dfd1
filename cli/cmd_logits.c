/* cli/cmd_logits.c - qbench logits: tokens in, logits and losses out, the whole (B, T) as one
 * batch. */
#include "cli/logits.h"

#include "cli/output.h"
#include "cli/prepare.h"
#include "core/file.h"
#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"
#include "kernels/gemm_u4.h"
#include "kernels/pointwise.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <string.h>

enum { CHUNK_ROWS = 64 };

/* What the model cannot take is the file's fault, so it is said of the file. */
static qb_status check_grid(const char *path, const qb_token_grid *g, const qb_config *config)
{
    if (g->n_tokens > qb_config_longest(config))
        return QB_FAIL(QB_ERR_FORMAT, "%s: tokens: found rows of %zu, expected at most %zu (%s)",
                       path, g->n_tokens, qb_config_longest(config), qb_config_limit(config));
    for (size_t i = 0; i < g->batch * g->n_tokens; i++)
        if (g->ids[i] < 0 || (size_t)g->ids[i] >= config->vocab)
            return QB_FAIL(QB_ERR_FORMAT, "%s: tokens: found id %d, expected 0 to %zu", path,
                           (int)g->ids[i], config->vocab - 1);
    return QB_OK;
}

qb_status qb_token_grid_read(const char *path, const qb_config *config, int32_t **ids,
                             qb_token_grid *out)
{
    qb_safetensors *st;
    QB_TRY(qb_safetensors_open(path, &st));
    const qb_st_tensor *t = qb_safetensors_find(st, "tokens");
    qb_status status = QB_OK;
    int32_t *read = NULL;
    if (!t || t->rank != 2 || !t->n_elems)
        status = QB_FAIL(QB_ERR_FORMAT,
                         "%s: found no tensor `tokens` of two dimensions, expected shape (B, T) "
                         "with B and T at least 1",
                         path);
    if (status == QB_OK) status = QB_NEW(&read, t->n_elems, "tokens");
    if (status == QB_OK && (status = qb_st_tensor_to_s32(t, read)) != QB_OK)
        status = qb_error_prefix(status, path);
    const qb_token_grid grid = {read, t ? t->shape[0] : 0, t ? t->shape[1] : 0};
    if (status == QB_OK) status = check_grid(path, &grid, config);
    if (status == QB_OK) {
        *out = grid;
        *ids = read;
    } else {
        qb_free(read);
    }
    qb_safetensors_close(st);
    return status;
}

/* -log p of the token that follows row (b, t), put at (b, t) of the (B, T-1) nll. */
static qb_status put_nll(qb_st_writer *w, const qb_token_grid *g, size_t row, const float *logits,
                         size_t vocab)
{
    size_t b = row / g->n_tokens, t = row % g->n_tokens;
    if (t + 1 == g->n_tokens) return QB_OK;
    const qb_pointwise_row *kernels = QB_KERNEL_PICK(qb_pointwise_kernels);
    int32_t top;
    float nll = (float)(kernels->logsumexp(logits, vocab, &top) - (double)logits[g->ids[row + 1]]);
    return qb_st_writer_put(w, 1, (b * (g->n_tokens - 1) + t) * sizeof nll, &nll, sizeof nll);
}

static qb_status write_rows(qb_engine *e, const qb_token_grid *g, float *logits, qb_st_writer *w)
{
    size_t vocab = qb_engine_model(e)->config.vocab, rows = g->batch * g->n_tokens;
    qb_progress progress = qb_progress_begin("logits", rows);
    for (size_t row = 0; row < rows; row += CHUNK_ROWS) {
        size_t n = rows - row < CHUNK_ROWS ? rows - row : CHUNK_ROWS;
        if (qb_interrupted()) return QB_FAIL(QB_ERR_INTERRUPTED, "interrupted");
        QB_TRY(qb_engine_logits(e, row, n, logits));
        QB_TRY(qb_st_writer_put(w, 0, row * vocab * sizeof *logits, logits,
                                n * vocab * sizeof *logits));
        for (size_t i = 0; i < n; i++) QB_TRY(put_nll(w, g, row + i, logits + i * vocab, vocab));
        qb_progress_update(&progress, row + n);
    }
    qb_progress_end(&progress);
    return QB_OK;
}

static qb_status write_output(qb_engine *e, const qb_token_grid *g, void *path)
{
    size_t vocab = qb_engine_model(e)->config.vocab;
    const qb_st_entry entries[] = {
        {.name = "logits", .dtype = QB_F32, .rank = 3, .shape = {g->batch, g->n_tokens, vocab}},
        {.name = "nll", .dtype = QB_F32, .rank = 2, .shape = {g->batch, g->n_tokens - 1}}};
    float *logits;
    QB_TRY(QB_NEW(&logits, CHUNK_ROWS * vocab, "logits"));
    qb_st_writer *w = NULL;
    qb_status status = qb_st_writer_open(path, entries, QB_COUNT(entries), NULL, &w);
    if (status == QB_OK) {
        status = write_rows(e, g, logits, w);
        if (status == QB_OK)
            status = qb_st_writer_commit(w);
        else
            qb_st_writer_abandon(w);
    }
    qb_free(logits);
    return status;
}

static qb_status run_engine(const qb_cli *cli, qb_backbone *backbone, qb_pool *pool,
                            const qb_model *model, const qb_token_grid *g, qb_engine **out)
{
    qb_scheme scheme;
    qb_calibration *calibration;
    QB_TRY(qb_cli_scheme(cli, qb_cli_string(cli, "scheme"), model, &scheme));
    QB_TRY(qb_cli_calibration(cli, &scheme, model, pool, &calibration));
    qb_engine_options options = {.scheme = &scheme,
                                 .fake = qb_cli_flag(cli, "fake") && scheme.weights.bits,
                                 .quantize_head = qb_cli_flag(cli, "quantize-head"),
                                 .calibration = calibration};
    qb_status status = qb_engine_create(backbone, &options, out);
    qb_calibration_destroy(calibration);
    return status == QB_OK ? qb_engine_prefill(*out, g->ids, g->batch, g->n_tokens) : status;
}

/* These logits are laid beside other programs': where --kernel does not say otherwise, 4-bit
 * weights are multiplied with the inputs as they are, by the first row that does not round them.
 * The next qb_cli_prepare() lifts it. */
static qb_status choose_rows(const qb_cli *cli)
{
    const char *given = qb_cli_string(cli, "kernel");
    const qb_gemm_u4_row *row = qb_gemm_u4_kernels;
    if (given && strstr(given, "gemm_u4/")) return QB_OK;
    while (qb_kernel_refusal(&row->info) || row->prepared_bytes(1, 1))
        row++; /* ends at the reference */
    const size_t bytes = (given ? strlen(given) : 0) + strlen(row->info.name) + 2;
    char *list;
    QB_TRY(QB_NEW(&list, bytes, "names of kernel rows"));
    snprintf(list, bytes, "%s%s%s", given ? given : "", given ? "," : "", row->info.name);
    qb_status status = qb_kernel_force(list);
    qb_free(list);
    return status;
}

qb_status qb_logits_run(const qb_cli *cli, const qb_model *model, const qb_token_grid *grid,
                        qb_status (*use)(qb_engine *engine, const qb_token_grid *grid, void *what),
                        void *what)
{
    qb_pool *pool = NULL;
    qb_backbone *backbone = NULL;
    qb_engine *engine = NULL;
    qb_backbone_options wide = {.max_tokens = grid->batch * grid->n_tokens};
    qb_status status;
    QB_TRY_GOTO(status, qb_cli_prepare(cli, &wide.device, &pool), done);
    QB_TRY_GOTO(status, choose_rows(cli), done);
    wide.pool = pool;
    QB_TRY_GOTO(status, qb_backbone_create(model, &wide, &backbone), done);
    QB_TRY_GOTO(status, run_engine(cli, backbone, pool, model, grid, &engine), done);
    status = use(engine, grid, what);
done:
    qb_engine_destroy(engine);
    qb_backbone_destroy(backbone);
    qb_pool_destroy(pool);
    return status;
}

qb_status qb_cmd_logits(const qb_cli *cli)
{
    static const char *const outputs[] = {"out", NULL};
    const char *tokens = qb_cli_string(cli, "tokens"), *out = qb_cli_string(cli, "out");
    if (!tokens || !out)
        return QB_FAIL(QB_ERR_USAGE, "logits: found no --%s, expected --tokens FILE and --out FILE",
                       tokens ? "out" : "tokens");
    if (qb_cli_is_stdout(out))
        return QB_FAIL(QB_ERR_USAGE, "--out: found %s, expected a file of its own", out);
    QB_TRY(qb_cli_check_outputs(cli, outputs));
    qb_token_grid grid;
    int32_t *ids = NULL;
    qb_model *model = NULL;
    qb_status status;
    QB_TRY_GOTO(status, qb_model_open(qb_cli_arg(cli, 0), &model), done);
    QB_TRY_GOTO(status, qb_token_grid_read(tokens, &model->config, &ids, &grid), done);
    status = qb_logits_run(cli, model, &grid, write_output, (void *)out);
done:
    qb_model_close(model);
    qb_free(ids);
    return status;
}
