/* tests/fuzz/fuzz_pages.c - analyses and profiles, as a page. */
#include "fuzz.h"

#include "core/memory.h"
#include "report/html.h"

#include <stdlib.h>

static void write_page(const qb_report *report)
{
    FILE *stream = fopen("/dev/null", "w");
    if (!stream || qb_report_write_html(report, "input", stream) != QB_OK) abort();
    fclose(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    json_t *root;
    qb_analysis_record analysis;
    qb_profile_seen profile;
    if (qb_json_parse((const char *)data, bytes, 1 << 20, "input", &root) == QB_OK) {
        if (qb_analysis_record_read(root, "input", &analysis) == QB_OK) {
            write_page(&(qb_report){.analyses = &analysis, .n_analyses = 1});
            qb_analysis_record_deinit(&analysis);
        }
        if (qb_profile_seen_read(root, "input", &profile) == QB_OK) {
            write_page(&(qb_report){.profiles = &profile, .n_profiles = 1});
            qb_profile_seen_deinit(&profile);
        }
        json_decref(root);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
