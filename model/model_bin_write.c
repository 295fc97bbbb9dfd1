/* model/model_bin_write.c - a model into model.bin, chunk by chunk: never more than a few chunks of
 * the file are in memory.
 *
 * The JSON stands before the payloads and holds what is known only after them (stored sizes, CRCs).
 * So room is left for its largest form, the payloads are written, the JSON is put into its place,
 * filled up with spaces, and the whole is read back once for the digest. */
#include "model/model_bin_internal.h"

#include "core/interrupt.h"
#include "core/json.h"
#include "core/memory.h"
#include "core/progress.h"
#include "model/tokenizer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { CHUNKS_PER_THREAD = 2, MAX_NAME_BYTES = 96, MAX_PAYLOADS = 5 /* of a tensor */ };

/* One payload: where its bytes come from, and what became of it in the file. */
typedef struct source {
    char name[MAX_NAME_BYTES];
    const qb_tensor *tensor; /* NULL for a tensor's scales and for the tokenizer */
    qb_dtype from, to;       /* equal where the bytes go out as they are */
    const uint8_t *data;
    size_t rows, cols, bytes; /* bytes = as `to` */
    size_t offset, stored_bytes, n_chunks;
    size_t *chunk_stored; /* (n_chunks), zlib only */
    uint32_t crc;
    bool deflated;
} source;

/* A chunk in work. */
typedef struct chunk {
    float *wide;         /* widened elements, where the dtype changes */
    uint8_t *narrow;     /* narrowed ones */
    uint8_t *packed;     /* deflated */
    const uint8_t *data; /* what is to be written: one of the above, or the model's own bytes */
    size_t bytes;
    uint32_t crc;
    qb_status status;
} chunk;

typedef struct job {
    const qb_model *model;
    const qb_model_bin_options *options;
    qb_writer *out;
    qb_pool *pool;
    source *sources;
    size_t n_sources, capacity;
    uint8_t *tokenizer;
    size_t tokenizer_bytes;
    chunk *chunks;
    size_t n_chunks_at_once, packed_bytes;
    const source *now; /* the payload whose chunks from first_chunk on are in work */
    size_t first_chunk;
} job;

/* ---- what goes in ---- */

static source *add_source(job *j, const char *name, const char *suffix, qb_dtype dtype, size_t rows,
                          size_t cols, const void *data)
{
    assert(j->n_sources < j->capacity);
    source *s = &j->sources[j->n_sources++];
    snprintf(s->name, sizeof s->name, "%s%s", name, suffix);
    s->from = s->to = dtype;
    s->rows = rows;
    s->cols = cols;
    s->data = data;
    return s;
}

static void add_tensor(job *j, const qb_tensor *t)
{
    char name[64];
    qb_role_name(t->role, t->layer_idx, name, sizeof name);
    source *s = add_source(j, name, "", t->dtype, t->rows, t->cols, t->data);
    s->tensor = t;
    const qb_tensor_quant *q = &t->quant;
    if (q->axis != QB_AXIS_NONE) {
        add_source(j, name, ".scale", QB_F32, 1, q->n_slices, q->scale);
        if (q->zero_point)
            add_source(j, name, ".zero_point", QB_S32, 1, q->n_slices, q->zero_point);
        if (q->fill) add_source(j, name, ".fill", QB_F32, 1, q->n_slices, q->fill);
        if (q->fold) add_source(j, name, ".fold", QB_F32, 1, t->cols, q->fold);
    } else if (j->options->convert_floats) {
        s->to = t->rows > 1 ? j->options->float_dtype : QB_F32;
    }
}

