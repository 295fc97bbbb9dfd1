/* cli/help.c - what is told about the command line, generated from its tables: --help and the man
 * page. */
#include "cli/options.h"

#include "report/format.h"

#include "version.h"

#include <stdio.h>
#include <string.h>

enum { HELP_COLUMN = 26, HELP_BYTES = 512 };

/* Of all commands; core/status.h has the codes of single failures. */
static const struct {
    int code;
    const char *meaning;
} exit_codes[] = {
    {0, "done"},
    {1, "a limit of gate is broken; watch --fail-on-change: the newest change is for the worse"},
    {2, "usage"},
    {3, "bad input file, or files that cannot be compared"},
    {4, "device or memory"},
    {5, "inconclusive: the noise leaves a limit of gate open"},
    {130, "interrupted"},
};

/* ---- plain text ---- */

static void option_left_column(const qb_option *option, char *text, size_t capacity)
{
    char letter[8] = "    ";
    if (option->letter) snprintf(letter, sizeof letter, "-%c, ", option->letter);
    const char *value = option->value ? option->value : "";
    if (option->kind == QB_OPTION_SWITCH) value = "[=off]";
    snprintf(text, capacity, "%s--%s%s%s", letter, option->name, option->value ? " " : "", value);
}

/* The help line, the allowed words, the default. */
static void option_help(const qb_option *option, char *text, size_t capacity)
{
    const char *choice;
    size_t n = (size_t)snprintf(text, capacity, "%s", option->help);
    for (size_t i = 0; option->choice && (choice = option->choice(i)); i++)
        n += (size_t)snprintf(text + n, capacity - n, "%s%s%s", i ? ", " : "; one of ", choice,
                              choice[strlen(choice) - 1] == ':' ? "N" : "");
    if (option->default_value)
        snprintf(text + n, capacity - n, " (default: %s)", option->default_value);
}

static void print_option(const qb_option *option)
{
    char left[96], help[HELP_BYTES];
    option_left_column(option, left, sizeof left);
    option_help(option, help, sizeof help);
    bool fits = strlen(left) <= HELP_COLUMN - 4; /* two blanks on each side */
    printf("  %-*s", fits ? HELP_COLUMN - 2 : 0, left);
    if (!fits) printf("\n%*s", HELP_COLUMN, "");
    qb_write_wrapped(stdout, HELP_COLUMN, help);
}

static void print_verb(const qb_verb *verb)
{
    bool is_run = verb == &qb_verbs[QB_VERB_RUN];
    printf("usage: qbench %s [options]%s%s\n\n  ", is_run ? "[run]" : verb->name,
           *verb->usage ? " " : "", verb->usage);
    qb_write_wrapped(stdout, 2, verb->text);
    printf("\noptions:\n");
    for (size_t i = 0; i < qb_n_options; i++)
        if (qb_options[i].verbs & qb_verb_bit(verb)) print_option(&qb_options[i]);
    printf("\nexamples:\n");
    for (size_t i = 0; i < QB_COUNT(verb->examples); i++) printf("  %s\n", verb->examples[i]);
}

static void print_overview(void)
{
    printf("qbench - what a quantisation scheme costs a language model, and what it brings\n\n"
           "usage: qbench [run] [options] MODEL...\n"
           "       qbench COMMAND [options] [arguments]\n\ncommands:\n");
    for (size_t i = 0; i < QB_VERB_COUNT; i++) {
        printf("  %-10s ", qb_verbs[i].name);
        qb_write_wrapped(stdout, 13, qb_verbs[i].summary);
    }
    printf("\nexit codes:\n");
    for (size_t i = 0; i < QB_COUNT(exit_codes); i++) {
        printf("  %-10d ", exit_codes[i].code);
        qb_write_wrapped(stdout, 13, exit_codes[i].meaning);
    }
    printf("\nOptions and examples of a command: qbench help COMMAND\n");
}

void qb_help_print(const qb_verb *verb)
{
    if (verb)
        print_verb(verb);
    else
        print_overview();
}

void qb_help_print_first_steps(void)
{
    printf("qbench measures what quantisation costs a language model, and what it brings.\n\n"
           "  qbench --scheme coarse model.bin            quality and speed beside full precision\n"
           "  qbench convert model.gguf model.bin         read a GGUF, safetensors or llm.c file\n"
           "  qbench doctor                               what this machine can run\n"
           "  qbench generate model.bin --prompt \"Hello\"  continue a text\n"
           "  qbench help                                 all commands; help COMMAND for one\n");
}

