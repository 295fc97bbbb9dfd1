/* cli/cmd_verify.c - qbench verify: every checksum and rule of model files. */
#include "cli/cli.h"

#include "model/model_bin.h"

#include <stdio.h>

static qb_status is_model_bin(const char *path, bool *out)
{
    qb_file file;
    *out = false;
    if (qb_is_folder(path)) return QB_OK;
    QB_TRY(qb_file_open(path, &file));
    *out = qb_model_bin_recognise(path, &file);
    qb_file_close(&file);
    return QB_OK;
}

/* Opening checks all there is to check in the foreign formats: they have no checksums. */
static qb_status verify(const char *path)
{
    bool has_digest;
    QB_TRY(is_model_bin(path, &has_digest));
    if (has_digest) QB_TRY(qb_model_bin_verify(path, NULL));
    qb_model *model;
    QB_TRY(qb_model_open(path, &model));
    printf("%s: ok, %zu tensors, %s, %zu bytes\n", path, qb_model_n_tensors(model), model->format,
           qb_model_file_bytes(model));
    qb_model_close(model);
    return QB_OK;
}

qb_status qb_cmd_verify(const qb_cli *cli)
{
    for (size_t i = 0; i < qb_cli_n_args(cli); i++) {
        QB_TRY(verify(qb_cli_arg(cli, i)));
        fflush(stdout); /* what was good stands before the error line of what is not */
    }
    return QB_OK;
}
