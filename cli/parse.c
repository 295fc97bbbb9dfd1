/* cli/parse.c - argv to checked values, by the tables of cli/options.c. */
#include "cli/options.h"

#include "core/file.h"
#include "core/memory.h"
#include "core/nearest.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_NAME = 40 }; /* characters of an unknown option that messages show */

typedef struct list {
    char *text; /* n_items strings, one after the other; before split_lists, with commas */
    size_t n_items;
} list;

struct qb_cli {
    const qb_verb *verb;
    const char **values; /* one an option row, NULL = not given; borrowed from argv */
    const char **args;   /* positional, borrowed from argv */
    size_t n_args;
    list *lists; /* one an option row */
    char *command;
};

static qb_nearest nearest_verb(const char *typed)
{
    qb_nearest nearest = qb_nearest_begin(typed);
    for (size_t i = 0; i < QB_VERB_COUNT; i++) qb_nearest_consider(&nearest, qb_verbs[i].name);
    return nearest;
}

qb_status qb_cli_find_verb(const char *name, const qb_verb **out)
{
    const qb_verb *verb = qb_verb_find(name);
    if (!verb) {
        qb_nearest s = nearest_verb(name);
        if (s.word)
            return QB_FAIL(QB_ERR_USAGE, "no such command: found '%s', did you mean '%s'?", name,
                           s.word);
        return QB_FAIL(QB_ERR_USAGE,
                       "no such command: found '%s', expected one that qbench help lists", name);
    }
    *out = verb;
    return QB_OK;
}

/* ---- values ---- */

static bool parse_size(const char *text, size_t *out)
{
    if (*text < '0' || *text > '9') return false;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || value > SIZE_MAX) return false;
    *out = (size_t)value;
    return true;
}

static bool parse_double(const char *text, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value)) return false;
    *out = value;
    return true;
}

static bool is_choice(const qb_option *option, const char *text, size_t n_bytes)
{
    const char *choice;
    for (size_t i = 0; (choice = option->choice(i)); i++) {
        size_t n = strlen(choice), number;
        bool open = choice[n - 1] == ':'; /* "group:" stands for group:N */
        bool same = (open ? n < n_bytes : n == n_bytes) && !strncmp(text, choice, n);
        if (same && (!open || parse_size(text + n, &number))) return true;
    }
    return false;
}

static qb_status fail_choice(const qb_option *option, const char *text, size_t n_bytes)
{
    char words[512] = "", typed[64];
    const char *choice;
    snprintf(typed, sizeof typed, "%.*s", (int)n_bytes, text);
    qb_nearest nearest = qb_nearest_begin(typed);
    bool open = false; /* cuda:N: "gpu" is no slip of "cpu" */
    for (size_t i = 0; (choice = option->choice(i)); i++) {
        open |= choice[strlen(choice) - 1] == ':';
        qb_nearest_consider(&nearest, choice);
    }
    if (nearest.word && !open)
        return QB_FAIL(QB_ERR_USAGE, "--%s: unknown value: found '%s', did you mean '%s'?",
                       option->name, typed, nearest.word);
    for (size_t i = 0; (choice = option->choice(i)); i++) {
        char word[64];
        snprintf(word, sizeof word, "%s%s", choice, choice[strlen(choice) - 1] == ':' ? "N" : "");
        qb_names_add(words, sizeof words, word);
    }
    return QB_FAIL(QB_ERR_USAGE, "--%s: unknown value: found '%.*s', expected one of %s",
                   option->name, (int)n_bytes, text, words);
}

/* The word, or each item of a list, is one of the choices. */
static qb_status check_choices(const qb_option *option, const char *text)
{
    if (!option->choice) return QB_OK;
    for (;;) {
        size_t n = option->kind == QB_OPTION_LIST ? strcspn(text, ",") : strlen(text);
        if (n && !is_choice(option, text, n)) return fail_choice(option, text, n);
        if (!text[n]) return QB_OK;
        text += n + 1;
    }
}

