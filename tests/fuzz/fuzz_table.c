/* tests/fuzz/fuzz_table.c - records of runs, pairs, analyses and results, as every table. */
#include "fuzz.h"

#include "core/memory.h"
#include "report/table.h"

#include <stdlib.h>

static void write_all(const qb_table *table, FILE *stream)
{
    if (qb_table_write_screen(table, true, stream) != QB_OK ||
        qb_table_write_markdown(table, stream) != QB_OK ||
        qb_table_write_csv(table, stream) != QB_OK || qb_table_write_json(table, stream) != QB_OK)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_table_records records = {0};
    bool known;
    /* Twice: the second joins the first. */
    for (int i = 0; i < 2; i++)
        if (qb_table_records_parse(&records, (const char *)data, bytes, "x/run.json", &known) !=
            QB_OK)
            break;
    FILE *stream = fopen("/dev/null", "w");
    for (const qb_paper_table *paper = qb_paper_tables; stream && paper->number; paper++) {
        qb_table table;
        if (qb_table_make(paper, &records, &table) != QB_OK) abort();
        write_all(&table, stream);
        qb_table_deinit(&table);
    }
    if (!stream || fclose(stream)) abort();
    qb_table_records_deinit(&records);
    if (qb_memory_live_blocks()) abort();
    return 0;
}
