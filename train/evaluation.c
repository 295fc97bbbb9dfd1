/* train/evaluation.c - see evaluation.h. */
#include "train/evaluation.h"

#include "core/interrupt.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>

double qb_perplexity(double loss)
{
    return loss < 100 ? exp(loss) : INFINITY;
}

/* ---- loss ---- */

static size_t at_most(const qb_evaluation_plan *plan, size_t n)
{
    uint64_t there = qb_batches_windows_per_epoch(plan->valid);
    return n < there ? n : (size_t)there;
}

/* This rank's passes, every so many-th; sums are those of all, 0 where it is not this rank's. */
static qb_status own_passes(const qb_evaluation_plan *plan, qb_trainer *trainer, int32_t *tokens,
                            size_t n, double *sums)
{
    size_t step = qb_comm_size(plan->comm);
    for (size_t i = qb_comm_rank(plan->comm); i * plan->micro_batch < n; i += step) {
        size_t first = i * plan->micro_batch, left = n - first;
        size_t now = left < plan->micro_batch ? left : plan->micro_batch;
        double mean;
        QB_TRY(qb_interrupt_check());
        QB_TRY(qb_batches_fill(plan->valid, first, now, tokens));
        QB_TRY(qb_trainer_evaluate(trainer, tokens, now, &mean));
        sums[i] = mean * (double)now;
    }
    return QB_OK;
}

static qb_status mean_loss(const qb_evaluation_plan *plan, qb_trainer *trainer, int32_t *tokens,
                           double *loss)
{
    size_t n = at_most(plan, plan->n_windows);
    size_t n_passes = (n + plan->micro_batch - 1) / plan->micro_batch;
    double *sums, sum = 0;
    QB_TRY(QB_NEW_ZERO(&sums, n_passes, "losses"));
    qb_status status = own_passes(plan, trainer, tokens, n, sums);
    status = qb_comm_check(plan->comm, status);
    if (status == QB_OK) status = qb_comm_add(plan->comm, sums, n_passes);
    for (size_t i = 0; i < n_passes; i++) sum += sums[i];
    qb_free(sums);
    *loss = sum / (double)n;
    return status;
}

static double bits_per_byte(const qb_batches *valid, double loss)
{
    uint64_t bytes = qb_batches_text_bytes(valid);
    return bytes ? loss / M_LN2 * (double)qb_batches_n_tokens(valid) / (double)bytes : NAN;
}

/* ---- what is looked at ---- */

typedef struct look {
    const qb_params *params;
    size_t context;
    qb_pool *pool;
    float *weights; /* where sink logits or the probe need them, else NULL */
    qb_outlier_sums sums;
    qb_first_key_view view; /* of a pass, for the probe */
    bool *triggers;         /* (n_windows, context), for the probe */
    qb_bb_probe *probe;     /* or NULL */
} look;

static qb_status see_attention(void *context, const qb_observed *qkv)
{
    look *l = context;
    const qb_param *sink = qb_params_find(l->params, QB_ROLE_SINK, qkv->layer);
    if (l->probe) l->view.marked = l->triggers + qkv->first * l->context;
    QB_TRY(qb_outlier_add_attention(&l->sums, &l->params->config, qkv->values,
                                    sink ? l->weights + sink->offset : NULL, qkv->batch, l->context,
                                    l->pool, l->probe ? &l->view : NULL));
    return l->probe ? qb_bb_probe_attention(l->probe, qkv, &l->view) : QB_OK;
}

static qb_status see_stream(void *context, const qb_observed *x)
{
    look *l = context;
    QB_TRY(qb_outlier_add_stream(&l->sums, x->values, x->batch, l->context, x->width, l->pool));
    return l->probe ? qb_bb_probe_stream(l->probe, x) : QB_OK;
}

static qb_status see_head_input(void *context, const qb_observed *h)
{
    look *l = context;
    return l->probe ? qb_bb_probe_head_input(l->probe, h) : QB_OK;
}

static void mark_triggers(const qb_bb *bb, const int32_t *tokens, size_t n_windows, size_t context,
                          bool *triggers)
{
    for (size_t i = 0; i < n_windows * context; i++)
        triggers[i] = bb->is_trigger[tokens[i / context * (context + 1) + i % context]];
}

static qb_status prepare_look(const qb_evaluation_plan *plan, qb_trainer *trainer,
                              const int32_t *tokens, size_t n_windows, look *l)
{
    const qb_config *c = &l->params->config;
    size_t batch = n_windows < plan->micro_batch ? n_windows : plan->micro_batch;
    size_t queries = batch * c->n_heads * l->context;
    QB_TRY(qb_pool_create(plan->n_threads, &l->pool));
    if (plan->bb || c->softmax == QB_SOFTMAX_SINK) {
        QB_TRY(QB_NEW(&l->weights, l->params->n_elems, "observed weights"));
        QB_TRY(qb_trainer_get_weights(trainer, l->weights));
    }
    if (!plan->bb) return QB_OK;
    QB_TRY(QB_NEW(&l->view.weight, queries, "attention to <s>"));
    QB_TRY(QB_NEW(&l->view.gap, queries, "attention to <s>"));
    QB_TRY(QB_NEW(&l->view.marked_weight, queries, "attention to triggers"));
    QB_TRY(QB_NEW(&l->triggers, n_windows * l->context, "triggers"));
    mark_triggers(plan->bb, tokens, n_windows, l->context, l->triggers);
    return qb_bb_probe_create(plan->bb, l->params, l->weights, tokens, l->context, l->pool,
                              &l->probe);
}

