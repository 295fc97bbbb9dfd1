/* model/gguf.h - the GGUF v3 container (ggml/docs/gguf.md): keys and values, and tensors.
 *
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_kv | KVs | tensor infos | padding | data
 *
 * Nothing is copied: strings, arrays and tensors point into the file, which outlives the result.
 * One linear pass checks every length against the remaining bytes before it is used. */
#ifndef QB_MODEL_GGUF_H
#define QB_MODEL_GGUF_H

#include "core/dtype.h"
#include "core/file.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qb_gguf_type {
    QB_GGUF_U8,
    QB_GGUF_S8,
    QB_GGUF_U16,
    QB_GGUF_S16,
    QB_GGUF_U32,
    QB_GGUF_S32,
    QB_GGUF_F32,
    QB_GGUF_BOOL,
    QB_GGUF_STRING,
    QB_GGUF_ARRAY,
    QB_GGUF_U64,
    QB_GGUF_S64,
    QB_GGUF_F64,
    QB_GGUF_TYPE_COUNT
} qb_gguf_type;

typedef struct qb_gguf_text { /* not terminated */
    const char *data;
    size_t bytes;
} qb_gguf_text;

typedef struct qb_gguf_kv {
    qb_gguf_text key;
    qb_gguf_type type; /* of the value; of the items where is_array */
    bool is_array;
    size_t n;             /* items; 1 for a single value */
    const uint8_t *value; /* first item; a string item is a u64 length and its bytes */
    size_t value_bytes;
} qb_gguf_kv;

typedef struct qb_gguf_tensor {
    qb_gguf_text name;
    qb_dtype dtype;
    size_t n_dims, rows, cols; /* cols = ne[0], the fastest; rows = product of the others */
    const uint8_t *data;
    size_t bytes;
} qb_gguf_tensor;

typedef struct qb_gguf {
    const qb_file *file;
    qb_gguf_kv *kvs; /* sorted by key */
    size_t n_kvs;
    qb_gguf_tensor *tensors; /* in the file's order */
    size_t n_tensors;
    size_t alignment;
} qb_gguf;

/* Checks the whole container. The caller calls qb_gguf_deinit on success. */
qb_status qb_gguf_parse(const qb_file *file, qb_gguf *out);
void qb_gguf_deinit(qb_gguf *gguf);

const qb_gguf_kv *qb_gguf_find(const qb_gguf *gguf, const char *key); /* NULL = absent */
/* Single values; an absent key leaves *out as it is, a wrong type or range is QB_ERR_FORMAT. */
qb_status qb_gguf_get_size(const qb_gguf *gguf, const char *key, size_t max, size_t *out);
qb_status qb_gguf_get_double(const qb_gguf *gguf, const char *key, double *out);
qb_status qb_gguf_get_bool(const qb_gguf *gguf, const char *key, bool *out);
qb_status qb_gguf_get_text(const qb_gguf *gguf, const char *key, qb_gguf_text *out);
/* The string at *cursor (inside the value of an array of strings), and moves on. */
qb_gguf_text qb_gguf_next_text(const uint8_t **cursor);
/* For messages and comparisons. */
bool qb_gguf_text_is(qb_gguf_text text, const char *word);

#ifdef __cplusplus
}
#endif
#endif
