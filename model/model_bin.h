/* model/model_bin.h - qbench's own file (INTERFACE.md, docs/formats.md).
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
    qb_dtype float_dtype; /* QB_F32 keeps each float tensor as it is; QB_BF16 / QB_F16 narrows */
} qb_model_bin_options;

/* Writes the model, tokenizer inside, atomically. Quantised tensors are written as codes with their
 * scales, zero points and fills. */
qb_status qb_model_bin_write(const qb_model *model, const char *path,
                             const qb_model_bin_options *options);
/* Checks every rule and checksum of the file, changes nothing. *n_tensors may be NULL. */
qb_status qb_model_bin_verify(const char *path, size_t *n_tensors);

bool qb_model_bin_recognise(const char *path, const qb_file *file);
qb_status qb_model_bin_open(const char *path, qb_file *file, qb_model **out);

#ifdef __cplusplus
}
#endif
#endif