static qb_status collect_sources(job *j)
{
    const qb_model *model = j->model;
    size_t n_layers = model->config.n_layers;
    j->capacity = QB_ROLE_COUNT * n_layers * MAX_PAYLOADS + 1;
    QB_TRY(QB_NEW_ZERO(&j->sources, j->capacity, "payload table"));
    for (size_t l = 0; l < n_layers; l++)
        for (int role = 0; role < QB_ROLE_COUNT; role++) {
            if (l > 0 && !qb_roles[role].per_layer) continue;
            const qb_tensor *t = qb_model_tensor(model, (qb_role)role, l);
            if (t->data) add_tensor(j, t);
        }
    if (model->tokenizer) {
        QB_TRY(qb_tokenizer_serialize(model->tokenizer, &j->tokenizer, &j->tokenizer_bytes));
        add_source(j, QB_BIN_TOKENIZER_NAME, "", QB_U8, 1, j->tokenizer_bytes, j->tokenizer);
    }
    for (size_t i = 0; i < j->n_sources; i++) {
        source *s = &j->sources[i];
        if (!qb_dtype_bytes(s->to, s->rows, s->cols, &s->bytes))
            return QB_FAIL(QB_ERR_SHAPE, "%s: (%zu, %zu) cannot be stored as %s", s->name, s->rows,
                           s->cols, qb_dtype_get(s->to)->name);
        s->n_chunks = (s->bytes - 1) / QB_BIN_CHUNK_BYTES + 1;
        if (j->options->zlib_level) QB_TRY(QB_NEW(&s->chunk_stored, s->n_chunks, "chunk table"));
    }
    return QB_OK;
}

/* ---- the JSON ---- */

/* Values that jansson could not allocate are left out here and found at the end of describe. */

static json_t *quant_to_json(const qb_tensor_quant *q)
{
    json_t *object = json_pack("{s:s, s:i}", "axis", qb_axis_names[q->axis], "bits", (int)q->bits);
    if (q->axis == QB_AXIS_GROUP)
        json_object_set_new(object, "group", json_integer((json_int_t)q->group_elems));
    return object;
}

static json_t *shape_to_json(const source *s)
{
    if (s->rows == 1) return json_pack("[I]", (json_int_t)s->cols);
    return json_pack("[I, I]", (json_int_t)s->rows, (json_int_t)s->cols);
}

static json_t *chunks_to_json(const source *s)
{
    json_t *array = json_array();
    for (size_t i = 0; i < s->n_chunks; i++)
        json_array_append_new(array, json_integer((json_int_t)s->chunk_stored[i]));
    return array;
}

static json_t *source_to_json(const source *s)
{
    json_t *o = json_pack("{s:s, s:s, s:o, s:I, s:I, s:I, s:s}", "name", s->name, "dtype",
                          qb_dtype_get(s->to)->name, "shape", shape_to_json(s), "offset",
                          (json_int_t)s->offset, "bytes", (json_int_t)s->bytes, "stored_bytes",
                          (json_int_t)s->stored_bytes, "encoding", s->deflated ? "zlib" : "raw");
    if (s->deflated) {
        json_object_set_new(o, "chunk_bytes", json_integer(QB_BIN_CHUNK_BYTES));
        json_object_set_new(o, "chunks", chunks_to_json(s));
    }
    json_object_set_new(o, "crc32", json_integer(s->crc));
    if (s->tensor && s->tensor->quant.axis != QB_AXIS_NONE)
        json_object_set_new(o, "quant", quant_to_json(&s->tensor->quant));
    return o;
}

static json_t *tokenizer_to_json(const qb_tokenizer *tokenizer)
{
    return json_pack("{s:s, s:I, s:s}", "pre", qb_tokenizer_pre(tokenizer), "vocab",
                     (json_int_t)qb_tokenizer_vocab(tokenizer), "sha256",
                     qb_tokenizer_sha256(tokenizer));
}

/* A name taken from a path may be no UTF-8: its odd bytes become question marks. */
static json_t *name_to_json(const char *name)
{
    json_t *value = json_string(name);
    char *ascii;
    if (value || qb_strdup(&ascii, name) != QB_OK) return value;
    for (char *p = ascii; *p; p++)
        if ((unsigned char)*p >= 0x80) *p = '?';
    value = json_string(ascii);
    qb_free(ascii);
    return value;
}

static qb_status describe(const job *j, json_t *root)
{
    const qb_model *m = j->model;
    size_t mark = qb_json_mark();
    json_t *architecture, *tensors;
    QB_TRY(qb_config_to_json(&m->config, &architecture));
    json_object_set_new(root, "architecture", architecture);
    if (m->name) json_object_set_new(root, "name", name_to_json(m->name));
    if (m->stored_scheme) json_object_set_new(root, "scheme", json_string(m->stored_scheme));
    if (m->training) json_object_set(root, "training", m->training);
    if (m->tokenizer) json_object_set_new(root, "tokenizer", tokenizer_to_json(m->tokenizer));
    if (m->calibration) json_object_set(root, "calibration", m->calibration);
    tensors = json_array();
    for (size_t i = 0; i < j->n_sources; i++)
        json_array_append_new(tensors, source_to_json(&j->sources[i]));
    json_object_set_new(root, "tensors", tensors);
    return qb_json_check_memory(mark, "model.bin header");
}

