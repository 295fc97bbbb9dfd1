/* cli/nll_files.c - the losses of each token that two records name, for comparisons.
 *
 * A file that is absent or was written anew since (size or hash are others) is none: the records'
 * own sums are used, and that is said. A file that is the recorded one, and contradicts its record
 * or the other side, is refused: one of the two was made up. */
#include "cli/cmd_compare.h"

#include "core/memory.h"
#include "infer/nll_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- the file of one record ---- */

/* Of "runs/nll/m-fine.safetensors", named in x/result.json: that name, x/nll/m-fine.safetensors and
 * x/m-fine.safetensors, the first that is there; *out is the caller's, NULL = none. */
static qb_status find_file(const char *recorded, const char *result_path, char **out)
{
    const char *slash = strrchr(result_path, '/');
    size_t n_folder = slash ? (size_t)(slash - result_path) + 1 : 0;
    const char *ends[2] = {recorded, recorded};
    for (const char *p = recorded; *p; p++)
        if (*p == '/') ends[0] = ends[1], ends[1] = p + 1;
    *out = NULL;
    if (!access(recorded, R_OK)) return qb_strdup(out, recorded);
    for (size_t i = 0; i < QB_COUNT(ends); i++) {
        char path[4096];
        int n = snprintf(path, sizeof path, "%.*s%s", (int)n_folder, result_path, ends[i]);
        if (n < (int)sizeof path && !access(path, R_OK)) return qb_strdup(out, path);
    }
    return QB_OK;
}

/* Whether the file is the one that was recorded; else why not. */
static qb_status is_recorded(const qb_file *file, const qb_result *r, bool *is, char why[300])
{
    const char *recorded = r->quality.nll_file.sha256 ? r->quality.nll_file.sha256 : "none";
    char sha256[65];
    long long expected = (long long)r->quality.nll_file.bytes;
    *is = false;
    if ((long long)file->bytes != expected) {
        snprintf(why, 300,
                 "losses of tokens are not used: %.120s: quality.nll_file.bytes: found %zu, "
                 "expected %lld",
                 file->path, file->bytes, expected);
        return QB_OK;
    }
    QB_TRY(qb_sha256_hex(file->data, file->bytes, sha256));
    *is = !strcmp(sha256, recorded);
    if (!*is)
        snprintf(why, 300,
                 "losses of tokens are not used: %.120s: quality.nll_file.sha256: found %.12s..., "
                 "expected %.12s...",
                 file->path, sha256, recorded);
    return QB_OK;
}

static qb_status check_against_record(const qb_nll *nll, const qb_result *r, const char *path,
                                      const char *result_path)
{
    double ppl = exp(qb_sum(nll->nll, nll->n) / (double)nll->n);
    double ppl_full = exp(qb_sum(nll->nll_full, nll->n) / (double)nll->n);
    const struct {
        const char *name;
        double found, expected;
    } figures[] = {{"tokens", (double)nll->n, (double)r->protocol.scored_tokens},
                   {"windows", (double)nll->n_windows, (double)r->protocol.windows},
                   {"nll: perplexity", ppl, r->quality.ppl},
                   {"nll_full: perplexity", ppl_full, r->quality.ppl_full}};
    for (size_t i = 0; i < QB_COUNT(figures); i++) {
        double found = figures[i].found, expected = figures[i].expected;
        bool both = isfinite(found) && isfinite(expected);
        if (both ? fabs(found - expected) > 1e-9 * fabs(expected)
                 : isfinite(found) != isfinite(expected))
            return QB_FAIL(QB_ERR_FORMAT, "%s: %s: found %.10g, expected %.10g as in %s", path,
                           figures[i].name, found, expected, result_path);
    }
    return QB_OK;
}

