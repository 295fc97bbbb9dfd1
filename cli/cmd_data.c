/* cli/cmd_data.c - qbench data: texts to token shards, with a vocabulary trained on them or a given
 * one, without the documents that share a 13-gram with evaluation texts. */
#include "cli/output.h"
#include "cli/prepare.h"

#include "core/interrupt.h"
#include "core/json.h"
#include "core/memory.h"
#include "core/progress.h"
#include "report/format.h"
#include "train/data/bpe_train.h"
#include "train/data/shard_maker.h"
#include "train/data/text_queue.h"
#include "version.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const size_t MAX_TEXT_BYTES = (size_t)1 << 36; /* of one file, decompressed */

typedef struct data_run {
    const qb_cli *cli;
    qb_pool *pool;
    const char *folder;
    const char **texts;  /* (n_args) */
    char **paths;        /* (n_args) of the shards */
    qb_shard_made *made; /* (n_args) */
    qb_ngrams *unwanted; /* NULL = nothing is dropped */
    qb_cli_tokenizer tokenizer;
    bool trained;
    qb_shard_made total;
    json_t *shards, *decontaminate; /* for the record */
} data_run;

/* ---- names ---- */

/* The file name without what its kind is told by: "a/train-000.txt.xz" -> "train-000". */
static qb_status shard_path(const char *folder, const char *text, char **out)
{
    static const char *const ends[] = {".gz", ".xz", ".txt", ".jsonl"};
    const char *slash = strrchr(text, '/');
    char name[256];
    size_t n = (size_t)snprintf(name, sizeof name - 4, "%s",
                                !strcmp(text, "-") ? "stdin"
                                : slash            ? slash + 1
                                                   : text);
    if (n >= sizeof name - 4)
        return QB_FAIL(QB_ERR_USAGE, "%s: found a name of %zu bytes, expected at most %zu", text, n,
                       sizeof name - 5);
    for (size_t i = 0; i < QB_COUNT(ends); i++)
        if (n > strlen(ends[i]) && qb_ends_with(name, ends[i])) name[n -= strlen(ends[i])] = 0;
    strcpy(name + n, ".qbs");
    return qb_path_join(folder, name, out);
}

static qb_status name_shards(data_run *r)
{
    size_t n = qb_cli_n_args(r->cli);
    QB_TRY(QB_NEW_ZERO(&r->texts, n, "texts"));
    QB_TRY(QB_NEW_ZERO(&r->paths, n, "shards"));
    QB_TRY(QB_NEW_ZERO(&r->made, n, "shards"));
    for (size_t i = 0; i < n; i++) {
        r->texts[i] = qb_cli_arg(r->cli, i);
        QB_TRY(shard_path(r->folder, r->texts[i], &r->paths[i]));
        for (size_t k = 0; k < i; k++)
            if (!strcmp(r->paths[i], r->paths[k]))
                return QB_FAIL(QB_ERR_USAGE, "%s: two texts would become this file: %s and %s",
                               r->paths[i], r->texts[k], r->texts[i]);
    }
    return QB_OK;
}

static qb_status check_arguments(const qb_cli *cli)
{
    bool train = qb_cli_is_set(cli, "train-bpe"), given = qb_cli_is_set(cli, "tokenizer");
    if (train == given)
        return QB_FAIL(QB_ERR_USAGE,
                       "data: found %s, expected one of --train-bpe V and --tokenizer FILE",
                       train ? "both" : "neither");
    if (!qb_cli_is_set(cli, "out"))
        return QB_FAIL(QB_ERR_USAGE, "data: no --out DIR: the folder for the shards");
    for (size_t i = 0; i < qb_cli_n_args(cli) && train; i++)
        if (!strcmp(qb_cli_arg(cli, i), "-"))
            return QB_FAIL(QB_ERR_USAGE, "--train-bpe: reads each text twice: found standard "
                                         "input, expected a file");
    return QB_OK;
}

/* ---- the steps ---- */

static qb_status read_unwanted(data_run *r)
{
    size_t n = qb_cli_list_n_items(r->cli, "decontaminate");
    r->decontaminate = json_array();
    if (!n) return QB_OK;
    QB_TRY(qb_ngrams_create(&r->unwanted));
    for (size_t i = 0; i < n; i++) {
        const char *path = qb_cli_list_item(r->cli, "decontaminate", i);
        size_t before = qb_ngrams_n(r->unwanted);
        qb_text text;
        QB_TRY(qb_text_open(path, MAX_TEXT_BYTES, &text));
        qb_status status = qb_ngrams_add(r->unwanted, &text);
        size_t n_new = qb_ngrams_n(r->unwanted) - before;
        json_array_append_new(r->decontaminate,
                              json_pack("{s:s, s:s, s:I}", "name", text.name, "sha256", text.sha256,
                                        "new_13_grams", (json_int_t)n_new));
        qb_text_deinit(&text);
        QB_TRY(status);
        if (!n_new) qb_cli_note(r->cli, "%s: no new 13-gram in it", path);
    }
    return QB_OK;
}