/* *text is given back with qb_library_free. */
static qb_status make_json(const job *j, char **text, size_t *bytes)
{
    size_t mark = qb_json_mark();
    json_t *root = json_object();
    qb_status status = qb_json_check_memory(mark, "model.bin header");
    if (status == QB_OK) status = describe(j, root);
    if (status == QB_OK) status = qb_json_dump(root, JSON_COMPACT, "model.bin header", text);
    if (status == QB_OK) *bytes = strlen(*text);
    json_decref(root);
    return status;
}

/* The length of the JSON if every number had its most digits, such that payloads start aligned. */
static qb_status reserve_json(job *j, size_t *reserved)
{
    for (size_t i = 0; i < j->n_sources; i++) {
        source *s = &j->sources[i];
        s->offset = (size_t)1 << 53;
        s->stored_bytes = s->bytes;
        s->crc = UINT32_MAX;
        s->deflated = j->options->zlib_level > 0;
        for (size_t c = 0; s->deflated && c < s->n_chunks; c++)
            s->chunk_stored[c] = QB_BIN_CHUNK_BYTES;
    }
    char *text;
    size_t bytes;
    QB_TRY(make_json(j, &text, &bytes));
    qb_library_free(text);
    *reserved = qb_round_up(QB_BIN_HEADER_BYTES + bytes, QB_BIN_ALIGN) - QB_BIN_HEADER_BYTES;
    if (*reserved > QB_BIN_MAX_JSON_BYTES)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "model.bin: JSON header of %zu bytes, at most %d",
                       *reserved, QB_BIN_MAX_JSON_BYTES);
    return QB_OK;
}

/* ---- payloads ---- */

/* Elements [first, first + n) of the source, in its new dtype. */
static const uint8_t *convert_elems(const source *s, size_t first, size_t n, chunk *ch)
{
    const qb_dtype_info *from = qb_dtype_get(s->from);
    const uint8_t *in = s->data + first / from->block_elems * from->block_bytes;
    qb_dtype_to_f32(s->from, in, n, ch->wide);
    if (s->to == QB_F32) return (const uint8_t *)ch->wide;
    uint16_t *out = (uint16_t *)ch->narrow, infinity = s->to == QB_BF16 ? 0x7f80 : 0x7c00;
    for (size_t i = 0; i < n; i++) {
        float x = ch->wide[i];
        out[i] = s->to == QB_BF16 ? qb_bf16_from_f32(x) : qb_f16_from_f32(x);
        if ((out[i] & 0x7fff) == infinity && !isinf(x)) ch->status = QB_ERR_UNSUPPORTED;
    }
    return ch->narrow;
}

/* Leaves the chunk as it is where deflating does not make the chunk smaller. */
static qb_status deflate_chunk(chunk *ch, size_t packed_bytes, int level)
{
    z_stream z = {.zalloc = qb__bin_zlib_alloc, .zfree = qb__bin_zlib_free};
    if (deflateInit(&z, level) != Z_OK)
        return QB_FAIL(QB_ERR_MEMORY, "model.bin: no memory to deflate");
    z.next_in = (Bytef *)ch->data;
    z.avail_in = (uInt)ch->bytes;
    z.next_out = ch->packed;
    z.avail_out = (uInt)packed_bytes;
    bool fits = deflate(&z, Z_FINISH) == Z_STREAM_END && z.total_out < ch->bytes;
    if (fits) {
        ch->data = ch->packed;
        ch->bytes = z.total_out;
    }
    deflateEnd(&z);
    return QB_OK;
}

static void make_chunk(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    job *j = context;
    const source *s = j->now;
    chunk *ch = &j->chunks[i];
    size_t from = (j->first_chunk + i) * QB_BIN_CHUNK_BYTES, left = s->bytes - from;
    ch->bytes = left < QB_BIN_CHUNK_BYTES ? left : QB_BIN_CHUNK_BYTES;
    ch->status = QB_OK;
    size_t elem_bytes = qb_dtype_get(s->to)->block_bytes;
    if (s->from == s->to)
        ch->data = s->data + from;
    else
        ch->data = convert_elems(s, from / elem_bytes, ch->bytes / elem_bytes, ch);
    if (j->options->zlib_level && ch->status == QB_OK)
        ch->status = deflate_chunk(ch, j->packed_bytes, j->options->zlib_level);
    ch->crc = qb_crc32(ch->data, ch->bytes);
}

