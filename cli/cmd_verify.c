/* cli/cmd_verify.c - qbench verify: every checksum and rule of model files, token shards and
 * checkpoints of training. */
#include "cli/cli.h"

#include "model/model_bin.h"
#include "train/checkpoint.h"
#include "train/data/shards.h"

#include <inttypes.h>
#include <stdio.h>

/* *bytes of a model.bin, 0 for any other file or folder. */
static qb_status bytes_of_model_bin(const char *path, size_t *bytes)
{
    qb_file file;
    *bytes = 0;
    if (qb_is_folder(path)) return QB_OK;
    QB_TRY(qb_file_open(path, &file));
    if (qb_model_bin_recognise(path, &file)) *bytes = file.bytes;
    qb_file_close(&file);
    return QB_OK;
}

static qb_status verify_shard(const char *path)
{
    qb_shard shard;
    QB_TRY(qb_shard_open(path, &shard));
    qb_status status = qb_shard_verify(&shard);
    if (status == QB_OK)
        printf("%s: ok, token shard, %" PRIu64 " documents, %" PRIu64 " tokens, %zu bytes\n", path,
               shard.header.n_docs, shard.header.n_tokens, shard.file.bytes);
    qb_shard_close(&shard);
    return status;
}

static void print_ok(const char *path, size_t n_tensors, const char *format, size_t bytes)
{
    printf("%s: ok, %zu tensors, %s, %zu bytes\n", path, n_tensors, format, bytes);
}

static qb_status verify_checkpoint(const char *path)
{
    qb_checkpoint checkpoint;
    QB_TRY(qb_checkpoint_open(path, &checkpoint));
    printf("%s: ok, checkpoint, step %" PRIu64 ", %zu bytes\n", path, checkpoint.state.step,
           checkpoint.file.bytes);
    qb_checkpoint_close(&checkpoint);
    return QB_OK;
}

static qb_status verify(const char *path)
{
    size_t n_tensors, bytes;
    bool is_shard;
    QB_TRY(qb_shard_recognise(path, &is_shard));
    if (is_shard) return verify_shard(path);
    bool is_checkpoint;
    QB_TRY(qb_checkpoint_recognise(path, &is_checkpoint));
    if (is_checkpoint) return verify_checkpoint(path);
    QB_TRY(bytes_of_model_bin(path, &bytes));
    if (bytes) {
        QB_TRY(qb_model_bin_verify(path, &n_tensors));
        print_ok(path, n_tensors, "model.bin", bytes);
        return QB_OK;
    }
    qb_model *model; /* foreign formats have no checksums: opening checks all there is */
    QB_TRY(qb_model_open(path, &model));
    print_ok(path, qb_model_n_tensors(model), model->format, qb_model_file_bytes(model));
    qb_model_close(model);
    return QB_OK;
}

qb_status qb_cmd_verify(const qb_cli *cli)
{
    for (size_t i = 0; i < qb_cli_n_args(cli); i++) {
        QB_TRY(verify(qb_cli_arg(cli, i)));
        QB_TRY(qb_cli_flush()); /* what was good stands before the error line of what is not */
    }
    return QB_OK;
}