/* ---- man page ---- */

/* Roff takes a leading dot or quote for a request, and a bare minus for a hyphen. */
static void print_roff(const char *text)
{
    if (*text == '.' || *text == '\'') fputs("\\&", stdout);
    for (; *text; text++) {
        if (*text == '-')
            fputs("\\-", stdout);
        else if (*text == '\\')
            fputs("\\e", stdout);
        else
            putchar(*text);
    }
}

static void print_roff_line(const char *before, const char *text)
{
    fputs(before, stdout);
    print_roff(text);
    putchar('\n');
}

static void print_man_option(const qb_option *option)
{
    char text[HELP_BYTES];
    printf(".TP\n.B ");
    if (option->letter) printf("\\-%c\\fR, \\fB", option->letter);
    printf("\\-\\-");
    print_roff(option->name);
    if (option->value) {
        printf("\\fR \\fI");
        print_roff(option->value);
        printf("\\fR");
    }
    if (option->kind == QB_OPTION_SWITCH) printf("\\fR[=off]");
    putchar('\n');
    option_help(option, text, sizeof text);
    print_roff_line("", text);
}

static void print_man_verb(const qb_verb *verb)
{
    printf(".SS \"qbench %s\"\n", verb->name);
    print_roff_line(".B qbench ", verb->name);
    printf("[\\fIoptions\\fR] ");
    print_roff_line("", verb->usage);
    print_roff_line(".PP\n", verb->text);
    for (size_t i = 0; i < qb_n_options; i++) {
        bool common = qb_options[i].verbs == UINT32_MAX;
        if (!common && qb_options[i].verbs & qb_verb_bit(verb)) print_man_option(&qb_options[i]);
    }
    printf(".PP\nExamples:\n.PP\n.nf\n.RS\n");
    for (size_t i = 0; i < QB_COUNT(verb->examples); i++) print_roff_line("", verb->examples[i]);
    printf(".RE\n.fi\n");
}

void qb_help_print_man(void)
{
    printf(".TH QBENCH 1 \"\" \"qbench %s\" \"User Commands\"\n.SH NAME\n"
           "qbench \\- what a quantisation scheme costs a language model, and what it brings\n"
           ".SH SYNOPSIS\n.B qbench\n[\\fBrun\\fR] [\\fIoptions\\fR] \\fIMODEL\\fR...\n.br\n"
           ".B qbench\n\\fICOMMAND\\fR [\\fIoptions\\fR] [\\fIarguments\\fR]\n.SH COMMANDS\n",
           QB_VERSION);
    for (size_t i = 0; i < QB_VERB_COUNT; i++) print_man_verb(&qb_verbs[i]);
    printf(".SH \"COMMON OPTIONS\"\n");
    for (size_t i = 0; i < qb_n_options; i++)
        if (qb_options[i].verbs == UINT32_MAX) print_man_option(&qb_options[i]);
    printf(".SH \"EXIT STATUS\"\n");
    for (size_t i = 0; i < QB_COUNT(exit_codes); i++) {
        printf(".TP\n.B %d\n", exit_codes[i].code);
        print_roff_line("", exit_codes[i].meaning);
    }
    printf(
        ".PP\nAn error is one line on standard error: the object, the rule that was broken, what\n"
        "was found and what was expected. Nothing half-written stays under the final name.\n"
        ".SH FILES\nOutputs are written under a temporary name beside the file\n"
        "(\\fIFILE\\fR.tmp.\\fIPID\\fR), synced and renamed: a file is whole or as it was.\n"
        "A symbolic link is followed; a file that is replaced keeps its permissions.\n"
        "Pipes and devices (/dev/stdout) are written to as they are.\n"
        ".SH ENVIRONMENT\n"
        ".TP\n.B QB_DISABLE\ncomma list of processor features (avx2, avx512, avx512vnni) or\n"
        "kernel rows (gemm_s8/avx2) that are not to be used; a word that names none is said\n"
        ".TP\n.B NO_COLOR\nset and not empty: no terminal control codes\n"
        ".TP\n.BR QB_NVML_PATH \", \" QB_CUBLASLT_PATH \", \" QB_NCCL_PATH \", \" "
        "QB_MICROHTTPD_PATH\nfolders of libraries that are found when the program runs\n"
        ".TP\n.B XDG_CACHE_HOME\nwhere profile keeps a machine's peaks (default: ~/.cache)\n");
}
