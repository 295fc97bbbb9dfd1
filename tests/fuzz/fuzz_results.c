/* tests/fuzz/fuzz_results.c - result files: what is accepted is written, read and written again as
 * the same bytes. */
#include "fuzz.h"

#include "core/memory.h"
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_results results;
    if (qb_results_parse_json((const char *)data, bytes, "input", &results) == QB_OK) {
        write_and_read(&results);
        qb_results_deinit(&results);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
