/* infer/environment.c - see environment.h. */
#include "infer/environment.h"

#include "core/clock.h"
#include "core/cpu_features.h"
#include "core/threads.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* ---- small files of the system ---- */

/* The first line of a file without its newline; false where it cannot be read. */
static bool read_line(const char *path, char *text, size_t capacity)
{
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool ok = fgets(text, (int)capacity, file);
    fclose(file);
    if (ok) text[strcspn(text, "\n")] = 0;
    return ok;
}

static bool read_number(const char *path, double *out)
{
    char text[64], *end;
    if (!read_line(path, text, sizeof text)) return false;
    double value = strtod(text, &end);
    if (end == text) return false;
    *out = value;
    return true;
}

/* The value of KEY in lines "KEY=value" or "KEY: value", quotes taken away. */
static bool find_in_file(const char *path, const char *key, char *text, size_t capacity)
{
    char line[1024];
    size_t n = strlen(key);
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool found = false;
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, n) || !strchr("=:\t ", line[n])) continue;
        const char *p = line + n + strspn(line + n, "=:\t \"");
        snprintf(text, capacity, "%.*s", (int)strcspn(p, "\"\n"), p);
        found = true;
    }
    fclose(file);
    return found;
}

/* ---- the machine ---- */

static bool cpuinfo_has_hypervisor_flag(void)
{
    char flags[8192] = "", line[8192];
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "flags", 5)) {
            memcpy(flags, line, sizeof flags);
            break;
        }
    if (file) fclose(file);
    return strstr(flags, " hypervisor");
}

static void find_hypervisor(char *text, size_t capacity)
{
    static const char *const names[][2] = {{"KVM", "KVM"},
                                           {"QEMU", "QEMU"},
                                           {"VMware", "VMware"},
                                           {"Amazon EC2", "Amazon EC2"},
                                           {"Google", "Google Compute Engine"},
                                           {"Microsoft", "Hyper-V"},
                                           {"VirtualBox", "VirtualBox"}};
    *text = 0;
    if (!cpuinfo_has_hypervisor_flag()) return;
    char vendor[128] = "", product[128] = "";
    read_line("/sys/class/dmi/id/sys_vendor", vendor, sizeof vendor);
    read_line("/sys/class/dmi/id/product_name", product, sizeof product);
    snprintf(text, capacity, "unknown kind");
    for (size_t i = 0; i < QB_COUNT(names); i++)
        if (strstr(vendor, names[i][0]) || strstr(product, names[i][0])) {
            snprintf(text, capacity, "%s", names[i][1]);
            return;
        }
}

void qb_machine_read(qb_machine *out)
{
    *out = (qb_machine){.n_cpus = qb_n_cpus(), .load = NAN, .memory_bytes = -1};
    qb_cpu_name(out->cpu, sizeof out->cpu);
    qb_cpu_features_text(qb_cpu_features(), out->features, sizeof out->features);
    if (!find_in_file("/etc/os-release", "PRETTY_NAME", out->os, sizeof out->os))
        snprintf(out->os, sizeof out->os, "unknown");
    struct utsname name;
    if (!uname(&name))
        snprintf(out->kernel_version, sizeof out->kernel_version, "%.60s %.60s", name.sysname,
                 name.release);
    find_hypervisor(out->hypervisor, sizeof out->hypervisor);
    if (!read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", out->governor,
                   sizeof out->governor))
        *out->governor = 0;
    read_number("/proc/loadavg", &out->load);
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) out->memory_bytes = (int64_t)pages * page;
}

void qb_gpu_read(qb_gpu *out)
{
    int index = qb_cuda_in_use();
    *out = (qb_gpu){.index = index};
    if (index < 0 || qb_cuda_info_get(index, &out->info) != QB_OK) return;
    out->in_use = true;
    qb_nvml_read(out->info.pci, &out->now);
}

/* ---- what it does meanwhile ---- */

static double own_cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Busy and stolen seconds of all processors since boot, from the first line of /proc/stat. */
static void read_cpu_times(double *busy_s, double *stolen_s)
{
    char line[512];
    unsigned long long user, nice, system, idle, iowait, irq, softirq, steal;
    *busy_s = *stolen_s = NAN;
    if (!read_line("/proc/stat", line, sizeof line)) return;
    if (sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle,
               &iowait, &irq, &softirq, &steal) != 8)
        return;
    double tick_s = 1.0 / (double)sysconf(_SC_CLK_TCK);
    *busy_s = (double)(user + nice + system + irq + softirq) * tick_s;
    *stolen_s = (double)steal * tick_s;
}

static int64_t read_throttle_events(void)
{
    double total = -1;
    for (int cpu = 0; cpu < 1024; cpu++) {
        char path[128];
        double n;
        snprintf(path, sizeof path,
                 "/sys/devices/system/cpu/cpu%d/thermal_throttle/core_throttle_count", cpu);
        if (!read_number(path, &n)) break;
        total = (total < 0 ? 0 : total) + n;
    }
    return (int64_t)total;
}

void qb_machine_watch_start(qb_machine_watch *watch)
{
    watch->wall_s = qb_now_s();
    watch->own_cpu_s = own_cpu_s();
    read_cpu_times(&watch->busy_cpu_s, &watch->stolen_cpu_s);
    watch->throttle_events = read_throttle_events();
    qb_gpu_read(&watch->gpu);
}

