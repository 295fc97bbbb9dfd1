/* tests/fuzz/fuzz_limits.c - limits files of the gate. */
#include "fuzz.h"

#include "core/memory.h"
#include "report/gate.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_gate_limits limits;
    qb_gate_limits_init(&limits);
    (void)!qb_gate_limits_parse((const char *)data, bytes, "input", &limits);
    qb_gate_limits_deinit(&limits);
    if (qb_memory_live_blocks()) abort();
    return 0;
}
