/* model/tokenizer_index.c - what is derived from a vocabulary: the bytes of each token, hash tables
 * of texts and merges, the list of special tokens; and the checks that go with them. */
#include "model/tokenizer_internal.h"

#include "core/file.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_PROBES = 1024 }; /* a longer search in a half-empty table was made on purpose */

static uint32_t code_point_at(const char *s, size_t length)
{
    const uint8_t *u = (const uint8_t *)s;
    if (length == 1) return u[0];
    if (length == 2) return (u[0] & 0x1fu) << 6 | (u[1] & 0x3fu);
    if (length == 3) return (u[0] & 0x0fu) << 12 | (u[1] & 0x3fu) << 6 | (u[2] & 0x3fu);
    return 0x110000; /* beyond the alphabet in any case */
}

int qb__byte_of_text(const char *text, size_t n_bytes)
{
    static const char digits[] = "0123456789ABCDEF";
    if (n_bytes != 6 || memcmp(text, "<0x", 3) || text[5] != '>') return -1;
    const char *high = text[3] ? strchr(digits, text[3]) : NULL;
    const char *low = text[4] ? strchr(digits, text[4]) : NULL;
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

static size_t bytes_of_bpe_text(const char *text, size_t n_bytes, char *dst)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        size_t length = qb__utf8_length(text + i, n_bytes - i);
        int byte = length ? qb__code_point_to_byte(code_point_at(text + i, length)) : -1;
        if (byte < 0) { /* not spelled in the alphabet: stands for itself */
            memcpy(dst, text, n_bytes);
            return n_bytes;
        }
        dst[n++] = (char)byte;
        i += length;
    }
    return n;
}

static size_t bytes_of_spm_text(const char *text, size_t n_bytes, char *dst)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        if (n_bytes - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3)) { /* U+2581 */
            dst[n++] = ' ';
            i += 3;
        } else {
            dst[n++] = text[i++];
        }
    }
    return n;
}

static qb_status make_bytes(qb_tokenizer *t)
{
    QB_TRY(QB_NEW(&t->bytes, t->text_at[t->vocab] + t->vocab, "token bytes"));
    QB_TRY(QB_NEW(&t->bytes_at, t->vocab + 1, "token bytes"));
    size_t at = 0;
    for (size_t id = 0; id < t->vocab; id++) {
        size_t n_bytes;
        const char *text = qb__token_text(t, id, &n_bytes);
        t->bytes_at[id] = at;
        if (t->types[id] == QB_TOKEN_BYTE && qb__byte_of_text(text, n_bytes) >= 0)
            t->bytes[at++] = (char)qb__byte_of_text(text, n_bytes);
        else if (qb__token_is_special(t, id))
            memcpy(t->bytes + at, text, n_bytes), at += n_bytes;
        else if (t->kind == QB_TOKENIZER_BPE)
            at += bytes_of_bpe_text(text, n_bytes, t->bytes + at);
        else
            at += bytes_of_spm_text(text, n_bytes, t->bytes + at);
        t->bytes[at++] = 0;
    }
    t->bytes_at[t->vocab] = at;
    return QB_OK;
}

/* The slot of a text: its own, or the free one where it belongs. MAX_PROBES = given up. */
static size_t find_text_slot(const qb_tokenizer *t, const char *text, size_t n_bytes,
                             size_t *n_probes)
{
    size_t slot = qb_hash_bytes(text, n_bytes) & t->text_mask;
    for (*n_probes = 0; t->text_slots[slot] && *n_probes < MAX_PROBES; ++*n_probes) {
        size_t other_bytes;
        const char *other = qb__token_text(t, t->text_slots[slot] - 1, &other_bytes);
        if (other_bytes == n_bytes && !memcmp(other, text, n_bytes)) break;
        slot = (slot + 1) & t->text_mask;
    }
    return slot;
}

int32_t qb__tokenizer_find(const qb_tokenizer *t, const char *text, size_t n_bytes)
{
    if (!n_bytes || n_bytes > t->max_text_bytes) return -1;
    size_t n_probes, slot = find_text_slot(t, text, n_bytes, &n_probes);
    return n_probes < MAX_PROBES ? (int32_t)t->text_slots[slot] - 1 : -1;
}

static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

