/* tests/fuzz/fuzz_tokenizer_bin.c - the tokenizer inside model.bin: what is accepted is written
 * back as the same bytes, encodes and decodes. */
#include "core/memory.h"
#include "model/tokenizer.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char line[] = "The  year 2024's <|endoftext|>\xff caf\xc3\xa9";
    qb_tokenizer *t;
    if (qb_tokenizer_deserialize(data, size, &t) != QB_OK) return 0;
    uint8_t *again;
    size_t bytes;
    assert(qb_tokenizer_serialize(t, &again, &bytes) == QB_OK);
    assert(bytes == size && !memcmp(again, data, size));
    qb_free(again);
    qb_tokens ids = {0};
    char *text;
    size_t n_bytes;
    assert(qb_tokenizer_encode(t, line, sizeof line - 1, true, &ids) == QB_OK);
    assert(qb_tokenizer_decode(t, ids.ids, ids.n, &text, &n_bytes) == QB_OK);
    qb_free(text);
    qb_tokens_deinit(&ids);
    qb_tokenizer_destroy(t);
    return 0;
}
