/* cli/output.c - see output.h. */
#include "cli/output.h"

#include "cli/options.h"

#include "core/file.h"
#include "core/memory.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool another_says_it;
static const char *volatile when_interrupted; /* NULL = nothing is said */

void qb_cli_leave_error_to_another(void)
{
    another_says_it = true;
}

bool qb_cli_error_is_left(void)
{
    return another_says_it;
}

void qb_cli_when_interrupted(const qb_cli *cli, const char *text)
{
    bool wanted = isatty(STDERR_FILENO) && !qb_cli_flag(cli, "quiet");
    when_interrupted = wanted ? text : NULL;
}

const char *qb_cli_interrupt_text(void)
{
    return when_interrupted;
}

bool qb_cli_is_stdout(const char *path)
{
    return path && !strcmp(path, "-");
}

bool qb_cli_wants_codes(int fd)
{
    const char *term = getenv("TERM"), *plain = getenv("NO_COLOR"); /* set but empty is not set */
    return isatty(fd) && !(plain && *plain) && term && strcmp(term, "dumb");
}

bool qb_cli_wants_colour(void)
{
    return qb_cli_wants_codes(STDOUT_FILENO);
}

static qb_status check_writable(const char *path)
{
    char *target, *folder;
    QB_TRY(qb_follow_links(path, &target));
    const char *slash = strrchr(target, '/');
    qb_status status =
        qb_strndup(&folder, slash ? target : ".", slash ? (size_t)(slash - target) + 1 : 1);
    qb_free(target);
    QB_TRY(status);
    errno = 0;
    const char *found = qb_is_folder(path) ? "a folder" : NULL;
    /* /dev/stdout and >(...) are written to, in folders that nobody may write to */
    if (!found && access(qb_is_stream(path) ? path : folder, W_OK)) found = strerror(errno);
    qb_free(folder);
    if (!found) return QB_OK;
    return QB_FAIL(
        QB_ERR_IO,
        "%s: cannot be written: found \"%s\", expected a file in a folder that exists and "
        "is writable",
        path, found);
}

static qb_status fail_input(const char *path)
{
    return QB_FAIL(QB_ERR_USAGE, "%s: found an input as output, expected another file", path);
}

/* One of the files that make a model of this folder. */
static bool is_part_of_model(const char *folder, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strcmp(name, "config.json") && strcmp(name, "tokenizer.json") &&
        !qb_ends_with(name, ".safetensors") && !qb_ends_with(name, ".safetensors.index.json"))
        return false;
    char own[PATH_MAX];
    snprintf(own, sizeof own, "%s/%s", folder, name);
    return qb_is_folder(folder) && qb_same_file(own, path);
}

/* Options whose value is a file, or several, that a verb reads. */
static bool is_input(const qb_option *option)
{
    static const char *const names[] = {"baseline",  "checkpoint", "config", "decontaminate",
                                        "limits",    "record",     "replay", "text",
                                        "tokenizer", "tokens"};
    for (size_t i = 0; i < QB_COUNT(names); i++)
        if (!strcmp(option->name, names[i])) return true;
    return false;
}

qb_status qb_cli_check_not_given(const qb_cli *cli, const char *path)
{
    for (size_t i = 0; i < qb_n_options; i++) {
        const qb_option *o = &qb_options[i];
        if (!(o->verbs & qb_verb_bit(qb_cli_verb(cli))) || !is_input(o)) continue;
        const char *given = o->kind == QB_OPTION_STRING ? qb_cli_string(cli, o->name) : NULL;
        size_t n = o->kind == QB_OPTION_LIST ? qb_cli_list_n_items(cli, o->name) : 0;
        bool same = given && qb_same_file(given, path);
        for (size_t k = 0; k < n; k++)
            same |= qb_same_file(qb_cli_list_item(cli, o->name, k), path);
        if (same) return fail_input(path);
    }
    return QB_OK;
}

/* An output must be neither an input nor another output. */
static qb_status check_apart(const qb_cli *cli, const char *path, const char *const *others)
{
    for (size_t i = 0; i < qb_cli_n_args(cli); i++)
        if (qb_same_file(qb_cli_arg(cli, i), path) || is_part_of_model(qb_cli_arg(cli, i), path))
            return fail_input(path);
    QB_TRY(qb_cli_check_not_given(cli, path));
    for (; *others; others++) {
        const char *other = qb_cli_string(cli, *others);
        if (other && (!strcmp(other, path) || qb_same_file(other, path)))
            return QB_FAIL(QB_ERR_USAGE, "%s: found as two outputs, expected another file for --%s",
                           path, *others);
    }
    return QB_OK;
}

qb_status qb_cli_check_outputs(const qb_cli *cli, const char *const *options)
{
    size_t n_stdout = 0;
    for (; *options; options++) {
        const char *path = qb_cli_string(cli, *options);
        n_stdout += qb_cli_is_stdout(path);
        if (!path || qb_cli_is_stdout(path)) continue;
        QB_TRY(check_writable(path));
        QB_TRY(check_apart(cli, path, options + 1));
    }
    if (n_stdout > 1)
        return QB_FAIL(QB_ERR_USAGE, "standard output: found %zu outputs, expected one", n_stdout);
    return QB_OK;
}

void qb_cli_note(const qb_cli *cli, const char *format, ...)
{
    if (qb_cli_flag(cli, "quiet")) return;
    va_list args;
    va_start(args, format);
    fputs("qbench: note: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

static qb_status fail_stdout(void)
{
    return QB_FAIL(
        QB_ERR_IO,
        "standard output: cannot be written: found \"%s\", expected a reader with space for it",
        errno ? strerror(errno) : "failed");
}

qb_status qb_cli_flush(void)
{
    errno = 0;
    return fflush(stdout) || ferror(stdout) ? fail_stdout() : QB_OK;
}

qb_status qb_cli_emit(const char *path, const void *data, size_t bytes)
{
    if (!qb_cli_is_stdout(path)) return qb_file_write_whole(path, data, bytes);
    errno = 0;
    return fwrite(data, 1, bytes, stdout) == bytes ? qb_cli_flush() : fail_stdout();
}

qb_status qb_cli_write(const char *path, qb_cli_writer write, const void *what)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    if (!stream) return QB_FAIL(QB_ERR_MEMORY, "%s: no memory for the output", path);
    qb_status status = write(what, stream);
    if (fclose(stream) && status == QB_OK)
        status = QB_FAIL(QB_ERR_MEMORY, "%s: no memory for the output", path);
    if (status == QB_OK) status = qb_cli_emit(path, text, bytes);
    free(text);
    return status;
}
