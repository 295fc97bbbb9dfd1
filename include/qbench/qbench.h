/* qbench/qbench.h - qbench as a library: what a quantisation scheme costs a language model.
 *
 *     qbench_model *model;
 *     char *json;
 *     if (qbench_model_open("model.bin", &model) ||
 *         qbench_evaluate_text(model, "coarse", text, n_bytes, NULL, &json))
 *         fprintf(stderr, "%s\n", qbench_error());
 *
 * The numbers are those of the program: the record that `qbench run --json` writes
 * (docs/result.schema.json), made by the same code. `options` are words of the program's command
 * line (`qbench help run`, `qbench help logits`), ended by NULL; NULL = none.
 *
 * Threads: any thread may call; calls that work on a model run one after another, each on as many
 * threads as --threads says. A model must not be closed while a call uses it. qbench_error is the
 * calling thread's. Nothing prints, reads the environment's locale or ends the process.
 *
 * Versions: functions keep their meaning within QBENCH_API_VERSION, and symbols are versioned
 * (QBENCH_1). Everything is C, also from C++. */
#ifndef QBENCH_QBENCH_H
#define QBENCH_QBENCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QBENCH_API_VERSION 1

#if defined(__GNUC__)
#define QBENCH_API __attribute__((visibility("default")))
#else
#define QBENCH_API
#endif

/* The program's exit codes. */
typedef enum qbench_status {
    QBENCH_OK = 0,
    QBENCH_ERR_USAGE = 2,        /* an unknown scheme or option, a value out of range */
    QBENCH_ERR_INPUT = 3,        /* a bad file, text or token */
    QBENCH_ERR_DEVICE = 4,       /* device or memory */
    QBENCH_ERR_INTERRUPTED = 130 /* qbench_interrupt */
} qbench_status;

QBENCH_API int qbench_api_version(void);     /* of the library that is loaded */
QBENCH_API const char *qbench_version(void); /* "0.1.0 (commit 0123456789ab)" */
/* What the calling thread's last failure was: one line, "" before any. Stays until its next call.
 */
QBENCH_API const char *qbench_error(void);
/* Names of the schemes, i from 0; NULL after the last. */
QBENCH_API const char *qbench_scheme_name(size_t i);

/* model.bin, GGUF, safetensors, a Hugging Face folder or llm.c .bin. */
typedef struct qbench_model qbench_model;
QBENCH_API qbench_status qbench_model_open(const char *path, qbench_model **out);
QBENCH_API void qbench_model_close(qbench_model *model); /* accepts NULL */
QBENCH_API const char *qbench_model_name(const qbench_model *model);
QBENCH_API size_t qbench_model_vocab(const qbench_model *model);
QBENCH_API size_t qbench_model_context(const qbench_model *model); /* as trained */

/* Ids of a text by the model's own tokenizer, without a first token; (*n_ids), to qbench_free. */
QBENCH_API qbench_status qbench_tokenize(qbench_model *model, const char *text, size_t n_bytes,
                                         int32_t **ids, size_t *n_ids);

/* Full precision against one scheme, a comma list of them, or "all", on a text (plain UTF-8, or
 * what --text takes, compressed too; NULL = the built-in one) or on tokens. *json: the document
 * that --json writes, one record a scheme, to qbench_free. Speed is measured too unless options
 * hold "--no-speed". */
QBENCH_API qbench_status qbench_evaluate_text(qbench_model *model, const char *schemes,
                                              const char *text, size_t n_bytes,
                                              const char *const *options, char **json);
QBENCH_API qbench_status qbench_evaluate_tokens(qbench_model *model, const char *schemes,
                                                const int32_t *tokens, size_t n_tokens,
                                                const char *const *options, char **json);

/* Logits of tokens (batch, n_tokens), all of it one batch: logits (batch, n_tokens, vocab), the
 * caller's. scheme NULL = what the file is stored in, else full precision. */
QBENCH_API qbench_status qbench_logits(qbench_model *model, const char *scheme,
                                       const int32_t *tokens, size_t batch, size_t n_tokens,
                                       const char *const *options, float *logits);

/* 1: calls in progress and to come end with QBENCH_ERR_INTERRUPTED, until 0. Async-signal-safe. */
QBENCH_API void qbench_interrupt(int wanted);
QBENCH_API void qbench_free(void *block); /* what the library gave; accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
