/* model/nfc.c - see nfc.h. Characters are taken apart, combining marks are put in order of their
 * class, and what composes is put together again (UAX #15, sections 1.3 and 16). */
#include "model/nfc.h"

#include "core/memory.h"
#include "model/nfc_internal.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>

enum { NOT_TEXT = 0x110000 }; /* + byte: one that is no UTF-8 */
enum { L = 0x1100, V = 0x1161, T = 0x11a7, S = 0xac00, N_V = 21, N_T = 28, N_L = 19 }; /* Hangul */
#define CODE_MASK 0x1fffffu

/* Items are class << 56 | place << 21 | code point, so that sorting them by value is stable. */
typedef struct items {
    uint64_t *list;
    size_t n, capacity;
} items;

static unsigned class_of(uint32_t code)
{
    size_t low = 0, high = qb__nfc_n_runs;
    if (code < 0x300) return 0;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const qb__nfc_run *r = &qb__nfc_runs[middle];
        if (code < r->first)
            high = middle;
        else if (code - r->first >= r->n)
            low = middle + 1;
        else
            return r->ccc;
    }
    return 0;
}

static const qb__nfc_pair *decomposition_of(uint32_t code)
{
    size_t low = 0, high = qb__nfc_n_pairs;
    if (code < 0xc0) return NULL; /* the first */
    while (low < high) {
        size_t middle = (low + high) / 2;
        const qb__nfc_pair *p = &qb__nfc_pairs[middle];
        if (p->code == code) return p;
        if (p->code < code)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* What two characters make together, 0 = nothing. */
static uint32_t composition_of(uint32_t first, uint32_t second)
{
    if (first - L < N_L && second - V < N_V) return S + ((first - L) * N_V + (second - V)) * N_T;
    if (first - S < N_L * N_V * N_T && (first - S) % N_T == 0 && second - T - 1 < N_T - 1)
        return first + (second - T);
    size_t low = 0, high = qb__nfc_n_composed;
    if (second < 0x300) return 0; /* no pair has such a one */
    while (low < high) {
        size_t middle = (low + high) / 2;
        const qb__nfc_pair *p = &qb__nfc_pairs[qb__nfc_composed[middle]];
        if (p->first == first && p->second == second) return p->code;
        if (p->first < first || (p->first == first && p->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

static qb_status push(items *list, uint32_t code)
{
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        QB_TRY(qb_realloc((void **)&list->list, list->n, capacity, sizeof *list->list, "NFC"));
        list->capacity = capacity;
    }
    list->list[list->n] = (uint64_t)class_of(code) << 56 | (uint64_t)list->n << 21 | code;
    list->n++;
    return QB_OK;
}

/* Decompositions are of two; the first of them may go on. */
static qb_status push_apart(items *list, uint32_t code)
{
    uint32_t tail[8];
    size_t n_tail = 0;
    if (code - S < N_L * N_V * N_T) {
        uint32_t s = code - S;
        QB_TRY(push(list, L + s / (N_V * N_T)));
        QB_TRY(push(list, V + s / N_T % N_V));
        return s % N_T ? push(list, T + s % N_T) : QB_OK;
    }
    for (const qb__nfc_pair *p; (p = decomposition_of(code)) && n_tail < QB_COUNT(tail);) {
        if (p->second) tail[n_tail++] = p->second;
        code = p->first;
    }
    QB_TRY(push(list, code));
    while (n_tail) QB_TRY(push(list, tail[--n_tail]));
    return QB_OK;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void order_marks(items *list)
{
    for (size_t i = 0, end; i < list->n; i = end + 1) {
        for (end = i; end < list->n && list->list[end] >> 56; end++) {
        }
        if (end - i > 1) qsort(list->list + i, end - i, sizeof *list->list, by_value);
    }
}

/* A mark composes with the starter before it unless one of its own class or a starter stands
 * between. */
static void compose(items *list)
{
    size_t n = 0, starter = SIZE_MAX;
    unsigned before = 0; /* class of the last that was kept behind the starter */
    for (size_t i = 0; i < list->n; i++) {
        uint32_t code = (uint32_t)(list->list[i] & CODE_MASK), made = 0;
        unsigned ccc = (unsigned)(list->list[i] >> 56);
        bool reaches = starter != SIZE_MAX && (starter + 1 == n || before < ccc);
        if (reaches) made = composition_of((uint32_t)(list->list[starter] & CODE_MASK), code);
        if (made) {
            list->list[starter] = made;
            continue;
        }
        if (!ccc) starter = n;
        before = ccc;
        list->list[n++] = list->list[i];
    }
    list->n = n;
}

static uint32_t read_code(const char *s, size_t length)
{
    const uint8_t *u = (const uint8_t *)s;
    static const uint8_t lead[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t code = u[0] & lead[length];
    for (size_t i = 1; i < length; i++) code = code << 6 | (u[i] & 0x3f);
    return code;
}

static size_t write_code(uint32_t code, char *dst)
{
    if (code >= NOT_TEXT || code < 0x80) return dst[0] = (char)code, 1; /* the low byte */
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length - 1; i > 0; i--, code >>= 6) dst[i] = (char)(0x80 | (code & 0x3f));
    dst[0] = (char)(lead[length] | code);
    return length;
}

bool qb_nfc_is_plain(const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        if ((uint8_t)text[i] >= 0xcc) return false; /* U+0300 is CC 80 */
    return true;
}

static qb_status take_apart(const char *text, size_t n_bytes, items *list)
{
    for (size_t at = 0; at < n_bytes;) {
        size_t length = qb__utf8_length(text + at, n_bytes - at);
        if (length)
            QB_TRY(push_apart(list, read_code(text + at, length)));
        else
            QB_TRY(push(list, NOT_TEXT + (uint8_t)text[at]));
        at += length ? length : 1;
    }
    return QB_OK;
}

qb_status qb_nfc(const char *text, size_t n_bytes, char **out, size_t *out_bytes)
{
    items list = {0};
    char *composed = NULL;
    qb_status status = take_apart(text, n_bytes, &list);
    if (status == QB_OK) {
        order_marks(&list);
        compose(&list);
        status = qb_alloc((void **)&composed, list.n, 4, "composed text");
    }
    if (status == QB_OK) {
        size_t n = 0;
        for (size_t i = 0; i < list.n; i++)
            n += write_code((uint32_t)(list.list[i] & CODE_MASK), composed + n);
        *out = composed;
        *out_bytes = n;
    }
    qb_free(list.list);
    return status;
}