static qb_status check_value(const qb_option *option, const char *text)
{
    size_t size;
    double real;
    switch (option->kind) {
    case QB_OPTION_FLAG:
        return QB_OK;
    case QB_OPTION_SIZE:
        if (parse_size(text, &size) && (double)size >= option->min && (double)size <= option->max)
            return QB_OK;
        return QB_FAIL(QB_ERR_USAGE,
                       "--%s: out of range: found '%s', expected a whole number from %.0f to %.0f",
                       option->name, text, option->min, option->max);
    case QB_OPTION_DOUBLE:
        if (parse_double(text, &real) && real >= option->min && real <= option->max) return QB_OK;
        return QB_FAIL(QB_ERR_USAGE,
                       "--%s: out of range: found '%s', expected a number from %g to %g",
                       option->name, text, option->min, option->max);
    case QB_OPTION_SWITCH:
        if (!strcmp(text, "on") || !strcmp(text, "off")) return QB_OK;
        return QB_FAIL(QB_ERR_USAGE, "--%s: found '%s', expected on or off", option->name, text);
    case QB_OPTION_STRING:
    case QB_OPTION_LIST:
        if (!*text && strcmp(option->name, "prompt"))
            return QB_FAIL(QB_ERR_USAGE, "--%s: empty value: found '', expected %s", option->name,
                           option->value);
    }
    return check_choices(option, text);
}

/* ---- options ---- */

static const qb_option *find_option(const qb_verb *verb, const char *name, size_t n_bytes)
{
    for (size_t i = 0; i < qb_n_options; i++)
        if (qb_options[i].verbs & qb_verb_bit(verb) &&
            !strncmp(qb_options[i].name, name, n_bytes) && !qb_options[i].name[n_bytes])
            return &qb_options[i];
    return NULL;
}

static const qb_option *find_letter(const qb_verb *verb, char letter)
{
    for (size_t i = 0; i < qb_n_options; i++)
        if (qb_options[i].letter == letter && qb_options[i].verbs & qb_verb_bit(verb))
            return &qb_options[i];
    return NULL;
}

static qb_status fail_unknown(const qb_verb *verb, const char *word)
{
    char name[MAX_NAME + 1];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    for (size_t v = 0; v < QB_VERB_COUNT; v++)
        if (find_option(&qb_verbs[v], name, strlen(name)))
            return QB_FAIL(QB_ERR_USAGE, "no such option of %s: found '--%s', an option of %s",
                           verb->name, name, qb_verbs[v].name);
    qb_nearest s = qb_nearest_begin(name);
    for (size_t i = 0; i < qb_n_options; i++)
        if (qb_options[i].verbs & qb_verb_bit(verb)) qb_nearest_consider(&s, qb_options[i].name);
    if (s.word)
        return QB_FAIL(QB_ERR_USAGE, "no such option of %s: found '--%s', did you mean '--%s'?",
                       verb->name, name, s.word);
    return QB_FAIL(QB_ERR_USAGE,
                   "no such option of %s: found '--%s', expected one that qbench help %s lists",
                   verb->name, name, verb->name);
}

static qb_status set_option(qb_cli *cli, const qb_option *option, const char *text)
{
    size_t i = (size_t)(option - qb_options);
    QB_TRY(check_value(option, text));
    cli->values[i] = text;
    if (option->kind != QB_OPTION_LIST) return QB_OK;
    const char *before = cli->lists[i].text ? cli->lists[i].text : "";
    size_t n = strlen(before) + strlen(text) + 2;
    char *joined;
    QB_TRY(QB_NEW(&joined, n, "list"));
    snprintf(joined, n, "%s%s%s", before, *before ? "," : "", text);
    qb_free(cli->lists[i].text);
    cli->lists[i].text = joined;
    return QB_OK;
}

