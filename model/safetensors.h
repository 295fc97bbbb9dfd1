/* model/safetensors.h - the safetensors container, for models and for plain files of tensors.
 *
 *   u64 N | N bytes of JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} | data
 *
 * Reading is strict (huggingface/safetensors, README "Format"): the tensors tile the data without
 * holes, overlap or remainder, keys are unique, every size is checked before anything is allocated.
 * Data need no alignment: copy, do not cast. Errors name the file, the rule and the tensor. */
#ifndef QB_MODEL_SAFETENSORS_H
#define QB_MODEL_SAFETENSORS_H

#include "core/dtype.h"
#include "core/file.h"

#include <jansson.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QB_ST_MAX_RANK 8

typedef struct qb_st_tensor {
    const char *name;
    const char *dtype; /* as in the file: "F32", "I64", "BOOL", ... */
    bool known;        /* `as` is the same type here; false for the exotic ones */
    qb_dtype as;
    size_t rank, shape[QB_ST_MAX_RANK];
    size_t n_elems;
    const uint8_t *data; /* into the mapping */
    size_t bytes;
} qb_st_tensor;

typedef struct qb_safetensors qb_safetensors;

/* Maps the file and checks all of it. */
qb_status qb_safetensors_open(const char *path, qb_safetensors **out);
/* The same on a mapping that the caller keeps open for as long as the result lives. */
qb_status qb_safetensors_parse(const qb_file *file, qb_safetensors **out);
void qb_safetensors_close(qb_safetensors *st); /* accepts NULL; closes what open mapped */
const char *qb_safetensors_path(const qb_safetensors *st);

size_t qb_safetensors_n_tensors(const qb_safetensors *st);
/* Tensors in the order of their data; borrowed, as all that follows. */
const qb_st_tensor *qb_safetensors_get(const qb_safetensors *st, size_t i);
const qb_st_tensor *qb_safetensors_find(const qb_safetensors *st, const char *name); /* or NULL */
/* The file's __metadata__ object (strings only), NULL where absent. */
const json_t *qb_safetensors_metadata(const qb_safetensors *st);

/* All elements as f32 (F32, F16, BF16, F64) or as int32 (I32, I64, I16, I8, U8; out of range is
 * refused). dst has n_elems elements. */
qb_status qb_st_tensor_to_f32(const qb_st_tensor *tensor, float *dst);
qb_status qb_st_tensor_to_s32(const qb_st_tensor *tensor, int32_t *dst);

/* ---- writing ---- */

typedef struct qb_st_entry {
    const char *name;
    qb_dtype dtype; /* one that the format has: no block types, no u4 */
    size_t rank, shape[QB_ST_MAX_RANK];
    const void *data; /* for qb_safetensors_write only */
} qb_st_entry;

typedef struct qb_st_writer qb_st_writer;
/* Writes the header for n entries (unique names) into PATH's temporary file. metadata: an object of
 * strings or NULL. Entries are borrowed until commit. */
qb_status qb_st_writer_open(const char *path, const qb_st_entry *entries, size_t n,
                            const json_t *metadata, qb_st_writer **out);
/* Puts bytes at an offset inside entry i; any order, each byte once. */
qb_status qb_st_writer_put(qb_st_writer *writer, size_t i, size_t offset, const void *data,
                           size_t bytes);
/* Renames onto PATH; frees the writer in every case. All bytes of all entries have been put. */
qb_status qb_st_writer_commit(qb_st_writer *writer);
void qb_st_writer_abandon(qb_st_writer *writer); /* accepts NULL */

/* The whole file at once, from entries[].data. */
qb_status qb_safetensors_write(const char *path, const qb_st_entry *entries, size_t n,
                               const json_t *metadata);

#ifdef __cplusplus
}
#endif
#endif
