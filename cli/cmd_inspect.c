/* cli/cmd_inspect.c - qbench inspect: what a model file is, tensor by tensor. One JSON object is
 * made first; the text for people is printed from it, so that both always say the same. */
#include "cli/output.h"
#include "cli/prepare.h"

#include "core/json.h"
#include "core/memory.h"
#include "model/model_bin.h"
#include "model/tokenizer.h"
#include "report/format.h"
#include "train/checkpoint.h"
#include "train/data/shards.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- statistics ---- */

static qb_status add_stats(const qb_model *model, const qb_tensor *t, json_t *object)
{
    float *row, least = INFINITY, most = -INFINITY;
    size_t n_odd = 0; /* NaN or infinite */
    QB_TRY(QB_NEW(&row, t->cols, "row"));
    for (size_t r = 0; r < t->rows; r++) {
        qb_tensor_rows_f32(t, r, 1, row);
        for (size_t k = 0; k < t->cols; k++) {
            if (!isfinite(row[k])) {
                n_odd++;
                continue;
            }
            least = row[k] < least ? row[k] : least;
            most = row[k] > most ? row[k] : most;
        }
    }
    qb_free(row);
    qb_tensor_forget(model, t);
    float absmax = fabsf(least) > fabsf(most) ? fabsf(least) : fabsf(most);
    json_object_set_new(object, "min", qb_json_real(least));
    json_object_set_new(object, "max", qb_json_real(most));
    json_object_set_new(object, "absmax", qb_json_real(absmax));
    json_object_set_new(object, "not_finite", json_integer((json_int_t)n_odd));
    return QB_OK;
}

/* ---- the JSON object ---- */

static json_t *quant_to_json(const qb_tensor_quant *q)
{
    if (q->axis == QB_AXIS_NONE) return json_null();
    return json_pack("{s:s, s:i, s:I, s:I}", "axis", qb_axis_names[q->axis], "bits", (int)q->bits,
                     "group", (json_int_t)(q->axis == QB_AXIS_GROUP ? q->group_elems : 0), "scales",
                     (json_int_t)q->n_slices);
}

static qb_status tensor_to_json(const qb_model *model, const qb_tensor *t, bool stats,
                                json_t *tensors)
{
    char name[64];
    qb_role_name(t->role, t->layer_idx, name, sizeof name);
    json_t *object =
        json_pack("{s:s, s:s, s:[I, I], s:I, s:o}", "name", name, "dtype",
                  qb_dtype_get(t->dtype)->name, "shape", (json_int_t)t->rows, (json_int_t)t->cols,
                  "bytes", (json_int_t)t->bytes, "quant", quant_to_json(&t->quant));
    if (json_array_append_new(tensors, object))
        return QB_FAIL(QB_ERR_MEMORY, "inspect: no memory for JSON");
    return stats ? add_stats(model, t, object) : QB_OK;
}

/* In the order of a forward pass. */
static qb_status tensors_to_json(const qb_model *model, bool stats, json_t *root)
{
    enum { BEFORE, BLOCKS, AFTER, N_PARTS };
    json_t *tensors = json_array();
    if (json_object_set_new(root, "tensors", tensors))
        return QB_FAIL(QB_ERR_MEMORY, "inspect: no memory for JSON");
    for (int part = BEFORE; part < N_PARTS; part++)
        for (size_t l = 0; l < (part == BLOCKS ? model->config.n_layers : 1); l++)
            for (int r = 0; r < QB_ROLE_COUNT; r++) {
                bool before = r <= QB_ROLE_POS_EMBD;
                int its_part = qb_roles[r].per_layer ? BLOCKS : before ? BEFORE : AFTER;
                const qb_tensor *t = qb_model_tensor(model, (qb_role)r, l);
                if (its_part == part && t->data) QB_TRY(tensor_to_json(model, t, stats, tensors));
            }
    return QB_OK;
}

static json_t *tokenizer_to_json(const qb_tokenizer *tokenizer)
{
    if (!tokenizer) return json_null();
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:b, s:s}", "pre", qb_tokenizer_pre(tokenizer), "vocab",
        (json_int_t)qb_tokenizer_vocab(tokenizer), "bos", (json_int_t)qb_tokenizer_bos(tokenizer),
        "eos", (json_int_t)qb_tokenizer_eos(tokenizer), "add_bos",
        (int)qb_tokenizer_add_bos(tokenizer), "sha256", qb_tokenizer_sha256(tokenizer));
}

