/* infer/nvml.c - see nvml.h. The few prototypes are those of NVIDIA's public NVML reference; its
 * header is not needed to build. */
#include "infer/nvml.h"

#include "core/nearest.h"
#include "core/status.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct nvmlDevice_st *nvml_device;
enum { NVML_SUCCESS = 0, NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2, NVML_TEMPERATURE_GPU = 0 };
enum { NVML_POLICY_POWER = 0, NVML_POLICY_THERMAL = 1 };

typedef struct nvml_process { /* nvmlProcessInfo_v2_t */
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
} nvml_process;
typedef struct nvml_violation {
    unsigned long long reference_us, violation_ns;
} nvml_violation;

static struct {
    const char *refusal;
    int (*init)(void);
    int (*handle)(const char *pci, nvml_device *out);
    int (*driver)(char *text, unsigned capacity);
    int (*clock)(nvml_device device, int which, unsigned *mhz);
    int (*max_clock)(nvml_device device, int which, unsigned *mhz);
    int (*power)(nvml_device device, unsigned *mw);
    int (*power_limit)(nvml_device device, unsigned *mw);
    int (*temperature)(nvml_device device, int sensor, unsigned *celsius);
    int (*throttle)(nvml_device device, unsigned long long *bits);
    int (*ecc)(nvml_device device, int *current, int *pending);
    int (*energy)(nvml_device device, unsigned long long *mj);
    int (*processes)(nvml_device device, unsigned *n, nvml_process *out);
    int (*violation)(nvml_device device, int policy, nvml_violation *out);
} nvml;

static void *open_library(void)
{
    const char *folder = getenv("QB_NVML_PATH");
    char path[1024];
    if (!folder) return dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    snprintf(path, sizeof path, "%s/libnvidia-ml.so.1", folder);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

/* A function that this library lacks stays NULL: its value is unknown then. */
static void find(void *library, const char *name, void *slot)
{
    void *function = dlsym(library, name);
    memcpy(slot, &function, sizeof function);
}

static void load(void)
{
    void *library = open_library();
    nvml.refusal = "libnvidia-ml.so.1 not found";
    if (!library) return;
    find(library, "nvmlInit_v2", &nvml.init);
    find(library, "nvmlDeviceGetHandleByPciBusId_v2", &nvml.handle);
    find(library, "nvmlSystemGetDriverVersion", &nvml.driver);
    find(library, "nvmlDeviceGetClockInfo", &nvml.clock);
    find(library, "nvmlDeviceGetMaxClockInfo", &nvml.max_clock);
    find(library, "nvmlDeviceGetPowerUsage", &nvml.power);
    find(library, "nvmlDeviceGetEnforcedPowerLimit", &nvml.power_limit);
    find(library, "nvmlDeviceGetTemperature", &nvml.temperature);
    find(library, "nvmlDeviceGetCurrentClocksThrottleReasons", &nvml.throttle);
    find(library, "nvmlDeviceGetEccMode", &nvml.ecc);
    find(library, "nvmlDeviceGetTotalEnergyConsumption", &nvml.energy);
    find(library, "nvmlDeviceGetComputeRunningProcesses_v3", &nvml.processes);
    find(library, "nvmlDeviceGetViolationStatus", &nvml.violation);
    if (!nvml.init || !nvml.handle)
        nvml.refusal = "libnvidia-ml.so.1 is too old";
    else
        nvml.refusal = nvml.init() == NVML_SUCCESS ? NULL : "libnvidia-ml.so.1 does not start";
}

const char *qb_nvml_refusal(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return nvml.refusal;
}

static bool find_device(const char *pci, nvml_device *out)
{
    return !qb_nvml_refusal() && nvml.handle(pci, out) == NVML_SUCCESS;
}

/* ---- values ---- */

#define ASK(function, ...) (nvml.function && nvml.function(__VA_ARGS__) == NVML_SUCCESS)

static void read_clocks(nvml_device device, qb_nvml_reading *out)
{
    unsigned value;
    if (ASK(clock, device, NVML_CLOCK_SM, &value)) out->sm_mhz = value;
    if (ASK(max_clock, device, NVML_CLOCK_SM, &value)) out->sm_max_mhz = value;
    if (ASK(clock, device, NVML_CLOCK_MEM, &value)) out->memory_mhz = value;
    unsigned long long bits;
    if (ASK(throttle, device, &bits)) out->throttle = (int64_t)bits;
}

static void read_power(nvml_device device, qb_nvml_reading *out)
{
    unsigned value;
    nvml_violation violation;
    if (ASK(power, device, &value)) out->power_w = 1e-3 * value;
    if (ASK(power_limit, device, &value)) out->power_limit_w = 1e-3 * value;
    if (ASK(temperature, device, NVML_TEMPERATURE_GPU, &value)) out->temperature_c = value;
    if (ASK(violation, device, NVML_POLICY_POWER, &violation))
        out->power_capped_s = 1e-9 * (double)violation.violation_ns;
    if (ASK(violation, device, NVML_POLICY_THERMAL, &violation))
        out->thermal_capped_s = 1e-9 * (double)violation.violation_ns;
}

static void read_processes(nvml_device device, qb_nvml_reading *out)
{
    nvml_process processes[64];
    unsigned n = QB_COUNT(processes);
    if (!ASK(processes, device, &n, processes)) return;
    out->other_processes = 0;
    for (unsigned i = 0; i < n; i++) out->other_processes += processes[i].pid != (unsigned)getpid();
}

void qb_nvml_read(const char *pci, qb_nvml_reading *out)
{
    nvml_device device;
    *out = (qb_nvml_reading){.sm_mhz = -1,
                             .sm_max_mhz = -1,
                             .memory_mhz = -1,
                             .power_w = NAN,
                             .power_limit_w = NAN,
                             .temperature_c = NAN,
                             .throttle = -1,
                             .ecc = -1,
                             .other_processes = -1,
                             .power_capped_s = NAN,
                             .thermal_capped_s = NAN};
    if (!find_device(pci, &device)) return;
    if (!ASK(driver, out->driver, sizeof out->driver)) *out->driver = 0;
    int current, pending;
    if (ASK(ecc, device, &current, &pending)) out->ecc = current;
    read_clocks(device, out);
    read_power(device, out);
    read_processes(device, out);
}

double qb_nvml_energy_j(const char *pci)
{
    nvml_device device;
    unsigned long long mj;
    return find_device(pci, &device) && ASK(energy, device, &mj) ? 1e-3 * (double)mj : NAN;
}

void qb_gpu_throttle_text(int64_t bits, char *text, unsigned capacity)
{
    static const char *const names[] = {
        "idle",          "clocks set",         "power cap",          "slowdown",
        "sync boost",    "thermal (software)", "thermal (hardware)", "power brake",
        "display clocks"};
    if (!capacity) return;
    snprintf(text, capacity, "%s", bits ? "" : "none");
    for (size_t i = 0; bits > 0 && i < QB_COUNT(names); i++)
        if (bits & 1 << i) qb_names_add(text, capacity, names[i]);
}
