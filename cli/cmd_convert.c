/* cli/cmd_convert.c - qbench convert: any model format to model.bin or to a Hugging Face folder,
 * with codes, other float types or another tokenizer on the way. */
#include "cli/output.h"

#include "core/clock.h"
#include "core/json.h"
#include "core/memory.h"
#include "infer/calibrate.h"
#include "model/export_hf.h"
#include "model/model_bin.h"
#include "model/random_model.h"
#include "model/tokenizer.h"
#include "quant/quantize_model.h"
#include "report/format.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* ---- where to ---- */

static bool wants_folder(const qb_model *model, const char *out)
{
    bool from_bin = !strcmp(model->format, "model.bin");
    return qb_ends_with(out, "/") || qb_is_folder(out) || (from_bin && !qb_ends_with(out, ".bin"));
}

static qb_status check_target(const qb_cli *cli, const qb_model *model, const char *out)
{
    bool same = qb_same_file(model->path, out);
    for (size_t i = 0; i < model->n_files; i++) same |= qb_same_file(model->files[i].path, out);
    if (same)
        return QB_FAIL(QB_ERR_USAGE, "%s: is the input, which convert never writes over", out);
    QB_TRY(qb_cli_check_not_given(cli, out));
    if (!wants_folder(model, out)) return QB_OK;
    static const char *const only_bin[] = {"quantize", "zlib", "dtype", "record"};
    for (size_t i = 0; i < QB_COUNT(only_bin); i++)
        if (qb_cli_is_set(cli, only_bin[i]))
            return QB_FAIL(QB_ERR_USAGE,
                           "--%s: applies to a model.bin, %s would be a Hugging Face folder",
                           only_bin[i], out);
    return QB_OK;
}

/* ---- changes on the way; the model is not yet shared with anyone ---- */

/* What was changed is said in the training record, which travels with the model. */
static qb_status note_in_record(qb_model *model, const char *key, const char *text)
{
    if (!model->training) model->training = json_object();
    if (json_object_set_new(model->training, key, json_string(text)))
        return QB_FAIL(QB_ERR_MEMORY, "convert: no memory for the training record");
    return QB_OK;
}

static qb_status change_softmax(qb_model *model, const char *name)
{
    char text[64];
    for (int i = 0; i < QB_SOFTMAX_COUNT; i++) {
        if (strcmp(qb_softmax_names[i], name) || model->config.softmax == (qb_softmax_kind)i)
            continue;
        if (i == QB_SOFTMAX_SINK || model->config.softmax == QB_SOFTMAX_SINK)
            return QB_FAIL(QB_ERR_UNSUPPORTED,
                           "--softmax %s: sink logits are learned: found %s, trained with %s, "
                           "expected a model that has them",
                           name, model->path, qb_softmax_names[model->config.softmax]);
        snprintf(text, sizeof text, "%s, trained with %s", name,
                 qb_softmax_names[model->config.softmax]);
        model->config.softmax = (qb_softmax_kind)i;
        return note_in_record(model, "softmax_override", text);
    }
    return QB_OK;
}

static qb_status attach_tokenizer(qb_model *model, const char *path)
{
    qb_tokenizer *tokenizer;
    QB_TRY(qb_tokenizer_open_json(path, &tokenizer));
    if (qb_tokenizer_vocab(tokenizer) > model->config.vocab) {
        size_t vocab = qb_tokenizer_vocab(tokenizer);
        qb_tokenizer_destroy(tokenizer);
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu tokens, expected at most the model's %zu",
                       path, vocab, model->config.vocab);
    }
    qb_tokenizer_destroy(model->tokenizer);
    model->tokenizer = tokenizer;
    return QB_OK;
}

/* What is known of a training beside its model: keys of the file replace those of the record. */
static qb_status extend_record(qb_model *model, const char *path)
{
    json_t *more;
    QB_TRY(qb_json_read_file(path, 1 << 20, &more));
    qb_status status = QB_OK;
    if (!json_is_object(more))
        status = QB_FAIL(QB_ERR_FORMAT, "%s: found no JSON object, expected one", path);
    if (status == QB_OK && !model->training) model->training = json_object();
    if (status == QB_OK && json_object_update(model->training, more))
        status = QB_FAIL(QB_ERR_MEMORY, "convert: no memory for the training record");
    json_decref(more);
    return status;
}

static qb_status apply_changes(const qb_cli *cli, qb_model *model)
{
    const char *name = qb_cli_string(cli, "name"), *softmax = qb_cli_string(cli, "softmax"),
               *tokenizer = qb_cli_string(cli, "tokenizer"), *record = qb_cli_string(cli, "record");
    if (name) QB_TRY(qb_model_set_name(model, name));
    if (softmax) QB_TRY(change_softmax(model, softmax));
    if (tokenizer) QB_TRY(attach_tokenizer(model, tokenizer));
    return record ? extend_record(model, record) : QB_OK;
}

/* ---- codes ---- */

/* Largest activations on the model's own calibration, else on the built-in text; they go into the
 * file too. */
