/* infer/sensitivity.c - passes over the windows with other parts quantised, and what they cost; see
 * sensitivity.h. A pass leaves the sum of losses of each window, so that all comparisons are
 * paired. */
#include "infer/sensitivity.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "core/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const qb_sensitivity_words[QB_SENSITIVITY_COUNT] = {"linear", "layer", "role"};

enum { RESAMPLES = 2000 };
static const double enough_removed = 0.9;

/* ---- parts ---- */

static bool has_linear(const qb_model *model, size_t layer, int role)
{
    return qb_roles[role].linear && qb_model_tensor(model, (qb_role)role, layer)->data;
}

/* The first role of those that are one part with this one. */
static int group_of(const qb_model *model, size_t layer, int role, bool singly)
{
    for (int other = 0; !singly && qb_roles[role].norm && other < role; other++)
        if (qb_roles[other].norm == qb_roles[role].norm && has_linear(model, layer, other))
            return other;
    return role;
}

/* "mlp.down" of "h.%zu.mlp.down". */
static const char *role_word(int role)
{
    const char *name = qb_roles[role].name, *mark = strstr(name, "%zu.");
    return mark ? mark + 4 : name;
}

/* What a part is called: of several roles "attn.q+attn.k+attn.v". */
static void add_role(qb_sensitivity_part *part, int role)
{
    size_t n = strlen(part->role);
    if (strstr(part->role, role_word(role))) return;
    snprintf(part->role + n, sizeof part->role - n, "%s%s", n ? "+" : "", role_word(role));
}

/* A linear layer by its tensor's name, whose numbers are the file's, from 0. */
static void name_part(qb_sensitivity_part *part, qb_sensitivity_by by)
{
    if (by == QB_SENSITIVITY_LAYER) part->role[0] = 0;
    if (by == QB_SENSITIVITY_ROLE) part->layer = 0;
    if (by == QB_SENSITIVITY_LAYER)
        snprintf(part->name, sizeof part->name, "layer %zu", part->layer);
    else if (by == QB_SENSITIVITY_ROLE)
        snprintf(part->name, sizeof part->name, "%s", part->role);
    else
        snprintf(part->name, sizeof part->name, "h.%zu.%s", part->layer - 1, part->role);
}

static size_t key_of(const qb_sensitivity_plan *plan, size_t layer, int group)
{
    if (plan->by == QB_SENSITIVITY_LAYER) return layer;
    if (plan->by == QB_SENSITIVITY_ROLE) return (size_t)group;
    return layer * QB_ROLE_COUNT + (size_t)group;
}

static qb_status place_linear(const qb_sensitivity_plan *plan, size_t layer, int role, size_t key,
                              size_t *part_of_key, qb_sensitivity *s)
{
    size_t n_cells = qb_engine_model(plan->full)->config.n_layers * QB_ROLE_COUNT;
    size_t i = part_of_key[key];
    if (i == SIZE_MAX) {
        i = part_of_key[key] = s->n_parts++;
        s->parts[i].layer = layer + 1;
        QB_TRY(QB_NEW_ZERO(&s->parts[i].mask, n_cells, "mask of a part"));
    }
    s->parts[i].mask[layer * QB_ROLE_COUNT + (size_t)role] = 1;
    s->parts[i].linears++;
    add_role(&s->parts[i], role);
    return QB_OK;
}

static qb_status make_parts(const qb_sensitivity_plan *plan, bool singly, qb_sensitivity *s)
{
    const qb_model *model = qb_engine_model(plan->full);
    size_t n_layers = model->config.n_layers, n_cells = n_layers * QB_ROLE_COUNT, *part_of_key;
    QB_TRY(QB_NEW_ZERO(&s->parts, n_cells, "parts"));
    QB_TRY(QB_NEW(&part_of_key, n_cells, "parts"));
    for (size_t i = 0; i < n_cells; i++) part_of_key[i] = SIZE_MAX;
    qb_status status = QB_OK;
    for (size_t layer = 0; layer < n_layers; layer++)
        for (int role = 0; role < QB_ROLE_COUNT && status == QB_OK; role++)
            if (has_linear(model, layer, role)) {
                size_t key = key_of(plan, layer, group_of(model, layer, role, singly));
                status = place_linear(plan, layer, role, key, part_of_key, s);
            }
    for (size_t i = 0; i < s->n_parts; i++) {
        qb_sensitivity_part *p = &s->parts[i];
        name_part(p, plan->by);
        p->sqnr_db = p->input_kurtosis = p->input_amax = p->input_p999 = p->amax_ratio = NAN;
    }
    qb_free(part_of_key);
    return status;
}

/* ---- passes ---- */

typedef struct passes {
    const qb_sensitivity_plan *plan;
    qb_engine *mixed;
    uint8_t *mask; /* of the pass */
    size_t n_cells;
    int32_t *fed, *target;
    qb_logit_stats *stats;
    size_t chunk_rows;
    double *full, *scheme, *now; /* (n_windows) sums of losses */
    size_t *counts;              /* (n_windows) scored tokens */
    qb__streams *streams;        /* NULL = none are kept */
    qb_progress progress;
    size_t done;
} passes;

