/* model/hf_internal.h - what reading and writing Hugging Face folders share: config.json and the
 * names of tensors. */
#ifndef QB_MODEL_HF_INTERNAL_H
#define QB_MODEL_HF_INTERNAL_H

#include "model/model.h"

/* JSON in memory takes up to 85 times its text: config.json and the index are held to this. */
#define QB__HF_MAX_JSON_BYTES ((size_t)1 << 20)

/* config.json (any age) as a checked configuration. Refuses by name what qbench cannot compute. */
qb_status qb__hf_config_from_json(const json_t *root, qb_config *out);
/* config.json for the configuration: the family's own where transformers computes the same, else
 * model_type "qbench" with the whole configuration under the key "qbench". *foreign = the former.
 */
qb_status qb__hf_config_to_json(const qb_config *config, json_t **out, bool *foreign);

typedef enum { QB__HF_UNKNOWN, QB__HF_TENSOR, QB__HF_HARMLESS } qb__hf_kind;
/* How a tensor lies in the file. */
typedef struct qb__hf_form {
    bool transposed;    /* Conv1D, stored (in, out) */
    size_t unused_rows; /* stand before the first that the model uses; not with transposed */
} qb__hf_form;
/* What a tensor's name means. */
qb__hf_kind qb__hf_find_name(const qb_arch *arch, const char *name, qb_role *role,
                             size_t *layer_idx, qb__hf_form *form);
/* The other way; false where the family has no such tensor. */
bool qb__hf_format_name(const qb_arch *arch, qb_role role, size_t layer_idx, char *text,
                        size_t capacity, qb__hf_form *form);

/* dst (cols, rows) = transposed src (rows, cols), elements of 2, 4 or 8 bytes, any alignment. */
void qb__transpose(const void *src, size_t rows, size_t cols, size_t elem_bytes, void *dst);

#endif