static qb_status calibrate(const qb_cli *cli, const qb_scheme *scheme, qb_model *model,
                           qb_pool *pool, qb_calibration **out)
{
    if (!qb_scheme_needs_calibration(scheme)) return QB_OK;
    QB_TRY(qb_calibrate(model, pool, NULL, 0, out));
    if (model->calibration) return QB_OK;
    qb_cli_note(cli, "static scales of %s come from %s (%zu tokens)", scheme->name,
                (*out)->text_name, (*out)->n_tokens);
    return qb_calibration_to_json(*out, &model->calibration);
}

/* *model becomes a model with codes; *full keeps the float tensors that it refers to. */
static qb_status quantize(const qb_cli *cli, qb_pool *pool, qb_model **model, qb_model **full)
{
    const char *name = qb_cli_string(cli, "quantize");
    if (!name) return QB_OK;
    const qb_scheme_overrides overrides = {.weight_axis = qb_cli_string(cli, "weight-axis")};
    qb_scheme scheme;
    QB_TRY(qb_scheme_override(qb_scheme_find(name), &overrides, &scheme));
    const char *stored = (*model)->stored_scheme;
    if (stored && strcmp(stored, name))
        qb_cli_note(cli, "%s holds codes of %s: their rounding errors stay in those of %s",
                    (*model)->path, stored, name);
    qb_calibration *calibration = NULL;
    qb_model *quantized;
    qb_status status = calibrate(cli, &scheme, *model, pool, &calibration);
    if (status == QB_OK)
        status = qb_quantize_model(*model, &scheme, calibration, qb_cli_flag(cli, "quantize-head"),
                                   pool, &quantized);
    qb_calibration_destroy(calibration);
    if (status != QB_OK) return status;
    quantized->tokenizer = (*model)->tokenizer;
    (*model)->tokenizer = NULL;
    *full = *model;
    *model = quantized;
    return QB_OK;
}

/* ---- out ---- */

static qb_status write_bin(const qb_cli *cli, const qb_model *model, const char *out)
{
    qb_model_bin_options options = {.zlib_level = (int)qb_cli_size(cli, "zlib"),
                                    .n_threads = qb_cli_size(cli, "threads")};
    options.convert_floats = qb_dtype_from_name(qb_cli_string(cli, "dtype"), &options.float_dtype);
    return qb_model_bin_write(model, out, &options);
}

/* Of a file, or of the files in a folder. */
static int64_t bytes_at(const char *path)
{
    struct stat st;
    if (stat(path, &st)) return -1;
    if (!S_ISDIR(st.st_mode)) return st.st_size;
    DIR *folder = opendir(path);
    int64_t bytes = 0;
    struct dirent *entry;
    while (folder && (entry = readdir(folder)))
        if (!fstatat(dirfd(folder), entry->d_name, &st, 0) && S_ISREG(st.st_mode))
            bytes += st.st_size;
    if (folder) closedir(folder);
    return bytes;
}

static void print_summary(const qb_model *model, int64_t bytes_in, const char *out, bool folder,
                          double seconds)
{
    char in_text[QB_FORMAT_BYTES], out_text[QB_FORMAT_BYTES];
    printf("%s: %s, %zu tensors, %s", out, folder ? "Hugging Face folder" : "model.bin",
           qb_model_n_tensors(model), qb_format_bytes(bytes_at(out), out_text));
    if (bytes_in)
        printf(" from %s of %s", qb_format_bytes(bytes_in, in_text), model->format);
    else
        printf(", random");
    printf(", %.2f s\n", seconds);
}

static qb_status convert(const qb_cli *cli, qb_pool *pool, qb_model **model, qb_model **full,
                         const char *out)
{
    double start = qb_now_s();
    const char *preset = qb_cli_string(cli, "random");
    if (preset)
        QB_TRY(qb_random_model(preset, qb_cli_size(cli, "seed"), pool, model));
    else
        QB_TRY(qb_model_open(qb_cli_arg(cli, 0), model));
    QB_TRY(check_target(cli, *model, out));
    bool folder = wants_folder(*model, out);
    int64_t bytes_in = (int64_t)qb_model_file_bytes(*model);
    QB_TRY(apply_changes(cli, *model));
    QB_TRY(quantize(cli, pool, model, full));
    QB_TRY(folder ? qb_model_export_hf(*model, out) : write_bin(cli, *model, out));
    if (!qb_cli_flag(cli, "quiet"))
        print_summary(*model, bytes_in, out, folder, qb_now_s() - start);
    return QB_OK;
}

qb_status qb_cmd_convert(const qb_cli *cli)
{
    bool random = qb_cli_string(cli, "random") != NULL;
    size_t n_args = qb_cli_n_args(cli), expected = random ? 1 : 2;
    if (n_args != expected)
        return QB_FAIL(QB_ERR_USAGE, "convert%s: found %zu argument%s, expected %s",
                       random ? " --random" : "", n_args, n_args == 1 ? "" : "s",
                       random ? "OUT" : "IN and OUT");
    qb_pool *pool;
    qb_model *model = NULL, *full = NULL;
    QB_TRY(qb_pool_create(qb_cli_size(cli, "threads"), &pool));
    qb_status status = convert(cli, pool, &model, &full, qb_cli_arg(cli, n_args - 1));
    qb_model_close(model);
    qb_model_close(full);
    qb_pool_destroy(pool);
    return status;
}
