/* model/import_llmc.c - checkpoints of llm.c (train_gpt2.cu): GPT2, version 3 in f32, 5 in bf16.
 *
 *   256 x int32 header | one contiguous array a tensor kind, all layers after each other
 *
 * Weights are (out, in) already; the embedding is padded to a round vocabulary and the padding is
 * dropped. There is no tokenizer in the file. */
#include "core/memory.h"
#include "model/importers_internal.h"

#include <string.h>

enum { HEADER_INTS = 256, HEADER_BYTES = 4 * HEADER_INTS, MAGIC = 20240326 };

/* The order of the arrays. */
static const qb_role order[] = {
    QB_ROLE_TOK_EMBD, QB_ROLE_POS_EMBD, QB_ROLE_NORM1,  QB_ROLE_NORM1_B,
    QB_ROLE_QKV,      QB_ROLE_QKV_B,    QB_ROLE_O,      QB_ROLE_O_B,
    QB_ROLE_NORM2,    QB_ROLE_NORM2_B,  QB_ROLE_UP,     QB_ROLE_UP_B,
    QB_ROLE_DOWN,     QB_ROLE_DOWN_B,   QB_ROLE_NORM_F, QB_ROLE_NORM_F_B,
};

typedef struct llmc_header {
    int32_t version, context, vocab, n_layers, n_heads, channels, padded_vocab;
} llmc_header;

static int32_t load_s32(const uint8_t *p)
{
    return (int32_t)((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                     (uint32_t)p[3] << 24);
}

static qb_status read_header(const qb_file *file, llmc_header *h)
{
    if (file->bytes < HEADER_BYTES)
        return QB_FAIL(QB_ERR_FORMAT, "truncated: found %zu bytes, expected a header of %d",
                       file->bytes, HEADER_BYTES);
    if (load_s32(file->data) != MAGIC)
        return QB_FAIL(QB_ERR_FORMAT, "magic: found %d, expected %d", load_s32(file->data), MAGIC);
    static const char *const names[] = {"version", "context",  "vocabulary",       "layers",
                                        "heads",   "channels", "padded vocabulary"};
    int32_t *fields[] = {&h->version, &h->context,  &h->vocab,       &h->n_layers,
                         &h->n_heads, &h->channels, &h->padded_vocab};
    for (size_t i = 0; i < QB_COUNT(fields); i++) *fields[i] = load_s32(file->data + 4 * (i + 1));
    if (h->version != 3 && h->version != 5)
        return QB_FAIL(QB_ERR_UNSUPPORTED, "version: found %d, expected 3 (f32) or 5 (bf16)",
                       h->version);
    for (size_t i = 1; i < QB_COUNT(fields); i++)
        if (*fields[i] < 1 || *fields[i] > 1 << 24)
            return QB_FAIL(QB_ERR_FORMAT, "%s: found %d, expected 1 to %d", names[i], *fields[i],
                           1 << 24);
    if (h->channels % h->n_heads)
        return QB_FAIL(QB_ERR_FORMAT, "channels: found %d, expected a multiple of the heads %d",
                       h->channels, h->n_heads);
    if (h->padded_vocab < h->vocab)
        return QB_FAIL(QB_ERR_FORMAT, "padded vocabulary: found %d, expected at least %d",
                       h->padded_vocab, h->vocab);
    return QB_OK;
}

static qb_config config_of(const llmc_header *h)
{
    const qb_arch *arch = qb_arch_find("gpt2");
    qb_config c = arch->defaults;
    c.arch = arch;
    c.n_layers = (size_t)h->n_layers;
    c.d_model = (size_t)h->channels;
    c.n_heads = c.n_kv_heads = (size_t)h->n_heads;
    c.head_dim = c.d_model / c.n_heads;
    c.d_ff = 4 * c.d_model;
    c.vocab = (size_t)h->vocab;
    c.context = (size_t)h->context;
    return c;
}

/* Walks the arrays; the file holds all of them and nothing else (the caller has checked). */
static qb_status set_tensors(qb_model *model, const qb_file *file, const llmc_header *h,
                             qb_dtype dtype)
{
    size_t elem = qb_dtype_get(dtype)->block_bytes;
    const uint8_t *at = file->data + HEADER_BYTES;
    for (size_t i = 0; i < QB_COUNT(order); i++) {
        size_t rows = 0, cols = 0;
        size_t n_layers = qb_roles[order[i]].per_layer ? model->config.n_layers : 1;
        qb_config_shape(&model->config, order[i], &rows, &cols);
        for (size_t layer = 0; layer < n_layers; layer++) {
            char name[64];
            qb_role_name(order[i], layer, name, sizeof name);
            QB_TRY(qb_model_set(model, order[i], layer, dtype, rows, cols, at, rows * cols * elem,
                                name));
            at += rows * cols * elem;
        }
        if (order[i] == QB_ROLE_TOK_EMBD) at += (size_t)(h->padded_vocab - h->vocab) * cols * elem;
    }
    return qb_model_check_complete(model);
}

static qb_status check_size(const qb_file *file, const llmc_header *h, const qb_config *config,
                            size_t elem_bytes)
{
    QB_TRY(qb_config_check(config)); /* after it no product of fields overflows */
    size_t padding = (size_t)(h->padded_vocab - h->vocab) * config->d_model;
    size_t expected = HEADER_BYTES + (qb_config_n_params(config) + padding) * elem_bytes;
    if (file->bytes == expected) return QB_OK;
    return QB_FAIL(QB_ERR_FORMAT, "%s: found %zu bytes, expected %zu by the header",
                   file->bytes < expected ? "truncated" : "trailing bytes", file->bytes, expected);
}

qb_status qb__llmc_build(const qb_file *file, qb_model **out)
{
    llmc_header h = {0};
    QB_TRY(read_header(file, &h));
    qb_dtype dtype = h.version == 3 ? QB_F32 : QB_BF16;
    qb_config config = config_of(&h);
    QB_TRY(check_size(file, &h, &config, qb_dtype_get(dtype)->block_bytes));
    qb_model *model;
    QB_TRY(qb_model_create(&config, file->path, "llm.c", &model));
    qb_status status = set_tensors(model, file, &h, dtype);
    if (status == QB_OK)
        *out = model;
    else
        qb_model_close(model);
    return status;
}

bool qb__llmc_recognise(const char *path, const qb_file *file)
{
    (void)path;
    return file && file->bytes >= 4 && load_s32(file->data) == MAGIC;
}

qb_status qb__llmc_open(const char *path, qb_file *file, qb_model **out)
{
    return qb__open_built(path, file, qb__llmc_build, out);
}