void qb_machine_watch_stop(qb_machine_watch *watch)
{
    qb_machine_watch now;
    qb_machine_watch_start(&now);
    watch->wall_s = now.wall_s - watch->wall_s;
    watch->own_cpu_s = now.own_cpu_s - watch->own_cpu_s;
    watch->busy_cpu_s = now.busy_cpu_s - watch->busy_cpu_s;
    watch->stolen_cpu_s = now.stolen_cpu_s - watch->stolen_cpu_s;
    if (watch->throttle_events >= 0)
        watch->throttle_events = now.throttle_events - watch->throttle_events;
    now.gpu.now.power_capped_s -= watch->gpu.now.power_capped_s;
    now.gpu.now.thermal_capped_s -= watch->gpu.now.thermal_capped_s;
    watch->gpu = now.gpu;
}

/* ---- trust ---- */

const char *qb_trust_text(qb_trust_level level)
{
    static const char *const texts[] = {"high", "medium", "low"};
    return texts[level];
}

__attribute__((format(printf, 3, 4))) static void lower(qb_trust *trust, qb_trust_level level,
                                                        const char *format, ...)
{
    if (trust->level < level) trust->level = level;
    if (trust->n_reasons == QB_TRUST_MAX_REASONS) return;
    va_list args;
    va_start(args, format);
    vsnprintf(trust->reasons[trust->n_reasons++], QB_TRUST_REASON_BYTES, format, args);
    va_end(args);
}

static void judge_machine(const qb_trust_input *in, qb_trust *out)
{
    const qb_machine *m = in->machine;
    double n_cpus = (double)m->n_cpus;
    if (m->load > 0.5 * n_cpus)
        lower(out, m->load > n_cpus ? QB_TRUST_LOW : QB_TRUST_MEDIUM,
              "load %.2f on %zu processors at the start", m->load, m->n_cpus);
    if (in->n_threads > m->n_cpus)
        lower(out, QB_TRUST_LOW, "%zu threads on %zu processors", in->n_threads, m->n_cpus);
    if (*m->governor && strcmp(m->governor, "performance"))
        lower(out, QB_TRUST_MEDIUM, "frequency governor is %s, not performance", m->governor);
    if (*m->hypervisor)
        lower(out, QB_TRUST_MEDIUM, "virtual machine (%s): neighbours and clocks are not visible",
              m->hypervisor);
}

static void judge_watch(const qb_trust_input *in, qb_trust *out)
{
    const qb_machine_watch *w = in->watch;
    double capacity_s = w->wall_s * (double)in->machine->n_cpus;
    double other = (w->busy_cpu_s - w->own_cpu_s) / capacity_s,
           stolen = w->stolen_cpu_s / capacity_s;
    if (other > 0.05)
        lower(out, other > 0.2 ? QB_TRUST_LOW : QB_TRUST_MEDIUM,
              "other processes used %.0f %% of the processors", 100 * other);
    if (stolen > 0.01)
        lower(out, stolen > 0.05 ? QB_TRUST_LOW : QB_TRUST_MEDIUM,
              "the hypervisor took %.1f %% of the processors", 100 * stolen);
    if (w->throttle_events > 0)
        lower(out, QB_TRUST_LOW, "the processor throttled %lld times",
              (long long)w->throttle_events);
    if (in->samples < 10)
        lower(out, QB_TRUST_LOW, "too few samples: %lld, at least 10 wanted",
              (long long)in->samples);
    if (in->half_width > 0.03)
        lower(out, in->half_width > 0.1 ? QB_TRUST_LOW : QB_TRUST_MEDIUM,
              "wide spread: up to ±%.1f %% of the median", 100 * in->half_width);
    if (!in->steady) lower(out, QB_TRUST_MEDIUM, "the warm-up did not become steady");
}

static void judge_gpu(const qb_trust_input *in, qb_trust *out)
{
    const qb_gpu *gpu = &in->watch->gpu;
    if (!gpu->in_use) return;
    double thermal = gpu->now.thermal_capped_s / in->watch->wall_s,
           power = gpu->now.power_capped_s / in->watch->wall_s;
    int64_t slowed = gpu->now.throttle < 0 ? 0 : gpu->now.throttle & QB_GPU_SLOWED;
    char text[80];
    if (slowed) {
        qb_gpu_throttle_text(slowed, text, sizeof text);
        lower(out, QB_TRUST_LOW, "the GPU slowed itself: %s", text);
    }
    if (thermal > 0.01)
        lower(out, QB_TRUST_LOW, "heat lowered the GPU's clocks %.0f %% of the time",
              100 * thermal);
    if (power > 0.05)
        lower(out, QB_TRUST_MEDIUM, "the power cap lowered the GPU's clocks %.0f %% of the time",
              100 * power);
    if (gpu->now.other_processes > 0)
        lower(out, QB_TRUST_LOW, "%lld other processes use the GPU",
              (long long)gpu->now.other_processes);
}

void qb_trust_judge(const qb_trust_input *input, qb_trust *out)
{
    *out = (qb_trust){.level = QB_TRUST_HIGH};
    if (input->watch) {
        judge_machine(input, out);
        judge_watch(input, out);
        judge_gpu(input, out);
    }
    if (input->not_finite)
        lower(out, QB_TRUST_LOW, "losses that are NaN or infinite: no perplexity");
    if (input->windows >= 0 && input->windows < 20)
        lower(out, input->windows < 5 ? QB_TRUST_LOW : QB_TRUST_MEDIUM,
              "few windows for the interval of the penalty: %lld, 20 wanted",
              (long long)input->windows);
}
