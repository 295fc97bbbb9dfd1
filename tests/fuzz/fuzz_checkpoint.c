/* tests/fuzz/fuzz_checkpoint.c - checkpoints of training. The sizes and CRCs of the header are made
 * to fit first, since no fuzzer guesses a CRC: what is tested is the JSON and the rules of sizes.
 */
#include "fuzz.h"

#include "train/checkpoint.h"

#include <string.h>

/* The first byte chooses whether the header's sizes are made to fit too. */
static void make_header_fit(uint8_t *file, size_t size, bool sizes_too)
{
    uint64_t json_bytes, total = size;
    if (sizes_too) memcpy(file + 40, &total, 8);
    memcpy(&json_bytes, file + 16, 8);
    if (json_bytes <= size - 64) {
        uint32_t json_crc = qb_crc32(file + 64, json_bytes);
        memcpy(file + 12, &json_crc, 4);
    }
    uint32_t crc = qb_crc32(file, 60);
    memcpy(file + 60, &crc, 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static _Alignas(64) uint8_t bytes[1 << 16];
    if (size < 65 || size > sizeof bytes) return 0;
    memcpy(bytes, data + 1, size - 1);
    make_header_fit(bytes, size - 1, data[0] % 2);
    qb_file file = fuzz_file(bytes, size - 1);
    qb_checkpoint checkpoint;
    if (qb_checkpoint_parse(&file, &checkpoint) != QB_OK) return 0;
    volatile float sink = 0;
    for (size_t i = 0; i < checkpoint.n_buffers; i++)
        for (size_t k = 0; k < checkpoint.n_elems; k++) sink += checkpoint.buffers[i][k];
    (void)sink;
    return 0;
}
