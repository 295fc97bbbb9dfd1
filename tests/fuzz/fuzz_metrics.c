/* tests/fuzz/fuzz_metrics.c - curves of training runs, as a page. */
#include "fuzz.h"

#include "core/memory.h"
#include "report/html.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_metrics run;
    bool is_run;
    if (qb_metrics_recognise((const char *)data, bytes, &is_run) != QB_OK) abort();
    if (qb_metrics_parse((const char *)data, bytes, "input", &run) == QB_OK) {
        const qb_report report = {.runs = &run, .n_runs = 1};
        FILE *stream = fopen("/dev/null", "w");
        if (!stream || qb_report_write_html(&report, "input", stream) != QB_OK) abort();
        fclose(stream);
        qb_metrics_deinit(&run);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
