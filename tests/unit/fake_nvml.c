/* tests/unit/fake_nvml.c - a management library with one device of known values, for test_nvml.c.
 */
#include <string.h>
#include <unistd.h>

int nvmlInit_v2(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **device);
int nvmlSystemGetDriverVersion(char *text, unsigned capacity);
int nvmlDeviceGetClockInfo(void *device, int which, unsigned *mhz);
int nvmlDeviceGetMaxClockInfo(void *device, int which, unsigned *mhz);
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw);
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw);
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits);
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj);
int nvmlDeviceGetEccMode(void *device, int *current, int *pending);
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *n, void *out);
int nvmlDeviceGetViolationStatus(void *device, int policy, unsigned long long *out);

enum { FOUND = 0, NOT_FOUND = 6, NOT_SUPPORTED = 3 };

int nvmlInit_v2(void)
{
    return FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **device)
{
    static char the_device;
    *device = &the_device;
    return strcmp(pci, "0000:06:00.0") ? NOT_FOUND : FOUND;
}

int nvmlSystemGetDriverVersion(char *text, unsigned capacity)
{
    strncpy(text, "580.1.2", capacity);
    return FOUND;
}

int nvmlDeviceGetClockInfo(void *device, int which, unsigned *mhz)
{
    (void)device;
    *mhz = which == 1 ? 1755 : which == 2 ? 2619 : 1;
    return FOUND;
}

int nvmlDeviceGetMaxClockInfo(void *device, int which, unsigned *mhz)
{
    (void)device;
    *mhz = which == 1 ? 1980 : 1;
    return FOUND;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *mw)
{
    (void)device;
    *mw = 512345;
    return FOUND;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw)
{
    (void)device;
    *mw = 700000;
    return FOUND;
}

/* No nvmlDeviceGetTemperature: a library may lack a function. */

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits)
{
    (void)device;
    *bits = 0x4 | 0x20;
    return FOUND;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj)
{
    static unsigned long long joules = 1000;
    (void)device;
    *mj = 1000 * joules++;
    return FOUND;
}

int nvmlDeviceGetEccMode(void *device, int *current, int *pending)
{
    (void)device;
    *current = *pending = 1;
    return FOUND;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *n, void *out)
{
    struct {
        unsigned pid;
        unsigned long long bytes;
        unsigned gpu_instance, compute_instance;
    } *processes = out;
    (void)device;
    *n = 2;
    processes[0].pid = (unsigned)getpid();
    processes[1].pid = (unsigned)getpid() + 1;
    return FOUND;
}

int nvmlDeviceGetViolationStatus(void *device, int policy, unsigned long long *out)
{
    (void)device;
    out[0] = 1;
    out[1] = 2500000000; /* ns */
    return policy == 0 ? FOUND : NOT_SUPPORTED;
}
