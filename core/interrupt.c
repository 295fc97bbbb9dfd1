/* core/interrupt.c - one atomic flag. */
#include "core/interrupt.h"

#include <stdatomic.h>

static atomic_bool interrupted; /* lock-free, hence safe in a handler */

static _Thread_local bool ignored;

bool qb_interrupted(void)
{
    return !ignored && atomic_load_explicit(&interrupted, memory_order_relaxed);
}

qb_status qb_interrupt_check(void)
{
    return qb_interrupted() ? QB_FAIL(QB_ERR_INTERRUPTED, "interrupted") : QB_OK;
}

void qb_interrupt_ignore_here(bool ignore)
{
    ignored = ignore;
}

void qb_interrupt_set(bool wanted)
{
    atomic_store_explicit(&interrupted, wanted, memory_order_relaxed);
}
