/* train/data/bb.c - the Bigram-Backcopy task: counts of a text's characters, exact draws. */
#include "train/data/bb.h"

#include "core/file.h"
#include "core/memory.h"
#include "core/rng.h"

#include <string.h>

enum { GUIDE = 256, POSITION_BITS = 20 };
static const uint64_t MAX_COUNT = (uint64_t)1 << 40; /* of one pair: sums stay far below 2^64 */

/* generated from share/bb/ by cmake/embed.cmake */
extern const unsigned char qb__bb_counts[];
extern const unsigned long qb__bb_counts_bytes;

/* Rows 0 ... n_chars - 1 follow that character, row n_chars starts a sequence. */
struct qb_bb_draw {
    uint64_t *cumulated; /* (n_chars + 1, n_chars) */
    uint16_t *guide;     /* (n_chars + 1, GUIDE) first candidate for a draw's upper 8 bits */
};

/* ---- reading the counts ---- */

typedef struct counts {
    uint64_t *unigram; /* (n) */
    uint64_t *pair;    /* (n, n) */
    uint32_t *code_points;
    size_t n;
} counts;

static void counts_deinit(counts *c)
{
    qb_free(c->unigram);
    qb_free(c->pair);
    qb_free(c->code_points);
}

/* The next line that is no comment and not empty; false at the end. */
static bool next_line(const char **at, const char *end, const char **line, size_t *n,
                      size_t *number)
{
    while (*at < end) {
        *line = *at;
        const char *stop = memchr(*at, '\n', (size_t)(end - *at));
        *at = stop ? stop + 1 : end;
        *n = (size_t)((stop ? stop : end) - *line);
        if (*n && (*line)[*n - 1] == '\r') --*n;
        ++*number;
        if (*n && **line != '#') return true;
    }
    return false;
}

/* A whole number up to MAX_COUNT at the start of the line; both move on behind it and a tab. */
static qb_status take_number(const char **line, size_t *n, uint64_t *out)
{
    uint64_t value = 0;
    size_t i = 0;
    for (; i < *n && (*line)[i] >= '0' && (*line)[i] <= '9' && value <= MAX_COUNT; i++)
        value = 10 * value + (uint64_t)((*line)[i] - '0');
    if (!i || value > MAX_COUNT)
        return QB_FAIL(QB_ERR_FORMAT, "expected a whole number up to 2^40, found '%.*s'",
                       (int)(*n < 12 ? *n : 12), *line);
    if (i < *n && (*line)[i++] != '\t')
        return QB_FAIL(QB_ERR_FORMAT, "found no tab after %llu, expected one",
                       (unsigned long long)value);
    *line += i;
    *n -= i;
    *out = value;
    return QB_OK;
}

static qb_status read_row(const char *line, size_t n, counts *c, size_t row)
{
    uint64_t code_point, sum = 0;
    QB_TRY(take_number(&line, &n, &code_point));
    QB_TRY(take_number(&line, &n, &c->unigram[row]));
    if (code_point > 0x10ffff || (row && code_point <= c->code_points[row - 1]))
        return QB_FAIL(QB_ERR_FORMAT, "found code point %llu, expected rising ones up to 1114111",
                       (unsigned long long)code_point);
    c->code_points[row] = (uint32_t)code_point;
    for (size_t i = 0; i < c->n; i++) {
        QB_TRY(take_number(&line, &n, &c->pair[row * c->n + i]));
        sum += c->pair[row * c->n + i];
    }
    if (n)
        return QB_FAIL(QB_ERR_FORMAT, "found more than %zu counts of pairs, expected fewer", c->n);
    if (!sum || !c->unigram[row])
        return QB_FAIL(QB_ERR_FORMAT, "character %zu: found counts of 0, expected some", row);
    return QB_OK;
}

static qb_status counts_parse(const char *text, size_t bytes, counts *c)
{
    const char *at = text, *end = text + bytes, *line;
    size_t n, number = 0, row = 0;
    while (next_line(&at, end, &line, &n, &number)) c->n++;
    if (c->n < 2 || c->n > QB_BB_MAX_TOKENS - 2)
        return QB_FAIL(QB_ERR_FORMAT, "found %zu characters, expected 2 to %d", c->n,
                       QB_BB_MAX_TOKENS - 2);
    QB_TRY(QB_NEW(&c->unigram, c->n, "counts"));
    QB_TRY(QB_NEW(&c->pair, c->n * c->n, "counts"));
    QB_TRY(QB_NEW(&c->code_points, c->n, "counts"));
    at = text;
    number = 0;
    while (next_line(&at, end, &line, &n, &number)) {
        qb_status status = read_row(line, n, c, row++);
        if (status == QB_OK) continue;
        char prefix[40];
        snprintf(prefix, sizeof prefix, "line %zu", number);
        return qb_error_prefix(status, prefix);
    }
    return QB_OK;
}

/* ---- what follows from them ---- */

static qb_status choose_triggers(const counts *c, size_t n_triggers, qb_bb *bb)
{
    if (n_triggers >= c->n)
        return QB_FAIL(QB_ERR_USAGE, "triggers: found %zu, expected fewer than the %zu characters",
                       n_triggers, c->n);
    QB_TRY(QB_NEW_ZERO(&bb->is_trigger, bb->vocab, "triggers"));
    QB_TRY(QB_NEW(&bb->triggers, n_triggers, "triggers"));
    for (bb->n_triggers = 0; bb->n_triggers < n_triggers; bb->n_triggers++) {
        size_t best = SIZE_MAX;
        for (size_t i = 0; i < c->n; i++)
            if (!bb->is_trigger[i] && (best == SIZE_MAX || c->unigram[i] > c->unigram[best]))
                best = i;
        bb->is_trigger[best] = true;
        bb->triggers[bb->n_triggers] = (int32_t)best;
    }
    return QB_OK;
}

