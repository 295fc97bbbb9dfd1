/* cli/options.h - the two tables that the command line is made of: verbs and options.
 *
 * Parsing (cli/parse.c), --help and the man page (cli/help.c) and the completions
 * (cli/completion.c) loop over these tables and know nothing else. A new verb is a row of qb_verbs,
 * an id below and cli/cmd_<verb>.c; a new option is a row of qb_options. */
#ifndef QB_CLI_OPTIONS_H
#define QB_CLI_OPTIONS_H

#include "cli/cli.h"

#include <stdint.h>

/* Order of qb_verbs. */
typedef enum qb_verb_id {
    QB_VERB_RUN,
    QB_VERB_GENERATE,
    QB_VERB_DATA,
    QB_VERB_CONVERT,
    QB_VERB_INSPECT,
    QB_VERB_VERIFY,
    QB_VERB_TOKENIZE,
    QB_VERB_LOGITS,
    QB_VERB_ANALYZE,
    QB_VERB_TRAIN,
    QB_VERB_PRESETS,
    QB_VERB_COMPARE,
    QB_VERB_GATE,
    QB_VERB_WATCH,
    QB_VERB_PROFILE,
    QB_VERB_REPORT,
    QB_VERB_TABLE,
    QB_VERB_KERNELS,
    QB_VERB_DOCTOR,
    QB_VERB_HELP,
    QB_VERB_VERSION,
    QB_VERB_COUNT
} qb_verb_id;

typedef struct qb_verb {
    const char *name;
    const char *usage;   /* positional arguments as --help shows them */
    const char *summary; /* one line, no full stop */
    const char *text;    /* a paragraph for --help and the man page */
    const char *examples[2];
    size_t min_args, max_args; /* positional arguments */
    qb_status (*run)(const qb_cli *cli);
} qb_verb;
extern const qb_verb qb_verbs[QB_VERB_COUNT];

typedef enum qb_option_kind {
    QB_OPTION_FLAG,
    QB_OPTION_STRING,
    QB_OPTION_SIZE,   /* whole number in [min, max] */
    QB_OPTION_DOUBLE, /* in [min, max] */
    QB_OPTION_SWITCH, /* --name or --name=on, and --name=off */
    QB_OPTION_LIST,   /* NAME[,NAME...]; a repeated option adds to it */
} qb_option_kind;

/* The same name may stand in several rows with different verbs, where its meaning differs. */
typedef struct qb_option {
    const char *name; /* without dashes; NULL ends the table */
    char letter;      /* 0 = none */
    qb_option_kind kind;
    uint32_t verbs;            /* bit 1 << id of each verb that takes it */
    const char *value;         /* "N": how --help names the value */
    const char *default_value; /* what the getters give when it is absent; NULL = none */
    double min, max;           /* of numbers */
    const char *help;          /* one line; a default that is no constant is said here */
    /* The i-th allowed word, NULL after the last; "word:" takes a number. NULL = any word. */
    const char *(*choice)(size_t i);
} qb_option;
extern const qb_option qb_options[];
extern const size_t qb_n_options;

/* The verb of that name, NULL = none. */
const qb_verb *qb_verb_find(const char *name);
static inline uint32_t qb_verb_bit(const qb_verb *verb)
{
    return 1u << (verb - qb_verbs);
}

/* The text that `qbench help` and its kin print to standard output. verb NULL: the overview. */
void qb_help_print(const qb_verb *verb);
void qb_help_print_first_steps(void);
void qb_help_print_man(void);
/* The completion script of a shell, one of qb_shell_name(0), (1), ...; NULL after the last. */
void qb_help_print_completion(const char *shell);
const char *qb_shell_name(size_t i);

#endif
