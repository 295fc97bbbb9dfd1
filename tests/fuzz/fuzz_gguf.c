/* tests/fuzz/fuzz_gguf.c - GGUF files as models, tokenizer included. */
#include "fuzz.h"

#include "core/memory.h"
#include "model/importers_internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_file file = fuzz_file(data, bytes);
    qb_model *model;
    if (qb__gguf_build(&file, &model) == QB_OK) {
        fuzz_read_model(model);
        qb_model_close(model);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
