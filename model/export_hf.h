/* model/export_hf.h - a model as a Hugging Face folder: config.json, model.safetensors,
 * tokenizer.json.
 *
 * Where transformers computes the same (GPT2, Llama), the folder loads there. What it cannot
 * express (softmax-1, RMSNorm-Single, GPT2 without biases, ...) gets model_type "qbench" and the
 * whole configuration under the key "qbench": transformers refuses it instead of computing
 * something else, and qb_model_open reads it back. */
#ifndef QB_MODEL_EXPORT_HF_H
#define QB_MODEL_EXPORT_HF_H

#include "model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the folder where it is absent; each file is written atomically. F32, F16 and BF16 tensors
 * keep their type, block formats are widened to f32. QB_ERR_UNSUPPORTED: the model holds integer
 * codes, its layers have no names there, or its tokenizer is SentencePiece by scores. */
qb_status qb_model_export_hf(const qb_model *model, const char *folder);

#ifdef __cplusplus
}
#endif
#endif
