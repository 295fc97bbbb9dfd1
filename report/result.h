/* report/result.h - the record of one (model, scheme): exactly the JSON of docs/result.schema.json.
 *
 * What was not measured is NaN (reals), -1 (counts) or NULL (texts), and null in JSON, never 0.
 * qb_result_fields names every key; the writers, the schema test and whoever reads records loop
 * over it, so a new key is a member here, a row there and a line of the schema. */
#ifndef QB_REPORT_RESULT_H
#define QB_REPORT_RESULT_H

#include "core/json.h"
#include "core/stats.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_texts {
    char **items;
    size_t n;
} qb_texts;

typedef struct qb_reals {
    double *items; /* NaN = null */
    size_t n;      /* 0 = not measured */
} qb_reals;

#define QB_RESULT_MAX_SAMPLES 400
#define QB_RESULT_MAX_BLOCKS 2048

typedef struct qb_result_timing {
    double tok_per_s; /* median */
    qb_interval tok_per_s_ci95;
    double p50_ms, p90_ms, p99_ms; /* of one sample: a prefill, or one decoded token */
    int64_t samples;
    qb_reals samples_ms; /* in the order of measurement, at most QB_RESULT_MAX_SAMPLES */
} qb_result_timing;

/* Sums over the scored tokens of each window, of all records of a text in the same order: what a
 * paired comparison resamples. Of more than QB_RESULT_MAX_BLOCKS windows, neighbours are added up.
 */
typedef struct qb_result_windows {
    qb_reals n;             /* tokens */
    qb_reals nll, nll_full; /* nats */
    qb_reals kl, agree;     /* nats; tokens whose likeliest is the same. None of full precision */
} qb_result_windows;
void qb_result_windows_deinit(qb_result_windows *windows); /* accepts a zeroed one */

typedef struct qb_result {
    struct {
        char *path, *name, *sha256, *arch;
        int64_t n_layers, d_model, n_heads, n_params, vocab, context;
        char *softmax, *norm, *optimizer;
        int64_t train_tokens;
    } model;
    struct {
        char *name, *sha256;
        int64_t bytes, tokens;
        char *tokenizer_sha256;
    } text;
    struct {
        char *name;
        int64_t context, stride, batch, windows, scored_tokens;
    } protocol;
    struct {
        char *name;
        int64_t weight_bits;
        char *weight_axis;
        int64_t act_bits;
        char *act_axis, *act_scale;
        int64_t out_bits;
    } scheme;
    struct {
        double ppl_full, ppl, penalty;
        qb_interval penalty_ci95;
        double kl_mean, kl_p99, top1_agreement, bits_per_byte, word_ppl, byte_ppl;
        double ppl_fake, fake_max_logit_diff;
        qb_result_windows windows;
        struct { /* of each token's losses (infer/nll_file.h); path NULL = none was written */
            char *path, *sha256;
            int64_t bytes;
        } nll_file;
    } quality;
    struct {
        int64_t linears, linears_quantised;
        double macs_share, bytes_share;
        qb_texts kept_float;
    } coverage;
    struct {
        int64_t batch, context, decode_after;
        qb_result_timing prefill, decode;
        struct {
            qb_result_timing prefill, decode;
        } full;
    } speed;
    struct {
        int64_t weights_bytes, full_weights_bytes, kv_bytes, scratch_bytes, peak_bytes;
    } memory;
    struct {
        double j_per_token;
        char *source;
    } energy;
    struct {
        char *device, *cpu;
        int64_t cores, threads;
        char *features, *kernels, *os, *kernel_version, *hypervisor, *governor;
        double load;
        int64_t memory_bytes;
        char *compiler;
        struct { /* name NULL = the processor ran it */
            char *name;
            int64_t index;
            char *compute_capability;
            int64_t n_sms, memory_bytes;
            char *driver, *cuda_driver, *cuda_runtime;
            int64_t sm_mhz, sm_max_mhz, memory_mhz;
            double power_w, power_limit_w, power_capped_share, temperature_c;
            char *throttle, *ecc;
            int64_t other_processes;
        } gpu;
    } environment;
    struct {
        char *level;
        qb_texts reasons;
    } trust;
    char *time_utc, *qbench_version, *git_commit, *command;
} qb_result;

typedef enum qb_field_kind {
    QB_FIELD_TEXT,     /* char * */
    QB_FIELD_COUNT,    /* int64_t */
    QB_FIELD_REAL,     /* double */
    QB_FIELD_INTERVAL, /* qb_interval: [low, high] */
    QB_FIELD_TEXTS,    /* qb_texts: [text, ...] */
    QB_FIELD_REALS,    /* qb_reals: [number or null, ...]; files older than the key lack it */
} qb_field_kind;

typedef struct qb_result_field {
    const char *path; /* "speed.prefill.p50_ms": nested objects; NULL ends the table */
    qb_field_kind kind;
    size_t offset;
} qb_result_field;
extern const qb_result_field qb_result_fields[];

void qb_result_init(qb_result *result);   /* nothing measured */
void qb_result_deinit(qb_result *result); /* frees the texts */
/* Replaces a text by a copy; NULL = not measured. */
qb_status qb_result_set(char **text, const char *value);
/* The same from a key of a JSON object; absent = NULL. */
qb_status qb_result_read_text(const json_t *object, const char *key, char **text);
bool qb_result_is_full(const qb_result *result); /* full precision itself: nothing is quantised */
bool qb_result_same_path(const qb_result *a, const qb_result *b); /* of one model's file */
qb_status qb_texts_add(qb_texts *texts, const char *value);
void qb_texts_deinit(qb_texts *texts);
/* Replaces the list by n unset items. */
qb_status qb_reals_resize(qb_reals *reals, size_t n);

typedef struct qb_results {
    qb_result *items;
    size_t n, capacity;
} qb_results;
/* A new record at the end, initialised; borrowed until the next add. */
qb_status qb_results_add(qb_results *results, qb_result **out);
void qb_results_deinit(qb_results *results);

qb_status qb_result_to_json(const qb_result *result, json_t **out);
/* Indented, with a final newline; lists of numbers on one line. */
qb_status qb_json_write_lines(const json_t *root, const char *what, FILE *stream);

/* " text |" with what would end the cell taken away; NULL is "-". */
void qb_markdown_cell(const char *text, FILE *stream);
/* The text as a field of CSV (RFC 4180), in quotes where it needs them. */
void qb_csv_text(const char *text, FILE *stream);
/* The text escaped for XML; NULL is "". */
void qb_xml_text(const char *text, FILE *stream);

/* Writers: the whole of `results` to a stream, whose errors the caller checks. */
typedef qb_status (*qb_results_writer)(const qb_results *results, FILE *stream);
qb_status qb_results_write_json(const qb_results *results, FILE *stream);
qb_status qb_results_write_csv(const qb_results *results, FILE *stream);
qb_status qb_results_write_markdown(const qb_results *results, FILE *stream);
qb_status qb_results_write_junit(const qb_results *results, FILE *stream);
qb_status qb_results_write_screen(const qb_results *results, bool colour, FILE *stream);

#ifdef __cplusplus
}
#endif
#endif
