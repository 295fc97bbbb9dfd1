/* core/interrupt.h - the wish to stop, as a flag that long loops poll.
 *
 * cli/ sets it from its signal handler (SIGINT, SIGTERM); tests may set it too. A loop that sees it
 * leaves with QB_ERR_INTERRUPTED and gives back what it holds. */
#ifndef QB_CORE_INTERRUPT_H
#define QB_CORE_INTERRUPT_H

#include "core/status.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

bool qb_interrupted(void);
/* QB_ERR_INTERRUPTED with its message, or QB_OK: for QB_TRY in loops. */
qb_status qb_interrupt_check(void);
void qb_interrupt_set(bool wanted); /* async-signal-safe */
/* The calling thread does what must not be left half-way (it saves what the user stops): the two
 * functions above tell it of no interrupt. */
void qb_interrupt_ignore_here(bool ignore);

#ifdef __cplusplus
}
#endif
#endif
