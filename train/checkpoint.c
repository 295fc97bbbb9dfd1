/* train/checkpoint.c - see checkpoint.h. */
#include "train/checkpoint.h"

#include "core/json.h"
#include "core/memory.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALIGN = 64, MAX_JSON = 1 << 20, NAME_DIGITS = 8 };

typedef struct header {
    char magic[8];
    uint32_t version, json_crc;
    uint64_t json_bytes, n_buffers, n_elems, total_bytes;
    uint8_t zeros[12];
    uint32_t crc; /* of all before it */
} header;
_Static_assert(sizeof(header) == ALIGN, "the header's size is part of the format");

static uint64_t payload_offset(uint64_t json_bytes)
{
    return qb_round_up(sizeof(header) + json_bytes, ALIGN);
}

/* ---- JSON ---- */

static json_t *state_to_json(const qb_run_state *s)
{
    json_t *losses = json_array();
    for (size_t i = 0; i < s->n_losses; i++) json_array_append_new(losses, json_real(s->losses[i]));
    return json_pack("{s:I, s:I, s:I, s:o, s:o, s:I, s:o, s:I, s:I, s:f, s:s}", "step",
                     (json_int_t)s->step, "windows", (json_int_t)s->windows, "evaluated_step",
                     (json_int_t)s->evaluated_step, "valid_loss", qb_json_real(s->valid_loss),
                     "best_loss", qb_json_real(s->best_loss), "best_step", (json_int_t)s->best_step,
                     "losses", losses, "metrics_bytes", (json_int_t)s->metrics_bytes,
                     "events_bytes", (json_int_t)s->events_bytes, "seconds", s->seconds,
                     "data_sha256", s->data_sha256);
}

qb_status qb_run_state_to_json(const qb_run_state *state, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *object = state_to_json(state);
    qb_status status = qb_json_check_memory(mark, "checkpoint");
    if (status != QB_OK)
        json_decref(object);
    else
        *out = object;
    return status;
}

static qb_status get_count(const json_t *object, const char *key, uint64_t *out)
{
    size_t value = SIZE_MAX;
    QB_TRY(qb_json_get_size(object, key, 0, (size_t)1 << 53, &value));
    if (value == SIZE_MAX)
        return QB_FAIL(QB_ERR_FORMAT, "key \"%s\": found none, expected one", key);
    *out = value;
    return QB_OK;
}

static qb_status get_losses(const json_t *object, qb_run_state *s)
{
    const json_t *losses = json_object_get(object, "losses");
    if (!json_is_array(losses) || json_array_size(losses) > QB_LOSS_TAIL)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "key \"losses\": found another kind of value, expected a list of at most %d numbers",
            QB_LOSS_TAIL);
    s->n_losses = json_array_size(losses);
    for (size_t i = 0; i < s->n_losses; i++) {
        const json_t *value = json_array_get(losses, i);
        if (!json_is_number(value))
            return QB_FAIL(QB_ERR_FORMAT,
                           "key \"losses\": found another kind of value, expected numbers only");
        s->losses[i] = json_number_value(value);
    }
    return QB_OK;
}

static qb_status state_from_json(const json_t *object, qb_run_state *s)
{
    const char *sha256 = "";
    *s = (qb_run_state){.valid_loss = NAN, .best_loss = NAN};
    QB_TRY(get_count(object, "step", &s->step));
    QB_TRY(get_count(object, "windows", &s->windows));
    QB_TRY(get_count(object, "evaluated_step", &s->evaluated_step));
    QB_TRY(get_count(object, "best_step", &s->best_step));
    QB_TRY(get_count(object, "metrics_bytes", &s->metrics_bytes));
    QB_TRY(get_count(object, "events_bytes", &s->events_bytes));
    QB_TRY(qb_json_get_double(object, "valid_loss", -1e9, 1e9, &s->valid_loss));
    QB_TRY(qb_json_get_double(object, "best_loss", -1e9, 1e9, &s->best_loss));
    QB_TRY(qb_json_get_double(object, "seconds", 0, 1e12, &s->seconds));
    QB_TRY(qb_json_get_string(object, "data_sha256", &sha256));
    snprintf(s->data_sha256, sizeof s->data_sha256, "%s", sha256);
    return get_losses(object, s);
}

