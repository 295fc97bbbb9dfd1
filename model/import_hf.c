/* model/import_hf.c - a Hugging Face folder (config.json, model.safetensors or its shards,
 * tokenizer.json), or one .safetensors file with config.json beside it. Tensors are mapped as they
 * are; GPT2's Conv1D weights are stored (in, out) and are transposed into owned memory. */
#include "core/json.h"
#include "core/memory.h"
#include "model/hf_internal.h"
#include "model/importers_internal.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

#include <string.h>
#include <unistd.h>

enum { MAX_SHARDS = 512 };

typedef struct hf_import {
    qb_model *model;
    const void *spare_head; /* lm_head of a model whose configuration ties it */
    size_t spare_head_bytes;
} hf_import;

/* ---- tensors ---- */

static qb_status set_transposed(qb_model *model, qb_role role, size_t layer_idx, qb_file *file,
                                const qb_st_tensor *t)
{
    void *block;
    QB_TRY(qb_model_new_block(model, t->bytes, &block));
    qb__transpose(t->data, t->shape[0], t->shape[1], qb_dtype_get(t->as)->block_bytes, block);
    qb_file_forget(file, (size_t)(t->data - file->data), t->bytes);
    return qb_model_set(model, role, layer_idx, t->as, t->shape[1], t->shape[0], block, t->bytes,
                        t->name);
}

static qb_status check_float_matrix(const qb_st_tensor *t)
{
    if (!t->known || !qb_dtype_get(t->as)->is_float)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "tensor %.200s: found dtype %s, expected F32, F16 or BF16", t->name,
                       t->dtype);
    if (t->rank > 2 || t->n_elems == 0)
        return QB_FAIL(QB_ERR_FORMAT,
                       "tensor %.200s: found rank %zu with %zu elements, expected a "
                       "vector or a matrix",
                       t->name, t->rank, t->n_elems);
    return QB_OK;
}

static qb_status set_tensor(hf_import *import, qb_file *file, const qb_st_tensor *t)
{
    qb_model *model = import->model;
    qb_role role;
    size_t layer_idx;
    qb__hf_form form;
    qb__hf_kind kind = qb__hf_find_name(model->config.arch, t->name, &role, &layer_idx, &form);
    if (kind == QB__HF_HARMLESS) return QB_OK;
    if (kind == QB__HF_UNKNOWN)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: found one, expected only those of %s models",
                       t->name, model->config.arch->name);
    QB_TRY(check_float_matrix(t));
    if (role == QB_ROLE_HEAD && model->config.tied_head) {
        import->spare_head = t->data;
        import->spare_head_bytes = t->bytes;
        return QB_OK;
    }
    if (form.transposed && t->rank == 2) return set_transposed(model, role, layer_idx, file, t);
    size_t rows = t->rank == 2 ? t->shape[0] : 1, cols = t->n_elems / rows;
    if (rows <= form.unused_rows)
        return QB_FAIL(QB_ERR_FORMAT, "tensor %.200s: found %zu rows, expected more than %zu",
                       t->name, rows, form.unused_rows);
    size_t unused_bytes = t->bytes / rows * form.unused_rows;
    return qb_model_set(model, role, layer_idx, t->as, rows - form.unused_rows, cols,
                        t->data + unused_bytes, t->bytes - unused_bytes, t->name);
}

/* Sets every tensor and hands the mapping to the model. */
static qb_status add_tensors(hf_import *import, qb_file *file, const qb_safetensors *st)
{
    for (size_t i = 0; i < qb_safetensors_n_tensors(st); i++) {
        qb_status status = set_tensor(import, file, qb_safetensors_get(st, i));
        if (status != QB_OK) return qb_error_prefix(status, file->path);
    }
    return qb_model_take_file(import->model, file);
}

static qb_status add_path(hf_import *import, const char *path)
{
    qb_file file;
    qb_safetensors *st;
    QB_TRY(qb_file_open(path, &file));
    qb_status status = qb_safetensors_parse(&file, &st);
    if (status == QB_OK) {
        status = add_tensors(import, &file, st);
        qb_safetensors_close(st);
    }
    qb_file_close(&file);
    return status;
}

