/* model/model_bin.h - qbench's own file (docs/formats.md).
 *
 *   64-byte header | JSON | tensor payloads, each 64-byte aligned, raw or zlib | 32-byte SHA-256
 *
 * Little-endian. Each payload has a CRC-32 of its stored bytes; JSON has one in the header; the
 * SHA-256 at the end covers all before it. Opening checks sizes, JSON and the CRC of every payload
 * (in parallel); verify checks the digest too. Raw float payloads are mapped, not copied. */
#ifndef QB_MODEL_MODEL_BIN_H
#define QB_MODEL_MODEL_BIN_H

#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_model_bin_options {
    int zlib_level;       /* 0 = raw payloads, else 1..9: deflated where that makes them smaller */
    bool convert_floats;  /* false = every float tensor keeps its dtype */
    qb_dtype float_dtype; /* else QB_F32, QB_F16 or QB_BF16 for matrices; vectors become f32 */
    size_t n_threads;     /* 0 = as many as this process may use */
} qb_model_bin_options;

/* Names of qb_axis in the file: "none" "out" "in" "tensor" "group". */
extern const char *const qb_axis_names[QB_AXIS_GROUP + 1];

/* Writes the model, tokenizer inside, atomically. Quantised tensors are written as codes with their
 * scales, zero points and fills. The same model and options give the same bytes. options NULL = as
 * zeroed. */
qb_status qb_model_bin_write(const qb_model *model, const char *path,
                             const qb_model_bin_options *options);
/* Checks every rule and checksum of the file, digest included, changes nothing. n_tensors may be
 * NULL. */
qb_status qb_model_bin_verify(const char *path, size_t *n_tensors);

bool qb_model_bin_recognise(const char *path, const qb_file *file);
/* An importer's open (model.h): everything but the digest is checked. */
qb_status qb_model_bin_open(const char *path, qb_file *file, qb_model **out);

#ifdef __cplusplus
}
#endif
#endif