static qb_status make_json(const qb_train_config *config, const qb_run_state *state,
                           const uint32_t *crcs, size_t n_buffers, char **out)
{
    size_t mark = qb_json_mark();
    json_t *config_json, *crc_list = json_array();
    for (size_t i = 0; i < n_buffers; i++)
        json_array_append_new(crc_list, json_integer((json_int_t)crcs[i]));
    qb_status status = qb_train_config_to_json(config, &config_json);
    if (status != QB_OK) {
        json_decref(crc_list);
        return status;
    }
    json_t *root = json_pack("{s:o, s:o, s:o}", "config", config_json, "state",
                             state_to_json(state), "crc32", crc_list);
    status = qb_json_check_memory(mark, "checkpoint");
    if (status == QB_OK) /* 17 digits: every double comes back as it was */
        status = qb_json_dump(root, JSON_COMPACT | JSON_REAL_PRECISION(17), "checkpoint", out);
    json_decref(root);
    return status;
}

/* ---- writing ---- */

static qb_status write_parts(qb_writer *writer, const header *h, const char *json,
                             const float *const *buffers)
{
    static const char zeros[ALIGN];
    uint64_t end = sizeof *h + h->json_bytes;
    QB_TRY(qb_writer_write(writer, h, sizeof *h));
    QB_TRY(qb_writer_write(writer, json, h->json_bytes));
    QB_TRY(qb_writer_write(writer, zeros, payload_offset(h->json_bytes) - end));
    for (size_t i = 0; i < h->n_buffers; i++)
        QB_TRY(qb_writer_write(writer, buffers[i], h->n_elems * sizeof(float)));
    return QB_OK;
}

static qb_status write_file(const char *path, const header *h, const char *json,
                            const float *const *buffers)
{
    qb_writer *writer;
    QB_TRY(qb_writer_open(path, &writer));
    qb_status status = write_parts(writer, h, json, buffers);
    if (status == QB_OK) return qb_writer_commit(writer);
    qb_writer_abandon(writer);
    return status;
}

qb_status qb_checkpoint_write(const char *folder, const qb_train_config *config,
                              const qb_run_state *state, const float *const *buffers,
                              size_t n_buffers, size_t n_elems)
{
    uint32_t crcs[QB_CHECKPOINT_MAX_BUFFERS];
    char *json, *path;
    for (size_t i = 0; i < n_buffers; i++) crcs[i] = qb_crc32(buffers[i], n_elems * sizeof(float));
    QB_TRY(make_json(config, state, crcs, n_buffers, &json));
    header h = {.magic = QB_CHECKPOINT_MAGIC,
                .version = QB_CHECKPOINT_VERSION,
                .json_crc = qb_crc32(json, strlen(json)),
                .json_bytes = strlen(json),
                .n_buffers = n_buffers,
                .n_elems = n_elems};
    h.total_bytes = payload_offset(h.json_bytes) + n_buffers * n_elems * sizeof(float);
    h.crc = qb_crc32(&h, offsetof(header, crc));
    qb_status status = qb_checkpoint_path(folder, state->step, &path);
    if (status == QB_OK) {
        status = write_file(path, &h, json, buffers);
        qb_free(path);
    }
    qb_library_free(json);
    return status;
}

/* ---- reading ---- */

qb_status qb_checkpoint_recognise(const char *path, bool *out)
{
    return qb_file_begins_with(path, QB_CHECKPOINT_MAGIC, sizeof QB_CHECKPOINT_MAGIC, out);
}