/* jansson refuses text that is no UTF-8; a file's name may be any bytes. */
static json_t *text_to_json(const char *text)
{
    json_t *value = text ? json_string(text) : NULL;
    return value ? value : json_null();
}

static json_t *record_to_json(json_t *record)
{
    return record ? json_incref(record) : json_null();
}

static qb_status model_to_json(const qb_model *m, bool stats, json_t *root)
{
    json_t *architecture;
    QB_TRY(qb_config_to_json(&m->config, &architecture));
    json_object_set_new(root, "schema", json_string("qbench.inspect/1"));
    json_object_set_new(root, "architecture", architecture);
    json_object_set_new(root, "path", text_to_json(m->path));
    json_object_set_new(root, "name", text_to_json(m->name));
    json_object_set_new(root, "format", json_string(m->format));
    json_object_set_new(root, "bytes", json_integer((json_int_t)qb_model_file_bytes(m)));
    json_object_set_new(root, "parameters",
                        json_integer((json_int_t)qb_config_n_params(&m->config)));
    json_object_set_new(root, "linear_parameters",
                        json_integer((json_int_t)qb_config_n_linear_params(&m->config)));
    json_object_set_new(root, "scheme", text_to_json(m->stored_scheme));
    json_object_set_new(root, "tokenizer", tokenizer_to_json(m->tokenizer));
    json_object_set_new(root, "training", record_to_json(m->training));
    json_object_set_new(root, "calibration", record_to_json(m->calibration));
    return tensors_to_json(m, stats, root);
}

/* ---- the text ---- */

