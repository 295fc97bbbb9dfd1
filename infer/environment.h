/* infer/environment.h - the machine that a measurement was made on, what else it did meanwhile, and
 * how far its timings can be trusted therefore. Linux's /proc and /sys; what cannot be read is said
 * to be unknown, never guessed. */
#ifndef QB_INFER_ENVIRONMENT_H
#define QB_INFER_ENVIRONMENT_H

#include "core/cuda.h"
#include "core/status.h"
#include "infer/energy.h"
#include "infer/nvml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_machine {
    char cpu[128];
    size_t n_cpus;            /* that this process may use */
    char features[128];       /* instruction sets in use */
    char os[128];             /* "Debian GNU/Linux 12 (bookworm)" */
    char kernel_version[128]; /* "Linux 6.1.0" */
    char hypervisor[64];      /* "KVM", "unknown kind"; "" = none seen */
    char governor[32];        /* of the first processor; "" = not readable */
    double load;              /* 1-minute average, NaN = not readable */
    int64_t memory_bytes;     /* -1 = not readable */
} qb_machine;
void qb_machine_read(qb_machine *out);

/* The GPU that the calling thread uses (qb_cuda_use), at this moment. */
typedef struct qb_gpu {
    bool in_use; /* false: a run on the processor; nothing else is set */
    int index;
    qb_cuda_info info;
    qb_nvml_reading now;
} qb_gpu;
void qb_gpu_read(qb_gpu *out);

/* What the machine did between start and stop. */
typedef struct qb_machine_watch {
    double wall_s;
    double own_cpu_s;                /* of this process */
    double busy_cpu_s, stolen_cpu_s; /* of all processors together; NaN = not readable */
    int64_t throttle_events;         /* -1 = no counter */
    qb_gpu gpu;                      /* as it was at the end; the capped times are differences */
} qb_machine_watch;
void qb_machine_watch_start(qb_machine_watch *watch);
/* Turns the counters into differences since start. */
void qb_machine_watch_stop(qb_machine_watch *watch);

typedef enum qb_trust_level { QB_TRUST_HIGH, QB_TRUST_MEDIUM, QB_TRUST_LOW } qb_trust_level;
const char *qb_trust_text(qb_trust_level level); /* "high", "medium", "low" */

/* What a level is made of. NaN and -1 = not known or not measured. */
typedef struct qb_trust_input {
    const qb_machine *machine;
    const qb_machine_watch *watch; /* over the timings; NULL = speed was not measured */
    size_t n_threads;
    int64_t samples;   /* fewest of any timing */
    double half_width; /* widest interval of any timing: half of it over the median */
    bool steady;       /* the warm-up became steady */
    int64_t windows;   /* of the perplexity interval */
    bool not_finite;   /* a perplexity was measured and is none */
} qb_trust_input;

enum { QB_TRUST_MAX_REASONS = 12, QB_TRUST_REASON_BYTES = 128 };
typedef struct qb_trust {
    qb_trust_level level;
    char reasons[QB_TRUST_MAX_REASONS][QB_TRUST_REASON_BYTES];
    size_t n_reasons;
} qb_trust;
void qb_trust_judge(const qb_trust_input *input, qb_trust *out);

#ifdef __cplusplus
}
#endif
#endif
