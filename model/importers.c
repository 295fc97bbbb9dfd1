/* model/importers.c - the table of readable formats, and opening a model of any of them. */
#include "model/importers_internal.h"
#include "model/model_bin.h"

#include <stdio.h>

const qb_importer qb_importers[] = {
    {"model.bin", qb_model_bin_recognise, qb_model_bin_open},
    {"gguf", qb__gguf_recognise, qb__gguf_open},
    {"safetensors", qb__safetensors_recognise, qb__safetensors_model_open},
    {"llm.c", qb__llmc_recognise, qb__llmc_open},
    {"hf", qb__hf_recognise, qb__hf_open},
    {0},
};

qb_status qb__open_built(const char *path, qb_file *file,
                         qb_status (*build)(const qb_file *file, qb_model **out), qb_model **out)
{
    qb_model *model = NULL;
    qb_status status = build(file, &model);
    if (status != QB_OK) status = qb_error_prefix(status, path);
    if (status == QB_OK) status = qb_model_take_file(model, file);
    if (status == QB_OK)
        *out = model;
    else
        qb_model_close(model);
    qb_file_close(file);
    return status;
}

static qb_status unknown_format(const char *path, const qb_file *file)
{
    char found[64] = "bytes";
    const char *looks_like = qb_file_looks_like(file->data, file->bytes);
    size_t at = 5;
    for (size_t i = 0; i < 8 && i < file->bytes; i++)
        at += (size_t)snprintf(found + at, sizeof found - at, " %02x", file->data[i]);
    return QB_FAIL(
        QB_ERR_FORMAT,
        "%s: no known model format: found %s, expected model.bin, GGUF, safetensors or llm.c", path,
        looks_like ? looks_like : found);
}

qb_status qb_model_open(const char *path, qb_model **out)
{
    qb_file file = {0};
    bool folder = qb_is_folder(path);
    if (!folder) QB_TRY(qb_file_open(path, &file));
    for (const qb_importer *importer = qb_importers; importer->name; importer++)
        if (importer->recognise(path, folder ? NULL : &file))
            return importer->open(path, folder ? NULL : &file, out);
    qb_status status = unknown_format(path, &file);
    qb_file_close(&file);
    return status;
}
