/* core/nearest.c - see nearest.h. */
#include "core/nearest.h"

#include <stdio.h>
#include <string.h>

enum { MAX_WORD = 40 }; /* longer ones are no slips of anything */

static size_t edit_distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), d[MAX_WORD + 1][MAX_WORD + 1];
    if (n > MAX_WORD || m > MAX_WORD) return MAX_WORD;
    for (size_t i = 0; i <= n; i++)
        for (size_t j = 0; j <= m; j++) {
            if (!i || !j) {
                d[i][j] = i + j;
                continue;
            }
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[n][m];
}

qb_nearest qb_nearest_begin(const char *typed)
{
    return (qb_nearest){.typed = typed, .distance = MAX_WORD};
}

void qb_nearest_consider(qb_nearest *nearest, const char *word)
{
    size_t distance = edit_distance(nearest->typed, word);
    if (distance > 1 + strlen(word) / 4 || distance >= nearest->distance) return;
    nearest->word = word;
    nearest->distance = distance;
}

void qb_names_add(char *text, size_t capacity, const char *word)
{
    size_t n = strlen(text);
    snprintf(text + n, capacity - n, "%s%s", n ? ", " : "", word);
}
