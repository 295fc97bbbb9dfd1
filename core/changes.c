/* core/changes.c - see changes.h. */
#include "core/changes.h"

#include "core/memory.h"
#include "core/rng.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { N_SHUFFLES = 1999, MIN_SEGMENT = 2 };

typedef struct finder {
    const double *x;
    double *ranks, *shuffled; /* of a segment */
    const double **order;
    double false_alarms;
    uint64_t seed, drawn; /* random numbers so far */
    size_t *places, n_places;
} finder;

static int compare_pointed(const void *a, const void *b)
{
    double x = **(const double *const *)a, y = **(const double *const *)b;
    return (x > y) - (x < y);
}

/* Ranks less their mean; equal values share theirs. */
static void rank(finder *f, size_t first, size_t n)
{
    for (size_t i = 0; i < n; i++) f->order[i] = f->x + first + i;
    qsort(f->order, n, sizeof *f->order, compare_pointed);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && *f->order[end] == *f->order[i];) end++;
        for (size_t k = i; k < end; k++)
            f->ranks[(size_t)(f->order[k] - f->x) - first] = 0.5 * ((double)(i + end) - (double)n);
    }
}

/* The largest weighted sum, and the place before which it is summed. */
static double split(const double *ranks, size_t n, size_t *at)
{
    double sum = 0, most = 0;
    *at = 0;
    for (size_t k = 1; k + MIN_SEGMENT <= n; k++) {
        sum += ranks[k - 1];
        double size = fabs(sum) / sqrt((double)k * (double)(n - k));
        if (k < MIN_SEGMENT || size <= most * (1 + 1e-12)) continue;
        most = size;
        *at = k;
    }
    return most;
}

static void shuffle(finder *f, size_t n)
{
    for (size_t i = n - 1; i > 0; i--) {
        size_t k = qb_rng_below(f->seed, QB_STREAM_PERMUTATION, f->drawn++, i + 1);
        double swap = f->shuffled[i];
        f->shuffled[i] = f->shuffled[k];
        f->shuffled[k] = swap;
    }
}

/* Do few enough shuffles split as well? */
static bool is_unlikely(finder *f, size_t n, double found)
{
    size_t most = (size_t)(f->false_alarms * (N_SHUFFLES + 1)), as_large = 1, at; /* 1: itself */
    memcpy(f->shuffled, f->ranks, n * sizeof *f->ranks);
    for (size_t i = 0; i < N_SHUFFLES && as_large <= most; i++) {
        shuffle(f, n);
        as_large += split(f->shuffled, n, &at) >= found * (1 - 1e-12);
    }
    return as_large <= most;
}

static void search(finder *f, size_t first, size_t n)
{
    size_t at;
    if (n < 2 * MIN_SEGMENT) return;
    rank(f, first, n);
    double found = split(f->ranks, n, &at);
    if (found == 0 || !is_unlikely(f, n, found)) return;
    search(f, first, at);
    f->places[f->n_places++] = first + at;
    search(f, first + at, n - at);
}

qb_status qb_find_changes(const double *x, size_t n, double false_alarms, uint64_t seed,
                          size_t *places, size_t *n_places)
{
    finder f = {.x = x, .false_alarms = false_alarms, .seed = seed, .places = places};
    QB_TRY(QB_NEW(&f.ranks, 2 * n, "ranks"));
    qb_status status = QB_NEW(&f.order, n, "order");
    f.shuffled = f.ranks + n;
    if (status == QB_OK) search(&f, 0, n);
    if (status == QB_OK) *n_places = f.n_places;
    qb_free(f.order);
    qb_free(f.ranks);
    return status;
}
