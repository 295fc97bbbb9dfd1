/* tests/fuzz/fuzz.h - what the fuzz targets share. Each defines LLVMFuzzerTestOneInput: built by
 * clang it is a libFuzzer program, by another compiler a program that replays the files given. */
#ifndef QB_TESTS_FUZZ_H
#define QB_TESTS_FUZZ_H

#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* The input as an opened file, in memory of exactly its size so that the sanitizer sees every stray
 * read. The data belong to the fuzzer. */
static inline qb_file fuzz_file(const uint8_t *data, size_t bytes)
{
    return (qb_file){.data = data, .bytes = bytes, .path = (char *)"input"};
}

/* Reads all that a model promises: every row of every tensor. */
static inline void fuzz_read_model(const qb_model *model)
{
    static float row[1 << 20]; /* qb_config_check bounds every width by it */
    volatile float sink = 0;
    for (int r = 0; r < QB_ROLE_COUNT; r++)
        for (size_t i = 0; i < (qb_roles[r].per_layer ? model->config.n_layers : 1); i++) {
            const qb_tensor *t = qb_model_tensor(model, (qb_role)r, i);
            if (!t->data) continue;
            for (size_t k = 0; k < t->rows; k++) qb_tensor_rows_f32(t, k, 1, row);
            sink += row[0];
        }
    (void)sink;
}

#endif
