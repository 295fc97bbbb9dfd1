/* train/data/batches.c - windows over shuffled documents.
 *
 * For the present epoch a table holds the shuffled documents and where each starts in the stream
 * that they make; it is made again when a window of another epoch is asked for. */
#include "train/data/batches.h"

#include "core/memory.h"
#include "core/rng.h"
#include "train/data/shards.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef struct epoch_table {
    uint64_t epoch;  /* UINT64_MAX = not made yet */
    uint32_t *order; /* (n_docs) document at each place */
    uint64_t *start; /* (n_docs + 1) first token of each place in the stream */
} epoch_table;

struct qb_batches {
    qb_batches_options options;
    const qb_bb *bb;      /* or NULL */
    qb_shard *shards;     /* or NULL; without either: random */
    size_t n_shards;      /* opened so far */
    uint64_t *shard_docs; /* (n_shards + 1) documents before each shard */
    uint64_t n_docs, n_tokens, windows_per_epoch, text_bytes;
    size_t vocab;
    char tokenizer_sha256[65], sha256[65];
    pthread_rwlock_t lock; /* of the table: writers make it, readers use it */
    epoch_table *table;
};

/* ---- opening ---- */

static qb_status check_same_tokenizer(const qb_shard *a, const qb_shard *b)
{
    if (!memcmp(a->header.tokenizer_sha256, b->header.tokenizer_sha256, 64) &&
        a->header.vocab == b->header.vocab && a->header.eos == b->header.eos)
        return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "%s: tokenizer: found %.12s..., expected %.12s... as in %s",
                   b->file.path, b->header.tokenizer_sha256, a->header.tokenizer_sha256,
                   a->file.path);
}

static qb_status open_shards(qb_batches *b, const char *const *paths, size_t n)
{
    if (!n) return QB_FAIL(QB_ERR_USAGE, "data: no token shard given");
    QB_TRY(QB_NEW_ZERO(&b->shards, n, "shards"));
    QB_TRY(QB_NEW_ZERO(&b->shard_docs, n + 1, "shards"));
    for (size_t i = 0; i < n; i++) {
        QB_TRY(qb_shard_open(paths[i], &b->shards[i]));
        b->n_shards++;
        QB_TRY(check_same_tokenizer(&b->shards[0], &b->shards[i]));
        b->n_docs += b->shards[i].header.n_docs;
        b->n_tokens += b->shards[i].header.n_tokens;
        b->text_bytes += b->shards[i].header.text_bytes;
        b->shard_docs[i + 1] = b->n_docs;
    }
    b->vocab = b->shards[0].header.vocab;
    memcpy(b->tokenizer_sha256, b->shards[0].header.tokenizer_sha256, 64);
    return QB_OK;
}

static qb_status check_counts(const qb_batches *b)
{
    if (b->n_docs > UINT32_MAX)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "shards: found %llu documents, expected at most %u",
                       (unsigned long long)b->n_docs, UINT32_MAX);
    if (b->n_tokens < b->options.context + 1)
        return QB_FAIL(QB_ERR_FORMAT,
                       "%s: found %llu tokens%s, expected at least context + 1 = %zu",
                       b->shards[0].file.path, (unsigned long long)b->n_tokens,
                       b->n_shards > 1 ? " in all shards" : "", b->options.context + 1);
    return QB_OK;
}

/* Of the digests in the headers: what they promise of the files is qb_shard_verify's to check. */
static qb_status digest_source(qb_batches *b)
{
    char text[96];
    qb_sha256 *hash;
    QB_TRY(qb_sha256_create(&hash));
    snprintf(text, sizeof text, "qb_batches 1 %zu %llu %d", b->options.context,
             (unsigned long long)b->options.seed, b->options.in_order);
    qb_sha256_update(hash, text, strlen(text));
    for (size_t i = 0; i < b->n_shards; i++)
        qb_sha256_update(hash, b->shards[i].header.digest, sizeof b->shards[i].header.digest);
    if (b->bb) {
        snprintf(text, sizeof text, "bb %zu %zu ", b->bb->n_triggers, b->bb->n_bos);
        qb_sha256_update(hash, text, strlen(text));
        qb_sha256_update(hash, b->bb->sha256, 64);
    } else if (!b->shards) {
        snprintf(text, sizeof text, "random %zu", b->vocab);
        qb_sha256_update(hash, text, strlen(text));
    }
    qb_sha256_finish(hash, b->sha256);
    return QB_OK;
}

