/* model/gguf_internal.h - between the two halves of the GGUF importer. */
#ifndef QB_MODEL_GGUF_INTERNAL_H
#define QB_MODEL_GGUF_INTERNAL_H

#include "model/gguf.h"
#include "model/tokenizer.h"

/* The tokenizer in the metadata; *out stays NULL where the file has none. default_pre: what a file
 * without tokenizer.ggml.pre means, NULL = refuse. */
qb_status qb__gguf_tokenizer(const qb_gguf *gguf, const char *default_pre, size_t vocab,
                             qb_tokenizer **out);

#endif
