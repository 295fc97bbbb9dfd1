/* model/model.h - a model in memory: configuration, tensors (mapped or owned), tokenizer, record.
 *
 * qb_model_open reads any known format (the importer table) and never changes a file. All tensors
 * are row-major (out, in); an importer transposes or permutes where its format differs. A model
 * does not change after it was made. */
#ifndef QB_MODEL_MODEL_H
#define QB_MODEL_MODEL_H

#include "core/dtype.h"
#include "core/file.h"
#include "model/arch.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qb_tokenizer; /* model/tokenizer.h */

/* How the codes of a tensor are to be read (model.bin made by convert --quantize).
 * Slice of element (row n, column k): out n | in k | tensor 0 | group n * n_groups + k /
 * group_elems. */
typedef enum { QB_AXIS_NONE, QB_AXIS_OUT, QB_AXIS_IN, QB_AXIS_TENSOR, QB_AXIS_GROUP } qb_axis;
typedef struct qb_tensor_quant {
    qb_axis axis;       /* QB_AXIS_NONE = float tensor */
    unsigned bits;      /* 8: s8 codes, absmax. 4: u4 codes, zero points */
    size_t group_elems; /* QB_AXIS_GROUP: columns a group; the last may be shorter */
    size_t n_slices;
    const float *scale;        /* (n_slices) borrowed from the model */
    const int32_t *zero_point; /* (n_slices); NULL for absmax */
    const float *fill;         /* (n_slices) value of a slice whose scale is 0; NULL = all 0 */
    const float *fold; /* (cols) static scale of each input channel, multiplied into w before it
                          was quantised: w = q * scale / fold (0 where fold is 0); NULL = none */
} qb_tensor_quant;
/* Slices of (rows, cols) codes; 0 for QB_AXIS_NONE and for groups of 0 columns. */
size_t qb_axis_n_slices(qb_axis axis, size_t group_elems, size_t rows, size_t cols);

typedef struct qb_tensor {
    qb_role role;
    size_t layer_idx;
    qb_dtype dtype;
    size_t rows, cols; /* a vector is (1, n) */
    const void
        *data; /* NULL = the model has no such tensor. Packed rows; alignment as in the file */
    size_t bytes;
    qb_tensor_quant quant;
} qb_tensor;

typedef struct qb_model {
    qb_config config;
    char *name;         /* for display: the file's own name for itself, or its stem */
    char *path;         /* as opened */
    char *format;       /* "model.bin", "gguf", "safetensors", "hf", "llm.c", "random" */
    qb_tensor *tensors; /* QB_ROLE_COUNT x n_layers slots (see qb_model_tensor) */
    struct qb_tokenizer *tokenizer; /* NULL where the file has none */
    json_t *training;               /* training record, NULL = none: optimizer, tokens, seed, ... */
    json_t *calibration;            /* NULL = none; the object written by quant/calibration.h */
    qb_file *files;                 /* mappings that tensors point into; owned */
    size_t n_files;
    void **blocks; /* owned memory that tensors point into */
    size_t n_blocks;
    char *stored_scheme; /* scheme that the codes were made for, NULL = none; owned */
    bool quantized;      /* at least one linear layer holds codes */
} qb_model;

/* PATH: model.bin, .gguf, .safetensors (with config.json beside it), an HF folder, llm.c .bin;
 * found by content, not by name. Errors: QB_ERR_IO, QB_ERR_FORMAT (message names file, rule, found,
 * expected), QB_ERR_UNSUPPORTED, QB_ERR_MEMORY. */
qb_status qb_model_open(const char *path, qb_model **out);
void qb_model_close(qb_model *model); /* accepts NULL */

/* Borrowed; ->data is NULL where the configuration has no such tensor. */
const qb_tensor *qb_model_tensor(const qb_model *model, qb_role role, size_t layer_idx);
/* Tensors that are there. */
size_t qb_model_n_tensors(const qb_model *model);
/* Bytes of the mapped files. */
size_t qb_model_file_bytes(const qb_model *model);
/* The head's weights: QB_ROLE_HEAD, or the embedding where tied. */
const qb_tensor *qb_model_head(const qb_model *model);

/* dst (n_rows x cols) = rows [first_row, first_row + n_rows) as f32, exactly; codes are
 * dequantised: (q - zero_point) * scale, or fill where scale is 0. */
void qb_tensor_rows_f32(const qb_tensor *tensor, size_t first_row, size_t n_rows, float *dst);
/* Tells the system that the mapped pages behind the tensor are not needed for now. */
void qb_tensor_forget(const qb_model *model, const qb_tensor *tensor);

/* ---- for importers (model/import_*.c, model/model_bin.c, random) ---- */

/* An empty model with all slots for the checked configuration, data NULL. */
qb_status qb_model_create(const qb_config *config, const char *path, const char *format,
                          qb_model **out);
/* Hands the mapping over to the model (file is zeroed). */
qb_status qb_model_take_file(qb_model *model, qb_file *file);
/* Replaces the display name, which starts as the path's stem. */
qb_status qb_model_set_name(qb_model *model, const char *name);
/* A block of memory owned by the model. */
qb_status qb_model_new_block(qb_model *model, size_t bytes, void **out);
/* Sets a tensor after checking that the configuration has it, that rows x cols match and that bytes
 * are right for the dtype. `what` = the name in the foreign file, for messages. A second set of the
 * same slot is refused. */
qb_status qb_model_set(qb_model *model, qb_role role, size_t layer_idx, qb_dtype dtype, size_t rows,
                       size_t cols, const void *data, size_t bytes, const char *what);
/* Says how the codes (s8 for 8 bits, u4 for 4) of a tensor already set are read, after checking
 * that the dtype, the axis and n_slices fit; the arrays are borrowed from one of the model's
 * blocks. */
qb_status qb_model_set_quant(qb_model *model, qb_role role, size_t layer_idx,
                             const qb_tensor_quant *quant, const char *what);
/* Every tensor of the configuration is there and can be read as numbers, or QB_ERR_FORMAT naming
 * the first that cannot. */
qb_status qb_model_check_complete(const qb_model *model);

typedef struct qb_importer {
    const char *name; /* = qb_model.format */
    /* True if the file (or folder: file NULL) is of this format, judged by its first bytes. */
    bool (*recognise)(const char *path, const qb_file *file);
    /* Takes the mapping over (file NULL for a folder). Closes it on failure too. */
    qb_status (*open)(const char *path, qb_file *file, qb_model **out);
} qb_importer;
extern const qb_importer qb_importers[]; /* model/importers.c; ends with a zero row */

#ifdef __cplusplus
}
#endif
#endif
