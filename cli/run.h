/* cli/run.h - the parts of `qbench run` (cli/cmd_run.c): text and windows, engines, records; and
 * its main part, for the gate. */
#ifndef QB_CLI_RUN_H
#define QB_CLI_RUN_H

#include "cli/cli.h"
#include "infer/environment.h"
#include "infer/quality.h"
#include "infer/speed.h"
#include "report/result.h"

/* ---- cli/cmd_run.c ---- */

/* What a caller holds in the place of the command line's one model and text; all borrowed. */
typedef struct qb_run_given {
    qb_model *model;
    const char *text; /* NULL = what the command line says */
    size_t n_text_bytes;
    const int32_t *tokens; /* in the place of a text, each checked; NULL = none */
    size_t n_tokens;
} qb_run_given;
/* All models of a command line of `run`, or what is given (NULL = nothing), measured; what the line
 * says of outputs is not looked at. The caller deinits *out after success. */
qb_status qb_run_measure(const qb_cli *cli, const qb_run_given *given, qb_results *out);

/* ---- cli/run_text.c: what is evaluated ---- */

typedef struct qb_run_text {
    const qb_protocol *protocol;
    qb_stream stream;
    qb_windows windows;
    size_t batch;
    double n_bytes, n_words; /* behind the scored tokens; NaN = unknown */
} qb_run_text;
/* That the model has a tokenizer to read a text with. */
qb_status qb_run_text_check(const qb_model *model);
/* Tokens (of the text, or those given, where given is not NULL and has some) and windows for one
 * model, by --protocol, --context, --stride, --max-tokens and --batch. Without --context a short
 * text shrinks the windows, and that is said. */
qb_status qb_run_text_open(const qb_cli *cli, const qb_model *model, const qb_text *text,
                           const qb_run_given *given, qb_run_text *out);
void qb_run_text_close(qb_run_text *text); /* accepts a zeroed one */

/* ---- cli/run_engines.c: what is compared ---- */

typedef struct qb_run_scheme {
    qb_scheme scheme;
    bool is_full;          /* quantises nothing: the full engine stands for it */
    const qb_model *codes; /* borrowed from the cache; NULL for full */
} qb_run_scheme;

typedef struct qb_run_codes {
    qb_weight_quant quant;
    qb_model *model;
} qb_run_codes;

/* The schemes asked for, and the quantised weights that they share: schemes with equal weights, an
 * integer engine and its twin, quality and speed all use one set of codes. */
typedef struct qb_run_schemes {
    qb_run_scheme *items;
    size_t n;
    qb_run_codes *codes;
    size_t n_codes;
    qb_calibration *calibration; /* NULL where no scheme needs it */
    bool quantize_head;
} qb_run_schemes;
qb_status qb_run_schemes_open(const qb_cli *cli, const qb_model *model, const qb_device *device,
                              qb_pool *pool, qb_run_schemes *out);
void qb_run_schemes_close(qb_run_schemes *schemes); /* accepts a zeroed one */

typedef struct qb_run_engines {
    qb_engine **items; /* [0] full precision, [1 + i] scheme i, NULL where that is full */
    qb_engine **fakes; /* [i] twin of scheme i, NULL = none */
    size_t n;          /* schemes */
} qb_run_engines;
/* cache_batch 0 = prefill only. */
qb_status qb_run_engines_create(const qb_run_schemes *schemes, qb_backbone *backbone,
                                bool with_fakes, size_t cache_batch, size_t cache_context,
                                qb_run_engines *out);
void qb_run_engines_destroy(qb_run_engines *engines); /* accepts a zeroed one */

/* What is to be remembered of an engine. */
typedef struct qb_run_facts {
    qb_coverage coverage;
    qb_engine_memory memory;
    char kernels[512];
} qb_run_facts;

/* ---- cli/run_record.c: what was seen ---- */

typedef struct qb_run_seen {
    const qb_cli *cli;
    const qb_model *model;
    const char *model_sha256; /* NULL for a folder */
    const qb_text *text;
    const qb_run_text *run_text;     /* NULL = quality was not measured */
    const qb_quality *quality;       /* likewise */
    const qb_speed_plan *speed_plan; /* NULL = speed was not measured */
    const qb_speed *speed;           /* likewise; engines as in qb_run_engines without NULLs */
    const qb_machine_watch *watch;   /* likewise */
    const qb_machine *machine;
    size_t n_threads;
    const char *time_utc;
    const qb_run_schemes *schemes;
    const qb_run_facts *facts; /* as qb_run_engines.items */
} qb_run_seen;
/* The part of a record that is the same for all schemes: model, machine, command, and where
 * run_text is not NULL text and protocol. schemes, quality, speed and facts are not looked at. */
qb_status qb_run_record_common(const qb_run_seen *seen, qb_result *out);
/* Fills the record of scheme `i`; speed_idx is its engine in seen->speed. */
qb_status qb_run_record(const qb_run_seen *seen, size_t i, size_t speed_idx, qb_result *out);

#endif