/* Everything that the sizes promise lies inside the file; after this no sum can overflow. */
static qb_status check_header(const header *h, size_t file_bytes)
{
    if (h->version != QB_CHECKPOINT_VERSION)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "version: found %u, expected %d", h->version,
                       QB_CHECKPOINT_VERSION);
    if (h->crc != qb_crc32(h, offsetof(header, crc)))
        return QB_FAIL(QB_ERR_FORMAT, "header: found another CRC-32, expected that of its bytes");
    if (h->json_bytes > MAX_JSON)
        return QB_FAIL(QB_ERR_FORMAT, "JSON: found %llu bytes, expected at most %d",
                       (unsigned long long)h->json_bytes, MAX_JSON);
    if (h->n_buffers < 1 || h->n_buffers > QB_CHECKPOINT_MAX_BUFFERS)
        return QB_FAIL(QB_ERR_FORMAT, "buffers: found %llu, expected 1 to %d",
                       (unsigned long long)h->n_buffers, QB_CHECKPOINT_MAX_BUFFERS);
    if (h->n_elems > file_bytes / sizeof(float) || h->total_bytes != file_bytes ||
        payload_offset(h->json_bytes) + h->n_buffers * h->n_elems * sizeof(float) != file_bytes)
        return QB_FAIL(QB_ERR_FORMAT, "length: found %zu bytes, expected what the header says",
                       file_bytes);
    return QB_OK;
}

static qb_status check_zeros(const qb_file *file, const header *h)
{
    for (uint64_t i = sizeof *h + h->json_bytes; i < payload_offset(h->json_bytes); i++)
        if (file->data[i]) return QB_FAIL(QB_ERR_FORMAT, "padding: found other bytes, expected 0");
    return QB_OK;
}

static qb_status check_buffers(const json_t *root, const qb_checkpoint *c)
{
    const json_t *crcs = json_object_get(root, "crc32");
    if (!json_is_array(crcs) || json_array_size(crcs) != c->n_buffers)
        return QB_FAIL(QB_ERR_FORMAT,
                       "key \"crc32\": found another kind of value, expected a list of %zu numbers",
                       c->n_buffers);
    for (size_t i = 0; i < c->n_buffers; i++) {
        uint32_t crc = qb_crc32(c->buffers[i], c->n_elems * sizeof(float));
        if (json_integer_value(json_array_get(crcs, i)) != crc)
            return QB_FAIL(QB_ERR_FORMAT,
                           "buffer %zu: found another CRC-32, expected that of its bytes", i);
    }
    return QB_OK;
}

static qb_status read_json(const json_t *root, qb_checkpoint *out)
{
    qb_train_config_init(&out->config);
    QB_TRY(qb_train_config_merge(&out->config, json_object_get(root, "config")));
    if (qb_train_config_resolve(&out->config, 0) != QB_OK) return QB_ERR_FORMAT;
    QB_TRY(state_from_json(json_object_get(root, "state"), &out->state));
    return check_buffers(root, out);
}

static qb_status parse(const qb_file *file, qb_checkpoint *out)
{
    header h;
    size_t n = sizeof QB_CHECKPOINT_MAGIC;
    if (file->bytes < n || memcmp(file->data, QB_CHECKPOINT_MAGIC, n))
        return QB_FAIL(QB_ERR_FORMAT, "found other bytes, expected a checkpoint of qbench train");
    if (file->bytes < sizeof h)
        return QB_FAIL(QB_ERR_FORMAT, "size: found %zu bytes, expected at least %zu", file->bytes,
                       sizeof h);
    memcpy(&h, file->data, sizeof h);
    QB_TRY(check_header(&h, file->bytes));
    QB_TRY(check_zeros(file, &h));
    const char *text = (const char *)file->data + sizeof h;
    if (h.json_crc != qb_crc32(text, h.json_bytes))
        return QB_FAIL(QB_ERR_FORMAT, "JSON: found another CRC-32, expected that of its bytes");
    out->n_buffers = h.n_buffers;
    out->n_elems = h.n_elems;
    for (size_t i = 0; i < h.n_buffers; i++)
        out->buffers[i] =
            (const float *)(file->data + payload_offset(h.json_bytes)) + i * h.n_elems;
    json_t *root;
    QB_TRY(qb_json_parse(text, h.json_bytes, MAX_JSON, "checkpoint", &root));
    qb_status status = read_json(root, out);
    json_decref(root);
    return status;
}