/* One option at argv[*i] (and its value at the next place); moves *i to the last word taken. */
static qb_status take_option(qb_cli *cli, char **argv, int argc, int *i)
{
    const char *word = argv[*i], *value = NULL;
    const qb_option *option;
    if (word[1] == '-') {
        size_t n = strcspn(word + 2, "=");
        option = find_option(cli->verb, word + 2, n);
        if (!option) return fail_unknown(cli->verb, word + 2);
        if (word[2 + n]) value = word + 3 + n;
    } else {
        option = find_letter(cli->verb, word[1]);
        if (!option)
            return QB_FAIL(
                QB_ERR_USAGE,
                "no such option of %s: found '-%c', expected one that qbench help %s lists",
                cli->verb->name, word[1], cli->verb->name);
        if (word[2]) value = word + 2;
    }
    if (option->kind == QB_OPTION_FLAG) {
        if (value)
            return QB_FAIL(QB_ERR_USAGE, "--%s: takes no value: found '%s', expected nothing",
                           option->name, value);
        return set_option(cli, option, "");
    }
    if (option->kind == QB_OPTION_SWITCH) return set_option(cli, option, value ? value : "on");
    if (!value) {
        if (*i + 1 >= argc)
            return QB_FAIL(QB_ERR_USAGE, "--%s: no value: found the end, expected %s", option->name,
                           option->value);
        value = argv[++*i];
    }
    return set_option(cli, option, value);
}

/* ---- the whole line ---- */

/* The verb of argv[1], or run. A word that is no file but nearly a verb is taken for a slip. */
static qb_status choose_verb(const char *first, const qb_verb **out, bool *named)
{
    *named = false;
    *out = &qb_verbs[QB_VERB_RUN];
    if (!first || first[0] == '-') return QB_OK;
    const qb_verb *verb = qb_verb_find(first);
    if (verb) {
        *out = verb;
        *named = true;
    } else if (!strpbrk(first, "/.") && access(first, F_OK) && nearest_verb(first).word) {
        return qb_cli_find_verb(first, &verb);
    }
    return QB_OK;
}

/* Words that a shell would change are put in single quotes. */
static qb_status quote_command(int argc, char **argv, char **out)
{
    size_t n = 1;
    for (int i = 0; i < argc; i++) n += 4 * strlen(argv[i]) + 3;
    char *text;
    QB_TRY(QB_NEW(&text, n, "command line"));
    char *p = text;
    for (int i = 0; i < argc; i++) {
        const char *word = i ? argv[i] : "qbench";
        bool plain = *word && !word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVW"
                                                 "XYZ0123456789-_=+./,:@%")];
        if (i) *p++ = ' ';
        if (!plain) *p++ = '\'';
        for (; *word; word++) {
            if (*word == '\'')
                p = stpcpy(p, "'\\''");
            else
                *p++ = *word;
        }
        if (!plain) *p++ = '\'';
    }
    *p = 0;
    *out = text;
    return QB_OK;
}

static bool wants_text_only(const qb_cli *cli)
{
    return qb_cli_flag(cli, "help") || qb_cli_flag(cli, "version");
}

static qb_status parse_words(qb_cli *cli, int argc, char **argv, int first)
{
    bool options_over = false;
    for (int i = first; i < argc; i++) {
        const char *word = argv[i];
        if (!options_over && !strcmp(word, "--")) {
            options_over = true;
        } else if (!options_over && word[0] == '-' && word[1]) {
            QB_TRY(take_option(cli, argv, argc, &i));
        } else {
            cli->args[cli->n_args++] = word;
        }
    }
    const qb_verb *verb = cli->verb;
    if (wants_text_only(cli)) return QB_OK;
    if (cli->n_args < verb->min_args)
        return QB_FAIL(QB_ERR_USAGE, "%s: too few arguments: found %zu, expected %s", verb->name,
                       cli->n_args, verb->usage);
    if (cli->n_args > verb->max_args)
        return QB_FAIL(QB_ERR_USAGE, "%s: too many arguments: found '%s', expected %s", verb->name,
                       cli->args[verb->max_args], *verb->usage ? verb->usage : "none");
    return QB_OK;
}

static qb_status split_list(const qb_option *option, list *items)
{
    if (!items->text && option->default_value)
        QB_TRY(qb_strdup(&items->text, option->default_value));
    if (!items->text) return QB_OK;
    items->n_items = 1;
    for (char *p = items->text; *p; p++) {
        if (*p != ',') continue;
        if (p == items->text || !p[-1] || !p[1])
            return QB_FAIL(QB_ERR_USAGE, "--%s: empty item: found '', expected %s", option->name,
                           option->value);
        *p = '\0';
        items->n_items++;
    }
    return QB_OK;
}

