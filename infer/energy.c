/* infer/energy.c - see energy.h. */
#include "infer/energy.h"

#include "core/clock.h"
#include "core/cuda.h"
#include "core/memory.h"
#include "infer/nvml.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- counters ---- */

static double read_number(const char *path)
{
    double value = NAN;
    FILE *file = fopen(path, "re");
    if (!file) return NAN;
    if (fscanf(file, "%lf", &value) != 1) value = NAN;
    fclose(file);
    return value;
}

/* Packages are intel-rapl:N (AMD too); intel-rapl:N:M are parts of them. */
static double sum_packages(const char *file)
{
    double total = NAN;
    for (int package = 0; package < 64; package++) {
        char path[128];
        snprintf(path, sizeof path, "/sys/class/powercap/intel-rapl:%d/%s", package, file);
        double value = read_number(path);
        if (isnan(value)) break;
        total = (isnan(total) ? 0 : total) + value;
    }
    return total;
}

/* The address of the thread's GPU, asked for once a device; "" where it uses none. */
static const char *gpu_address(void)
{
    static _Thread_local qb_cuda_info info;
    static _Thread_local int known = -1;
    int index = qb_cuda_in_use();
    if (index < 0) return "";
    if (index != known && qb_cuda_info_get(index, &info) != QB_OK) return "";
    known = index;
    return info.pci;
}

static double read_counter(const char *gpu)
{
    return *gpu ? qb_nvml_energy_j(gpu) : 1e-6 * sum_packages("energy_uj");
}

double qb_energy_read_j(void)
{
    return read_counter(gpu_address());
}

double qb_energy_difference_j(double from_j, double to_j)
{
    if (to_j >= from_j) return to_j - from_j;
    return to_j - from_j + 1e-6 * sum_packages("max_energy_range_uj"); /* a counter wrapped */
}

const char *qb_energy_source(void)
{
    return *gpu_address() ? "NVML total energy of the GPU" : "RAPL packages, /sys/class/powercap";
}

/* ---- the meter ---- */

/* Ten steps of NVML's counter; and when to stop waiting for one that stands still. */
static const double long_enough_s = 1.0, give_up_s = 3.0;
static const long pause_ns = 4000000; /* between readings */

struct qb_energy_meter {
    qb_energy_window window;
    char gpu[32];
    pthread_t thread;
    bool has_thread;
    atomic_bool enough, stop;
};

bool qb__energy_note(qb_energy_window *w, double now_s, double j)
{
    if (isnan(j)) return true;
    if (j != w->last_j) {
        if (isnan(w->from_s))
            w->from_s = now_s; /* what came before this step is not of the window */
        else
            w->window_j += qb_energy_difference_j(w->last_j, j);
        w->to_s = now_s;
        w->last_j = j;
    }
    return w->to_s - w->from_s >= long_enough_s || now_s - w->begin_s >= give_up_s;
}

double qb__energy_watts(const qb_energy_window *w)
{
    double length_s = w->to_s - w->from_s;
    return length_s >= long_enough_s ? w->window_j / length_s : NAN;
}

static void *watch_counter(void *context)
{
    qb_energy_meter *meter = context;
    bool enough = false;
    while (!enough && !meter->stop) {
        nanosleep(&(struct timespec){.tv_nsec = pause_ns}, NULL);
        double j = read_counter(meter->gpu);
        enough = qb__energy_note(&meter->window, qb_now_s(), j);
    }
    meter->enough = true;
    return NULL;
}

qb_status qb_energy_begin(qb_energy_meter **out)
{
    qb_energy_meter *meter;
    QB_TRY(QB_NEW_ZERO(&meter, 1, "energy meter"));
    snprintf(meter->gpu, sizeof meter->gpu, "%s", gpu_address());
    double j = read_counter(meter->gpu);
    meter->window =
        (qb_energy_window){.begin_s = qb_now_s(), .last_j = j, .from_s = NAN, .to_s = NAN};
    meter->enough = isnan(j);
    if (!meter->enough)
        meter->has_thread = !pthread_create(&meter->thread, NULL, watch_counter, meter);
    if (!meter->has_thread) meter->enough = true;
    *out = meter;
    return QB_OK;
}

bool qb_energy_enough(const qb_energy_meter *meter)
{
    return meter->enough;
}

double qb_energy_end(qb_energy_meter *meter)
{
    if (!meter) return NAN;
    meter->stop = true;
    if (meter->has_thread) pthread_join(meter->thread, NULL);
    double watts = qb__energy_watts(&meter->window);
    qb_free(meter);
    return watts;
}
