/* core/phases.c - see phases.h. */
#include "core/phases.h"

const char *const qb_phase_names[QB_PHASE_COUNT] = {"embedding", "norm",       "quantise",
                                                    "gemm",      "requantise", "position",
                                                    "attention", "activation", "head"};

const char *const qb_rate_names[QB_RATE_COUNT] = {"f32", "bf16", "s8"};