static qb_status split_lists(qb_cli *cli)
{
    for (size_t i = 0; i < qb_n_options; i++)
        if (qb_options[i].kind == QB_OPTION_LIST && qb_options[i].verbs & qb_verb_bit(cli->verb))
            QB_TRY(split_list(&qb_options[i], &cli->lists[i]));
    return QB_OK;
}

qb_status qb_cli_parse(int argc, char **argv, qb_cli **out)
{
    qb_cli *cli;
    bool named = false;
    QB_TRY(QB_NEW_ZERO(&cli, 1, "command line"));
    qb_status status = choose_verb(argc > 1 ? argv[1] : NULL, &cli->verb, &named);
    if (status == QB_OK) status = QB_NEW_ZERO(&cli->values, qb_n_options, "options");
    if (status == QB_OK) status = QB_NEW_ZERO(&cli->lists, qb_n_options, "options");
    if (status == QB_OK) status = QB_NEW_ZERO(&cli->args, (size_t)argc + 1, "arguments");
    if (status == QB_OK) status = quote_command(argc, argv, &cli->command);
    if (status == QB_OK) status = parse_words(cli, argc, argv, named ? 2 : 1);
    if (status == QB_OK) status = split_lists(cli);
    if (status != QB_OK) {
        qb_cli_destroy(cli);
        return status;
    }
    *out = cli;
    return QB_OK;
}

void qb_cli_destroy(qb_cli *cli)
{
    if (!cli) return;
    for (size_t i = 0; cli->lists && i < qb_n_options; i++) qb_free(cli->lists[i].text);
    qb_free(cli->lists);
    qb_free(cli->values);
    qb_free(cli->args);
    qb_free(cli->command);
    qb_free(cli);
}

/* ---- getters ---- */

static size_t option_index(const qb_cli *cli, const char *name)
{
    const qb_option *option = find_option(cli->verb, name, strlen(name));
    assert(option && "an option that the table does not give to this verb");
    return (size_t)(option - qb_options);
}

static const char *value_of(const qb_cli *cli, const char *name)
{
    size_t i = option_index(cli, name);
    return cli->values[i] ? cli->values[i] : qb_options[i].default_value;
}

bool qb_cli_is_set(const qb_cli *cli, const char *name)
{
    return cli->values[option_index(cli, name)] != NULL;
}

bool qb_cli_flag(const qb_cli *cli, const char *name)
{
    return qb_cli_is_set(cli, name);
}

const char *qb_cli_string(const qb_cli *cli, const char *name)
{
    return value_of(cli, name);
}

size_t qb_cli_size(const qb_cli *cli, const char *name)
{
    const char *text = value_of(cli, name);
    size_t value = 0;
    if (text) parse_size(text, &value);
    return value;
}

double qb_cli_double(const qb_cli *cli, const char *name)
{
    const char *text = value_of(cli, name);
    double value = 0;
    if (text) parse_double(text, &value);
    return value;
}

size_t qb_cli_list_n_items(const qb_cli *cli, const char *name)
{
    return cli->lists[option_index(cli, name)].n_items;
}

const char *qb_cli_list_item(const qb_cli *cli, const char *name, size_t i)
{
    const list *items = &cli->lists[option_index(cli, name)];
    assert(i < items->n_items);
    const char *item = items->text;
    while (i--) item += strlen(item) + 1;
    return item;
}

size_t qb_cli_n_args(const qb_cli *cli)
{
    return cli->n_args;
}

const char *qb_cli_arg(const qb_cli *cli, size_t i)
{
    assert(i < cli->n_args);
    return cli->args[i];
}

const char *qb_cli_command(const qb_cli *cli)
{
    return cli->command;
}

const qb_verb *qb_cli_verb(const qb_cli *cli)
{
    return cli->verb;
}
