/* train/saver.c - see saver.h. */
#include "train/saver.h"

#include "core/interrupt.h"
#include "core/json.h"
#include "core/memory.h"
#include "model/model_bin.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

struct qb_saver {
    const char *folder;
    qb_train_config config;
    qb_trainer *trainer;
    const qb_tokenizer *tokenizer;
    size_t n_elems, n_buffers;
    float *buffers[QB_CHECKPOINT_MAX_BUFFERS]; /* the snapshot */
    /* of the thread, while one runs */
    pthread_t thread;
    bool running;
    unsigned what;
    qb_run_state state;
    qb_status status;
    char message[1024];
};

/* A model travels: of folders and files its record keeps the last part of the name. What the data
 * were is said by their digest. */
static void forget_folders(json_t *config)
{
    for (const qb_train_key *key = qb_train_keys; key->name; key++) {
        char name[32];
        qb_train_key_json_name(key, name);
        json_t *value = json_object_get(config, name);
        const char *path = json_string_value(value);
        bool is_path = key->value && (!strcmp(key->value, "DIR") || !strcmp(key->value, "FILE"));
        if (!is_path || !path) continue;
        size_t end = strlen(path);
        while (end && path[end - 1] == '/') end--;
        size_t begin = end;
        while (begin && path[begin - 1] != '/') begin--;
        json_object_set_new(config, name, json_stringn(path + begin, end - begin));
    }
}

/* The training record of a model file; paths in its configuration are reduced to their last part.
 */
static qb_status make_record(const qb_train_config *config, const qb_run_state *state, json_t **out)
{
    json_t *all;
    QB_TRY(qb_train_config_to_json(config, &all));
    size_t mark = qb_json_mark();
    forget_folders(all);
    uint64_t tokens = state->windows * config->model.context;
    double loss = state->n_losses ? state->losses[state->n_losses - 1] : -1;
    json_t *record = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:I, s:o, s:o, s:s, s:o}", "optimizer",
        qb_optimizers[config->optimizer].name, "softmax", qb_softmax_names[config->model.softmax],
        "norm", qb_norm_names[config->model.norm], "tokens", (json_int_t)tokens, "steps",
        (json_int_t)state->step, "seed", (json_int_t)config->seed, "lr", config->schedule.peak,
        "batch", (json_int_t)config->batch, "loss", state->n_losses ? json_real(loss) : json_null(),
        "valid_loss", qb_json_real(state->valid_loss), "data_sha256", state->data_sha256, "config",
        all);
    qb_status status = qb_json_check_memory(mark, "training record");
    if (status == QB_OK && !record)
        status = QB_FAIL(QB_ERR_FORMAT, "training record: a text is no UTF-8");
    if (status != QB_OK)
        json_decref(record);
    else
        *out = record;
    return status;
}

qb_status qb_saver_last_good(const char *folder, char **path)
{
    uint64_t *steps;
    size_t n;
    QB_TRY(qb_checkpoint_list(folder, &steps, &n));
    qb_status status = n ? qb_checkpoint_path(folder, steps[0], path) : qb_strdup(path, "none yet");
    qb_free(steps);
    return status;
}

qb_status qb_fail_not_finite(const char *folder, uint64_t step, const char *what)
{
    char *path;
    QB_TRY(qb_saver_last_good(folder, &path));
    qb_status status =
        QB_FAIL(QB_ERR_DEVICE,
                "%s: step %llu: found a NaN or infinity in %s, expected finite numbers; "
                "last good checkpoint: %s",
                folder, (unsigned long long)step, what, path);
    qb_free(path);
    return status;
}

/* ---- in the thread ---- */

/* A step may be too large for the weights although its loss and gradient were finite. */
static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

static qb_status write_model(const qb_saver *s, const char *name)
{
    qb_model *model;
    char *path;
    QB_TRY(
        qb_params_to_model(qb_trainer_params(s->trainer), s->buffers[0], s->config.name, &model));
    qb_status status = make_record(&s->config, &s->state, &model->training);
    if (status == QB_OK) status = qb_path_join(s->folder, name, &path);
    if (status == QB_OK) {
        model->tokenizer = (qb_tokenizer *)s->tokenizer; /* lent: a model only reads it */
        status = qb_model_bin_write(model, path, &(qb_model_bin_options){.n_threads = 1});
        model->tokenizer = NULL;
        qb_free(path);
    }
    qb_model_close(model);
    return status;
}

