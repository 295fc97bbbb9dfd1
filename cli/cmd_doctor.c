/* cli/cmd_doctor.c - qbench doctor: what this machine can run, why not the rest, and what to do.
 *
 * A check is a row: it says what it found and, where something would help, what. Nothing is
 * measured, and nothing is changed. */
#include "cli/output.h"
#include "cli/prepare.h"
#include "core/memory.h"
#include "core/serve.h"
#include "infer/environment.h"
#include "infer/nvml.h"
#include "kernels/registry.h"
#ifdef QB_WITH_CUDA
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/nccl.h"
#endif
#include "model/text.h"
#include "report/format.h"
#include "train/comm.h"

#include "version.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ok: as good as it gets here; limited: works, less well than it could; no: not to be had. */
typedef enum check_state { CHECK_OK, CHECK_LIMITED, CHECK_NO } check_state;
static const char *const state_names[] = {"ok", "limited", "no"};

typedef struct check {
    check_state state;
    char found[640];
    const char *advice; /* NULL = none */
} check;

static void add(check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(check *c, const char *format, ...)
{
    size_t n = strlen(c->found);
    va_list args;
    va_start(args, format);
    vsnprintf(c->found + n, sizeof c->found - n, format, args);
    va_end(args);
}

/* ---- the checks ---- */

static void check_processor(const qb_machine *m, check *c)
{
    add(c, "%s, instruction sets %s", m->cpu, m->features);
    if (getenv("QB_DISABLE") && qb_cpu_features() != qb_cpu_features_present()) {
        c->state = CHECK_LIMITED;
        add(c, " (QB_DISABLE=%s)", getenv("QB_DISABLE"));
        c->advice = "unset QB_DISABLE";
    } else if (!(qb_cpu_features() & QB_CPU_AVX2)) {
        c->state = CHECK_LIMITED;
        c->advice = "use a processor with AVX2: the portable rows run, many times slower";
    }
}

static void check_threads(const qb_machine *m, check *c)
{
    add(c, "%zu, as many as the processors that this process may use", m->n_cpus);
}

static void check_memory(const qb_machine *m, check *c)
{
    long free_pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (m->memory_bytes < 0) {
        add(c, "not readable");
        return;
    }
    add(c, "%.1f GB", (double)m->memory_bytes / 1e9);
    if (free_pages > 0) add(c, ", %.1f GB of it unused", (double)free_pages * (double)page / 1e9);
    add(c, "; a model takes 4 bytes a parameter in full precision, beside 1 under an 8-bit scheme");
}

/* Rows that are refused, counted by reason. */
typedef struct refusals {
    struct {
        char why[128];
        size_t n;
    } items[16];
    size_t n;
} refusals;

static void count_refusal(refusals *r, const char *why)
{
    size_t i = 0;
    while (i < r->n && strcmp(r->items[i].why, why)) i++;
    if (i == QB_COUNT(r->items)) return;
    if (i == r->n) snprintf(r->items[r->n++].why, sizeof r->items[0].why, "%s", why);
    r->items[i].n++;
}

/* The rows of one device: how many are usable, and why the others are not. */
static void check_rows(int device, check *c)
{
    size_t n_rows = 0, n_usable = 0;
    refusals r = {.n = 0};
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++) {
        const qb_kernel_table *table = &op->tables[device];
        const qb_kernel_info *row;
        for (size_t i = 0; table->rows && (row = qb_kernel_row(table, i))->name; i++, n_rows++) {
            const char *why = qb_kernel_refusal(row);
            if (why)
                count_refusal(&r, why);
            else
                n_usable++;
        }
    }
    if (n_rows)
        add(c, "%zu of %zu rows usable", n_usable, n_rows);
    else
        add(c, "none in this build");
    for (size_t i = 0; i < r.n; i++) add(c, "; %zu: %s", r.items[i].n, r.items[i].why);
    c->state = !n_usable ? CHECK_NO : n_usable < n_rows ? CHECK_LIMITED : CHECK_OK;
}

static void check_processor_rows(const qb_machine *m, check *c)
{
    (void)m;
    check_rows(QB_KERNEL_CPU, c);
}

static void check_gpu_rows(const qb_machine *m, check *c)
{
    (void)m;
    check_rows(QB_KERNEL_CUDA, c);
}

#ifdef QB_WITH_CUDA
enum { HAS_CUDA_ENGINE = 1 };
#else
enum { HAS_CUDA_ENGINE = 0 };
#endif

static void check_gpu(const qb_machine *m, check *c)
{
    (void)m;
    const char *why = qb_cuda_refusal(0);
    qb_cuda_info info;
    if (why) {
        bool has_driver = !access("/proc/driver/nvidia/version", F_OK);
        c->state = CHECK_NO;
        add(c, "%s", why);
        if (has_driver && !HAS_CUDA_ENGINE)
            c->advice = "build with nvcc (make PRESET=cuda): an NVIDIA driver is here";
        else if (has_driver)
            c->advice = "look at nvidia-smi and the driver's version: an NVIDIA driver is here, "
                        "but its GPU cannot be used";
        return;
    }
    for (int i = 0; i < (int)qb_cuda_count(); i++) {
        add(c, "%s%d: ", i ? "; " : "", i);
        if (qb_cuda_refusal(i))
            add(c, "%s", qb_cuda_refusal(i));
        else if (qb_cuda_info_get(i, &info) == QB_OK)
            add(c, "%s, %.1f GB, compute capability %d.%d", info.name,
                (double)info.memory_bytes / 1e9, info.major, info.minor);
    }
}

