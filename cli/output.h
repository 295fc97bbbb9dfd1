/* cli/output.h - how verbs write what they have found: to files and to standard output. */
#ifndef QB_CLI_OUTPUT_H
#define QB_CLI_OUTPUT_H

#include "cli/cli.h"

#include <stdio.h>

/* Finds out before the work, not after it, that a file cannot be written, that it is an input or
 * another output, or that more than one of the options (names, NULL after the last) goes to
 * standard output. Inputs are the arguments, the files of a model's folder, and the values of
 * options that verbs read. */
qb_status qb_cli_check_outputs(const qb_cli *cli, const char *const *options);
/* QB_ERR_USAGE: path is the value of an option that is an input. */
qb_status qb_cli_check_not_given(const qb_cli *cli, const char *path);
/* True for "-". */
bool qb_cli_is_stdout(const char *path);
/* Whether terminal control codes are for what is behind fd: TERM and NO_COLOR are respected. */
bool qb_cli_wants_codes(int fd);
bool qb_cli_wants_colour(void); /* on standard output */

typedef qb_status (*qb_cli_writer)(const void *what, FILE *stream);
/* The whole of what `write` writes as the file PATH, atomically, or on standard output ("-"). */
qb_status qb_cli_write(const char *path, qb_cli_writer write, const void *what);

#endif