static qb_status create_passes(const qb_sensitivity_plan *plan, qb_sensitivity *s, passes *p)
{
    const qb_windows *w = plan->windows;
    const qb_config *c = &qb_engine_model(plan->full)->config;
    *p = (passes){.plan = plan, .n_cells = c->n_layers * QB_ROLE_COUNT};
    p->chunk_rows = qb_backbone_logit_rows(qb_engine_backbone(plan->full));
    QB_TRY(qb_engine_create_mixed(plan->full, plan->scheme, &p->mixed));
    QB_TRY(make_parts(plan, qb_engine_mixes_singly(p->mixed), s));
    QB_TRY(qb__streams_create(plan, p->mixed, &p->streams));
    QB_TRY(QB_NEW(&p->mask, p->n_cells, "mask"));
    QB_TRY(QB_NEW(&p->fed, plan->batch * w->n_feed_max, "tokens of a batch"));
    QB_TRY(QB_NEW(&p->target, p->chunk_rows, "targets"));
    QB_TRY(QB_NEW(&p->stats, p->chunk_rows, "statistics of logits"));
    QB_TRY(QB_NEW(&p->full, w->n, "losses"));
    QB_TRY(QB_NEW(&p->scheme, w->n, "losses"));
    QB_TRY(QB_NEW(&p->now, w->n, "losses"));
    QB_TRY(QB_NEW(&p->counts, w->n, "windows"));
    for (size_t i = 0; i < w->n; i++) p->counts[i] = w->items[i].n_scored;
    return QB_OK;
}

static void destroy_passes(passes *p)
{
    qb__streams_destroy(p->streams);
    qb_engine_destroy(p->mixed);
    void *blocks[] = {p->mask, p->fed, p->target, p->stats, p->full, p->scheme, p->now, p->counts};
    for (size_t i = 0; i < QB_COUNT(blocks); i++) qb_free(blocks[i]);
}

/* The sum of one window's losses, whose rows begin at first_row of the last forward call. */
static qb_status sum_window(passes *p, const qb_window *window, size_t first_row, double *sum)
{
    const int32_t *ids = p->plan->stream->tokens.ids + window->first_target;
    *sum = 0;
    for (size_t done = 0, n; done < window->n_scored; done += n) {
        size_t from = window->score_from + done;
        n = window->n_scored - done < p->chunk_rows ? window->n_scored - done : p->chunk_rows;
        memcpy(p->target, ids + from, n * sizeof *p->target);
        QB_TRY(qb_interrupt_check());
        QB_TRY(qb_engine_head(p->mixed, 0, first_row + from, 1, n));
        QB_TRY(qb_backbone_compare(qb_engine_backbone(p->mixed), 0, -1, n, p->target, p->stats));
        for (size_t i = 0; i < n; i++) *sum += p->stats[i].nll_a;
    }
    return QB_OK;
}

/* Losses of all windows with the layers of p->mask quantised. */
static qb_status pass(passes *p, double *sums)
{
    const qb_windows *w = p->plan->windows;
    QB_TRY(qb_engine_mix(p->mixed, p->mask));
    for (size_t first = 0, batch; first < w->n; first += batch) {
        size_t n_feed = w->items[first].n_feed;
        batch = qb_windows_batch(w, first, p->plan->batch);
        for (size_t i = 0; i < batch; i++)
            qb_window_tokens(p->plan->stream, &w->items[first + i], p->fed + i * n_feed, NULL);
        QB_TRY(qb_interrupt_check());
        QB_TRY(qb__streams_prefill(p->streams, p->mixed, p->mask, first, p->fed, batch, n_feed));
        for (size_t i = 0; i < batch; i++)
            QB_TRY(sum_window(p, &w->items[first + i], i * n_feed, &sums[first + i]));
    }
    qb_progress_update(&p->progress, ++p->done);
    return QB_OK;
}

static double perplexity(const passes *p, const double *sums)
{
    return exp(qb_sum(sums, p->plan->windows->n) / (double)p->plan->windows->n_scored);
}

/* exp(b) - exp(a) of the mean losses and its interval, paired by windows. */
static qb_status difference(const passes *p, const double *a, const double *b, double *value,
                            qb_interval *ci95)
{
    const qb_paired_blocks blocks = {a, b, p->counts, p->plan->windows->n};
    *value = qb_perplexity_difference(&blocks);
    return qb_bootstrap_penalty(&blocks, RESAMPLES, p->plan->seed, ci95);
}

static void set_mask(passes *p, bool all, const uint8_t *turned)
{
    for (size_t i = 0; i < p->n_cells; i++) p->mask[i] = all != (turned && turned[i]);
}

