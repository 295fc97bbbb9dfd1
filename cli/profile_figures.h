/* cli/profile_figures.h - the parts of `qbench profile` (cli/cmd_profile.c): from what engines were
 * seen to do to figures and a trace. */
#ifndef QB_CLI_PROFILE_FIGURES_H
#define QB_CLI_PROFILE_FIGURES_H

#include "infer/profiling.h"
#include "report/profile.h"
#include "report/trace.h"

/* Figures of one engine; `name` is its scheme. The caller deinits the profile that it is part of,
 * also after a failure. */
qb_status qb_profile_figures(const qb_profiled *seen, const qb_engine *engine, const char *name,
                             const qb_peaks *peaks, bool keep_samples, qb_profile_run *out);
/* The last pass, as process `process` of the trace. */
void qb_profile_trace(const qb_profiled *seen, size_t process, const char *name, qb_trace *trace);

#endif
