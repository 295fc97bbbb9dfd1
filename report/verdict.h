/* report/verdict.h - why a pass takes as long as it does, in plain words, from the figures alone.
 *
 * A table of rules, one row each: when it holds, the sentence with the numbers that it rests on,
 * and what would help. Pure: the same figures give the same findings. */
#ifndef QB_REPORT_VERDICT_H
#define QB_REPORT_VERDICT_H

#include "report/profile.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Findings about one operation of one profile, heaviest first: at most `most`, their number comes
 * back. */
size_t qb_verdict_judge(const qb_profile *profile, int operation, qb_finding *out, size_t most);

#ifdef __cplusplus
}
#endif
#endif