/* Reading a compressed text costs about as much as encoding it on one or two threads. */
static qb_status open_queue(const data_run *r, qb_text_queue **out)
{
    return qb_text_queue_open(r->texts, qb_cli_n_args(r->cli), 1 + qb_pool_n_threads(r->pool) / 4,
                              MAX_TEXT_BYTES, out);
}

static qb_status count_words(data_run *r, qb_bpe_trainer *trainer)
{
    size_t n = qb_cli_n_args(r->cli);
    qb_text_queue *queue;
    QB_TRY(open_queue(r, &queue));
    qb_progress progress = qb_progress_begin("counting words", n);
    qb_status status = QB_OK;
    for (size_t i = 0; i < n && status == QB_OK; i++) {
        qb_text text;
        status = qb_text_queue_next(queue, &text);
        if (status != QB_OK) break;
        status = qb_bpe_trainer_add(trainer, &text);
        qb_text_deinit(&text);
        qb_progress_update(&progress, i + 1);
    }
    qb_progress_end(&progress);
    qb_text_queue_close(queue);
    return status;
}

static qb_status train_tokenizer(data_run *r)
{
    size_t vocab = qb_cli_size(r->cli, "train-bpe");
    qb_bpe_trainer *trainer;
    QB_TRY(qb_bpe_trainer_create(r->pool, &trainer));
    qb_status status = count_words(r, trainer);
    if (status == QB_OK) status = qb_bpe_trainer_finish(trainer, vocab, &r->tokenizer.own);
    qb_bpe_trainer_destroy(trainer);
    QB_TRY(status);
    r->tokenizer.tokenizer = r->tokenizer.own;
    r->trained = true;
    size_t found = qb_tokenizer_vocab(r->tokenizer.own);
    if (found < vocab)
        qb_cli_note(
            r->cli,
            "the texts give %zu tokens, not %zu: no pair of tokens is left that occurs twice",
            found, vocab);
    return QB_OK;
}

static qb_status make_folder(const char *path)
{
    if (qb_is_folder(path) || !mkdir(path, 0777)) return QB_OK;
    return QB_FAIL_SYSTEM(path, errno, "made", "a folder that can be");
}

/* The folder tells by itself what its ids mean. */
static qb_status write_tokenizer(data_run *r)
{
    const char *given = qb_cli_string(r->cli, "tokenizer");
    char *path;
    json_t *json = NULL;
    QB_TRY(qb_path_join(r->folder, "tokenizer.json", &path));
    qb_status status = QB_OK;
    if (!given || !qb_same_file(given, path)) {
        status = qb_tokenizer_to_hf_json(r->tokenizer.tokenizer, &json);
        if (status == QB_OK) status = qb_cli_emit_json(path, json, "tokenizer.json");
        if (status == QB_ERR_UNSUPPORTED) {
            qb_cli_note(r->cli, "%s is not written: %s", path, qb_error_message());
            status = QB_OK;
        }
    }
    json_decref(json);
    qb_free(path);
    return status;
}

static void print_counts(const char *name, const qb_shard_made *m)
{
    char docs[QB_FORMAT_BYTES], tokens[QB_FORMAT_BYTES], dropped[QB_FORMAT_BYTES];
    printf("%-14s %9s documents %13s tokens", name, qb_format_count((int64_t)m->n_docs, docs),
           qb_format_count((int64_t)m->n_tokens, tokens));
    if (m->n_tokens) printf("  %.3f bytes a token", (double)m->text_bytes / (double)m->n_tokens);
    if (m->n_dropped) printf("  %s dropped", qb_format_count((int64_t)m->n_dropped, dropped));
    putchar('\n');
}

/* Behind the progress lines, and not where the record goes to standard output. */
static void print_table(const data_run *r)
{
    const char *json = qb_cli_string(r->cli, "json");
    size_t n = qb_cli_n_args(r->cli);
    if (qb_cli_flag(r->cli, "quiet") || qb_cli_is_stdout(json)) return;
    for (size_t i = 0; i < n; i++) print_counts(strrchr(r->paths[i], '/') + 1, &r->made[i]);
    if (n > 1) print_counts("all", &r->total);
}

