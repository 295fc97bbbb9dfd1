/* train/config.c - the table of keys at work: text, JSON and defaults become a configuration. */
#include "train/config.h"

#include "core/json.h"
#include "core/memory.h"
#include "core/nearest.h"
#include "train/presets.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the table ---- */

const qb_train_key qb_train_keys[QB_TRAIN_N_KEYS + 1] = {
#define X(field, name, kind, use, min, max, default_text, words, value, help)                      \
    {name,         QB_KEY_##kind, QB_KEY_##use, min,  max,                                         \
     default_text, words,         value,        help, offsetof(qb_train_config, field)},
    QB_TRAIN_KEYS(X)
#undef X
        {.name = NULL}};

static const char *word(const char *const *names, size_t n, size_t i)
{
    return i < n ? names[i] : NULL;
}

#define WORDS(what, names)                                                                         \
    const char *qb_words_##what(size_t i)                                                          \
    {                                                                                              \
        return word(names, QB_COUNT(names), i);                                                    \
    }
static const char *const task_names[QB_TASK_COUNT] = {"text", "bb", "random"};
static const char *const precision_names[QB_PRECISION_COUNT] = {"bf16", "f32"};
WORDS(act, qb_act_names)
WORDS(pos, qb_pos_names)
WORDS(softmax, qb_softmax_names)
WORDS(init, qb_init_names)
WORDS(task, task_names)
WORDS(schedule, qb_schedule_names)
WORDS(rotation, qb_rotation_names)
WORDS(precision, precision_names)

/* The last is an alias: what recorded runs call RMSNorm-Single. */
const char *qb_words_norm(size_t i)
{
    return i == QB_NORM_COUNT ? "rmsnorm_s" : word(qb_norm_names, QB_NORM_COUNT, i);
}

const char *qb_words_arch(size_t i)
{
    return qb_archs[i].name;
}

const char *qb_words_optimizer(size_t i)
{
    return qb_optimizers[i].name;
}

static bool same_name(const char *a, const char *b)
{
    for (; *a || *b; a++, b++)
        if ((*a == '_' ? '-' : *a) != (*b == '_' ? '-' : *b)) return false;
    return true;
}

const qb_train_key *qb_train_key_find(const char *name)
{
    for (const qb_train_key *key = qb_train_keys; key->name; key++)
        if (same_name(key->name, name)) return key;
    return NULL;
}

void qb_train_key_json_name(const qb_train_key *key, char name[32])
{
    snprintf(name, 32, "%s", key->name);
    for (char *p = name; *p; p++)
        if (*p == '-') *p = '_';
}

static void *place(qb_train_config *config, const qb_train_key *key)
{
    return (char *)config + key->offset;
}

static const void *place_const(const qb_train_config *config, const qb_train_key *key)
{
    return (const char *)config + key->offset;
}

/* ---- values ---- */

static qb_status fail_value(const qb_train_key *key, const char *text, const char *expected)
{
    return QB_FAIL(QB_ERR_USAGE, "%s: found '%.60s', expected %s", key->name, text, expected);
}

static qb_status set_word(qb_train_config *config, const qb_train_key *key, const char *text)
{
    char names[256] = "", expected[272];
    const char *name;
    for (unsigned i = 0; (name = key->words(i)); i++) {
        if (!strcmp(name, text)) {
            bool alias = key->words == qb_words_norm && i == QB_NORM_COUNT;
            *(unsigned *)place(config, key) = alias ? QB_NORM_RMSNORM_SINGLE : i;
            return QB_OK;
        }
        qb_names_add(names, sizeof names, name);
    }
    snprintf(expected, sizeof expected, "one of %s", names);
    return fail_value(key, text, expected);
}

static qb_status set_text(qb_train_config *config, const qb_train_key *key, const char *text)
{
    size_t n = strlen(text);
    if (n >= QB_TRAIN_TEXT_BYTES)
        return QB_FAIL(QB_ERR_USAGE, "%s: found %zu bytes, expected at most %d", key->name, n,
                       QB_TRAIN_TEXT_BYTES - 1);
    memcpy(place(config, key), text, n + 1);
    return QB_OK;
}

/* Written so that NaN is out of range. */
static qb_status check_range(const qb_train_key *key, double value, const char *text)
{
    char expected[96];
    if (value >= key->min && value <= key->max) return QB_OK;
    snprintf(expected, sizeof expected, "%s from %.16g to %.16g",
             key->kind == QB_KEY_SIZE ? "a whole number" : "a number", key->min, key->max);
    return fail_value(key, text, expected);
}

