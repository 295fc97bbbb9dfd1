/* infer/energy.h - joules and watts of what runs the model: the GPU that the calling thread uses
 * (qb_cuda_use; NVML's total energy), else all processor packages (RAPL). */
#ifndef QB_INFER_ENERGY_H
#define QB_INFER_ENERGY_H

#include "core/status.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Joules since some start; NaN where they cannot be read. */
double qb_energy_read_j(void);
/* The processor's counters wrap: to - from, made positive by their range. */
double qb_energy_difference_j(double from_j, double to_j);
/* Where they are read: "RAPL packages, /sys/class/powercap". */
const char *qb_energy_source(void);

/* Mean power while steady work is done: joules a token = watts x seconds a token. A GPU's counter
 * moves in steps about 100 ms apart and takes milliseconds to read, so a thread of the meter's own
 * reads it, the power is taken between the first and the last step seen, and the work must go on
 * for more than a second: begin; work until it is enough; end. */
typedef struct qb_energy_meter qb_energy_meter;
qb_status qb_energy_begin(qb_energy_meter **out);
/* True once the window is long enough, or will not be since there is no counter. Cheap. */
bool qb_energy_enough(const qb_energy_meter *meter);
/* Watts; NaN = no counter, or ended before it was enough. Frees the meter; accepts NULL. */
double qb_energy_end(qb_energy_meter *meter);

/* The meter's arithmetic. */
typedef struct qb_energy_window {
    double begin_s, last_j; /* when it was begun; the counter at the last reading */
    double from_s, to_s;    /* of the first and the last step seen; NaN = none yet */
    double window_j;        /* joules between the two */
} qb_energy_window;
/* Takes a reading: the counter stood at `j` at `now_s`. True once it is enough. */
bool qb__energy_note(qb_energy_window *window, double now_s, double j);
double qb__energy_watts(const qb_energy_window *window);

#ifdef __cplusplus
}
#endif
#endif
