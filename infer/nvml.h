/* infer/nvml.h - what NVIDIA's management library says of a GPU: clocks, power, heat, energy.
 *
 * The library comes with the driver and is found when the program runs (libnvidia-ml.so.1, or in
 * the folder $QB_NVML_PATH); nothing here needs CUDA to build. What it does not say is unknown:
 * -1, NaN or an empty text, never a guess. */
#ifndef QB_INFER_NVML_H
#define QB_INFER_NVML_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Why clocks are lower than they could be: bits of qb_gpu.throttle, as NVML numbers them. */
enum {
    QB_GPU_IDLE = 0x1,
    QB_GPU_CLOCKS_SET = 0x2,
    QB_GPU_POWER_CAP = 0x4,
    QB_GPU_HW_SLOWDOWN = 0x8,
    QB_GPU_SYNC_BOOST = 0x10,
    QB_GPU_SW_THERMAL = 0x20,
    QB_GPU_HW_THERMAL = 0x40,
    QB_GPU_POWER_BRAKE = 0x80,
    QB_GPU_DISPLAY_CLOCKS = 0x100,
};
#define QB_GPU_SLOWED                                                                              \
    (QB_GPU_HW_SLOWDOWN | QB_GPU_SW_THERMAL | QB_GPU_HW_THERMAL | QB_GPU_POWER_BRAKE)

typedef struct qb_nvml_reading {
    char driver[64];                        /* "580.159.04" */
    int64_t sm_mhz, sm_max_mhz, memory_mhz; /* now, and the most */
    double power_w, power_limit_w, temperature_c;
    int64_t throttle;                        /* QB_GPU_* bits now */
    int64_t ecc;                             /* 1 on, 0 off */
    int64_t other_processes;                 /* that compute on it, beside this one */
    double power_capped_s, thermal_capped_s; /* since the driver started */
} qb_nvml_reading;

/* NULL = the library is loaded; else why not. */
const char *qb_nvml_refusal(void);
/* pci: "0000:06:00.0". All unknown where the library or the device cannot be found. */
void qb_nvml_read(const char *pci, qb_nvml_reading *out);
/* Joules since the driver started; NaN = no counter. It moves in steps, tens of ms apart. */
double qb_nvml_energy_j(const char *pci);
/* "power cap, hardware slowdown" of throttle bits; "none" for 0, "" for unknown. */
void qb_gpu_throttle_text(int64_t bits, char *text, unsigned capacity);

#ifdef __cplusplus
}
#endif
#endif