static qb_status make_chunks(job *j)
{
    bool convert = j->options->convert_floats, deflated = j->options->zlib_level > 0;
    j->n_chunks_at_once = CHUNKS_PER_THREAD * qb_pool_n_threads(j->pool);
    j->packed_bytes = compressBound(QB_BIN_CHUNK_BYTES);
    QB_TRY(QB_NEW_ZERO(&j->chunks, j->n_chunks_at_once, "chunks in work"));
    for (size_t i = 0; i < j->n_chunks_at_once; i++) {
        chunk *ch = &j->chunks[i];
        if (convert) { /* a chunk holds the most elements where they take 2 bytes */
            QB_TRY(QB_NEW(&ch->wide, QB_BIN_CHUNK_BYTES / 2, "chunk"));
            QB_TRY(QB_NEW(&ch->narrow, QB_BIN_CHUNK_BYTES, "chunk"));
        }
        if (deflated) QB_TRY(QB_NEW(&ch->packed, j->packed_bytes, "chunk"));
    }
    return QB_OK;
}

static qb_status write_zeros(qb_writer *out, size_t bytes)
{
    static const uint8_t zeros[4096];
    while (bytes) {
        size_t n = bytes < sizeof zeros ? bytes : sizeof zeros;
        QB_TRY(qb_writer_write(out, zeros, n));
        bytes -= n;
    }
    return QB_OK;
}

static qb_status align_file(qb_writer *out)
{
    uint64_t at = qb_writer_offset(out);
    return write_zeros(out, qb_round_up(at, QB_BIN_ALIGN) - at);
}

/* Messages belong to a thread: the worker's is made anew here. */
static qb_status fail_chunk(const source *s, qb_status status)
{
    if (status == QB_ERR_MEMORY)
        return QB_FAIL(status, "model.bin: %s: no memory to deflate", s->name);
    return QB_FAIL(status, "model.bin: %s: found a value that is too large for %s", s->name,
                   qb_dtype_get(s->to)->name);
}

static qb_status write_source(job *j, source *s)
{
    QB_TRY(align_file(j->out));
    s->offset = qb_writer_offset(j->out);
    s->crc = qb_crc32(NULL, 0);
    s->deflated = false;
    j->now = s;
    for (j->first_chunk = 0; j->first_chunk < s->n_chunks; j->first_chunk += j->n_chunks_at_once) {
        size_t left = s->n_chunks - j->first_chunk,
               n = left < j->n_chunks_at_once ? left : j->n_chunks_at_once;
        QB_TRY(qb_interrupt_check());
        qb_parallel_for(j->pool, n, make_chunk, j);
        for (size_t i = 0; i < n; i++) {
            const chunk *ch = &j->chunks[i];
            if (ch->status != QB_OK) return fail_chunk(s, ch->status);
            QB_TRY(qb_writer_write(j->out, ch->data, ch->bytes));
            s->crc = (uint32_t)crc32_combine(s->crc, ch->crc, (z_off_t)ch->bytes);
            if (s->chunk_stored) s->chunk_stored[j->first_chunk + i] = ch->bytes;
            s->deflated |= ch->data == ch->packed && ch->packed;
        }
    }
    s->stored_bytes = qb_writer_offset(j->out) - s->offset;
    if (s->tensor) qb_tensor_forget(j->model, s->tensor);
    return QB_OK;
}

static qb_status write_sources(job *j)
{
    size_t total = 0, done = 0;
    for (size_t i = 0; i < j->n_sources; i++) total += j->sources[i].bytes;
    qb_progress progress = qb_progress_begin("writing model.bin", total);
    qb_status status = QB_OK;
    for (size_t i = 0; i < j->n_sources && status == QB_OK; i++) {
        status = write_source(j, &j->sources[i]);
        qb_progress_update(&progress, done += j->sources[i].bytes);
    }
    qb_progress_end(&progress);
    return status;
}

/* ---- the whole ---- */

