/* report/write_watch.c - series as spark lines, and their changes. */
#include "report/format.h"
#include "report/history.h"

#include <math.h>
#include <string.h>

enum { SPARK_VALUES = 48 };

/* The last values, each one of eight heights between the least and the largest. */
static void write_spark(const qb_series *s, FILE *stream)
{
    static const char *const bars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    size_t first = s->n > SPARK_VALUES ? s->n - SPARK_VALUES : 0;
    double least = INFINITY, most = -INFINITY;
    for (size_t i = first; i < s->n; i++) {
        least = fmin(least, s->values[i]);
        most = fmax(most, s->values[i]);
    }
    for (size_t i = first; i < s->n; i++) {
        double height = most > least ? (s->values[i] - least) / (most - least) : 0.5;
        fputs(bars[(int)(height * 7.999)], stream);
    }
}

static void write_change(const qb_watch *watch, const qb_series *s, size_t i, bool colour,
                         FILE *stream)
{
    const qb_result *r = &watch->history->items[s->records[s->changes[i]]];
    double step = qb_series_step(s, i);
    double before = s->values[s->changes[i] - 1] < 0 ? -1 : 1;
    bool worse = before * step * qb_figures[s->figure].better < 0;
    fprintf(stream, "    %s%s%s  %+.2f %% since record %zu, %s, commit %.12s\n",
            !colour ? ""
            : worse ? "\033[31m"
                    : "\033[32m",
            worse ? "worse" : "better", colour ? "\033[0m" : "", 100 * step,
            s->records[s->changes[i]] + 1, r->time_utc ? r->time_utc : "-",
            r->git_commit ? r->git_commit : "-");
}

qb_status qb_watch_write_screen(const qb_watch *watch, bool colour, FILE *stream)
{
    for (size_t i = 0; i < watch->n; i++) {
        const qb_series *s = &watch->items[i];
        char last[QB_FORMAT_BYTES];
        if (!i || strcmp(s->title, s[-1].title)) {
            if (i) fputc('\n', stream);
            qb_write_wrapped(stream, 0, s->title);
        }
        fprintf(stream, "  %-16s %10s  ", qb_figures[s->figure].name,
                qb_figures[s->figure].format(s->values[s->n - 1], last));
        write_spark(s, stream);
        fputc('\n', stream);
        for (size_t k = 0; k < s->n_changes; k++) write_change(watch, s, k, colour, stream);
    }
    return QB_OK;
}