/* Where models are kept, one of its own beside model.bin, which the next checkpoint replaces. */
static qb_status write_kept_model(const qb_saver *s)
{
    char name[64];
    snprintf(name, sizeof name, "model-%08llu.bin", (unsigned long long)s->state.step);
    return s->config.keep_models ? write_model(s, name) : QB_OK;
}

static qb_status write_files(const qb_saver *s)
{
    if (!all_finite(s->buffers[0], s->n_elems))
        return qb_fail_not_finite(s->folder, s->state.step, "the weights");
    if (s->what & QB_SAVE_BEST) QB_TRY(write_model(s, "best.bin"));
    if (!(s->what & QB_SAVE_CHECKPOINT)) return QB_OK;
    QB_TRY(write_model(s, "model.bin"));
    QB_TRY(write_kept_model(s));
    QB_TRY(qb_checkpoint_write(s->folder, &s->config, &s->state, (const float *const *)s->buffers,
                               s->n_buffers, s->n_elems));
    return qb_checkpoint_prune(s->folder, s->config.keep);
}

static void *run(void *argument)
{
    qb_saver *s = argument;
    qb_interrupt_ignore_here(true);
    s->status = write_files(s);
    if (s->status != QB_OK) /* messages are a thread's own */
        snprintf(s->message, sizeof s->message, "%s", qb_error_message());
    return NULL;
}

/* Signals are for the thread that trains. */
static int start_thread(qb_saver *s)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&s->thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

/* ---- in the caller's thread ---- */

qb_status qb_saver_create(const char *folder, const qb_train_config *config, qb_trainer *trainer,
                          const qb_tokenizer *tokenizer, qb_saver **out)
{
    qb_saver *s;
    QB_TRY(QB_NEW_ZERO(&s, 1, "saver"));
    s->folder = folder;
    s->config = *config;
    s->trainer = trainer;
    s->tokenizer = tokenizer;
    s->n_elems = qb_trainer_params(trainer)->n_elems;
    s->n_buffers = 1 + qb_optimizers[config->optimizer].n_states;
    qb_status status = QB_OK;
    for (size_t i = 0; i < s->n_buffers && status == QB_OK && folder; i++)
        status = QB_NEW(&s->buffers[i], s->n_elems, "snapshot");
    if (status != QB_OK)
        qb_saver_destroy(s);
    else
        *out = s;
    return status;
}

qb_status qb_saver_wait(qb_saver *s)
{
    if (!s->running) return QB_OK;
    pthread_join(s->thread, NULL);
    s->running = false;
    return s->status == QB_OK ? QB_OK : QB_FAIL(s->status, "%s", s->message);
}

static qb_status take_snapshot(qb_saver *s)
{
    if (s->folder) QB_TRY(qb_trainer_get_weights(s->trainer, s->buffers[0]));
    if (!(s->what & QB_SAVE_CHECKPOINT)) return QB_OK;
    for (size_t i = 1; i < s->n_buffers; i++)
        QB_TRY(qb_trainer_get_state(s->trainer, i - 1, s->buffers[i]));
    return QB_OK;
}

qb_status qb_saver_start(qb_saver *s, unsigned what, const qb_run_state *state)
{
    QB_TRY(qb_saver_wait(s));
    s->what = what;
    s->state = *state;
    QB_TRY(take_snapshot(s));
    if (!s->folder) return QB_OK;
    int error = start_thread(s);
    if (error) return QB_FAIL(QB_ERR_MEMORY, "saver: no thread: %s", strerror(error));
    s->running = true;
    return QB_OK;
}

void qb_saver_destroy(qb_saver *s)
{
    if (!s) return;
    if (s->running) pthread_join(s->thread, NULL);
    for (size_t i = 0; i < QB_CHECKPOINT_MAX_BUFFERS; i++) qb_free(s->buffers[i]);
    qb_free(s);
}
