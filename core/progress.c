/* core/progress.c - see progress.h. */
#include "core/progress.h"

#include <time.h>

#define SECOND_NS 1000000000ull

static struct {
    FILE *stream;
    bool is_terminal;
} out;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

void qb_progress_open(FILE *stream, bool is_terminal)
{
    out.stream = stream;
    out.is_terminal = is_terminal;
}

qb_progress qb_progress_begin(const char *what, size_t total)
{
    return (qb_progress){.what = what, .total = total, .start_ns = now_ns()};
}

static void print_duration(double seconds)
{
    unsigned long long s = seconds < 1e9 ? (unsigned long long)(seconds + 0.5) : 999999999ull;
    if (s < 60)
        fprintf(out.stream, "%llu s", s);
    else if (s < 3600)
        fprintf(out.stream, "%llu min %02llu s", s / 60, s % 60);
    else
        fprintf(out.stream, "%llu h %02llu min", s / 3600, s / 60 % 60);
}

static void show(const qb_progress *p, uint64_t now)
{
    double share = p->total ? (double)p->done / (double)p->total : 0;
    double elapsed_s = (double)(now - p->start_ns) / 1e9;
    fprintf(out.stream, "%s%.50s: %3.0f %%", out.is_terminal ? "\r" : "", p->what, 100 * share);
    if (share > 0) {
        fputs(", ", out.stream);
        print_duration(elapsed_s / share * (1 - share));
        fputs(" left", out.stream);
    }
    fputs(out.is_terminal ? "\033[K" : "\n", out.stream);
    fflush(out.stream);
}

void qb_progress_update(qb_progress *p, size_t done)
{
    p->done = done < p->total ? done : p->total;
    if (!out.stream) return;
    uint64_t now = now_ns();
    uint64_t step_ns = out.is_terminal ? SECOND_NS / 10 : 10 * SECOND_NS;
    if (now - p->start_ns < 2 * SECOND_NS || (p->shown_ns && now - p->shown_ns < step_ns)) return;
    show(p, now);
    p->shown_ns = now;
}

void qb_progress_end(qb_progress *p)
{
    if (out.stream && out.is_terminal && p->shown_ns) {
        fputs("\r\033[K", out.stream);
        fflush(out.stream);
    }
    p->shown_ns = 0;
}