static void set_conditional(const uint64_t *row, size_t n, double *dst)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += row[i];
    for (size_t i = 0; i < n; i++) dst[i] = (double)row[i] / (double)sum;
}

static void cumulate(const uint64_t *counts_row, const bool *skip, size_t n, uint64_t *cumulated,
                     uint16_t *guide)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += skip && skip[i] ? 0 : counts_row[i];
        cumulated[i] = sum;
    }
    size_t i = 0;
    for (size_t k = 0; k < GUIDE; k++) {
        while (cumulated[i] <= (unsigned __int128)sum * k / GUIDE) i++;
        guide[k] = (uint16_t)i;
    }
}

static qb_status derive(const counts *c, qb_bb *bb)
{
    size_t n = c->n;
    QB_TRY(QB_NEW_ZERO(&bb->conditional, bb->vocab * bb->vocab, "bigram probabilities"));
    QB_TRY(QB_NEW_ZERO(&bb->draw, 1, "bigram counts"));
    QB_TRY(QB_NEW(&bb->draw->cumulated, (n + 1) * n, "bigram counts"));
    QB_TRY(QB_NEW(&bb->draw->guide, (n + 1) * GUIDE, "bigram counts"));
    for (size_t i = 0; i <= n; i++) {
        const uint64_t *row = i < n ? c->pair + i * n : c->unigram;
        set_conditional(row, n, bb->conditional + i * bb->vocab);
        cumulate(row, i < n ? NULL : bb->is_trigger, n, bb->draw->cumulated + i * n,
                 bb->draw->guide + i * GUIDE);
    }
    return QB_OK;
}

static qb_status build(counts *c, const qb_bb_options *options, qb_bb *bb)
{
    if (options->n_bos > 2)
        return QB_FAIL(QB_ERR_USAGE, "tokens <s> at the start: found %zu, expected 0 to 2",
                       options->n_bos);
    bb->vocab = c->n + 2;
    bb->bos = (int32_t)c->n;
    bb->n_bos = options->n_bos;
    QB_TRY(choose_triggers(c, options->n_triggers, bb));
    QB_TRY(derive(c, bb));
    bb->code_points = c->code_points;
    c->code_points = NULL;
    return QB_OK;
}

static qb_status from_text(const char *text, size_t bytes, const qb_bb_options *options, qb_bb *out)
{
    counts c = {0};
    qb_bb bb = {0};
    qb_status status = qb_sha256_hex(text, bytes, bb.sha256);
    if (status == QB_OK) status = counts_parse(text, bytes, &c);
    if (status == QB_OK) status = build(&c, options, &bb);
    counts_deinit(&c);
    if (status != QB_OK)
        qb_bb_deinit(&bb);
    else
        *out = bb;
    return status;
}

qb_status qb_bb_open(const char *counts_path, const qb_bb_options *options, qb_bb *out)
{
    if (!counts_path)
        return from_text((const char *)qb__bb_counts, qb__bb_counts_bytes, options, out);
    qb_file file;
    QB_TRY(qb_file_open(counts_path, &file));
    qb_status status =
        from_text(file.bytes ? (const char *)file.data : "", file.bytes, options, out);
    qb_file_close(&file);
    return status == QB_OK || status == QB_ERR_USAGE ? status
                                                     : qb_error_prefix(status, counts_path);
}

void qb_bb_deinit(qb_bb *bb)
{
    qb_free(bb->is_trigger);
    qb_free(bb->triggers);
    qb_free(bb->code_points);
    qb_free(bb->conditional);
    if (bb->draw) {
        qb_free(bb->draw->cumulated);
        qb_free(bb->draw->guide);
    }
    qb_free(bb->draw);
    *bb = (qb_bb){0};
}

/* ---- sequences ---- */

/* A character of a row, from 64 uniform bits. */
static int32_t draw_character(const qb_bb *bb, size_t row, uint64_t bits)
{
    size_t n = (size_t)bb->bos;
    const uint64_t *cumulated = bb->draw->cumulated + row * n;
    uint64_t value = (uint64_t)((unsigned __int128)bits * cumulated[n - 1] >> 64);
    size_t i = bb->draw->guide[row * GUIDE + (bits >> 56)];
    while (cumulated[i] <= value) i++;
    return (int32_t)i;
}

/* One block of the generator serves two neighbouring positions. */
static void fill_sequence(const qb_bb *bb, uint64_t seed, uint64_t sequence, size_t length,
                          int32_t *x)
{
    uint32_t words[4] = {0};
    for (size_t t = 0; t < length; t++) {
        if (t % 2 == 0) qb_philox(seed, QB_STREAM_BB, sequence << POSITION_BITS | t / 2, words);
        const uint32_t *w = words + t % 2 * 2;
        uint64_t bits = (uint64_t)w[1] << 32 | w[0];
        if (t < bb->n_bos)
            x[t] = bb->bos;
        else if (t == bb->n_bos)
            x[t] = draw_character(bb, (size_t)bb->bos, bits);
        else if (bb->is_trigger[x[t - 1]])
            x[t] = x[t - 2]; /* x[n_bos] is no trigger, so t >= 2 */
        else
            x[t] = draw_character(bb, (size_t)x[t - 1], bits);
    }
}

void qb_bb_fill(const qb_bb *bb, uint64_t seed, uint64_t first_sequence, size_t n_sequences,
                size_t length, int32_t *tokens)
{
    for (size_t i = 0; i < n_sequences; i++)
        fill_sequence(bb, seed, first_sequence + i, length, tokens + i * length);
}