/* *path stays NULL where there is no file to use. */
static qb_status read_side(const qb_result *r, const char *result_path, qb_nll *nll, char **path,
                           char why[300])
{
    qb_file file;
    char *found;
    bool is = false;
    QB_TRY(find_file(r->quality.nll_file.path, result_path, &found));
    if (!found) {
        snprintf(why, 300, "losses of tokens are not used: %.120s: not found",
                 r->quality.nll_file.path);
        return QB_OK;
    }
    qb_status status = qb_file_open(found, &file);
    if (status == QB_OK) {
        status = is_recorded(&file, r, &is, why);
        if (status == QB_OK && is) status = qb_nll_parse(&file, nll);
        if (status == QB_OK && is) status = check_against_record(nll, r, found, result_path);
        qb_file_close(&file);
    }
    if (status == QB_OK && is)
        *path = found;
    else
        qb_free(found);
    return status;
}

/* ---- both ---- */

static qb_status check_pair(const qb_nll *a, const qb_nll *b, const char *path_a,
                            const char *path_b)
{
    const struct {
        const char *name;
        const int32_t *a, *b;
    } lists[] = {{"target", a->target, b->target}, {"window", a->window, b->window}};
    if (a->n != b->n)
        return QB_FAIL(QB_ERR_FORMAT, "%s: tokens: found %zu, expected %zu as in %s", path_b, b->n,
                       a->n, path_a);
    for (size_t k = 0; k < QB_COUNT(lists); k++)
        for (size_t i = 0; i < a->n; i++)
            if (lists[k].a[i] != lists[k].b[i])
                return QB_FAIL(QB_ERR_FORMAT, "%s: %s[%zu]: found %d, expected %d as in %s", path_b,
                               lists[k].name, i, lists[k].b[i], lists[k].a[i], path_a);
    return QB_OK;
}

/* Sums over each window, however many there are. */
static qb_status sum_windows(const qb_nll *nll, qb_result_windows *out)
{
    bool has_kl = nll->kl && nll->agree;
    QB_TRY(qb_reals_resize(&out->n, nll->n_windows));
    QB_TRY(qb_reals_resize(&out->nll, nll->n_windows));
    QB_TRY(qb_reals_resize(&out->nll_full, nll->n_windows));
    if (has_kl) QB_TRY(qb_reals_resize(&out->kl, nll->n_windows));
    if (has_kl) QB_TRY(qb_reals_resize(&out->agree, nll->n_windows));
    for (size_t w = 0, at = 0; w < nll->n_windows; w++) {
        size_t begin = at, n_same = 0;
        for (; at < nll->n && (size_t)nll->window[at] == w; at++)
            if (has_kl) n_same += nll->agree[at];
        out->n.items[w] = (double)(at - begin);
        out->nll.items[w] = qb_sum(nll->nll + begin, at - begin);
        out->nll_full.items[w] = qb_sum(nll->nll_full + begin, at - begin);
        if (has_kl) out->kl.items[w] = qb_sum(nll->kl + begin, at - begin);
        if (has_kl) out->agree.items[w] = (double)n_same;
    }
    return QB_OK;
}

static qb_status read_pair(const qb_compare_side *side_a, const qb_compare_side *side_b,
                           const qb_pair *pair, qb_result_windows *a, qb_result_windows *b,
                           bool *found, char why[300])
{
    qb_nll nll_a = {0}, nll_b = {0};
    char *path_a = NULL, *path_b = NULL;
    qb_status status;
    *found = false;
    if (!pair->a->quality.nll_file.path || !pair->b->quality.nll_file.path) return QB_OK;
    QB_TRY_GOTO(status, read_side(pair->a, side_a->name, &nll_a, &path_a, why), done);
    if (path_a) QB_TRY_GOTO(status, read_side(pair->b, side_b->name, &nll_b, &path_b, why), done);
    if (!path_a || !path_b) goto done;
    QB_TRY_GOTO(status, check_pair(&nll_a, &nll_b, path_a, path_b), done);
    QB_TRY_GOTO(status, sum_windows(&nll_a, a), done);
    QB_TRY_GOTO(status, sum_windows(&nll_b, b), done);
    *found = true;
done:
    qb_nll_deinit(&nll_a);
    qb_nll_deinit(&nll_b);
    qb_free(path_a);
    qb_free(path_b);
    return status;
}

const qb_token_source qb_cli_nll_files = {read_pair};