qb_status qb_checkpoint_parse(qb_file *file, qb_checkpoint *out)
{
    memset(out, 0, sizeof *out);
    qb_status status = parse(file, out);
    if (status != QB_OK) return qb_error_prefix(status, file->path);
    out->file = *file;
    *file = (qb_file){0};
    return QB_OK;
}

qb_status qb_checkpoint_open(const char *path, qb_checkpoint *out)
{
    qb_file file;
    QB_TRY(qb_file_open(path, &file));
    qb_status status = qb_checkpoint_parse(&file, out);
    if (status != QB_OK) qb_file_close(&file);
    return status;
}

void qb_checkpoint_close(qb_checkpoint *checkpoint)
{
    qb_file_close(&checkpoint->file);
}

/* ---- folders ---- */

qb_status qb_checkpoint_path(const char *folder, uint64_t step, char **out)
{
    char name[64];
    snprintf(name, sizeof name, "step-%0*llu.ckpt", NAME_DIGITS, (unsigned long long)step);
    return qb_path_join(folder, name, out);
}

/* True for exactly the names that qb_checkpoint_path gives. */
static bool step_of_name(const char *name, uint64_t *step)
{
    char expected[64];
    if (strncmp(name, "step-", 5)) return false;
    *step = strtoull(name + 5, NULL, 10);
    snprintf(expected, sizeof expected, "step-%0*llu.ckpt", NAME_DIGITS, (unsigned long long)*step);
    return !strcmp(name, expected);
}

static int newest_first(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

static qb_status list_open(DIR *dir, uint64_t **steps, size_t *n)
{
    const struct dirent *entry;
    uint64_t step;
    while ((entry = readdir(dir))) {
        if (!step_of_name(entry->d_name, &step)) continue;
        QB_TRY(qb_realloc((void **)steps, *n, *n + 1, sizeof **steps, "checkpoints"));
        (*steps)[(*n)++] = step;
    }
    return QB_OK;
}

qb_status qb_checkpoint_list(const char *folder, uint64_t **steps, size_t *n)
{
    *steps = NULL;
    *n = 0;
    DIR *dir = opendir(folder);
    if (!dir) return QB_FAIL_SYSTEM(folder, errno, "opened", "a folder that can be read");
    qb_status status = list_open(dir, steps, n);
    closedir(dir);
    if (status != QB_OK) {
        qb_free(*steps);
        *steps = NULL;
        return status;
    }
    if (*n) qsort(*steps, *n, sizeof **steps, newest_first);
    return QB_OK;
}

qb_status qb_checkpoint_open_newest(const char *folder, qb_checkpoint *out, size_t *n_broken)
{
    uint64_t *steps;
    size_t n;
    QB_TRY(qb_checkpoint_list(folder, &steps, &n));
    qb_status status =
        n ? QB_OK : QB_FAIL(QB_ERR_IO, "%s: found no checkpoint, expected step-N.ckpt", folder);
    for (*n_broken = 0; *n_broken < n; ++*n_broken) {
        char *path;
        status = qb_checkpoint_path(folder, steps[*n_broken], &path);
        if (status != QB_OK) break;
        status = qb_checkpoint_open(path, out);
        qb_free(path);
        if (status != QB_ERR_FORMAT) break; /* good, or of no use to look further */
    }
    qb_free(steps);
    return status;
}

qb_status qb_checkpoint_prune(const char *folder, size_t keep)
{
    uint64_t *steps;
    size_t n;
    QB_TRY(qb_checkpoint_list(folder, &steps, &n));
    qb_status status = QB_OK;
    for (size_t i = keep; i < n && status == QB_OK; i++) {
        char *path;
        status = qb_checkpoint_path(folder, steps[i], &path);
        if (status != QB_OK) break;
        if (unlink(path) && errno != ENOENT)
            status = QB_FAIL_SYSTEM(path, errno, "removed", "a folder that is writable");
        qb_free(path);
    }
    qb_free(steps);
    return status;
}
