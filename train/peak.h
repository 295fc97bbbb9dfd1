/* train/peak.h - the floating-point rate that model FLOPs utilisation (MFU) is a share of. */
#ifndef QB_TRAIN_PEAK_H
#define QB_TRAIN_PEAK_H

#include "core/status.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_peak {
    double tflops; /* 0 = not known */
    char source[96];
} qb_peak;

/* given_tflops > 0 is taken as it is. CUDA: the maker's dense bf16 figure of that GPU. CPU: this
 * machine's best f32 matrix product, measured now (some 20 ms) on that many threads (0 = as many as
 * this process may use). */
qb_status qb_peak_find(const char *device, double given_tflops, size_t n_threads, qb_peak *out);

#ifdef __cplusplus
}
#endif
#endif
