/* model/export_hf.c - see export_hf.h. One tensor at a time passes through memory. */
#include "model/export_hf.h"

#include "core/interrupt.h"
#include "core/json.h"
#include "core/memory.h"
#include "model/hf_internal.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct hf_tensor {
    const qb_tensor *tensor;
    qb__hf_form form;
    char name[112];
} hf_tensor;

typedef struct hf_list {
    hf_tensor *tensors;
    qb_st_entry *entries;
    size_t n;
} hf_list;

/* ---- which tensors, under which names ---- */

/* Codes and blocks are written as their values. */
static qb_dtype stored_dtype(const qb_tensor *t)
{
    bool codes = t->quant.axis != QB_AXIS_NONE;
    return codes || qb_dtype_get(t->dtype)->block_elems > 1 ? QB_F32 : t->dtype;
}

static qb_status add_tensor(const qb_model *model, const qb_tensor *t, hf_list *list)
{
    hf_tensor *h = &list->tensors[list->n];
    if (!qb__hf_format_name(model->config.arch, t->role, t->layer_idx, h->name, sizeof h->name,
                            &h->form)) {
        char role[64];
        qb_role_name(t->role, t->layer_idx, role, sizeof role);
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "%s: found tensor %s, expected one that has a name in Hugging Face's %s",
                       model->path, role, model->config.arch->name);
    }
    h->tensor = t;
    qb_st_entry *e = &list->entries[list->n++];
    bool vector = t->rows == 1 && !h->form.transposed && t->role != QB_ROLE_TOK_EMBD &&
                  t->role != QB_ROLE_POS_EMBD && t->role != QB_ROLE_HEAD &&
                  t->role != QB_ROLE_ATTN_GATE && !qb_roles[t->role].linear;
    *e = (qb_st_entry){.name = h->name, .dtype = stored_dtype(t), .rank = vector ? 1 : 2};
    e->shape[0] = vector || h->form.transposed ? t->cols : t->rows + h->form.unused_rows;
    e->shape[1] = h->form.transposed ? t->rows : t->cols;
    return QB_OK;
}

static qb_status list_tensors(const qb_model *model, hf_list *list)
{
    size_t most = (size_t)QB_ROLE_COUNT * model->config.n_layers;
    QB_TRY(QB_NEW(&list->tensors, most, "tensor list"));
    QB_TRY(QB_NEW(&list->entries, most, "tensor list"));
    for (int r = 0; r < QB_ROLE_COUNT; r++) {
        size_t n = qb_roles[r].per_layer ? model->config.n_layers : 1;
        for (size_t i = 0; i < n; i++) {
            const qb_tensor *t = qb_model_tensor(model, (qb_role)r, i);
            if (t->data) QB_TRY(add_tensor(model, t, list));
        }
    }
    return QB_OK;
}

/* ---- their bytes ---- */

/* The tensor row by row as it is stored in the file: widened where it is in blocks. */
static qb_status widen(const qb_tensor *t, void **out)
{
    float *f;
    QB_TRY(QB_NEW(&f, t->rows * t->cols, "tensor as f32"));
    qb_tensor_rows_f32(t, 0, t->rows, f);
    *out = f;
    return QB_OK;
}

/* Rows that the model does not use are zeros. *at = where the others begin. */
static qb_status put_unused_rows(const hf_tensor *h, qb_st_writer *writer, size_t i,
                                 size_t row_bytes, size_t *at)
{
    void *zeros;
    *at = row_bytes * h->form.unused_rows;
    if (!*at) return QB_OK;
    QB_TRY(qb_alloc_zero(&zeros, *at, 1, "unused rows"));
    qb_status status = qb_st_writer_put(writer, i, 0, zeros, *at);
    qb_free(zeros);
    return status;
}

static qb_status put_tensor(const qb_model *model, qb_st_writer *writer, size_t i,
                            const hf_tensor *h)
{
    const qb_tensor *t = h->tensor;
    size_t elem = qb_dtype_get(stored_dtype(t))->block_bytes, bytes = t->rows * t->cols * elem;
    void *wide = NULL, *turned = NULL;
    const void *data = t->data;
    if (stored_dtype(t) != t->dtype) {
        QB_TRY(widen(t, &wide));
        data = wide;
    }
    qb_status status = QB_OK;
    if (h->form.transposed) {
        status = qb_alloc(&turned, bytes, 1, "transposed tensor");
        if (status == QB_OK) qb__transpose(data, t->rows, t->cols, elem, turned);
        data = turned;
    }
    size_t at = 0;
    if (status == QB_OK) status = put_unused_rows(h, writer, i, t->cols * elem, &at);
    if (status == QB_OK) status = qb_st_writer_put(writer, i, at, data, bytes);
    qb_free(turned);
    qb_free(wide);
    qb_tensor_forget(model, t);
    return status;
}