static qb_status set_size(qb_train_config *config, const qb_train_key *key, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    bool whole = isdigit((unsigned char)*text) && !*end && !errno;
    QB_TRY(check_range(key, whole ? (double)value : NAN, text));
    *(size_t *)place(config, key) = (size_t)value;
    return QB_OK;
}

static qb_status set_real(qb_train_config *config, const qb_train_key *key, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    QB_TRY(check_range(key, end != text && !*end ? value : NAN, text));
    *(double *)place(config, key) = value;
    return QB_OK;
}

static qb_status set_switch(qb_train_config *config, const qb_train_key *key, const char *text)
{
    bool on = !strcmp(text, "on");
    if (!on && strcmp(text, "off")) return fail_value(key, text, "on or off");
    *(bool *)place(config, key) = on;
    return QB_OK;
}

static qb_status set_blocks(qb_train_config *config, const qb_train_key *key, const char *text)
{
    uint64_t blocks = 0;
    for (const char *at = text; *at;) {
        char *end;
        unsigned long n = strtoul(at, &end, 10);
        bool good = isdigit((unsigned char)*at) && n >= 1 && n <= QB_MASKED_LAYERS;
        if (!good || (*end && (*end != ',' || !end[1])))
            return fail_value(key, text, "numbers of blocks from 1 to 64 with commas");
        blocks |= (uint64_t)1 << (n - 1);
        at = end + (*end == ',');
    }
    *(uint64_t *)place(config, key) = blocks;
    return QB_OK;
}

static json_t *blocks_to_json(uint64_t blocks)
{
    char text[4 * QB_MASKED_LAYERS] = "";
    for (size_t i = 0, n = 0; i < QB_MASKED_LAYERS; i++)
        if (blocks >> i & 1)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%zu", n ? "," : "", i + 1);
    return json_string(text);
}

static qb_status set_key(qb_train_config *config, const qb_train_key *key, const char *text)
{
    static qb_status (*const setters[])(qb_train_config *, const qb_train_key *, const char *) = {
        [QB_KEY_WORD] = set_word, [QB_KEY_TEXT] = set_text,     [QB_KEY_SIZE] = set_size,
        [QB_KEY_REAL] = set_real, [QB_KEY_SWITCH] = set_switch, [QB_KEY_BLOCKS] = set_blocks,
    };
    return setters[key->kind](config, key, text);
}

static qb_status fail_unknown(const char *name)
{
    char dashed[64];
    snprintf(dashed, sizeof dashed, "%s", name);
    for (char *p = dashed; *p; p++)
        if (*p == '_') *p = '-';
    qb_nearest nearest = qb_nearest_begin(dashed);
    for (const qb_train_key *key = qb_train_keys; key->name; key++)
        qb_nearest_consider(&nearest, key->name);
    if (nearest.word)
        return QB_FAIL(QB_ERR_USAGE,
                       "no such key: found '%.40s', expected a known one: did you mean '%s'?", name,
                       nearest.word);
    return QB_FAIL(QB_ERR_USAGE,
                   "no such key: found '%.40s', expected one that qbench help train lists", name);
}

qb_status qb_train_config_set(qb_train_config *config, const char *name, const char *text)
{
    const qb_train_key *key = qb_train_key_find(name);
    if (!key) return fail_unknown(name);
    QB_TRY(set_key(config, key, text));
    config->given[key - qb_train_keys] = true;
    return QB_OK;
}

void qb_train_config_init(qb_train_config *config)
{
    memset(config, 0, sizeof *config);
    for (const qb_train_key *key = qb_train_keys; key->name; key++)
        if (key->default_text) set_key(config, key, key->default_text);
}

/* ---- JSON ---- */

/* The text that a flag would have for this value; numbers exactly. */
static qb_status text_of_json(const char *name, const json_t *value, char *text, size_t capacity)
{
    if (json_is_string(value) && strlen(json_string_value(value)) < capacity)
        snprintf(text, capacity, "%s", json_string_value(value));
    else if (json_is_boolean(value))
        snprintf(text, capacity, "%s", json_is_true(value) ? "on" : "off");
    else if (json_is_integer(value))
        snprintf(text, capacity, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text, capacity, "%.17g", json_real_value(value));
    else
        return QB_FAIL(QB_ERR_USAGE,
                       "%.40s: found a list, an object or a long text, expected a "
                       "number, a text, true or false",
                       name);
    return QB_OK;
}

