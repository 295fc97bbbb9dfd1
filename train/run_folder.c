/* train/run_folder.c - see run_folder.h. */
#include "train/run_folder.h"

#include "core/json.h"
#include "core/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static qb_status lock(qb_run_folder *f)
{
    f->fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f->fd < 0) return QB_FAIL_SYSTEM(f->path, errno, "opened", "a folder that can be read");
    if (flock(f->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return QB_FAIL(QB_ERR_IO,
                       "%s: found another process that trains in this folder, expected none",
                       f->path);
    return QB_OK; /* a file system without locks does not hinder */
}

/* NAME.tmp.PID, as core/file.c names what it has not finished, of the files of a run. */
static bool is_temporary(const char *name)
{
    static const char *const ours[] = {"config.json.tmp.", "model.bin.tmp.", "best.bin.tmp."};
    const char *ckpt = strncmp(name, "step-", 5) ? NULL : strstr(name, ".ckpt.tmp.");
    for (size_t i = 0; i < QB_COUNT(ours); i++)
        if (!strncmp(name, ours[i], strlen(ours[i]))) return true;
    return ckpt && name + 5 + strspn(name + 5, "0123456789") == ckpt;
}

static void remove_leftovers(const qb_run_folder *f)
{
    DIR *dir = opendir(f->path);
    const struct dirent *entry;
    while (dir && (entry = readdir(dir)))
        if (is_temporary(entry->d_name)) unlinkat(f->fd, entry->d_name, 0);
    if (dir) closedir(dir);
}

static qb_status refuse_old_run(const qb_run_folder *f)
{
    uint64_t *steps;
    size_t n;
    QB_TRY(qb_checkpoint_list(f->path, &steps, &n));
    qb_free(steps);
    if (!n) return QB_OK;
    return QB_FAIL(QB_ERR_USAGE,
                   "--out: found a run in %s, expected a folder without one (or --resume %s)",
                   f->path, f->path);
}

static qb_status open_folder(bool new_run, qb_run_folder *f)
{
    if (new_run && mkdir(f->path, 0777) && errno != EEXIST)
        return QB_FAIL_SYSTEM(f->path, errno, "made", "a folder that can be");
    QB_TRY(lock(f));
    remove_leftovers(f);
    return new_run ? refuse_old_run(f) : QB_OK;
}

qb_status qb_run_folder_open(const char *path, bool new_run, qb_run_folder *out)
{
    *out = (qb_run_folder){.fd = -1};
    QB_TRY(qb_strdup(&out->path, path));
    qb_status status = open_folder(new_run, out);
    if (status != QB_OK) qb_run_folder_close(out);
    return status;
}

qb_status qb_run_folder_join(const char *path, qb_run_folder *out)
{
    *out = (qb_run_folder){.fd = -1};
    return qb_strdup(&out->path, path);
}

void qb_run_folder_close(qb_run_folder *folder)
{
    if (folder->fd >= 0) close(folder->fd);
    qb_free(folder->path);
    *folder = (qb_run_folder){.fd = -1};
}

qb_status qb_run_folder_write_config(const qb_run_folder *folder, const qb_train_config *config)
{
    json_t *object;
    char *text, *path;
    QB_TRY(qb_train_config_to_json(config, &object));
    qb_status status =
        qb_json_dump(object, JSON_INDENT(1) | JSON_REAL_PRECISION(17), "configuration", &text);
    json_decref(object);
    QB_TRY(status);
    status = qb_path_join(folder->path, "config.json", &path);
    if (status == QB_OK) {
        status = qb_file_write_whole(path, text, strlen(text));
        qb_free(path);
    }
    qb_library_free(text);
    return status;
}

static qb_status read_config(const qb_run_folder *folder, qb_train_config *config)
{
    char *path;
    json_t *object;
    QB_TRY(qb_path_join(folder->path, "config.json", &path));
    qb_status status =
        access(path, F_OK)
            ? QB_FAIL(QB_ERR_IO, "%s: found no run, expected step-N.ckpt or config.json",
                      folder->path)
            : qb_json_read_file(path, 1 << 20, &object);
    if (status == QB_OK) {
        qb_train_config_init(config);
        status = qb_train_config_merge(config, object);
        if (status != QB_OK) qb_error_prefix(status, path);
        json_decref(object);
    }
    qb_free(path);
    return status;
}

qb_status qb_run_folder_resume(const qb_run_folder *folder, qb_train_config *config,
                               qb_checkpoint *out, size_t *n_broken)
{
    uint64_t *steps;
    size_t n;
    QB_TRY(qb_checkpoint_list(folder->path, &steps, &n));
    qb_free(steps);
    *out = (qb_checkpoint){.n_buffers = 0};
    *n_broken = 0;
    if (!n) return read_config(folder, config); /* killed before the first one */
    QB_TRY(qb_checkpoint_open_newest(folder->path, out, n_broken));
    *config = out->config;
    return QB_OK;
}
