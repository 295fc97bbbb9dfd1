/* cli/main.c - signals, the one error line, the exit code. */
#include "cli/options.h"
#include "cli/output.h"

#include "core/file.h"
#include "core/interrupt.h"
#include "core/progress.h"
#include "kernels/registry.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void write_text(const char *text)
{
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
}

/* The first Ctrl-C asks the loops to stop; the second does not wait for them. */
static void on_interrupt(int signal_number)
{
    (void)signal_number;
    if (qb_interrupted()) {
        qb_file_cleanup();
        _exit(qb_status_exit_code(QB_ERR_INTERRUPTED));
    }
    qb_interrupt_set(true);
    if (qb_cli_interrupt_text()) write_text(qb_cli_interrupt_text());
}

static void on_bus_error(int signal_number)
{
    (void)signal_number;
    write_text("qbench: a mapped input file was truncated while in use\n");
    qb_file_cleanup();
    _exit(qb_status_exit_code(QB_ERR_IO));
}

/* `qbench ... | head`: the reader has left. End as any filter does, without a word. */
static void on_pipe(int signal_number)
{
    qb_file_cleanup();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void handle(int signal_number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigemptyset(&action.sa_mask);
    sigaction(signal_number, &action, NULL);
}

/* A model file must not get the number of a closed standard stream and then our output. Standard
 * output is opened for reading, so that writing to it fails and is reported. */
static void open_standard_streams(void)
{
    while (fcntl(STDIN_FILENO, F_GETFD) < 0 && open("/dev/null", O_RDONLY) >= 0) {
    }
    if (fcntl(STDOUT_FILENO, F_GETFD) < 0 && open("/dev/null", O_RDONLY) < 0) _exit(4);
    if (fcntl(STDERR_FILENO, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0) _exit(4);
}

static qb_status run_verb(const qb_cli *cli, const char *first)
{
    if (qb_cli_flag(cli, "version")) return qb_cmd_version(cli);
    if (qb_cli_flag(cli, "help")) {
        bool general = !strcmp(first, "--help") || !strcmp(first, "-h");
        qb_help_print(general ? NULL : qb_cli_verb(cli));
        return QB_OK;
    }
    if (!qb_cli_flag(cli, "quiet")) {
        qb_progress_open(stderr, qb_cli_wants_codes(STDERR_FILENO));
    }
    char text[256];
    if (!qb_kernel_check_disabled(text, sizeof text)) qb_cli_note(cli, "%s", text);
    return qb_cli_verb(cli)->run(cli);
}

int main(int argc, char **argv)
{
    open_standard_streams();
    handle(SIGINT, on_interrupt, SA_RESTART);
    handle(SIGTERM, on_interrupt, SA_RESTART);
    handle(SIGBUS, on_bus_error, 0);
    handle(SIGPIPE, on_pipe, 0);
    handle(SIGXFSZ, SIG_IGN, 0); /* a file beyond the limit of sizes: its write fails and says so */

    qb_status status = QB_OK;
    qb_cli *cli = NULL;
    if (argc < 2) {
        qb_help_print_first_steps();
        status =
            QB_FAIL(QB_ERR_USAGE, "too few arguments: found none, expected COMMAND or MODEL...");
    } else {
        status = qb_cli_parse(argc, argv, &cli);
        if (status == QB_OK) status = run_verb(cli, argv[1]);
        qb_cli_destroy(cli);
    }
    if (status == QB_OK)
        status = qb_cli_flush();
    else
        fflush(stdout); /* the first error is the one to tell */
    if (status != QB_OK && !qb_cli_error_is_left())
        fprintf(stderr, "qbench: %s\n", qb_error_message());
    return qb_status_exit_code(status);
}
