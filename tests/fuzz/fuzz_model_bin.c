/* tests/fuzz/fuzz_model_bin.c - model.bin. The sizes and the CRC of the fixed header are made to
 * fit first, since no fuzzer guesses a CRC: what is tested is the JSON, the table and the payloads.
 * A model that opens must be readable to its last row. */
#include "core/file.h"
#include "core/memory.h"
#include "model/model_bin.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void make_header_fit(uint8_t *file, size_t size)
{
    uint64_t total = size, digest_offset = size - 32, json_bytes;
    memcpy(file + 32, &total, 8);
    memcpy(file + 40, &digest_offset, 8);
    memcpy(&json_bytes, file + 16, 8);
    if (json_bytes > size - 64) return;
    uint32_t crc = qb_crc32(file + 64, json_bytes);
    memcpy(file + 12, &crc, 4);
}

static void read_all(const qb_model *model)
{
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t l = 0; l < model->config.n_layers; l++) {
            const qb_tensor *t = qb_model_tensor(model, (qb_role)r, l);
            float *row;
            if (!t->data || qb_alloc((void **)&row, t->cols, 4, "row") != QB_OK) continue;
            for (size_t i = 0; i < t->rows; i++) qb_tensor_rows_f32(t, i, 1, row);
            qb_free(row);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t file[1 << 20];
    if (size < 96 || size > sizeof file) return 0;
    memcpy(file, data, size);
    make_header_fit(file, size);
    int fd = memfd_create("model.bin", MFD_CLOEXEC);
    assert(fd >= 0 && write(fd, file, size) == (ssize_t)size);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    qb_file mapped;
    qb_model *model;
    assert(qb_file_open(path, &mapped) == QB_OK);
    if (qb_model_bin_open(path, &mapped, &model) == QB_OK) {
        read_all(model);
        qb_model_close(model);
    }
    close(fd);
    return 0;
}
