/* tests/fuzz/fuzz_safetensors.c - the container, and all that can be asked of its tensors. */
#include "fuzz.h"

#include "core/memory.h"
#include "model/safetensors.h"

#include <stdlib.h>

static void read_tensor(const qb_safetensors *st, const qb_st_tensor *t)
{
    if (qb_safetensors_find(st, t->name) != t) abort(); /* names are unique */
    if (!t->n_elems || t->n_elems > 1 << 16) return;
    void *dst = malloc(4 * t->n_elems);
    if (qb_st_tensor_to_f32(t, dst) != QB_OK) qb_st_tensor_to_s32(t, dst);
    free(dst);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_file file = fuzz_file(data, bytes);
    qb_safetensors *st;
    if (qb_safetensors_parse(&file, &st) == QB_OK) {
        size_t total = 0;
        for (size_t i = 0; i < qb_safetensors_n_tensors(st); i++) {
            read_tensor(st, qb_safetensors_get(st, i));
            total += qb_safetensors_get(st, i)->bytes;
        }
        if (total > bytes) abort(); /* no overlap */
        qb_safetensors_close(st);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
