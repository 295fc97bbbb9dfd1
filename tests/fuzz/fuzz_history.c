/* tests/fuzz/fuzz_history.c - histories: lines of records, as series. */
#include "fuzz.h"

#include "core/memory.h"
#include "report/history.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_results history;
    qb_watch watch;
    if (qb_history_parse((const char *)data, bytes, "input", &history) == QB_OK) {
        if (qb_watch_make(&history, 0.01, 1, &watch) != QB_OK) abort();
        qb_watch_deinit(&watch);
        qb_results_deinit(&history);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
