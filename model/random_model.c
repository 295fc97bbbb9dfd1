/* model/random_model.c - see random_model.h. */
#include "model/random_model.h"

#include "core/interrupt.h"
#include "core/memory.h"
#include "core/nearest.h"
#include "core/rng.h"
#include "model/tokenizer.h"

#include <math.h>
#include <string.h>

/* GPT2 as in arXiv:2410.17174, sec. 5.1 and table 8 (widths): RMSNorm-Single, no biases; layers and
 * heads of GPT2's family at those widths; the vocabulary padded to a multiple of 64, as is usual
 * for training. The paper trains at 256 tokens; 1,024 positions leave room for timing longer
 * prompts. */
const qb_random_preset qb_random_presets[] = {
    {"gpt2-60m", "gpt2", 8, 512, 8, 2048, 50304, 1024},
    {"gpt2-130m", "gpt2", 12, 768, 12, 3072, 50304, 1024},
    {"gpt2-1.4b", "gpt2", 24, 2048, 16, 8192, 50304, 1024},
    {"llama2-130m", "llama", 12, 768, 12, 2048, 32000, 1024},
    {0},
};

static const qb_random_preset *find_preset(const char *name)
{
    for (const qb_random_preset *p = qb_random_presets; p->name; p++)
        if (!strcmp(p->name, name)) return p;
    return NULL;
}

static qb_status no_such_preset(const char *name)
{
    char names[256] = "";
    for (const qb_random_preset *p = qb_random_presets; p->name; p++)
        qb_names_add(names, sizeof names, p->name);
    return QB_FAIL(QB_ERR_USAGE, "random model \"%s\": unknown, expected one of %s", name, names);
}

static qb_config config_of(const qb_random_preset *p)
{
    qb_config c = qb_arch_find(p->arch)->defaults;
    c.arch = qb_arch_find(p->arch);
    if (c.norm == QB_NORM_LAYERNORM) {
        c.norm = QB_NORM_RMSNORM_SINGLE;
        c.norm_bias = c.attn_bias = c.mlp_bias = false;
    }
    c.n_layers = p->n_layers;
    c.d_model = p->d_model;
    c.n_heads = c.n_kv_heads = p->n_heads;
    c.head_dim = p->d_model / p->n_heads;
    c.d_ff = p->d_ff;
    c.vocab = p->vocab;
    c.context = p->context;
    return c;
}

/* ---- weights ---- */

enum { CHUNK_ELEMS = 4096 };

typedef struct fill_job {
    uint64_t seed, stream;
    size_t n_elems;
    float standard_deviation;
    uint16_t *dst;
} fill_job;

/* Numbers are counted inside the tensor, so it does not matter who draws which chunk. */
static void fill_chunk(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    const fill_job *job = context;
    float chunk[CHUNK_ELEMS];
    size_t first = i * CHUNK_ELEMS, left = job->n_elems - first;
    size_t n = left < CHUNK_ELEMS ? left : CHUNK_ELEMS;
    qb_rng_normal_f32(job->seed, job->stream, first, n, job->standard_deviation, chunk);
    for (size_t k = 0; k < n; k++) job->dst[first + k] = qb_bf16_from_f32(chunk[k]);
}

static qb_status fill_matrix(qb_model *model, qb_role role, size_t layer_idx, size_t rows,
                             size_t cols, uint64_t seed, qb_pool *pool)
{
    const qb_config *c = &model->config;
    bool residual = role == QB_ROLE_O || role == QB_ROLE_DOWN;
    fill_job job = {.seed = seed, .n_elems = rows * cols, .standard_deviation = 0.02f};
    job.stream = QB_STREAM_WEIGHTS | (uint64_t)((size_t)role * c->n_layers + layer_idx) << 32;
    if (residual) job.standard_deviation = (float)(0.02 / sqrt(2.0 * (double)c->n_layers));
    void *block;
    QB_TRY(qb_model_new_block(model, 2 * job.n_elems, &block));
    job.dst = block;
    qb_parallel_for(pool, (job.n_elems + CHUNK_ELEMS - 1) / CHUNK_ELEMS, fill_chunk, &job);
    return qb_model_set(model, role, layer_idx, QB_BF16, rows, cols, block, 2 * job.n_elems,
                        qb_roles[role].name);
}

static qb_status fill_gain(qb_model *model, qb_role role, size_t layer_idx, size_t n)
{
    void *block;
    QB_TRY(qb_model_new_block(model, n * sizeof(float), &block));
    for (size_t i = 0; i < n; i++) ((float *)block)[i] = 1.0f;
    return qb_model_set(model, role, layer_idx, QB_F32, 1, n, block, n * sizeof(float),
                        qb_roles[role].name);
}