/* ---- shards ---- */

static qb_status check_shard_name(const char *name)
{
    if (!*name || strchr(name, '/') || strchr(name, '\\') || !strcmp(name, "..") ||
        !strcmp(name, "."))
        return QB_FAIL(
            QB_ERR_FORMAT,
            "weight_map: found \"%.100s\", expected the plain name of a file in the folder", name);
    return QB_OK;
}

/* The distinct files of weight_map as keys of *out. */
static qb_status list_shards(const json_t *index, json_t **out)
{
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map))
        return QB_FAIL(QB_ERR_FORMAT, "key \"weight_map\": found no object, expected one");
    json_t *shards = json_object();
    const char *tensor;
    json_t *file;
    qb_status status = shards ? QB_OK : QB_FAIL(QB_ERR_MEMORY, "weight_map: no memory");
    json_object_foreach((json_t *)map, tensor, file)
    {
        if (status != QB_OK) break;
        if (!json_is_string(file))
            status =
                QB_FAIL(QB_ERR_FORMAT,
                        "weight_map: tensor %.200s: found no text, expected a file name", tensor);
        else
            status = check_shard_name(json_string_value(file));
        if (status == QB_OK && json_object_set_new(shards, json_string_value(file), json_true()))
            status = QB_FAIL(QB_ERR_MEMORY, "weight_map: no memory");
    }
    if (status == QB_OK && json_object_size(shards) > MAX_SHARDS)
        status = QB_FAIL(QB_ERR_FORMAT, "weight_map: found %zu files, expected at most %d",
                         json_object_size(shards), MAX_SHARDS);
    if (status == QB_OK)
        *out = shards;
    else
        json_decref(shards);
    return status;
}

static qb_status add_shards(hf_import *import, const char *folder, const json_t *shards)
{
    const char *name;
    json_t *unused;
    json_object_foreach((json_t *)shards, name, unused)
    {
        char *path;
        QB_TRY(qb_path_join(folder, name, &path));
        qb_status status = add_path(import, path);
        qb_free(path);
        QB_TRY(status);
    }
    return QB_OK;
}

static qb_status add_index(hf_import *import, const char *folder, const char *index_path)
{
    json_t *index, *shards = NULL;
    QB_TRY(qb_json_read_file(index_path, QB__HF_MAX_JSON_BYTES, &index));
    qb_status status = list_shards(index, &shards);
    if (status != QB_OK)
        status = qb_error_prefix(status, index_path);
    else
        status = add_shards(import, folder, shards);
    json_decref(shards);
    json_decref(index);
    return status;
}

/* model.safetensors, or the shards that its index names. */
static qb_status add_folder(hf_import *import, const char *folder)
{
    char *single = NULL, *index = NULL;
    qb_status status = qb_path_join(folder, "model.safetensors", &single);
    if (status == QB_OK) status = qb_path_join(folder, "model.safetensors.index.json", &index);
    if (status == QB_OK && !access(single, F_OK))
        status = add_path(import, single);
    else if (status == QB_OK && !access(index, F_OK))
        status = add_index(import, folder, index);
    else if (status == QB_OK)
        status = QB_FAIL(QB_ERR_FORMAT,
                         "%s: found no weights, expected model.safetensors or "
                         "model.safetensors.index.json (pickled .bin files are not read)",
                         folder);
    qb_free(single);
    qb_free(index);
    return status;
}

/* ---- the model ---- */

/* A head that is there although the configuration ties it must be the embedding. */
static qb_status check_spare_head(const hf_import *import)
{
    const qb_tensor *embd = qb_model_tensor(import->model, QB_ROLE_TOK_EMBD, 0);
    if (!import->spare_head || (import->spare_head_bytes == embd->bytes &&
                                !memcmp(import->spare_head, embd->data, embd->bytes)))
        return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT,
                   "tensor lm_head.weight: found another than the embedding, expected it as "
                   "config.json says tie_word_embeddings");
}