/* A flag's value is always text; JSON says what is a number. */
static qb_status check_json_kind(const qb_train_key *key, const json_t *value)
{
    bool fits = key->kind == QB_KEY_SIZE     ? json_is_integer(value)
                : key->kind == QB_KEY_REAL   ? json_is_number(value)
                : key->kind == QB_KEY_SWITCH ? json_is_boolean(value)
                                             : json_is_string(value);
    static const char *const expected[] = {
        [QB_KEY_WORD] = "a text",          [QB_KEY_TEXT] = "a text",
        [QB_KEY_SIZE] = "a whole number",  [QB_KEY_REAL] = "a number",
        [QB_KEY_SWITCH] = "true or false", [QB_KEY_BLOCKS] = "a text"};
    if (fits) return QB_OK;
    return QB_FAIL(QB_ERR_USAGE, "%s: found another kind of value, expected %s", key->name,
                   expected[key->kind]);
}

static qb_status merge_value(qb_train_config *config, const char *name, const json_t *value)
{
    char text[QB_TRAIN_TEXT_BYTES + 1];
    const qb_train_key *key = qb_train_key_find(name);
    if (json_is_null(value) && key) return QB_OK;
    QB_TRY(text_of_json(name, value, text, sizeof text));
    if (key) QB_TRY(check_json_kind(key, value));
    return qb_train_config_set(config, name, text);
}

static qb_status merge_all(qb_train_config *config, const json_t *object)
{
    if (!json_is_object(object))
        return QB_FAIL(QB_ERR_FORMAT, "found no object, expected one of keys and values");
    const json_t *preset = json_object_get(object, "preset");
    if (preset && !json_is_string(preset))
        return QB_FAIL(QB_ERR_FORMAT, "preset: found another kind of value, expected a name");
    if (preset) QB_TRY(qb_preset_apply(json_string_value(preset), config));
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value)
    {
        if (strcmp(name, "preset")) QB_TRY(merge_value(config, name, value));
    }
    return QB_OK;
}

qb_status qb_train_config_merge(qb_train_config *config, const json_t *object)
{
    qb_status status = merge_all(config, object);
    return status == QB_ERR_USAGE ? QB_ERR_FORMAT : status; /* a file's fault, not the line's */
}

static json_t *value_to_json(const qb_train_config *config, const qb_train_key *key)
{
    const void *value = place_const(config, key);
    switch (key->kind) {
    case QB_KEY_WORD:
        return json_string(key->words(*(const unsigned *)value));
    case QB_KEY_TEXT:
        return json_string(value);
    case QB_KEY_SIZE:
        return json_integer((json_int_t) * (const size_t *)value);
    case QB_KEY_REAL:
        return json_real(*(const double *)value);
    case QB_KEY_SWITCH:
        return json_boolean(*(const bool *)value);
    case QB_KEY_BLOCKS:
        return blocks_to_json(*(const uint64_t *)value);
    }
    return NULL;
}

qb_status qb_train_config_to_json(const qb_train_config *config, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *object = json_object();
    for (const qb_train_key *key = qb_train_keys; key->name; key++) {
        char name[32];
        qb_train_key_json_name(key, name);
        json_object_set_new(object, name, value_to_json(config, key));
    }
    qb_status status = qb_json_check_memory(mark, "configuration");
    if (status != QB_OK)
        json_decref(object);
    else
        *out = object;
    return status;
}

/* ---- what was not given ---- */

static size_t size_of_kind(qb_train_key_kind kind)
{
    static const size_t bytes[] = {
        [QB_KEY_WORD] = sizeof(unsigned), [QB_KEY_TEXT] = QB_TRAIN_TEXT_BYTES,
        [QB_KEY_SIZE] = sizeof(size_t),   [QB_KEY_REAL] = sizeof(double),
        [QB_KEY_SWITCH] = sizeof(bool),   [QB_KEY_BLOCKS] = sizeof(uint64_t)};
    return bytes[kind];
}

/* Keys without a default that lie in the part at `offset`: as in `defaults`, a part of that kind.
 */
static void inherit(qb_train_config *config, size_t offset, size_t bytes, const void *defaults)
{
    for (size_t i = 0; i < QB_TRAIN_N_KEYS; i++) {
        const qb_train_key *key = &qb_train_keys[i];
        bool inside = key->offset >= offset && key->offset < offset + bytes;
        if (inside && !key->default_text && !config->given[i])
            memcpy(place(config, key), (const char *)defaults + (key->offset - offset),
                   size_of_kind(key->kind));
    }
}

