/* model/importers_internal.h - the entries of the importer table, and the parts that tests and fuzz
 * targets call with a file in memory. */
#ifndef QB_MODEL_IMPORTERS_INTERNAL_H
#define QB_MODEL_IMPORTERS_INTERNAL_H

#include "model/model.h"

bool qb__gguf_recognise(const char *path, const qb_file *file);
qb_status qb__gguf_open(const char *path, qb_file *file, qb_model **out);
bool qb__safetensors_recognise(const char *path, const qb_file *file);
qb_status qb__safetensors_model_open(const char *path, qb_file *file, qb_model **out);
bool qb__llmc_recognise(const char *path, const qb_file *file);
qb_status qb__llmc_open(const char *path, qb_file *file, qb_model **out);
bool qb__hf_recognise(const char *path, const qb_file *file);
qb_status qb__hf_open(const char *path, qb_file *file, qb_model **out);

/* A model whose tensors point into the file, which the caller keeps (or hands over). */
qb_status qb__gguf_build(const qb_file *file, qb_model **out);
qb_status qb__llmc_build(const qb_file *file, qb_model **out);
/* Opens by such a builder: the file is the model's from then on, closed on failure. */
qb_status qb__open_built(const char *path, qb_file *file,
                         qb_status (*build)(const qb_file *file, qb_model **out), qb_model **out);

#endif