/* Loss in nats a token that a part costs alone, until the parts are sorted kept in its share. */
static qb_status measure_part(passes *p, qb_sensitivity_part *part)
{
    set_mask(p, false, part->mask);
    QB_TRY(pass(p, p->now));
    part->ppl = perplexity(p, p->now);
    QB_TRY(difference(p, p->full, p->now, &part->penalty, &part->penalty_ci95));
    part->share = fmax(log(part->ppl) - log(perplexity(p, p->full)), 0);
    set_mask(p, true, part->mask);
    QB_TRY(pass(p, p->now));
    part->ppl_without = perplexity(p, p->now);
    return difference(p, p->now, p->scheme, &part->saved, &part->saved_ci95);
}

static qb_status measure_whole(passes *p, qb_sensitivity *s)
{
    set_mask(p, false, NULL);
    QB_TRY(pass(p, p->full));
    set_mask(p, true, NULL);
    QB_TRY(pass(p, p->scheme));
    s->n_windows = p->plan->windows->n;
    s->n_scored = p->plan->windows->n_scored;
    s->ppl_full = perplexity(p, p->full);
    s->ppl = perplexity(p, p->scheme);
    return difference(p, p->full, p->scheme, &s->penalty, &s->penalty_ci95);
}

/* ---- in order of cost ---- */

static int by_cost(const void *a, const void *b)
{
    const qb_sensitivity_part *x = a, *y = b;
    if (x->penalty != y->penalty) return x->penalty < y->penalty ? 1 : -1;
    return strcmp(x->name, y->name);
}

static void rank(qb_sensitivity *s)
{
    double total = 0, so_far = 0;
    qsort(s->parts, s->n_parts, sizeof *s->parts, by_cost);
    for (size_t i = 0; i < s->n_parts; i++) total += s->parts[i].share;
    for (size_t i = 0; i < s->n_parts; i++) {
        s->parts[i].share /= total; /* NaN where nothing costs anything */
        so_far += s->parts[i].share;
        s->parts[i].cumulative_share = so_far;
    }
}

/* 1 to 6, 8, 10, 13, 16, ... */
static size_t next_kept(size_t n)
{
    return n < 6 ? n + 1 : n + (n + 2) / 4;
}

/* The most costly parts left out together, ever more of them. */
static qb_status measure_kept(passes *p, qb_sensitivity *s)
{
    set_mask(p, true, NULL);
    QB_TRY(QB_NEW_ZERO(&s->kept, s->n_parts, "parts left out"));
    for (size_t n = 1, at = 0; s->penalty > 0 && n <= s->n_parts; n = next_kept(n)) {
        for (; at < n; at++)
            for (size_t i = 0; i < p->n_cells; i++)
                if (s->parts[at].mask[i]) p->mask[i] = 0;
        qb_sensitivity_kept *kept = &s->kept[s->n_kept++];
        QB_TRY(pass(p, p->now));
        kept->n = n;
        kept->ppl = perplexity(p, p->now);
        QB_TRY(difference(p, p->full, p->now, &kept->penalty, &kept->penalty_ci95));
        kept->removed = (s->penalty - kept->penalty) / s->penalty;
        if (kept->removed >= enough_removed) break;
    }
    return QB_OK;
}

static qb_status probe(passes *p, qb_sensitivity *s)
{
    const qb_windows *w = p->plan->windows;
    size_t batch = qb_windows_batch(w, 0, p->plan->batch), n_feed = w->items[0].n_feed;
    if (!p->plan->probe) return QB_OK;
    for (size_t i = 0; i < batch; i++)
        qb_window_tokens(p->plan->stream, &w->items[i], p->fed + i * n_feed, NULL);
    return qb__sensitivity_probe(p->plan, p->fed, batch, n_feed, s->parts, s->n_parts);
}

static qb_status measure(passes *p, qb_sensitivity *s)
{
    QB_TRY(create_passes(p->plan, s, p));
    p->progress = qb_progress_begin("sensitivity", 2 + 2 * s->n_parts);
    qb_status status = measure_whole(p, s);
    if (status == QB_OK) status = probe(p, s);
    for (size_t i = 0; status == QB_OK && i < s->n_parts; i++)
        status = measure_part(p, &s->parts[i]);
    qb_progress_end(&p->progress);
    if (status != QB_OK) return status;
    rank(s);
    p->progress = qb_progress_begin("costly parts together", s->n_parts);
    status = measure_kept(p, s);
    qb_progress_end(&p->progress);
    return status;
}

qb_status qb_sensitivity_measure(const qb_sensitivity_plan *plan, qb_sensitivity *out)
{
    qb_sensitivity s = {.by = plan->by};
    passes p = {.plan = plan};
    qb_status status = measure(&p, &s);
    destroy_passes(&p);
    if (status != QB_OK)
        qb_sensitivity_deinit(&s);
    else
        *out = s;
    return status;
}

void qb_sensitivity_deinit(qb_sensitivity *s)
{
    for (size_t i = 0; s->parts && i < s->n_parts; i++) qb_free(s->parts[i].mask);
    qb_free(s->parts);
    qb_free(s->kept);
    *s = (qb_sensitivity){0};
}
