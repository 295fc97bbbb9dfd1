/* core/progress.c - see progress.h. */
#include "core/progress.h"

#include "core/clock.h"

#include <sys/ioctl.h>

#define SECOND_NS 1000000000ull

static struct {
    FILE *stream;
    bool is_terminal;
} out;

void qb_progress_open(FILE *stream, bool is_terminal)
{
    out.stream = stream;
    out.is_terminal = is_terminal;
}

qb_progress qb_progress_begin(const char *what, size_t total)
{
    return (qb_progress){.what = what, .total = total, .start_ns = (uint64_t)qb_now_ns()};
}

enum { LINE_BYTES = 256 };

static void add_duration(char *line, size_t n, double seconds)
{
    unsigned long long s = seconds < 1e9 ? (unsigned long long)(seconds + 0.5) : 999999999ull;
    char *to = line + n;
    size_t room = LINE_BYTES - n;
    if (s < 60)
        snprintf(to, room, ", %llu s left", s);
    else if (s < 3600)
        snprintf(to, room, ", %llu min %02llu s left", s / 60, s % 60);
    else
        snprintf(to, room, ", %llu h %02llu min left", s / 3600, s / 60 % 60);
}

/* A line that is wider than the terminal could not be rewritten. */
static size_t terminal_columns(void)
{
    struct winsize size;
    int fd = fileno(out.stream);
    return fd >= 0 && !ioctl(fd, TIOCGWINSZ, &size) && size.ws_col > 1 ? size.ws_col - 1u
                                                                       : LINE_BYTES;
}

static void show(const qb_progress *p, uint64_t now)
{
    char line[LINE_BYTES];
    double share = p->total ? (double)p->done / (double)p->total : 0;
    double elapsed_s = (double)(now - p->start_ns) / 1e9;
    size_t n = (size_t)snprintf(line, sizeof line, "%.50s: %3.0f %%", p->what, 100 * share);
    if (p->detail) n += (size_t)snprintf(line + n, sizeof line - n, ", %.150s", p->detail);
    if (p->done > p->first)
        add_duration(line, n,
                     elapsed_s / (double)(p->done - p->first) * (double)(p->total - p->done));
    if (out.is_terminal)
        fprintf(out.stream, "\r%.*s\033[K", (int)terminal_columns(), line);
    else
        fprintf(out.stream, "%s\n", line);
    fflush(out.stream);
}

void qb_progress_update(qb_progress *p, size_t done)
{
    p->done = done < p->total ? done : p->total;
    if (!out.stream) return;
    uint64_t now = (uint64_t)qb_now_ns();
    uint64_t step_ns = out.is_terminal ? SECOND_NS / 10 : 10 * SECOND_NS;
    if (now - p->start_ns < 2 * SECOND_NS || (p->shown_ns && now - p->shown_ns < step_ns)) return;
    show(p, now);
    p->shown_ns = now;
}

void qb_progress_end(qb_progress *p)
{
    if (!out.stream || !out.is_terminal || !p->shown_ns) return;
    fputs("\r\033[K", out.stream);
    fflush(out.stream);
    p->shown_ns = 0; /* work that goes on shows the line again at once */
}
