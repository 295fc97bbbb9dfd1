/* train/run_data.c - see run_data.h. */
#include "train/run_data.h"

#include "core/memory.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Paths, owned. */
typedef struct paths {
    char **list;
    size_t n;
} paths;

static void paths_free(paths *p)
{
    for (size_t i = 0; i < p->n; i++) qb_free(p->list[i]);
    qb_free(p->list);
}

static qb_status paths_add(paths *p, const char *folder, const char *name)
{
    QB_TRY(qb_realloc((void **)&p->list, p->n, p->n + 1, sizeof *p->list, "shards"));
    QB_TRY(qb_path_join(folder, name, &p->list[p->n]));
    p->n++;
    return QB_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Shards named valid* go to `valid`, others to `train`. */
static qb_status list_shards(const char *folder, paths *train, paths *valid)
{
    DIR *dir = opendir(folder);
    if (!dir) return QB_FAIL_SYSTEM(folder, errno, "opened", "a folder that can be read");
    const struct dirent *entry;
    qb_status status = QB_OK;
    while (status == QB_OK && (entry = readdir(dir)))
        if (qb_ends_with(entry->d_name, ".qbs"))
            status = paths_add(strncmp(entry->d_name, "valid", 5) ? train : valid, folder,
                               entry->d_name);
    closedir(dir);
    return status;
}

static qb_status list_all(const qb_train_config *config, paths *train, paths *valid)
{
    paths ignored = {0};
    bool own = config->valid[0];
    qb_status status = list_shards(config->data, train, own ? &ignored : valid);
    if (status == QB_OK && own) status = list_shards(config->valid, valid, valid);
    paths_free(&ignored);
    if (train->n) qsort(train->list, train->n, sizeof *train->list, by_name);
    if (valid->n) qsort(valid->list, valid->n, sizeof *valid->list, by_name);
    if (status == QB_OK && (!train->n || (own && !valid->n)))
        status = QB_FAIL(QB_ERR_IO,
                         "%s: found no token shards, expected *.qbs as qbench data writes them",
                         train->n ? config->valid : config->data);
    return status;
}

static qb_status open_batches(const paths *p, const qb_train_config *config, bool in_order,
                              qb_batches **out)
{
    const qb_batches_options options = {
        .context = config->model.context, .seed = config->seed, .in_order = in_order};
    if (!p->n) return QB_OK;
    return qb_batches_open((const char *const *)p->list, p->n, &options, out);
}

static qb_status open_tokenizer(const char *folder, qb_run_data *data)
{
    char *path;
    QB_TRY(qb_path_join(folder, "tokenizer.json", &path));
    qb_status status = access(path, F_OK) ? QB_OK : qb_tokenizer_open_json(path, &data->tokenizer);
    const char *wanted = qb_batches_tokenizer_sha256(data->train);
    if (status == QB_OK && data->tokenizer && strcmp(qb_tokenizer_sha256(data->tokenizer), wanted))
        status = QB_FAIL(QB_ERR_FORMAT,
                         "%s: found tokenizer %.12s..., expected %.12s... as in the shards", path,
                         qb_tokenizer_sha256(data->tokenizer), wanted);
    qb_free(path);
    return status;
}

static qb_status check_alike(const qb_run_data *data, const char *folder)
{
    if (!data->valid ||
        !strcmp(qb_batches_tokenizer_sha256(data->train), qb_batches_tokenizer_sha256(data->valid)))
        return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT,
                   "%s: found two tokenizers, expected one for the training and the "
                   "validation shards",
                   folder);
}

static qb_status open_text(const qb_train_config *config, qb_run_data *data)
{
    paths train = {0}, valid = {0};
    if (!config->data[0])
        return QB_FAIL(QB_ERR_USAGE,
                       "data: not set, expected a folder as qbench data writes it (--data DIR)");
    qb_status status = list_all(config, &train, &valid);
    if (status == QB_OK) status = open_batches(&train, config, false, &data->train);
    if (status == QB_OK) status = open_batches(&valid, config, true, &data->valid);
    if (status == QB_OK) status = check_alike(data, config->data);
    if (status == QB_OK) status = open_tokenizer(config->data, data);
    paths_free(&train);
    paths_free(&valid);
    return status;
}

static qb_status open_bb(const qb_train_config *config, qb_run_data *data)
{
    const qb_bb_options bb = {.n_triggers = config->bb_triggers, .n_bos = config->bb_bos};
    qb_batches_options options = {.context = config->model.context, .seed = config->seed};
    QB_TRY(qb_bb_open(config->bb_counts[0] ? config->bb_counts : NULL, &bb, &data->bb));
    QB_TRY(qb_batches_open_bb(&data->bb, &options, &data->train));
    options.seed = ~config->seed; /* no seed that one would train with */
    return qb_batches_open_bb(&data->bb, &options, &data->valid);
}

static qb_status open_random(const qb_train_config *config, qb_run_data *data)
{
    const qb_batches_options options = {.context = config->model.context, .seed = config->seed};
    if (!config->model.vocab)
        return QB_FAIL(QB_ERR_USAGE, "vocab: not set, which random tokens are drawn from");
    return qb_batches_open_random(config->model.vocab, &options, &data->train);
}

qb_status qb_run_data_open(const qb_train_config *config, qb_run_data *out)
{
    static qb_status (*const open[QB_TASK_COUNT])(const qb_train_config *, qb_run_data *) = {
        [QB_TASK_TEXT] = open_text, [QB_TASK_BB] = open_bb, [QB_TASK_RANDOM] = open_random};
    *out = (qb_run_data){0};
    qb_status status = open[config->task](config, out);
    if (status != QB_OK) {
        qb_run_data_close(out);
        return status;
    }
    out->vocab = qb_batches_vocab(out->train);
    return QB_OK;
}

void qb_run_data_close(qb_run_data *data)
{
    qb_batches_close(data->train);
    qb_batches_close(data->valid);
    qb_tokenizer_destroy(data->tokenizer);
    qb_bb_deinit(&data->bb);
    *data = (qb_run_data){0};
}