static qb_status add_tokenizer(qb_model *model, const char *folder)
{
    char *path;
    QB_TRY(qb_path_join(folder, "tokenizer.json", &path));
    qb_status status = QB_OK;
    if (!access(path, F_OK)) status = qb_tokenizer_open_json(path, &model->tokenizer);
    if (status == QB_OK && model->tokenizer &&
        qb_tokenizer_vocab(model->tokenizer) > model->config.vocab)
        status =
            QB_FAIL(QB_ERR_FORMAT, "%s: found %zu tokens, expected at most the %zu of the model",
                    path, qb_tokenizer_vocab(model->tokenizer), model->config.vocab);
    qb_free(path);
    return status;
}

static qb_status create_from_config(const char *folder, const char *path, const char *format,
                                    qb_model **out)
{
    char *config_path;
    QB_TRY(qb_path_join(folder, "config.json", &config_path));
    json_t *root = NULL;
    qb_config config;
    qb_status status =
        access(config_path, F_OK)
            ? QB_FAIL(QB_ERR_FORMAT,
                      "%s: found no config.json in %s, expected it beside the weights", path,
                      folder)
            : qb_json_read_file(config_path, QB__HF_MAX_JSON_BYTES, &root);
    if (status == QB_OK) {
        status = qb__hf_config_from_json(root, &config);
        if (status != QB_OK) status = qb_error_prefix(status, config_path);
    }
    if (status == QB_OK) status = qb_model_create(&config, path, format, out);
    if (status == QB_OK) {
        const char *name = json_string_value(json_object_get(root, "_name_or_path"));
        if (name && *name) status = qb_model_set_name(*out, name);
        if (status != QB_OK) qb_model_close(*out);
    }
    json_decref(root);
    qb_free(config_path);
    return status;
}

/* file and st NULL: the folder's own weights. */
static qb_status import_from(const char *folder, const char *path, qb_file *file,
                             const qb_safetensors *st, const char *format, qb_model **out)
{
    hf_import import = {0};
    QB_TRY(create_from_config(folder, path, format, &import.model));
    qb_status status = st ? add_tensors(&import, file, st) : add_folder(&import, folder);
    if (status == QB_OK) {
        status = qb_model_check_complete(import.model);
        if (status == QB_OK) status = check_spare_head(&import);
        if (status != QB_OK) status = qb_error_prefix(status, path);
    }
    if (status == QB_OK) status = add_tokenizer(import.model, folder);
    if (status == QB_OK)
        *out = import.model;
    else
        qb_model_close(import.model);
    return status;
}

bool qb__hf_recognise(const char *path, const qb_file *file)
{
    (void)path;
    return !file; /* the only format that is a folder */
}

qb_status qb__hf_open(const char *path, qb_file *file, qb_model **out)
{
    (void)file;
    return import_from(path, path, NULL, NULL, "hf", out);
}

/* By content: a header length and the start of JSON. A damaged file that is named so and looks like
 * nothing else is taken too, since then the container's own messages say more. */
bool qb__safetensors_recognise(const char *path, const qb_file *file)
{
    if (!file) return false;
    if (file->bytes > 8) {
        size_t at = 8, end = file->bytes < 4096 ? file->bytes : 4096;
        while (at < end && strchr(" \t\r\n", file->data[at]) && file->data[at]) at++;
        if (at < end && file->data[at] == '{') return true;
    }
    return qb_ends_with(path, ".safetensors") && !qb_file_looks_like(file->data, file->bytes);
}

/* The container is checked first: its faults say more than the lack of a config.json. */
static qb_status open_single(const char *folder, const char *path, qb_file *file, qb_model **out)
{
    qb_safetensors *st;
    QB_TRY(qb_safetensors_parse(file, &st));
    qb_status status = import_from(folder, path, file, st, "safetensors", out);
    qb_safetensors_close(st);
    return status;
}

qb_status qb__safetensors_model_open(const char *path, qb_file *file, qb_model **out)
{
    const char *slash = strrchr(path, '/');
    char *folder;
    qb_status status =
        qb_strndup(&folder, slash ? path : ".", slash ? (size_t)(slash - path) + 1 : 1);
    if (status == QB_OK) {
        status = open_single(folder, path, file, out);
        qb_free(folder);
    }
    qb_file_close(file);
    return status;
}