static qb_status write_weights(const qb_model *model, const hf_list *list, const char *path)
{
    json_t *metadata = json_pack("{s:s}", "format", "pt"); /* transformers asks for it */
    if (!metadata) return QB_FAIL(QB_ERR_MEMORY, "%s: no memory", path);
    qb_st_writer *writer;
    qb_status status = qb_st_writer_open(path, list->entries, list->n, metadata, &writer);
    json_decref(metadata);
    QB_TRY(status);
    for (size_t i = 0; i < list->n; i++) {
        status = qb_interrupt_check();
        if (status == QB_OK) status = put_tensor(model, writer, i, &list->tensors[i]);
        if (status != QB_OK) {
            qb_st_writer_abandon(writer);
            return status;
        }
    }
    return qb_st_writer_commit(writer);
}

/* ---- the JSON files ---- */

static qb_status write_json(const json_t *value, const char *folder, const char *name)
{
    char *path, *text;
    QB_TRY(qb_json_dump(value, JSON_INDENT(2), name, &text));
    qb_status status = qb_path_join(folder, name, &path);
    if (status == QB_OK) {
        status = qb_file_write_whole(path, text, strlen(text));
        qb_free(path);
    }
    qb_library_free(text);
    return status;
}

static const char *dtype_word(const qb_model *model)
{
    qb_dtype dtype = stored_dtype(qb_model_tensor(model, QB_ROLE_TOK_EMBD, 0));
    return dtype == QB_F16 ? "float16" : dtype == QB_BF16 ? "bfloat16" : "float32";
}

static qb_status write_config(const qb_model *model, const char *folder)
{
    json_t *config;
    bool foreign;
    QB_TRY(qb__hf_config_to_json(&model->config, &config, &foreign));
    int failed = json_object_set_new(config, "_name_or_path", json_string(model->name));
    if (foreign)
        failed |= json_object_set_new(config, "torch_dtype", json_string(dtype_word(model)));
    int32_t bos = model->tokenizer ? qb_tokenizer_bos(model->tokenizer) : -1;
    int32_t eos = model->tokenizer ? qb_tokenizer_eos(model->tokenizer) : -1;
    if (bos >= 0) failed |= json_object_set_new(config, "bos_token_id", json_integer(bos));
    if (eos >= 0) failed |= json_object_set_new(config, "eos_token_id", json_integer(eos));
    qb_status status = failed ? QB_FAIL(QB_ERR_MEMORY, "config.json: no memory")
                              : write_json(config, folder, "config.json");
    json_decref(config);
    return status;
}

/* Before any file is written, so that a refusal leaves nothing behind. */
static qb_status tokenizer_json(const qb_model *model, json_t **out)
{
    *out = NULL;
    return model->tokenizer ? qb_tokenizer_to_hf_json(model->tokenizer, out) : QB_OK;
}

static qb_status write_files(const qb_model *model, const hf_list *list, const json_t *tokenizer,
                             const char *folder)
{
    char *path;
    QB_TRY(qb_path_join(folder, "model.safetensors", &path));
    qb_status status = write_weights(model, list, path);
    qb_free(path);
    QB_TRY(status);
    if (tokenizer) QB_TRY(write_json(tokenizer, folder, "tokenizer.json"));
    return write_config(model, folder);
}

/* A folder that was made here does not stay empty where the first file fails. */
static qb_status write_folder(const qb_model *model, const hf_list *list, const json_t *tokenizer,
                              const char *folder)
{
    bool made = !mkdir(folder, 0777);
    if (!made && errno != EEXIST)
        return QB_FAIL_SYSTEM(folder, errno, "written", "a folder that can be made");
    qb_status status = write_files(model, list, tokenizer, folder);
    if (status != QB_OK && made) rmdir(folder);
    return status;
}

qb_status qb_model_export_hf(const qb_model *model, const char *folder)
{
    hf_list list = {0};
    json_t *tokenizer = NULL;
    qb_status status = list_tensors(model, &list);
    if (status == QB_OK) status = tokenizer_json(model, &tokenizer);
    if (status == QB_OK) status = write_folder(model, &list, tokenizer, folder);
    json_decref(tokenizer);
    qb_free(list.tensors);
    qb_free(list.entries);
    return status;
}