static void check_gpu_libraries(const qb_machine *m, check *c)
{
    (void)m;
#ifdef QB_WITH_CUDA
    const char *const refused[] = {qb_nvml_refusal(), qb_cublaslt_refusal(), qb_nccl_refusal()};
#else
    const char *const refused[] = {qb_nvml_refusal(), "no CUDA engine", "no CUDA engine"};
#endif
    static const char *const what[] = {"clocks and energy (NVML)", "cuBLASLt's rows",
                                       "training on several GPUs (NCCL)"};
    size_t n_missing = 0;
    for (size_t i = 0; i < QB_COUNT(what); i++) {
        add(c, "%s%s: %s", i ? "; " : "", what[i], refused[i] ? refused[i] : "yes");
        n_missing += refused[i] != NULL;
    }
    c->state = !n_missing ? CHECK_OK : n_missing < QB_COUNT(what) ? CHECK_LIMITED : CHECK_NO;
}

static void check_processes(const qb_machine *m, check *c)
{
    (void)m;
    bool has = qb_comm_has_mpi();
    c->state = has ? CHECK_OK : CHECK_NO;
    add(c, "%s",
        has ? "train in several processes by mpirun or srun (MPI)"
            : "this build has no MPI: qbench train runs in one process");
}

static void check_live_page(const qb_machine *m, check *c)
{
    (void)m;
    c->state = qb_server_refusal() ? CHECK_NO : CHECK_OK;
    add(c, "train --serve: %s", qb_server_refusal() ? qb_server_refusal() : "yes");
}

static void check_tokenizer(const qb_machine *m, check *c)
{
    (void)m;
    char regex[64];
    bool jit = qb_tokenizer_regex(regex, sizeof regex);
    c->state = jit ? CHECK_OK : CHECK_LIMITED;
    add(c, "PCRE2 %s, %s", regex,
        jit ? "compiled patterns" : "no compiler: texts are split slower");
}

static void check_data(const qb_machine *m, check *c)
{
    (void)m;
    qb_text text;
    char bytes[QB_FORMAT_BYTES];
    if (qb_text_builtin(&text) != QB_OK) {
        c->state = CHECK_NO;
        add(c, "%s", qb_error_message());
        return;
    }
    add(c, "a text of %s bytes is built in, another for calibration",
        qb_format_count((int64_t)text.raw_bytes, bytes));
    qb_text_deinit(&text);
}

static void check_timing(const qb_machine *m, check *c)
{
    bool busy = m->load > 0.5 * (double)m->n_cpus;
    bool slows = *m->governor && strcmp(m->governor, "performance");
    if (*m->hypervisor) add(c, "virtual machine (%s), ", m->hypervisor);
    if (*m->governor) add(c, "governor %s, ", m->governor);
    add(c, isnan(m->load) ? "load unknown" : "load %.1f of %zu processors", m->load, m->n_cpus);
    if (busy || slows || *m->hypervisor) c->state = CHECK_LIMITED;
    if (busy) c->advice = "measure speed when nothing else runs, or quality alone (--no-speed)";
}

static const struct {
    const char *name;
    void (*look)(const qb_machine *machine, check *c);
} checks[] = {{"processor", check_processor},
              {"cpu-kernels", check_processor_rows},
              {"threads", check_threads},
              {"memory", check_memory},
              {"gpu", check_gpu},
              {"gpu-kernels", check_gpu_rows},
              {"gpu-libraries", check_gpu_libraries},
              {"processes", check_processes},
              {"live-page", check_live_page},
              {"tokenizer", check_tokenizer},
              {"data", check_data},
              {"timing", check_timing}};

/* The first advice, else what can be done at once. */
static const char *recommend(const check *found)
{
    for (size_t i = 0; i < QB_COUNT(checks); i++)
        if (found[i].advice) return found[i].advice;
    return "qbench --scheme all MODEL: everything here is ready";
}

/* ---- output ---- */

static void print_screen(const check *found)
{
    for (size_t i = 0; i < QB_COUNT(checks); i++) {
        char label[32];
        snprintf(label, sizeof label, "%-14s %s", checks[i].name, state_names[found[i].state]);
        qb_write_labelled(stdout, label, 23, "%s", found[i].found);
    }
    printf("\n");
    qb_write_labelled(stdout, "recommended:", 13, "%s", recommend(found));
}

static qb_status emit_json(const char *path, const check *found)
{
    json_t *list = json_array();
    for (size_t i = 0; i < QB_COUNT(checks); i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s?}", "name", checks[i].name,
                                              "state", state_names[found[i].state], "found",
                                              found[i].found, "advice", found[i].advice));
    json_t *root = json_pack("{s:s, s:s, s:s, s:o, s:s}", "schema", "qbench.doctor/1",
                             "qbench_version", QB_VERSION, "git_commit", QB_GIT_COMMIT, "checks",
                             list, "recommended", recommend(found));
    if (!root || json_array_size(list) != QB_COUNT(checks)) {
        json_decref(root);
        return QB_FAIL(QB_ERR_MEMORY, "%s: no memory for the output", path);
    }
    qb_status status = qb_cli_emit_json(path, root, "doctor");
    json_decref(root);
    return status;
}

qb_status qb_cmd_doctor(const qb_cli *cli)
{
    static const char *const options[] = {"json", NULL};
    const char *json = qb_cli_string(cli, "json");
    check found[QB_COUNT(checks)] = {{0}};
    qb_machine machine;
    QB_TRY(qb_cli_check_outputs(cli, options));
    qb_machine_read(&machine);
    for (size_t i = 0; i < QB_COUNT(checks); i++) checks[i].look(&machine, &found[i]);
    if (json) QB_TRY(emit_json(json, found));
    if (!qb_cli_is_stdout(json)) print_screen(found);
    return QB_OK;
}
