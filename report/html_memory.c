/* report/html_memory.c - what each scheme's weights take in memory. */
#include "report/html_internal.h"

#include <math.h>

static bool has_memory(const qb_result *r)
{
    return r->memory.weights_bytes >= 0;
}

/* Files on another text say the same again. */
static bool is_repeated(const qb_result *const *rows, size_t i)
{
    for (size_t j = 0; j < i; j++)
        if (qb_same_model(rows[j], rows[i]) &&
            qb_same_text(rows[j]->scheme.name, rows[i]->scheme.name) &&
            rows[j]->memory.weights_bytes == rows[i]->memory.weights_bytes)
            return true;
    return false;
}

static qb_bar memory_bar(qb_page *page, const qb_result *r, const char *scheme, int64_t bytes)
{
    qb_bar b = {.colour = qb_page_colour(page, scheme), .value = (double)bytes / 1e6};
    char text[100];
    b.ci = (qb_interval){NAN, NAN};
    b.group = r->model.name ? r->model.name : "unnamed";
    snprintf(b.label, sizeof b.label, "%s", qb_shorten(scheme, 24, text));
    snprintf(b.text, sizeof b.text, "%.1f MB", b.value);
    return b;
}

static size_t fill_memory(qb_page *page, size_t n, qb_bar *bars)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        if (is_repeated(page->rows, i)) continue;
        if ((!i || !qb_same_model(page->rows[i - 1], r)) && r->memory.full_weights_bytes >= 0)
            bars[k++] = memory_bar(page, r, "full", r->memory.full_weights_bytes);
        bars[k++] = memory_bar(page, r, qb_page_scheme(r), r->memory.weights_bytes);
    }
    return k;
}

static void write_memory_table(qb_page *page, size_t n)
{
    char name[QB_NAME_BYTES], t[QB_FORMAT_BYTES];
    qb_page_details_open(page);
    qb_page_table_open(
        page, "Memory",
        "scheme|model|#weights|#weights, full|#keys and values|#scratch|#peak of the process");
    for (size_t i = 0; i < n; i++) {
        const qb_result *r = page->rows[i];
        const int64_t bytes[] = {r->memory.weights_bytes, r->memory.full_weights_bytes,
                                 r->memory.kv_bytes, r->memory.scratch_bytes, r->memory.peak_bytes};
        qb_page_row_open(page, qb_page_scheme(r));
        qb_page_cell(page, qb_page_model(page, r, name));
        for (size_t b = 0; b < QB_COUNT(bytes); b++)
            qb_page_number(page, qb_format_bytes(bytes[b], t));
        qb_page_row_close(page);
    }
    qb_page_table_close(page);
    qb_page_details_close(page);
}

bool qb_page_has_memory(const qb_page *page)
{
    return qb_page_any(page, has_memory);
}

static void write_memory(qb_page *page, size_t n_rows, void *bars)
{
    size_t n = fill_memory(page, n_rows, bars);
    qb_page_bars(page, bars, n, QB_SCALE_SYMLOG, "weights, MB", "Memory of the weights",
                 "Bars show the bytes of the weights as they lie in memory under each scheme, "
                 "in millions of bytes. Shorter is better.");
    qb_page_figure_caption(page, "Weights in memory");
    write_memory_table(page, n_rows);
    qb_page_figure_close(page);
}

qb_status qb_page_memory(qb_page *page)
{
    return qb_page_figures(page, has_memory, qb_same_model, 2 * sizeof(qb_bar), write_memory);
}