static qb_status create(const qb_batches_options *options, qb_batches **out)
{
    if (options->context < 1 || options->context > QB_BB_MAX_CONTEXT)
        return QB_FAIL(QB_ERR_USAGE, "context: found %zu, expected 1 to %d", options->context,
                       QB_BB_MAX_CONTEXT);
    QB_TRY(QB_NEW_ZERO(out, 1, "batches"));
    (*out)->options = *options;
    pthread_rwlock_init(&(*out)->lock, NULL);
    return QB_OK;
}

static qb_status create_table(qb_batches *b)
{
    QB_TRY(QB_NEW_ZERO(&b->table, 1, "document order"));
    QB_TRY(QB_NEW(&b->table->order, b->n_docs, "document order"));
    QB_TRY(QB_NEW(&b->table->start, b->n_docs + 1, "document order"));
    b->table->epoch = UINT64_MAX;
    return QB_OK;
}

static qb_status fill_in_shards(qb_batches *b, const char *const *paths, size_t n)
{
    QB_TRY(open_shards(b, paths, n));
    QB_TRY(check_counts(b));
    b->windows_per_epoch = (b->n_tokens - 1) / b->options.context;
    QB_TRY(create_table(b));
    return digest_source(b);
}

qb_status qb_batches_open(const char *const *paths, size_t n_paths,
                          const qb_batches_options *options, qb_batches **out)
{
    qb_batches *b;
    QB_TRY(create(options, &b));
    qb_status status = fill_in_shards(b, paths, n_paths);
    if (status != QB_OK)
        qb_batches_close(b);
    else
        *out = b;
    return status;
}

/* bb NULL: random. */
static qb_status open_endless(const qb_bb *bb, size_t vocab, const qb_batches_options *options,
                              qb_batches **out)
{
    qb_batches *b;
    QB_TRY(create(options, &b));
    b->bb = bb;
    b->vocab = vocab;
    b->n_tokens = b->windows_per_epoch = UINT64_MAX;
    qb_status status = digest_source(b);
    if (status != QB_OK)
        qb_batches_close(b);
    else
        *out = b;
    return status;
}

qb_status qb_batches_open_bb(const qb_bb *bb, const qb_batches_options *options, qb_batches **out)
{
    return open_endless(bb, bb->vocab, options, out);
}

qb_status qb_batches_open_random(size_t vocab, const qb_batches_options *options, qb_batches **out)
{
    if (vocab < 1 || vocab > (size_t)1 << 31)
        return QB_FAIL(QB_ERR_USAGE, "vocab: found %zu, expected 1 to 2^31", vocab);
    return open_endless(NULL, vocab, options, out);
}

void qb_batches_close(qb_batches *b)
{
    if (!b) return;
    for (size_t i = 0; i < b->n_shards; i++) qb_shard_close(&b->shards[i]);
    if (b->table) {
        qb_free(b->table->order);
        qb_free(b->table->start);
    }
    qb_free(b->table);
    qb_free(b->shards);
    qb_free(b->shard_docs);
    pthread_rwlock_destroy(&b->lock);
    qb_free(b);
}

/* ---- the order of one epoch ---- */

static void shuffle(uint32_t *order, size_t n, uint64_t seed, uint64_t epoch)
{
    uint64_t stream = QB_STREAM_DATA | epoch << 32;
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        size_t j = qb_rng_below(seed, stream, i, i);
        uint32_t other = order[j];
        order[j] = order[i - 1];
        order[i - 1] = other;
    }
}