/* Control characters of hostile files do not reach the terminal. */
static void print_text(const char *text)
{
    for (; *text; text++) putchar((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
}

/* Keys of records come from the file too. */
static void print_wide_line(const char *key, size_t width, const char *text)
{
    print_text(key);
    printf("%*s ", (int)(strlen(key) < width ? width - strlen(key) : 0), "");
    print_text(text);
    putchar('\n');
}

static void print_line(const char *key, const char *text)
{
    print_wide_line(key, 18, text);
}

static void print_count(const char *key, int64_t n, const char *unit)
{
    char text[QB_FORMAT_BYTES];
    printf("%-18s %s%s\n", key, qb_format_count(n, text), unit);
}

/* "valid.txt, eval.txt", "1, 3": of an array of things that have names, or of whole numbers. */
static bool join_names(const json_t *array, char *text, size_t bytes)
{
    size_t i, n = 0;
    json_t *item;
    json_array_foreach(array, i, item)
    {
        char number[32];
        const char *name = json_string_value(json_object_get(item, "name"));
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(item));
        if (!name && json_is_integer(item)) name = number;
        if (!name || n >= bytes) return false;
        n += (size_t)snprintf(text + n, bytes - n, "%s%s", i ? ", " : "", name);
    }
    return n && n < bytes;
}

/* A scalar; what is longer is named by its names or its size. The text may be the value's own. */
static const char *value_text(const json_t *value, char *text, size_t bytes)
{
    const char *string = json_string_value(value);
    if (string) return *string ? string : "-";
    if (json_is_integer(value))
        snprintf(text, bytes, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text, bytes, "%g", json_real_value(value));
    else if (json_is_object(value) || (json_is_array(value) && !join_names(value, text, bytes)))
        snprintf(text, bytes, "%zu values", json_array_size(value) + json_object_size(value));
    else if (!json_is_array(value))
        snprintf(text, bytes, "%s", json_is_true(value) ? "yes" : json_is_null(value) ? "-" : "no");
    return text;
}

/* One line a value, one level deep ("rope.theta"). Returns the longest label's length; prints only
 * where a width is given. */
static size_t print_pairs(const char *outer, json_t *record, size_t width)
{
    const char *key;
    json_t *value;
    size_t longest = 0;
    json_object_foreach(record, key, value)
    {
        char label[80], text[256];
        bool deeper = json_is_object(value) && !*outer;
        size_t n =
            (size_t)snprintf(label, sizeof label, "  %.30s%s%.40s", outer, *outer ? "." : "", key);
        if (deeper) n = print_pairs(key, value, width);
        if (n > longest) longest = n;
        if (!deeper && width) print_wide_line(label, width, value_text(value, text, sizeof text));
    }
    return longest;
}

static void print_record(const char *heading, json_t *record)
{
    if (!json_object_size(record)) {
        print_line(heading, "none");
        return;
    }
    printf("%s\n", heading);
    size_t longest = print_pairs("", record, 0);
    print_pairs("", record, longest < 18 ? 18 : longest);
}

static void print_quantisation(const json_t *tensors, const char *scheme)
{
    size_t i, n_codes = 0, bytes = 0;
    const json_t *quant = NULL;
    json_t *t;
    json_array_foreach(tensors, i, t)
    {
        if (!json_is_object(json_object_get(t, "quant"))) continue;
        quant = json_object_get(t, "quant");
        n_codes++;
        bytes += (size_t)json_integer_value(json_object_get(t, "bytes"));
    }
    if (!n_codes) {
        print_line("quantisation", "none: all tensors are floats or float blocks");
        return;
    }
    char size[QB_FORMAT_BYTES], text[256];
    snprintf(text, sizeof text,
             "%.60s: %zu of %zu tensors, %lld-bit codes, axis %s, group %lld, %s",
             scheme ? scheme : "unnamed", n_codes, json_array_size(tensors),
             (long long)json_integer_value(json_object_get(quant, "bits")),
             json_string_value(json_object_get(quant, "axis")),
             (long long)json_integer_value(json_object_get(quant, "group")),
             qb_format_bytes((int64_t)bytes, size));
    print_line("quantisation", text);
}

static void print_tensors(const json_t *tensors, bool stats)
{
    size_t i;
    json_t *t;
    printf("\n%-24s %-5s %16s %14s", "tensor", "dtype", "shape", "bytes");
    if (stats) printf(" %12s %12s %12s", "min", "max", "absmax");
    putchar('\n');
    json_array_foreach(tensors, i, t)
    {
        const json_t *shape = json_object_get(t, "shape");
        char text[64], count[QB_FORMAT_BYTES];
        long long rows = json_integer_value(json_array_get(shape, 0)),
                  cols = json_integer_value(json_array_get(shape, 1));
        if (rows == 1)
            snprintf(text, sizeof text, "(%lld)", cols);
        else
            snprintf(text, sizeof text, "(%lld, %lld)", rows, cols);
        qb_format_count(json_integer_value(json_object_get(t, "bytes")), count);
        printf("%-24s %-5s %16s %14s", json_string_value(json_object_get(t, "name")),
               json_string_value(json_object_get(t, "dtype")), text, count);
        if (stats) {
            long long odd = json_integer_value(json_object_get(t, "not_finite"));
            printf(" %12.5g %12.5g %12.5g", json_number_value(json_object_get(t, "min")),
                   json_number_value(json_object_get(t, "max")),
                   json_number_value(json_object_get(t, "absmax")));
            if (odd) printf("  %lld not finite", odd);
        }
        putchar('\n');
    }
}

static void print_all(const qb_model *model, json_t *root, bool stats)
{
    const json_t *tensors = json_object_get(root, "tensors");
    size_t i, bytes = 0;
    json_t *t;
    json_array_foreach(tensors, i, t) bytes +=
        (size_t)json_integer_value(json_object_get(t, "bytes"));
    print_line("file", model->path);
    print_line("format", model->format);
    print_count("size", (int64_t)qb_model_file_bytes(model), " bytes");
    print_line("name", model->name);
    print_count("parameters", (int64_t)qb_config_n_params(&model->config), "");
    print_count("  in linear layers", (int64_t)qb_config_n_linear_params(&model->config), "");
    print_record("architecture", json_object_get(root, "architecture"));
    print_record("training", json_object_get(root, "training"));
    print_record("tokenizer", json_object_get(root, "tokenizer"));
    print_record("calibration", json_object_get(root, "calibration"));
    print_quantisation(tensors, model->stored_scheme);
    print_tensors(tensors, stats);
    char count[QB_FORMAT_BYTES];
    printf("%zu tensors, %s bytes\n", json_array_size(tensors),
           qb_format_count((int64_t)bytes, count));
}

static qb_status make_json(const qb_model *model, bool stats, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *root = json_object();
    qb_status status = model_to_json(model, stats, root);
    if (status == QB_OK) status = qb_json_check_memory(mark, "inspect");
    if (status != QB_OK)
        json_decref(root);
    else
        *out = root;
    return status;
}

/* ---- checkpoints of training ---- */

static qb_status checkpoint_to_json(const qb_checkpoint *c, json_t **out)
{
    json_t *config, *state;
    QB_TRY(qb_train_config_to_json(&c->config, &config));
    qb_status status = qb_run_state_to_json(&c->state, &state);
    if (status != QB_OK) {
        json_decref(config);
        return status;
    }
    *out = json_pack("{s:s, s:o, s:s, s:I, s:I, s:I, s:o, s:o}", "schema", "qbench.inspect/1",
                     "path", text_to_json(c->file.path), "format", "checkpoint", "bytes",
                     (json_int_t)c->file.bytes, "buffers", (json_int_t)c->n_buffers, "buffer_elems",
                     (json_int_t)c->n_elems, "config", config, "state", state);
    return *out ? QB_OK : QB_FAIL(QB_ERR_MEMORY, "inspect: no memory for JSON");
}

static void print_checkpoint(const qb_checkpoint *c, const json_t *root)
{
    print_line("file", c->file.path);
    print_line("format", "checkpoint of qbench train");
    print_count("size", (int64_t)c->file.bytes, " bytes");
    print_count("buffers", (int64_t)c->n_buffers, " (weights, optimiser states)");
    print_count("  numbers each", (int64_t)c->n_elems, "");
    print_record("state", json_object_get(root, "state"));
    print_record("configuration", json_object_get(root, "config"));
}

static qb_status inspect_checkpoint(const char *path, const char *json_path)
{
    qb_checkpoint c;
    json_t *root = NULL;
    QB_TRY(qb_checkpoint_open(path, &c));
    qb_status status = checkpoint_to_json(&c, &root);
    if (status == QB_OK && json_path) status = qb_cli_emit_json(json_path, root, "inspect");
    if (status == QB_OK && !qb_cli_is_stdout(json_path)) print_checkpoint(&c, root);
    json_decref(root);
    qb_checkpoint_close(&c);
    return status;
}

/* ---- token shards ---- */

static json_t *shard_to_json(const char *path, const qb_shard *s)
{
    const qb_shard_header *h = &s->header;
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:s#, s:s#, s:s#}", "file",
                     path, "format", "token shard", "bytes", (json_int_t)s->file.bytes, "documents",
                     (json_int_t)h->n_docs, "tokens", (json_int_t)h->n_tokens, "text_bytes",
                     (json_int_t)h->text_bytes, "vocab", (json_int_t)h->vocab, "eos", (int)h->eos,
                     "token_bytes", (int)h->token_bytes, "tokenizer_sha256", h->tokenizer_sha256,
                     64, "text_sha256", h->text_sha256, 64, "sha256", h->digest, 64);
}

