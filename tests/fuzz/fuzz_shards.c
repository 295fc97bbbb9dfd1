/* tests/fuzz/fuzz_shards.c - token shards: what is accepted is read to its last token. */
#include "fuzz.h"

#include "core/memory.h"
#include "train/data/shards.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    /* in memory of its own: mappings are aligned, the fuzzer's data are not */
    uint8_t *copy;
    if (qb_alloc((void **)&copy, bytes, 1, "input") != QB_OK) return 0;
    if (bytes) memcpy(copy, data, bytes);
    qb_file file = fuzz_file(copy, bytes);
    qb_shard shard;
    if (qb_shard_parse(&file, &shard) == QB_OK) {
        uint64_t n = shard.header.n_tokens, start = 0;
        int32_t *tokens = malloc(4 * n + 1);
        if (qb_shard_read(&shard, 0, n, tokens) == QB_OK)
            for (uint64_t i = 0; i < n; i++)
                if (tokens[i] < 0 || (uint32_t)tokens[i] >= shard.header.vocab) abort();
        for (uint64_t d = 0; d < shard.header.n_docs; start = shard.doc_end[d++])
            if (shard.doc_end[d] <= start || shard.doc_end[d] > n) abort();
        qb_shard_verify(&shard);
        free(tokens);
    }
    qb_free(copy);
    if (qb_memory_live_blocks()) abort();
    return 0;
}
