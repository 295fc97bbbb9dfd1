/* tests/fuzz/fuzz_tokenizer_json.c - tokenizer.json: parse, encode a line, decode it, write it. */
#include "core/json.h"
#include "core/memory.h"
#include "model/tokenizer.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char line[] = "The  year 2024's <|endoftext|>\xff caf\xc3\xa9";
    json_t *root;
    if (qb_json_parse((const char *)data, size, 1 << 20, "fuzz", &root) != QB_OK) return 0;
    qb_tokenizer *t;
    if (qb_tokenizer_from_hf_json(root, "fuzz", &t) == QB_OK) {
        qb_tokens ids = {0};
        char *text;
        size_t n_bytes;
        json_t *written;
        assert(qb_tokenizer_encode(t, line, sizeof line - 1, true, &ids) == QB_OK);
        assert(qb_tokenizer_decode(t, ids.ids, ids.n, &text, &n_bytes) == QB_OK);
        qb_free(text);
        qb_tokens_deinit(&ids);
        if (qb_tokenizer_to_hf_json(t, &written) == QB_OK) json_decref(written);
        qb_tokenizer_destroy(t);
    }
    json_decref(root);
    return 0;
}
