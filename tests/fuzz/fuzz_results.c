/* tests/fuzz/fuzz_results.c - result files: what is accepted is written, read and written again as
 * the same bytes, and compared with itself. */
#include "fuzz.h"

#include "core/memory.h"
#include "report/gate.h"
#include "report/read_json.h"

#include <stdlib.h>
#include <string.h>

static char *written(const qb_results *results, size_t *bytes)
{
    char *text;
    FILE *stream = open_memstream(&text, bytes);
    if (!stream || qb_results_write_json(results, stream) != QB_OK || fclose(stream)) abort();
    return text;
}

static void write_and_read(const qb_results *results)
{
    qb_results again;
    size_t bytes, bytes_again;
    char *text = written(results, &bytes);
    if (qb_results_parse_json(text, bytes, "written", &again) != QB_OK) abort();
    char *second = written(&again, &bytes_again);
    if (bytes != bytes_again || memcmp(text, second, bytes)) abort();
    free(text);
    free(second);
    qb_results_deinit(&again);
}

/* With itself: whatever the records hold is compared, judged and written. */
static void compare(const qb_results *results)
{
    const qb_compare_side side = {results, "input"};
    const qb_compare_options options = {
        .margin_ppl = 0.001, .margin_speed = 0.01, .n_resamples = 3};
    qb_comparison comparison;
    qb_gate gate;
    qb_gate_limits limits;
    if (qb_compare(&side, &side, &options, &comparison) != QB_OK) return;
    qb_gate_limits_init(&limits);
    for (size_t i = 0; i < QB_LIMIT_COUNT; i++) limits.limits[i] = (qb_amount){0.01, true};
    if (qb_gate_judge(&comparison, &limits, false, &gate) != QB_OK) abort();
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    if (!stream || qb_gate_write_markdown(&gate, stream) != QB_OK ||
        qb_comparison_write_screen(&comparison, false, stream) != QB_OK ||
        qb_gate_write_screen(&gate, false, stream) != QB_OK ||
        qb_gate_write_junit(&gate, stream) != QB_OK || fclose(stream))
        abort();
    free(text);
    qb_gate_deinit(&gate);
    qb_comparison_deinit(&comparison);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_results results;
    if (qb_results_parse_json((const char *)data, bytes, "input", &results) == QB_OK) {
        write_and_read(&results);
        compare(&results);
        qb_results_deinit(&results);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
