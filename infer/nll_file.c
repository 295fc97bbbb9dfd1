/* infer/nll_file.c - see nll_file.h. */
#include "infer/nll_file.h"

#include "core/memory.h"
#include "model/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* ---- writing ---- */

static qb_status make_folder(const char *folder)
{
    if (mkdir(folder, 0777) && errno != EEXIST)
        return QB_FAIL_SYSTEM(folder, errno, "made", "a folder that can be");
    if (!qb_is_folder(folder))
        return QB_FAIL(QB_ERR_IO, "%s: found a file, expected a folder", folder);
    return QB_OK;
}

static qb_status write_entries(const qb_quality *q, const qb_quality_scores *scores,
                               const int32_t *window, const json_t *metadata, const char *path)
{
    const qb_st_entry all[] = {
        {"nll_full", QB_F64, 1, {q->n}, q->nll_full},      {"nll", QB_F64, 1, {q->n}, scores->nll},
        {"nll_fake", QB_F64, 1, {q->n}, scores->nll_fake}, {"kl", QB_F64, 1, {q->n}, scores->kl},
        {"target", QB_S32, 1, {q->n}, q->target},          {"window", QB_S32, 1, {q->n}, window},
        {"agree", QB_U8, 1, {q->n}, scores->agree}};
    qb_st_entry entries[QB_COUNT(all)];
    size_t n = 0;
    for (size_t i = 0; i < QB_COUNT(all); i++)
        if (all[i].data) entries[n++] = all[i];
    return qb_safetensors_write(path, entries, n, metadata);
}

qb_status qb_nll_file_write(const qb_quality *q, size_t case_idx, const qb_windows *windows,
                            const json_t *metadata, const char *folder, const char *name,
                            char **path)
{
    char *own = NULL, file_name[256];
    int32_t *window = NULL;
    qb_status status;
    QB_TRY(make_folder(folder));
    snprintf(file_name, sizeof file_name, "%.200s.safetensors", name);
    QB_TRY_GOTO(status, qb_path_join(folder, file_name, &own), done);
    QB_TRY_GOTO(status, QB_NEW(&window, q->n, "window numbers"), done);
    for (size_t w = 0, at = 0; w < windows->n; w++)
        for (size_t j = 0; j < windows->items[w].n_scored; j++) window[at++] = (int32_t)w;
    QB_TRY_GOTO(status, write_entries(q, &q->cases[case_idx], window, metadata, own), done);
    *path = own;
    own = NULL;
done:
    qb_free(window);
    qb_free(own);
    return status;
}

/* ---- reading ---- */

/* A copy, since data in the file need no alignment; *out stays NULL where it is not there. The
 * container's reader has held the shape to the bytes that the file has. */
static qb_status read_tensor(const qb_safetensors *st, const char *name, qb_dtype dtype, bool must,
                             size_t *n, void **out)
{
    const qb_st_tensor *t = qb_safetensors_find(st, name);
    if (!t && !must) return QB_OK;
    if (!t) return QB_FAIL(QB_ERR_FORMAT, "%s: found nothing, expected the tensor", name);
    if (!t->known || t->as != dtype)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %.20s, expected %s", name, t->dtype,
                       qb_dtype_get(dtype)->name);
    if (t->rank != 1)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found rank %zu, expected 1", name, t->rank);
    if (*n == SIZE_MAX) *n = t->n_elems;
    if (t->n_elems != *n)
        return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu elements, expected %zu", name, t->n_elems, *n);
    QB_TRY(qb_alloc(out, t->bytes, 1, "losses"));
    memcpy(*out, t->data, t->bytes);
    return QB_OK;
}

static qb_status check_values(qb_nll *out)
{
    if (!out->n) return QB_FAIL(QB_ERR_FORMAT, "window: found no elements, expected some");
    for (size_t i = 0; i < out->n; i++) {
        int64_t step = out->window[i] - (i ? (int64_t)out->window[i - 1] : 0);
        if (step < 0 || step > (i ? 1 : 0))
            return QB_FAIL(QB_ERR_FORMAT,
                           "window[%zu]: found %d, expected the number before or the next, from 0",
                           i, out->window[i]);
        if (out->agree && out->agree[i] > 1)
            return QB_FAIL(QB_ERR_FORMAT, "agree[%zu]: found %d, expected 0 or 1", i,
                           out->agree[i]);
    }
    out->n_windows = (size_t)out->window[out->n - 1] + 1;
    return QB_OK;
}

static qb_status read_all(const qb_safetensors *st, qb_nll *out)
{
    const struct {
        const char *name;
        qb_dtype dtype;
        bool must;
        void **at;
    } tensors[] = {{"window", QB_S32, true, (void **)&out->window},
                   {"target", QB_S32, true, (void **)&out->target},
                   {"nll_full", QB_F64, true, (void **)&out->nll_full},
                   {"nll", QB_F64, false, (void **)&out->nll},
                   {"kl", QB_F64, false, (void **)&out->kl},
                   {"agree", QB_U8, false, (void **)&out->agree}};
    out->n = SIZE_MAX;
    for (size_t i = 0; i < QB_COUNT(tensors); i++)
        QB_TRY(read_tensor(st, tensors[i].name, tensors[i].dtype, tensors[i].must, &out->n,
                           tensors[i].at));
    if (!out->nll) {
        QB_TRY(QB_NEW(&out->nll, out->n, "losses"));
        memcpy(out->nll, out->nll_full, out->n * sizeof *out->nll);
    }
    return check_values(out);
}

qb_status qb_nll_parse(const qb_file *file, qb_nll *out)
{
    qb_safetensors *st;
    qb_nll nll = {0};
    QB_TRY(qb_safetensors_parse(file, &st));
    qb_status status = read_all(st, &nll);
    qb_safetensors_close(st);
    if (status != QB_OK) {
        qb_nll_deinit(&nll);
        return qb_error_prefix(status, file->path);
    }
    *out = nll;
    return QB_OK;
}

void qb_nll_deinit(qb_nll *nll)
{
    qb_free(nll->target);
    qb_free(nll->window);
    qb_free(nll->nll_full);
    qb_free(nll->nll);
    qb_free(nll->kl);
    qb_free(nll->agree);
    *nll = (qb_nll){0};
}