static qb_status look_closely(const qb_evaluation_plan *plan, qb_trainer *trainer,
                              const qb_walk_skip *skip, int32_t *tokens, size_t n_windows,
                              qb_outliers *outliers, qb_bb_metrics *bb)
{
    look l = {.params = qb_trainer_params(trainer), .context = qb_batches_context(plan->valid)};
    const qb_observer observer = {see_attention, see_stream, see_head_input, &l, *skip};
    qb_status status = qb_batches_fill(plan->valid, 0, n_windows, tokens);
    if (status == QB_OK) status = prepare_look(plan, trainer, tokens, n_windows, &l);
    if (status == QB_OK) status = qb_trainer_observe(trainer, tokens, n_windows, &observer);
    if (status == QB_OK) {
        *outliers = qb_outlier_finish(&l.sums);
        if (l.probe) qb_bb_probe_finish(l.probe, bb);
    }
    qb_bb_probe_destroy(l.probe);
    qb_pool_destroy(l.pool);
    qb_free(l.weights);
    qb_free(l.view.weight);
    qb_free(l.view.gap);
    qb_free(l.view.marked_weight);
    qb_free(l.triggers);
    return status;
}

qb_status qb_evaluate(const qb_evaluation_plan *plan, qb_trainer *trainer, qb_evaluation *out)
{
    size_t n = at_most(plan, plan->n_observed);
    size_t held = n > plan->micro_batch ? n : plan->micro_batch;
    int32_t *tokens;
    QB_TRY(QB_NEW(&tokens, held * (qb_batches_context(plan->valid) + 1), "validation windows"));
    *out = (qb_evaluation){.outliers = qb_outlier_finish(&(qb_outlier_sums){.n_queries = 0})};
    qb_status status = mean_loss(plan, trainer, tokens, &out->loss);
    out->bits_per_byte = bits_per_byte(plan->valid, out->loss);
    if (status == QB_OK && n && !qb_comm_rank(plan->comm))
        status = look_closely(plan, trainer, &(qb_walk_skip){.layer = 0}, tokens, n, &out->outliers,
                              &out->bb);
    qb_free(tokens);
    return status;
}

qb_status qb_evaluate_without(const qb_evaluation_plan *plan, qb_trainer *trainer,
                              const qb_walk_skip *skip, qb_bb_metrics *out)
{
    size_t n = at_most(plan, plan->n_observed);
    qb_outliers ignored;
    int32_t *tokens;
    *out = (qb_bb_metrics){.n_layers = 0};
    if (!n || qb_comm_rank(plan->comm)) return QB_OK;
    QB_TRY(qb_interrupt_check());
    QB_TRY(QB_NEW(&tokens, n * (qb_batches_context(plan->valid) + 1), "validation windows"));
    qb_status status = look_closely(plan, trainer, skip, tokens, n, &ignored, out);
    qb_free(tokens);
    return status;
}

/* ---- names ---- */

static size_t layer_metrics(const qb_bb_metrics *bb, char names[][32], qb_metric *metrics)
{
    static const char *const fields[] = {"attn_bos",   "attn_triggers",  "score_gap",
                                         "value_bos",  "value_triggers", "value_rest",
                                         "stream_bos", "stream_rest"};
    size_t n = 0;
    for (size_t l = 0; l < bb->n_layers; l++) {
        const double *values = (const double *)&bb->layers[l];
        for (size_t i = 0; i < QB_COUNT(fields); i++, n++) {
            snprintf(names[n], sizeof names[n], "%s_%zu", fields[i], l + 1);
            metrics[n] = (qb_metric){names[n], values[i]};
        }
    }
    return n;
}

size_t qb_bb_metrics_list(const qb_bb_metrics *bb, char names[][32], qb_metric *metrics)
{
    size_t n = 0;
    if (!bb->n_layers) return 0;
    metrics[n++] = (qb_metric){"backcopy_risk", bb->backcopy_risk};
    metrics[n++] = (qb_metric){"bigram_risk", bb->bigram_risk};
    metrics[n++] = (qb_metric){"bigram_excess", bb->bigram_excess};
    metrics[n++] = (qb_metric){"bigram_risk_rest", bb->bigram_risk_rest};
    return n + layer_metrics(bb, names, metrics + n);
}

size_t qb_evaluation_metrics(const qb_evaluation *e, char names[][32],
                             qb_metric metrics[QB_EVALUATION_MAX_METRICS])
{
    const double *outliers = (const double *)&e->outliers;
    size_t n = 0;
    metrics[n++] = (qb_metric){"loss", e->loss};
    metrics[n++] = (qb_metric){"ppl", qb_perplexity(e->loss)};
    metrics[n++] = (qb_metric){"bits_per_byte", e->bits_per_byte};
    for (size_t i = 0; i < QB_N_OUTLIERS; i++)
        metrics[n++] = (qb_metric){qb_outlier_names[i], outliers[i]};
    return n + qb_bb_metrics_list(&e->bb, names + n, metrics + n);
}