static qb_status write_head(job *j, size_t reserved)
{
    char *text, *padded = NULL;
    size_t bytes;
    QB_TRY(make_json(j, &text, &bytes));
    assert(bytes <= reserved);
    qb_status status = qb_alloc((void **)&padded, reserved, 1, "JSON header");
    if (status == QB_OK) {
        memcpy(padded, text, bytes);
        memset(padded + bytes, ' ', reserved - bytes);
        uint64_t end = qb_writer_offset(j->out);
        qb_bin_header header = {QB_BIN_VERSION, qb_crc32(padded, reserved), reserved,
                                j->n_sources,   end + QB_BIN_DIGEST_BYTES,  end};
        uint8_t packed[QB_BIN_HEADER_BYTES];
        qb__bin_header_pack(&header, packed);
        status = qb_writer_write_at(j->out, 0, packed, sizeof packed);
        if (status == QB_OK)
            status = qb_writer_write_at(j->out, QB_BIN_HEADER_BYTES, padded, reserved);
    }
    qb_free(padded);
    qb_library_free(text);
    return status;
}

static qb_status hash_file(qb_writer *out, uint8_t *buffer, size_t buffer_bytes, char hex[65])
{
    qb_sha256 *hash;
    QB_TRY(qb_sha256_create(&hash));
    qb_status status = QB_OK;
    uint64_t end = qb_writer_offset(out);
    for (uint64_t at = 0; at < end && status == QB_OK; at += buffer_bytes) {
        size_t n = end - at < buffer_bytes ? (size_t)(end - at) : buffer_bytes;
        status = qb_writer_read_at(out, at, buffer, n);
        if (status == QB_OK) qb_sha256_update(hash, buffer, n);
    }
    qb_sha256_finish(hash, hex);
    return status;
}

static qb_status write_digest(qb_writer *out)
{
    enum { BUFFER_BYTES = 1 << 20 };
    uint8_t *buffer, digest[QB_BIN_DIGEST_BYTES];
    char hex[65];
    QB_TRY(QB_NEW(&buffer, BUFFER_BYTES, "digest buffer"));
    qb_status status = hash_file(out, buffer, BUFFER_BYTES, hex);
    qb_free(buffer);
    if (status != QB_OK) return status;
    for (int i = 0; i < QB_BIN_DIGEST_BYTES; i++) {
        const char byte[3] = {hex[2 * i], hex[2 * i + 1], 0};
        digest[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return qb_writer_write(out, digest, sizeof digest);
}

static qb_status write_all(job *j)
{
    size_t reserved;
    QB_TRY(qb_pool_create(j->options->n_threads, &j->pool));
    QB_TRY(collect_sources(j));
    QB_TRY(make_chunks(j));
    QB_TRY(reserve_json(j, &reserved));
    QB_TRY(write_zeros(j->out, QB_BIN_HEADER_BYTES + reserved));
    QB_TRY(write_sources(j));
    QB_TRY(align_file(j->out));
    QB_TRY(write_head(j, reserved));
    return write_digest(j->out);
}

static void job_deinit(job *j)
{
    for (size_t i = 0; j->chunks && i < j->n_chunks_at_once; i++) {
        qb_free(j->chunks[i].wide);
        qb_free(j->chunks[i].narrow);
        qb_free(j->chunks[i].packed);
    }
    for (size_t i = 0; j->sources && i < j->n_sources; i++) qb_free(j->sources[i].chunk_stored);
    qb_free(j->chunks);
    qb_free(j->sources);
    qb_free(j->tokenizer);
    qb_pool_destroy(j->pool);
}

static qb_status check_options(const qb_model_bin_options *o)
{
    if (o->zlib_level < 0 || o->zlib_level > 9)
        return QB_FAIL(QB_ERR_USAGE, "zlib level: found %d, expected 0 to 9", o->zlib_level);
    if (o->convert_floats && o->float_dtype != QB_F32 && o->float_dtype != QB_F16 &&
        o->float_dtype != QB_BF16)
        return QB_FAIL(QB_ERR_USAGE, "dtype: found %s, expected f32, f16 or bf16",
                       qb_dtype_get(o->float_dtype)->name);
    return QB_OK;
}

qb_status qb_model_bin_write(const qb_model *model, const char *path,
                             const qb_model_bin_options *options)
{
    static const qb_model_bin_options defaults;
    job j = {.model = model, .options = options ? options : &defaults};
    QB_TRY(check_options(j.options));
    QB_TRY(qb_writer_open(path, &j.out));
    qb_status status = write_all(&j);
    job_deinit(&j);
    if (status == QB_OK) return qb_writer_commit(j.out);
    qb_writer_abandon(j.out);
    return status;
}