static void print_shard(const json_t *root)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value)
    {
        if (json_is_string(value))
            print_line(key, json_string_value(value));
        else
            print_count(key, json_integer_value(value), "");
    }
}

static qb_status inspect_shard(const char *path, const char *json_path)
{
    qb_shard shard;
    QB_TRY(qb_shard_open(path, &shard));
    json_t *root = shard_to_json(path, &shard);
    qb_shard_close(&shard);
    if (!root) return QB_FAIL(QB_ERR_FORMAT, "%s: a name that is no UTF-8 cannot be shown", path);
    qb_status status = json_path ? qb_cli_emit_json(json_path, root, "inspect") : QB_OK;
    if (status == QB_OK && !qb_cli_is_stdout(json_path)) print_shard(root);
    json_decref(root);
    return status;
}

/* ---- the verb ---- */

qb_status qb_cmd_inspect(const qb_cli *cli)
{
    bool stats = qb_cli_flag(cli, "stats");
    const char *json_path = qb_cli_string(cli, "json");
    const char *path = qb_cli_arg(cli, 0);
    QB_TRY(qb_cli_check_outputs(cli, (const char *const[]){"json", NULL}));
    bool is_shard, is_checkpoint;
    QB_TRY(qb_shard_recognise(path, &is_shard));
    if (is_shard) return inspect_shard(path, json_path);
    QB_TRY(qb_checkpoint_recognise(path, &is_checkpoint));
    if (is_checkpoint) return inspect_checkpoint(path, json_path);
    qb_model *model;
    QB_TRY(qb_model_open(path, &model));
    json_t *root = NULL;
    qb_status status = make_json(model, stats, &root);
    if (status == QB_OK && json_path) status = qb_cli_emit_json(json_path, root, "inspect");
    if (status == QB_OK && !qb_cli_is_stdout(json_path)) print_all(model, root, stats);
    json_decref(root);
    qb_model_close(model);
    return status;
}