static void note_shard(data_run *r, const char *path, const qb_text *text, const qb_shard_made *m)
{
    json_array_append_new(
        r->shards, json_pack("{s:s, s:s, s:{s:s, s:s, s:I}, s:I, s:I, s:I, s:I}", "path", path,
                             "sha256", m->digest, "text", "name", text->name, "sha256",
                             text->sha256, "bytes", (json_int_t)text->raw_bytes, "documents",
                             (json_int_t)m->n_docs, "dropped", (json_int_t)m->n_dropped, "tokens",
                             (json_int_t)m->n_tokens, "text_bytes", (json_int_t)m->text_bytes));
    r->total.n_docs += m->n_docs;
    r->total.n_dropped += m->n_dropped;
    r->total.n_tokens += m->n_tokens;
    r->total.text_bytes += m->text_bytes;
}

static qb_status make_shard(data_run *r, qb_shard_maker *maker, const qb_text *text, size_t i,
                            qb_progress *progress)
{
    QB_TRY(qb_interrupt_check());
    QB_TRY(qb_shard_maker_write(maker, text, r->paths[i], progress, &r->made[i]));
    note_shard(r, r->paths[i], text, &r->made[i]);
    return QB_OK;
}

static qb_status make_all(data_run *r, qb_shard_maker *maker)
{
    qb_text_queue *queue;
    size_t n = qb_cli_n_args(r->cli);
    QB_TRY(open_queue(r, &queue));
    qb_progress progress = qb_progress_begin("encoding", n * QB_SHARD_STEPS);
    qb_status status = QB_OK;
    for (size_t i = 0; i < n && status == QB_OK; i++) {
        qb_text text;
        status = qb_text_queue_next(queue, &text);
        if (status != QB_OK) break;
        status = make_shard(r, maker, &text, i, &progress);
        qb_text_deinit(&text);
    }
    qb_progress_end(&progress);
    qb_text_queue_close(queue);
    return status;
}

static qb_status make_shards(data_run *r)
{
    qb_shard_maker *maker;
    QB_TRY(qb_shard_maker_create(r->tokenizer.tokenizer, r->unwanted, r->pool, &maker));
    r->shards = json_array();
    qb_status status = make_all(r, maker);
    qb_shard_maker_destroy(maker);
    if (status == QB_OK) print_table(r);
    return status;
}

static qb_status emit_record(data_run *r)
{
    const char *path = qb_cli_string(r->cli, "json");
    const qb_tokenizer *t = r->tokenizer.tokenizer;
    if (!path) return QB_OK;
    json_t *root = json_pack(
        "{s:s, s:{s:s, s:I, s:b}, s:O, s:O, s:I, s:I, s:I, s:I, s:s, s:s, s:s}", "schema",
        "qbench.data/1", "tokenizer", "sha256", qb_tokenizer_sha256(t), "vocab",
        (json_int_t)qb_tokenizer_vocab(t), "trained", r->trained, "decontaminate", r->decontaminate,
        "shards", r->shards, "documents", (json_int_t)r->total.n_docs, "dropped",
        (json_int_t)r->total.n_dropped, "tokens", (json_int_t)r->total.n_tokens, "text_bytes",
        (json_int_t)r->total.text_bytes, "qbench_version", QB_VERSION, "git_commit", QB_GIT_COMMIT,
        "command", qb_cli_command(r->cli));
    if (!root) return QB_FAIL(QB_ERR_FORMAT, "record: a name that is no UTF-8 cannot be in JSON");
    qb_status status = qb_cli_emit_json(path, root, "record");
    json_decref(root);
    return status;
}

static qb_status run(data_run *r)
{
    size_t mark = qb_json_mark();
    const char *given = qb_cli_string(r->cli, "tokenizer");
    QB_TRY(name_shards(r));
    QB_TRY(make_folder(r->folder)); /* before minutes of work */
    QB_TRY(qb_pool_create(qb_cli_size(r->cli, "threads"), &r->pool));
    QB_TRY(read_unwanted(r));
    QB_TRY(given ? qb_cli_tokenizer_open(given, &r->tokenizer) : train_tokenizer(r));
    QB_TRY(write_tokenizer(r));
    QB_TRY(make_shards(r));
    QB_TRY(qb_json_check_memory(mark, "record"));
    return emit_record(r);
}

qb_status qb_cmd_data(const qb_cli *cli)
{
    QB_TRY(check_arguments(cli));
    QB_TRY(qb_cli_check_outputs(cli, (const char *const[]){"json", NULL}));
    data_run r = {.cli = cli, .folder = qb_cli_string(cli, "out")};
    qb_status status = run(&r);
    for (size_t i = 0; r.paths && i < qb_cli_n_args(cli); i++) qb_free(r.paths[i]);
    qb_free(r.paths);
    qb_free(r.texts);
    qb_free(r.made);
    json_decref(r.shards);
    json_decref(r.decontaminate);
    qb_cli_tokenizer_close(&r.tokenizer);
    qb_ngrams_destroy(r.unwanted);
    qb_pool_destroy(r.pool);
    return status;
}