static qb_status fill_weights(qb_model *model, uint64_t seed, qb_pool *pool)
{
    for (int r = 0; r < QB_ROLE_COUNT; r++) {
        size_t rows, cols, n = qb_roles[r].per_layer ? model->config.n_layers : 1;
        if (!qb_config_shape(&model->config, (qb_role)r, &rows, &cols)) continue;
        bool gain = r == QB_ROLE_NORM1 || r == QB_ROLE_NORM2 || r == QB_ROLE_NORM_F;
        for (size_t i = 0; i < n; i++) {
            QB_TRY(qb_interrupt_check());
            if (qb_config_has(&model->config, (qb_role)r, i))
                QB_TRY(gain ? fill_gain(model, (qb_role)r, i, cols)
                            : fill_matrix(model, (qb_role)r, i, rows, cols, seed, pool));
        }
    }
    return qb_model_check_complete(model);
}

/* ---- tokenizer ---- */

enum { N_BYTES = 256, TEXT_BYTES = 32 };

/* GPT2's byte alphabet: printable bytes stand for themselves, the others for U+0100 upwards. */
static unsigned code_point_of_byte(unsigned byte)
{
    unsigned n_before = 0;
    for (unsigned b = 0; b <= byte; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte) return printable ? b : 256 + n_before;
        n_before += !printable;
    }
    return byte;
}

static void write_token(size_t id, char text[TEXT_BYTES])
{
    if (id < N_BYTES) {
        unsigned c = code_point_of_byte((unsigned)id);
        if (c < 128)
            snprintf(text, TEXT_BYTES, "%c", (char)c);
        else
            snprintf(text, TEXT_BYTES, "%c%c", (char)(0xc0 | c >> 6), (char)(0x80 | (c & 63)));
    } else if (id == N_BYTES) {
        snprintf(text, TEXT_BYTES, "<|endoftext|>");
    } else {
        snprintf(text, TEXT_BYTES, "<|unused%zu|>", id - N_BYTES - 1);
    }
}

typedef struct byte_vocab {
    char (*storage)[TEXT_BYTES];
    const char **texts;
    size_t *text_bytes;
    uint8_t *types;
} byte_vocab;

static qb_status build_vocab(size_t vocab, byte_vocab *v)
{
    QB_TRY(QB_NEW(&v->storage, vocab, "token texts"));
    QB_TRY(QB_NEW(&v->texts, vocab, "token texts"));
    QB_TRY(QB_NEW(&v->text_bytes, vocab, "token lengths"));
    QB_TRY(QB_NEW(&v->types, vocab, "token types"));
    for (size_t i = 0; i < vocab; i++) {
        write_token(i, v->storage[i]);
        v->texts[i] = v->storage[i];
        v->text_bytes[i] = strlen(v->storage[i]);
        v->types[i] = i < N_BYTES    ? QB_TOKEN_NORMAL
                      : i == N_BYTES ? QB_TOKEN_CONTROL
                                     : QB_TOKEN_UNUSED;
    }
    return QB_OK;
}

static qb_status create_tokenizer(size_t vocab, qb_tokenizer **out)
{
    byte_vocab v = {0};
    qb_status status = build_vocab(vocab, &v);
    if (status == QB_OK) {
        qb_tokenizer_spec spec = {.kind = QB_TOKENIZER_BPE, .pre = "gpt-2", .vocab = vocab};
        spec.texts = v.texts;
        spec.text_bytes = v.text_bytes;
        spec.types = v.types;
        spec.bos = spec.eos = N_BYTES;
        spec.unk = -1;
        status = qb_tokenizer_create(&spec, out);
    }
    qb_free(v.storage);
    qb_free(v.texts);
    qb_free(v.text_bytes);
    qb_free(v.types);
    return status;
}

/* ---- the model ---- */

qb_status qb_random_model(const char *name, uint64_t seed, qb_pool *pool, qb_model **out)
{
    const qb_random_preset *preset = find_preset(name);
    if (!preset) return no_such_preset(name);
    qb_config config = config_of(preset);
    qb_model *model;
    QB_TRY(qb_model_create(&config, name, "random", &model));
    qb_status status = fill_weights(model, seed, pool);
    if (status == QB_OK) status = create_tokenizer(config.vocab, &model->tokenizer);
    if (status == QB_OK) {
        model->training = json_pack("{s:b, s:I}", "random", 1, "seed", (json_int_t)seed);
        if (!model->training) status = QB_FAIL(QB_ERR_MEMORY, "random model: no memory");
    }
    if (status == QB_OK)
        *out = model;
    else
        qb_model_close(model);
    return status;
}
