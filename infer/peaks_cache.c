/* infer/peaks_cache.c - peaks as a file in the user's cache; see peaks.h. */
#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"
#include "infer/peaks.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char schema[] = "qbench.peaks/1";
enum { MAX_FILE_BYTES = 1 << 16, PATH_BYTES = 4096 };

/* The keys of the file, and where their values go. */
static const struct {
    const char *key;
    size_t offset;
} fields[] = {{"copy_gb_per_s", offsetof(qb_peaks, copy_gb_per_s)},
              {"read_gb_per_s", offsetof(qb_peaks, read_gb_per_s)},
              {"cache_gb_per_s", offsetof(qb_peaks, cache_gb_per_s)},
              {"cache_bytes", offsetof(qb_peaks, cache_bytes)},
              {"f32_gops_per_s", offsetof(qb_peaks, gops_per_s[QB_RATE_F32])},
              {"bf16_gops_per_s", offsetof(qb_peaks, gops_per_s[QB_RATE_BF16])},
              {"s8_gops_per_s", offsetof(qb_peaks, gops_per_s[QB_RATE_S8])}};

static double *field(const qb_peaks *peaks, size_t i)
{
    return (double *)((char *)(uintptr_t)peaks + fields[i].offset);
}

/* The folder, by the XDG base directory rules: a name that is not absolute is not looked at. */
static qb_status cache_folder(char folder[PATH_BYTES])
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool has_xdg = xdg && *xdg == '/';
    if (!has_xdg && !(home && *home == '/'))
        return QB_FAIL(QB_ERR_IO, "found neither XDG_CACHE_HOME nor HOME, expected one");
    int n =
        snprintf(folder, PATH_BYTES, "%s%s/qbench", has_xdg ? xdg : home, has_xdg ? "" : "/.cache");
    return n < PATH_BYTES ? QB_OK
                          : QB_FAIL(QB_ERR_IO, "the cache's folder has a name of %d bytes", n);
}

static qb_status cache_path(const char *key, char path[PATH_BYTES])
{
    char hex[65];
    QB_TRY(cache_folder(path));
    QB_TRY(qb_sha256_hex(key, strlen(key), hex));
    size_t n = strlen(path);
    int more = snprintf(path + n, PATH_BYTES - n, "/peaks-%.16s.json", hex);
    return (size_t)more < PATH_BYTES - n
               ? QB_OK
               : QB_FAIL(QB_ERR_IO, "the cache's folder has a name of %zu bytes", n);
}

static qb_status make_folders(const char *path)
{
    char part[PATH_BYTES];
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        if (mkdir(part, 0700) && errno != EEXIST && !qb_is_folder(part))
            return QB_FAIL(QB_ERR_IO, "%s: cannot be made: %s", part, strerror(errno));
    }
    return QB_OK;
}

/* ---- reading ---- */

static bool read_fields(const json_t *root, const char *key, qb_kept_peaks *out)
{
    const char *found_schema = NULL, *found_key = NULL, *time_utc = NULL;
    qb_kept_peaks kept = {0};
    if (qb_json_get_string(root, "schema", &found_schema) != QB_OK ||
        qb_json_get_string(root, "key", &found_key) != QB_OK ||
        qb_json_get_string(root, "time_utc", &time_utc) != QB_OK || !found_schema || !found_key ||
        !time_utc || strcmp(found_schema, schema) || strcmp(found_key, key))
        return false;
    for (size_t i = 0; i < QB_COUNT(fields); i++) {
        *field(&kept.peaks, i) = NAN;
        if (!json_object_get(root, fields[i].key) ||
            qb_json_get_double(root, fields[i].key, 0, 1e15, field(&kept.peaks, i)) != QB_OK)
            return false;
    }
    snprintf(kept.time_utc, sizeof kept.time_utc, "%s", time_utc);
    *out = kept;
    return true;
}

qb_status qb_peaks_load(const char *key, qb_kept_peaks *out, bool *found)
{
    char path[PATH_BYTES];
    json_t *root = NULL;
    *found = false;
    if (cache_path(key, path) != QB_OK) return QB_OK;
    qb_status status = qb_json_read_file(path, MAX_FILE_BYTES, &root);
    if (status == QB_ERR_MEMORY) return status;
    if (status != QB_OK) return QB_OK; /* not there, or spoilt: measured again */
    *found = read_fields(root, key, out);
    json_decref(root);
    return QB_OK;
}

/* ---- writing ---- */

static qb_status to_json(const char *key, const qb_kept_peaks *kept, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *root = json_object();
    json_object_set_new(root, "schema", json_string(schema));
    json_object_set_new(root, "key", json_string(key));
    json_object_set_new(root, "time_utc", json_string(kept->time_utc));
    for (size_t i = 0; i < QB_COUNT(fields); i++)
        json_object_set_new(root, fields[i].key, qb_json_real(*field(&kept->peaks, i)));
    qb_status status = qb_json_check_memory(mark, "peaks");
    if (status != QB_OK)
        json_decref(root);
    else
        *out = root;
    return status;
}

qb_status qb_peaks_store(const char *key, const qb_kept_peaks *kept)
{
    char path[PATH_BYTES], *text = NULL;
    json_t *root;
    QB_TRY(cache_path(key, path));
    QB_TRY(make_folders(path));
    QB_TRY(to_json(key, kept, &root));
    qb_status status = qb_json_dump(root, JSON_INDENT(1), "peaks", &text);
    json_decref(root);
    QB_TRY(status);
    size_t n = strlen(text);
    text[n] = '\n'; /* in the place of the NUL */
    status = qb_file_write_whole(path, text, n + 1);
    qb_library_free(text);
    return status;
}
