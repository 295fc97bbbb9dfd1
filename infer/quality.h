/* infer/quality.h - what a scheme costs: losses, KL divergence and agreement with full precision.
 *
 * All engines run the same windows in step: a batch through each engine, then logits a few rows at
 * a time, compared row by row with the full model's and forgotten. The full model is run once for
 * all schemes, and nowhere stand the logits of a whole batch. With replicas - the same engines on
 * more backbones, one a GPU - each set of engines takes the next batch when it is free, on a thread
 * of its own. Every figure is a sum in index order of numbers made row by row, so it is the same
 * bits at any number of threads and of replicas. */
#ifndef QB_INFER_QUALITY_H
#define QB_INFER_QUALITY_H

#include "core/stats.h"
#include "infer/engine.h"
#include "infer/protocols.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_quality_case {
    qb_engine *engine; /* NULL = full precision itself */
    qb_engine *fake;   /* its fake-quant twin; NULL = left out */
} qb_quality_case;

/* The engines of a plan once more, on another backbone (another GPU, or a pool of its own). */
typedef struct qb_quality_replica {
    qb_engine *full;
    const qb_quality_case *cases; /* (n_cases), as the plan's */
} qb_quality_replica;

typedef struct qb_quality_plan {
    const qb_stream *stream;
    const qb_windows *windows;
    size_t batch;    /* most windows a forward call */
    qb_engine *full; /* its backbone has QB_LOGIT_SLOTS slots; all engines are of that backbone */
    const qb_quality_case *cases;
    size_t n_cases;
    const qb_quality_replica *replicas; /* beside full and cases; NULL = none */
    size_t n_replicas;
    const char *label; /* of the progress line */
} qb_quality_plan;

/* One number a scored token, in the order of windows and positions. */
typedef struct qb_quality_scores {
    double *nll;      /* -log of the target's probability, nats */
    double *kl;       /* KL(full || scheme), nats */
    uint8_t *agree;   /* 1 where both have the same likeliest token */
    double *nll_fake; /* NULL without a twin */
    float fake_max_diff;
} qb_quality_scores;

typedef struct qb_quality {
    size_t n; /* scored tokens */
    double *nll_full;
    int32_t *target;
    qb_quality_scores *cases; /* (n_cases); of a case that is full precision, all NULL */
    size_t n_cases;
} qb_quality;

/* QB_ERR_INTERRUPTED on Ctrl-C; the engines' own errors. The caller deinits *out after success. */
qb_status qb_quality_measure(const qb_quality_plan *plan, qb_quality *out);
void qb_quality_deinit(qb_quality *quality); /* accepts a zeroed one */

/* NaN = not measured, everywhere. */
typedef struct qb_quality_summary {
    double ppl_full, ppl, penalty; /* penalty = ppl - ppl_full */
    qb_interval penalty_ci95;      /* paired bootstrap over blocks of windows */
    double kl_mean, kl_p99;        /* KL(full || scheme), nats a token */
    double top1_agreement;         /* share of tokens, 0 to 1 */
    double bits_per_byte, word_ppl, byte_ppl;
    double ppl_fake, fake_max_logit_diff; /* of the twin; largest |difference| to the engine */
} qb_quality_summary;

typedef struct qb_summary_options {
    double n_bytes, n_words; /* of the scored text; NaN = unknown */
    bool by_document;        /* word and byte perplexity belong to the protocol */
    size_t n_resamples;      /* 0 = 2,000 */
    uint64_t seed;
} qb_summary_options;
/* Of case case_idx, on the windows it was measured on. Only memory can fail. */
qb_status qb_quality_summarize(const qb_quality *quality, size_t case_idx,
                               const qb_windows *windows, const qb_summary_options *options,
                               qb_quality_summary *out);

/* Bytes of text behind the scored tokens; bos and eos have none. */
double qb_quality_scored_bytes(const qb_stream *stream, const qb_windows *windows,
                               const qb_tokenizer *tokenizer);

#ifdef __cplusplus
}
#endif
#endif