qb_status qb__tokenizer_index_texts(qb_tokenizer *t)
{
    size_t size = table_size(t->vocab);
    QB_TRY(QB_NEW_ZERO(&t->text_slots, size, "token index"));
    t->text_mask = size - 1;
    for (size_t id = 0; id < t->vocab; id++) {
        size_t n_bytes, n_probes;
        const char *text = qb__token_text(t, id, &n_bytes);
        if (!n_bytes) continue; /* a hole in the vocabulary */
        size_t limit = qb__token_is_special(t, id) ? QB__MAX_SPECIAL_BYTES : QB__MAX_TEXT_BYTES;
        if (n_bytes > limit)
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer: token %zu: found %zu bytes, expected at most %zu", id,
                           n_bytes, limit);
        size_t slot = find_text_slot(t, text, n_bytes, &n_probes);
        if (n_probes == MAX_PROBES)
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer: token %zu: found %d others of its hash, expected fewer", id,
                           MAX_PROBES);
        if (t->text_slots[slot])
            return QB_FAIL(
                QB_ERR_FORMAT,
                "tokenizer: tokens %u and %zu: found the same text, expected different ones",
                t->text_slots[slot] - 1, id);
        t->text_slots[slot] = (uint32_t)id + 1;
        if (n_bytes > t->max_text_bytes) t->max_text_bytes = n_bytes;
    }
    return QB_OK;
}

static qb_status index_pair(qb_tokenizer *t, size_t rank)
{
    size_t left_bytes, right_bytes;
    const char *left = qb__token_text(t, t->merges[rank].left, &left_bytes);
    const char *right = qb__token_text(t, t->merges[rank].right, &right_bytes);
    char joined[QB__MAX_TEXT_BYTES];
    int32_t result = -1;
    if (left_bytes + right_bytes <= t->max_text_bytes) {
        memcpy(joined, left, left_bytes);
        memcpy(joined + left_bytes, right, right_bytes);
        result = qb__tokenizer_find(t, joined, left_bytes + right_bytes);
    }
    if (result < 0)
        return QB_FAIL(
            QB_ERR_FORMAT,
            "tokenizer: merge %zu makes a text that is no token: found none, expected one", rank);
    uint64_t pair = (uint64_t)t->merges[rank].left << 32 | t->merges[rank].right;
    size_t slot = qb_hash_u64(pair) & t->pair_mask, n_probes = 0;
    while (t->pair_slots[slot].pair != UINT64_MAX) {
        if (t->pair_slots[slot].pair == pair) return QB_OK; /* the lower rank stands */
        if (++n_probes == MAX_PROBES)
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer: merge %zu: found %d others of its hash, expected fewer",
                           rank, MAX_PROBES);
        slot = (slot + 1) & t->pair_mask;
    }
    t->pair_slots[slot] = (qb__pair_slot){pair, (uint32_t)rank, result};
    return QB_OK;
}

static qb_status index_pairs(qb_tokenizer *t)
{
    size_t size = table_size(t->n_merges);
    QB_TRY(QB_NEW(&t->pair_slots, size, "merge index"));
    memset(t->pair_slots, 0xff, size * sizeof *t->pair_slots);
    t->pair_mask = size - 1;
    for (size_t rank = 0; rank < t->n_merges; rank++) QB_TRY(index_pair(t, rank));
    return QB_OK;
}

static int compare_special(const void *a, const void *b, void *tokenizer)
{
    size_t a_bytes, b_bytes;
    const char *at = qb__token_text(tokenizer, (size_t) * (const int32_t *)a, &a_bytes);
    const char *bt = qb__token_text(tokenizer, (size_t) * (const int32_t *)b, &b_bytes);
    int order = memcmp(at, bt, a_bytes < b_bytes ? a_bytes : b_bytes);
    return order ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

static qb_status index_specials(qb_tokenizer *t)
{
    size_t n = 0;
    for (size_t id = 0; id < t->vocab; id++) n += qb__token_is_special(t, id);
    QB_TRY(QB_NEW(&t->specials, n, "special tokens"));
    for (size_t id = 0; id < t->vocab; id++) {
        size_t n_bytes;
        const char *text = qb__token_text(t, id, &n_bytes);
        if (!n_bytes || !qb__token_is_special(t, id)) continue;
        t->specials[t->n_specials++] = (int32_t)id;
        t->special_first[(uint8_t)text[0]] = true;
    }
    qsort_r(t->specials, t->n_specials, sizeof *t->specials, compare_special, t);
    return QB_OK;
}

static void index_bytes(qb_tokenizer *t)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        int n;
        if (t->kind == QB_TOKENIZER_SPM) {
            n = snprintf(text, sizeof text, "<0x%02X>", byte);
        } else {
            uint32_t c = qb__byte_to_code_point((uint8_t)byte);
            n = c < 0x80 ? snprintf(text, sizeof text, "%c", (int)c)
                         : snprintf(text, sizeof text, "%c%c", (int)(0xc0 | c >> 6),
                                    (int)(0x80 | (c & 0x3f)));
        }
        t->byte_id[byte] = qb__tokenizer_find(t, text, (size_t)n);
    }
}

