/* cli/cli.h - what a verb (cli/cmd_<verb>.c) sees of the command line.
 *
 * cli/parse.c has checked everything by the tables of cli/options.c before a verb runs: names,
 * numbers and their ranges, choices, the number of positional arguments. A verb returns a
 * qb_status; main prints its message as the one error line and turns it into the exit code. */
#ifndef QB_CLI_CLI_H
#define QB_CLI_CLI_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct qb_cli qb_cli;
struct qb_verb;

/* Getters take the long name without dashes. Asking for an option that the table does not give to
 * this verb is our own bug (an assert). Strings are borrowed from cli. */
bool qb_cli_is_set(const qb_cli *cli, const char *name); /* given on the command line */
bool qb_cli_flag(const qb_cli *cli, const char *name);
/* The value, else the table's default, else NULL. */
const char *qb_cli_string(const qb_cli *cli, const char *name);
/* The value, else the table's default, else 0. */
size_t qb_cli_size(const qb_cli *cli, const char *name);
double qb_cli_double(const qb_cli *cli, const char *name);
/* Items of a list: n_items of them, the i-th as a borrowed string. */
size_t qb_cli_list_n_items(const qb_cli *cli, const char *name);
const char *qb_cli_list_item(const qb_cli *cli, const char *name, size_t i);

size_t qb_cli_n_args(const qb_cli *cli); /* positional arguments */
const char *qb_cli_arg(const qb_cli *cli, size_t i);
/* The command as it could be typed again, quoted for a shell: for records. */
const char *qb_cli_command(const qb_cli *cli);

/* One line on standard error, "qbench: note: ...", unless --quiet. For what the user should know
 * although all goes well (the built-in text is used, a file has no tokenizer, ...). */
void qb_cli_note(const qb_cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Where a verb takes a while to end: what the first Ctrl-C says at once, whole lines, on a
 * terminal; unless --quiet. NULL: nothing from now on. */
void qb_cli_when_interrupted(const qb_cli *cli, const char *text);
/* A process that runs beside this one says what failed: main prints no error line. */
void qb_cli_leave_error_to_another(void);
/* data as the file PATH, atomically, or to standard output where PATH is "-". */
qb_status qb_cli_emit(const char *path, const void *data, size_t bytes);

/* Standard output, which is buffered, as far as it is written; says so where it cannot be. */
qb_status qb_cli_flush(void);

/* ---- for main ---- */
/* argv as main gets it. QB_ERR_USAGE: the message says what and suggests the nearest word. */
qb_status qb_cli_parse(int argc, char **argv, qb_cli **out);
void qb_cli_destroy(qb_cli *cli); /* accepts NULL */
const struct qb_verb *qb_cli_verb(const qb_cli *cli);
bool qb_cli_error_is_left(void);         /* qb_cli_leave_error_to_another was called */
const char *qb_cli_interrupt_text(void); /* of qb_cli_when_interrupted; NULL = none */
/* QB_ERR_USAGE: no verb of that name; the message suggests the nearest. */
qb_status qb_cli_find_verb(const char *name, const struct qb_verb **out);

/* One function a verb. */
qb_status qb_cmd_run(const qb_cli *cli);
qb_status qb_cmd_generate(const qb_cli *cli);
qb_status qb_cmd_data(const qb_cli *cli);
qb_status qb_cmd_convert(const qb_cli *cli);
qb_status qb_cmd_inspect(const qb_cli *cli);
qb_status qb_cmd_verify(const qb_cli *cli);
qb_status qb_cmd_tokenize(const qb_cli *cli);
qb_status qb_cmd_logits(const qb_cli *cli);
qb_status qb_cmd_analyze(const qb_cli *cli);
qb_status qb_cmd_train(const qb_cli *cli);
qb_status qb_cmd_presets(const qb_cli *cli);
qb_status qb_cmd_compare(const qb_cli *cli);
qb_status qb_cmd_gate(const qb_cli *cli);
qb_status qb_cmd_watch(const qb_cli *cli);
qb_status qb_cmd_profile(const qb_cli *cli);
qb_status qb_cmd_report(const qb_cli *cli);
qb_status qb_cmd_table(const qb_cli *cli);
qb_status qb_cmd_kernels(const qb_cli *cli);
qb_status qb_cmd_doctor(const qb_cli *cli);
qb_status qb_cmd_help(const qb_cli *cli);
qb_status qb_cmd_version(const qb_cli *cli);

#endif