/* The last i in [0, n) with rising[i] <= value; rising[0] <= value. */
static size_t last_not_above(const uint64_t *rising, size_t n, uint64_t value)
{
    size_t low = 0, high = n;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (rising[middle] <= value)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Where document `doc` of all shards is. */
static const qb_shard *find_document(const qb_batches *b, uint64_t doc, uint64_t *first,
                                     uint64_t *n_tokens)
{
    size_t i = last_not_above(b->shard_docs, b->n_shards, doc);
    uint64_t inside = doc - b->shard_docs[i];
    const uint64_t *doc_end = b->shards[i].doc_end;
    *first = inside ? doc_end[inside - 1] : 0;
    *n_tokens = doc_end[inside] - *first;
    return &b->shards[i];
}

static void make_table(const qb_batches *b, uint64_t epoch)
{
    epoch_table *t = b->table;
    uint64_t start = 0, first, n;
    if (b->options.in_order)
        for (uint64_t i = 0; i < b->n_docs; i++) t->order[i] = (uint32_t)i;
    else
        shuffle(t->order, b->n_docs, b->options.seed, epoch);
    for (uint64_t i = 0; i < b->n_docs; i++) {
        find_document(b, t->order[i], &first, &n);
        t->start[i] = start;
        start += n;
    }
    t->start[b->n_docs] = start;
    t->epoch = epoch;
}

/* Takes the lock for reading, with the table of this epoch in place. */
static void lock_epoch(qb_batches *b, uint64_t epoch)
{
    pthread_rwlock_rdlock(&b->lock);
    while (b->table->epoch != epoch) { /* another thread may want yet another */
        pthread_rwlock_unlock(&b->lock);
        pthread_rwlock_wrlock(&b->lock);
        if (b->table->epoch != epoch) make_table(b, epoch);
        pthread_rwlock_unlock(&b->lock);
        pthread_rwlock_rdlock(&b->lock);
    }
}

/* ---- windows ---- */

/* Tokens at, at + 1, ... of the epoch's stream. */
static qb_status copy_stream(const qb_batches *b, uint64_t at, size_t n, int32_t *dst)
{
    const epoch_table *t = b->table;
    for (size_t place = last_not_above(t->start, b->n_docs, at); n; place++) {
        uint64_t first, doc_tokens, skip = at - t->start[place];
        const qb_shard *shard = find_document(b, t->order[place], &first, &doc_tokens);
        size_t take = doc_tokens - skip < n ? doc_tokens - skip : n;
        QB_TRY(qb_shard_read(shard, first + skip, take, dst));
        at += take;
        dst += take;
        n -= take;
    }
    return QB_OK;
}

static qb_status fill_epoch(qb_batches *b, uint64_t epoch, uint64_t first, size_t n,
                            int32_t *tokens)
{
    size_t context = b->options.context;
    qb_status status = QB_OK;
    lock_epoch(b, b->options.in_order ? 0 : epoch);
    for (size_t i = 0; i < n && status == QB_OK; i++)
        status = copy_stream(b, (first + i) * context, context + 1, tokens + i * (context + 1));
    pthread_rwlock_unlock(&b->lock);
    return status;
}

/* Four ids of a block of the generator, multiply-shift. */
static void fill_random(const qb_batches *b, uint64_t first, size_t n, int32_t *tokens)
{
    const size_t row = b->options.context + 1, blocks = (row + 3) / 4;
    uint32_t words[4];
    for (size_t w = 0; w < n; w++, tokens += row)
        for (size_t i = 0; i < row; i++) {
            if (i % 4 == 0)
                qb_philox(b->options.seed, QB_STREAM_DATA, (first + w) * blocks + i / 4, words);
            tokens[i] = (int32_t)((uint64_t)words[i % 4] * b->vocab >> 32);
        }
}

qb_status qb_batches_fill(const qb_batches *batches, uint64_t first_window, size_t n_windows,
                          int32_t *tokens)
{
    qb_batches *b = (qb_batches *)batches; /* the table is a cache behind a lock */
    size_t row = b->options.context + 1;
    if (b->bb) {
        qb_bb_fill(b->bb, b->options.seed, first_window, n_windows, row, tokens);
        return QB_OK;
    }
    if (!b->shards) {
        fill_random(b, first_window, n_windows, tokens);
        return QB_OK;
    }
    while (n_windows) {
        uint64_t epoch = first_window / b->windows_per_epoch;
        uint64_t inside = first_window % b->windows_per_epoch;
        size_t n =
            b->windows_per_epoch - inside < n_windows ? b->windows_per_epoch - inside : n_windows;
        QB_TRY(fill_epoch(b, epoch, inside, n, tokens));
        first_window += n;
        n_windows -= n;
        tokens += n * row;
    }
    return QB_OK;
}

/* ---- what it is ---- */

size_t qb_batches_context(const qb_batches *b)
{
    return b->options.context;
}

size_t qb_batches_vocab(const qb_batches *b)
{
    return b->vocab;
}

uint64_t qb_batches_n_tokens(const qb_batches *b)
{
    return b->n_tokens;
}

uint64_t qb_batches_windows_per_epoch(const qb_batches *b)
{
    return b->windows_per_epoch;
}

uint64_t qb_batches_text_bytes(const qb_batches *b)
{
    return b->text_bytes;
}

const char *qb_batches_tokenizer_sha256(const qb_batches *b)
{
    return b->tokenizer_sha256;
}

const char *qb_batches_sha256(const qb_batches *b)
{
    return b->sha256;
}