static qb_status check_spm(qb_tokenizer *t)
{
    for (size_t id = 0; t->scores && id < t->vocab; id++)
        if (isnan(t->scores[id]))
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer: the score of token %zu: found no number, expected one", id);
    for (int byte = 0; byte < 256 && t->unk < 0; byte++)
        if (t->byte_id[byte] < 0)
            return QB_FAIL(
                QB_ERR_FORMAT,
                "tokenizer: found neither a token <0x%02X> nor an unk token, expected one",
                (unsigned)byte);
    /* What is no token becomes bytes at the end: they take no part in merging. */
    for (size_t i = 0; i < t->n_merges; i++)
        if (t->types[t->merges[i].left] == QB_TOKEN_BYTE ||
            t->types[t->merges[i].right] == QB_TOKEN_BYTE)
            return QB_FAIL(QB_ERR_UNSUPPORTED,
                           "tokenizer: merge %zu: found a byte token, expected none", i);
    t->splits_at_spaces = true;
    for (size_t id = 0; id < t->vocab; id++) {
        size_t n_bytes, i = 0;
        const char *text = qb__token_text(t, id, &n_bytes);
        while (n_bytes - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3)) i += 3;
        if (memmem(text + i, n_bytes - i, "\xe2\x96\x81", 3)) t->splits_at_spaces = false;
    }
    return QB_OK;
}

static qb_status check_fields(const qb_tokenizer *t)
{
    const int32_t ids[] = {t->bos, t->eos, t->unk};
    static const char *const names[] = {"bos", "eos", "unk"};
    for (size_t i = 0; i < QB_COUNT(ids); i++)
        if (ids[i] < -1 || ids[i] >= (int64_t)t->vocab)
            return QB_FAIL(QB_ERR_FORMAT, "tokenizer: %s: found id %d, expected one below %zu",
                           names[i], ids[i], t->vocab);
    if (t->add_bos && t->bos < 0)
        return QB_FAIL(QB_ERR_FORMAT, "tokenizer: texts start with bos: found none, expected one");
    for (size_t id = 0; id < t->vocab; id++)
        if (t->types[id] > QB_TOKEN_UNUSED)
            return QB_FAIL(QB_ERR_FORMAT,
                           "tokenizer: found type %u of token %zu, expected at most %d",
                           t->types[id], id, QB_TOKEN_UNUSED);
    for (size_t i = 0; i < t->n_merges; i++)
        if (t->merges[i].left >= t->vocab || t->merges[i].right >= t->vocab)
            return QB_FAIL(
                QB_ERR_FORMAT, "tokenizer: merge %zu: found token %u, expected one below %zu", i,
                t->merges[i].left >= t->vocab ? t->merges[i].left : t->merges[i].right, t->vocab);
    return QB_OK;
}

qb_status qb__tokenizer_finish(qb_tokenizer *t)
{
    QB_TRY(check_fields(t));
    QB_TRY(make_bytes(t));
    if (!t->text_slots) QB_TRY(qb__tokenizer_index_texts(t));
    QB_TRY(index_specials(t));
    index_bytes(t);
    if (!t->scores) QB_TRY(index_pairs(t));
    if (t->kind == QB_TOKENIZER_BPE)
        QB_TRY(qb__pre_compile(t->pre, &t->splitter));
    else
        QB_TRY(check_spm(t));
    uint8_t *data;
    size_t bytes;
    QB_TRY(qb_tokenizer_serialize(t, &data, &bytes));
    qb_status status = qb_sha256_hex(data, bytes, t->sha256);
    qb_free(data);
    return status;
}