/* The fields of the architecture's row that no key names come along with it. */
static void inherit_arch(qb_train_config *config)
{
    const qb_arch *arch = &qb_archs[config->arch];
    qb_config own = config->model;
    config->model = arch->defaults;
    for (size_t i = 0; i < QB_TRAIN_N_KEYS; i++) {
        const qb_train_key *key = &qb_train_keys[i];
        size_t first = offsetof(qb_train_config, model);
        bool inside = key->offset >= first && key->offset < first + sizeof own;
        if (inside && (key->default_text || config->given[i]))
            memcpy(place(config, key), (const char *)&own + (key->offset - first),
                   size_of_kind(key->kind));
    }
    config->model.arch = arch;
}

static bool given(const qb_train_config *config, const char *name)
{
    return config->given[qb_train_key_find(name) - qb_train_keys];
}

static qb_status resolve_shape(qb_train_config *config, size_t data_vocab)
{
    qb_config *m = &config->model;
    if (!m->n_layers || !m->d_model)
        return QB_FAIL(QB_ERR_USAGE,
                       "%s: not set, expected a preset (see qbench presets), a "
                       "configuration file or --%s",
                       m->n_layers ? "d-model" : "n-layers", m->n_layers ? "d-model" : "n-layers");
    if (!m->n_heads) m->n_heads = m->d_model >= 64 ? m->d_model / 64 : 1;
    if (!m->n_kv_heads) m->n_kv_heads = m->n_heads;
    if (!m->head_dim) m->head_dim = m->d_model / m->n_heads;
    if (!m->d_ff) m->d_ff = 4 * m->d_model;
    if (!m->vocab && config->task == QB_TASK_TEXT) m->vocab = (data_vocab + 63) / 64 * 64;
    if (!m->vocab) m->vocab = data_vocab;
    if (!m->vocab) return QB_FAIL(QB_ERR_USAGE, "vocab: not set, and no data that would say it");
    if (m->vocab < data_vocab)
        return QB_FAIL(QB_ERR_USAGE, "vocab: found %zu, expected at least the data's %zu", m->vocab,
                       data_vocab);
    if (!given(config, "norm-bias") && m->norm != QB_NORM_LAYERNORM) m->norm_bias = false;
    return qb_config_check(m) == QB_OK ? QB_OK : QB_ERR_USAGE;
}

static qb_status check_run(const qb_train_config *config)
{
    if (!config->steps && !config->tokens)
        return QB_FAIL(QB_ERR_USAGE, "steps: found 0 with tokens 0, expected one of them above 0");
    if (config->micro_batch && config->batch % config->micro_batch)
        return QB_FAIL(QB_ERR_USAGE, "micro-batch: found %zu, expected a divisor of batch %zu",
                       config->micro_batch, config->batch);
    return QB_OK;
}

qb_status qb_train_config_resolve(qb_train_config *config, size_t data_vocab)
{
    const qb_optimizer *optimizer = &qb_optimizers[config->optimizer];
    inherit_arch(config);
    inherit(config, offsetof(qb_train_config, settings), sizeof config->settings,
            &optimizer->defaults);
    inherit(config, offsetof(qb_train_config, schedule.peak), sizeof(double), &optimizer->lr);
    QB_TRY(resolve_shape(config, data_vocab));
    QB_TRY(check_run(config));
    memset(config->given, 1, sizeof config->given);
    return QB_OK;
}

uint64_t qb_train_config_n_steps(const qb_train_config *config)
{
    uint64_t targets = (uint64_t)config->batch * config->model.context;
    return config->steps ? config->steps : (config->tokens + targets - 1) / targets;
}

/* ---- resumption ---- */

static void value_text(const qb_train_config *config, const qb_train_key *key, char text[96])
{
    json_t *value = value_to_json(config, key);
    char *json = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15)) : NULL;
    snprintf(text, 96, "%s", json ? json : "?");
    qb_library_free(json);
    json_decref(value);
}

qb_status qb_train_config_check_same(const qb_train_config *stored, const qb_train_config *wanted)
{
    for (const qb_train_key *key = qb_train_keys; key->name; key++) {
        const void *a = place_const(stored, key), *b = place_const(wanted, key);
        bool same =
            key->kind == QB_KEY_TEXT ? !strcmp(a, b) : !memcmp(a, b, size_of_kind(key->kind));
        if (key->use == QB_KEY_FREE || same) continue;
        char was[96], is[96];
        value_text(stored, key, was);
        value_text(wanted, key, is);
        return QB_FAIL(
            QB_ERR_USAGE,
            "--%s: cannot change on --resume: found %s, expected %s as in the checkpoint",
            key->name, is, was);
    }
    return QB_OK;
}
