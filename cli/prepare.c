/* cli/prepare.c - see prepare.h. */
#include "cli/prepare.h"

#include "core/json.h"
#include "core/memory.h"
#include "core/nearest.h"
#include "infer/calibrate.h"
#include "kernels/registry.h"
#include "model/model.h"

#include <stdio.h>
#include <string.h>

qb_status qb_cli_prepare(const qb_cli *cli, qb_device *device, qb_pool **pool)
{
    const char *note;
    QB_TRY(qb_device_find(qb_cli_string(cli, "device"), device, &note));
    if (note) qb_cli_note(cli, "no GPU is used: %s", note);
    QB_TRY(qb_kernel_force(qb_cli_string(cli, "kernel")));
    return qb_pool_create(qb_cli_size(cli, "threads"), pool);
}

static qb_status unknown_scheme(const char *name)
{
    char names[512] = "";
    for (const qb_scheme *s = qb_schemes; s->name; s++) qb_names_add(names, sizeof names, s->name);
    return QB_FAIL(QB_ERR_USAGE, "--scheme: found %s, expected one of %s", name, names);
}

/* The file may have been made with another --weight-axis than the scheme's row has. */
static void take_stored_axis(const qb_model *model, qb_scheme *scheme)
{
    for (int role = 0; role < QB_ROLE_COUNT; role++) {
        const qb_tensor_quant *q = &qb_model_tensor(model, (qb_role)role, 0)->quant;
        if (!qb_roles[role].linear || q->axis == QB_AXIS_NONE) continue;
        scheme->weights.axis = q->axis;
        scheme->weights.group_elems = q->group_elems;
        return;
    }
}

qb_status qb_cli_scheme(const qb_cli *cli, const char *name, const qb_model *model, qb_scheme *out)
{
    const char *stored = name ? NULL : model->stored_scheme;
    if (!name) name = stored ? stored : "full";
    const qb_scheme *row = qb_scheme_find(name);
    if (!row && stored)
        return QB_FAIL(QB_ERR_UNSUPPORTED,
                       "%s: found codes for scheme %.60s, expected one that --scheme knows",
                       model->path, stored);
    if (!row) return unknown_scheme(name);
    const qb_scheme_overrides overrides = {.weight_axis = qb_cli_string(cli, "weight-axis"),
                                           .act_axis = qb_cli_string(cli, "act-axis"),
                                           .act_scale = qb_cli_string(cli, "act-scale")};
    QB_TRY(qb_scheme_override(row, &overrides, out));
    if (stored && !overrides.weight_axis) take_stored_axis(model, out);
    return QB_OK;
}

qb_status qb_cli_calibration(const qb_cli *cli, const qb_scheme *scheme, const qb_model *model,
                             qb_pool *pool, qb_calibration **out)
{
    *out = NULL;
    if (!qb_scheme_needs_calibration(scheme)) return QB_OK;
    QB_TRY(qb_calibrate(model, pool, NULL, 0, out));
    qb_cli_note(cli, "static scales of %s come from %s (%zu tokens)", scheme->name,
                (*out)->text_name, (*out)->n_tokens);
    return QB_OK;
}

qb_status qb_cli_is_json_file(const char *path, bool *is_json)
{
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    size_t i = 0;
    while (i < file.bytes && file.data[i] && strchr(" \t\r\n", file.data[i])) i++;
    *is_json = i < file.bytes && file.data[i] == '{';
    qb_file_close(&file);
    return QB_OK;
}

static qb_status open_tokenizer(const char *path, qb_cli_tokenizer *s)
{
    bool is_json = false;
    if (qb_is_folder(path)) {
        char *inside;
        QB_TRY(qb_path_join(path, "tokenizer.json", &inside));
        qb_status status = qb_tokenizer_open_json(inside, &s->own);
        qb_free(inside);
        s->tokenizer = s->own;
        return status;
    }
    QB_TRY(qb_cli_is_json_file(path, &is_json));
    if (is_json) {
        QB_TRY(qb_tokenizer_open_json(path, &s->own));
        s->tokenizer = s->own;
        return QB_OK;
    }
    QB_TRY(qb_model_open(path, &s->model));
    s->tokenizer = s->model->tokenizer;
    return s->tokenizer
               ? QB_OK
               : QB_FAIL(QB_ERR_FORMAT, "%s: found no tokenizer in the model, expected one", path);
}

qb_status qb_cli_tokenizer_open(const char *path, qb_cli_tokenizer *out)
{
    qb_cli_tokenizer t = {0};
    qb_status status = open_tokenizer(path, &t);
    if (status != QB_OK)
        qb_cli_tokenizer_close(&t);
    else
        *out = t;
    return status;
}

void qb_cli_tokenizer_close(qb_cli_tokenizer *s)
{
    qb_tokenizer_destroy(s->own);
    qb_model_close(s->model);
}

qb_status qb_cli_emit_json(const char *path, const json_t *root, const char *what)
{
    char *text;
    QB_TRY(qb_json_dump(root, JSON_INDENT(1) | JSON_REAL_PRECISION(15), what, &text));
    size_t n = strlen(text);
    text[n] = '\n'; /* in the place of the NUL: emit takes a length */
    qb_status status = qb_cli_emit(path, text, n + 1);
    qb_library_free(text);
    return status;
}
