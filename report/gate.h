/* report/gate.h - limits on a comparison: which are broken, which are kept, and which the noise
 * leaves open.
 *
 * A limit is broken only where the data say so with 95 % confidence, corrected over all limits of
 * the gate (Holm), so that a gate of many limits and schemes raises no more false alarms than one.
 */
#ifndef QB_REPORT_GATE_H
#define QB_REPORT_GATE_H

#include "report/compare.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A number as people write it: "0.5%" is 0.005, a percentage; "0.3" is 0.3, none. */
typedef struct qb_amount {
    double value; /* NaN = not given */
    bool percent;
} qb_amount;
/* QB_ERR_USAGE: no number from 0 on; `what` opens the message. */
qb_status qb_amount_parse(const char *text, const char *what, qb_amount *out);

typedef enum qb_limit_id {
    QB_LIMIT_PPL_DELTA,
    QB_LIMIT_PENALTY,
    QB_LIMIT_KL,
    QB_LIMIT_SLOWDOWN,
    QB_LIMIT_SPEEDUP_LOSS,
    QB_LIMIT_MEMORY_GROWTH,
    QB_LIMIT_TOP1,
    QB_LIMIT_COUNT
} qb_limit_id;

typedef struct qb_limit {
    const char *name;        /* of the option and of the key in a limits file */
    qb_figure_id figures[2]; /* QB_FIGURE_COUNT = no second */
    bool of_b_alone;         /* a limit of B's value, else of its change for the worse */
    bool percent, plain;     /* how its amount may be written */
    bool share;              /* of at most 100 % */
} qb_limit;
extern const qb_limit qb_limits[QB_LIMIT_COUNT];

typedef struct qb_scheme_limits {
    char *scheme;
    qb_amount limits[QB_LIMIT_COUNT];
} qb_scheme_limits;

typedef struct qb_gate_limits {
    qb_amount limits[QB_LIMIT_COUNT]; /* of all schemes */
    qb_scheme_limits *schemes;        /* go before those */
    size_t n_schemes;
} qb_gate_limits;
void qb_gate_limits_init(qb_gate_limits *limits);
void qb_gate_limits_deinit(qb_gate_limits *limits);
/* Sets limits[id]. QB_ERR_USAGE: no amount of this limit. */
qb_status qb_gate_limit_set(qb_amount *limits, qb_limit_id id, const char *text, const char *what);
/* {"limits": {"max-ppl-delta": "0.5%", ...}, "schemes": {"coarse": {...}}}; QB_ERR_FORMAT: another
 * key or value, named. The caller has initialised *out. */
qb_status qb_gate_limits_read(const char *path, qb_gate_limits *out);
qb_status qb_gate_limits_parse(const char *text, size_t bytes, const char *what,
                               qb_gate_limits *out);

typedef enum qb_outcome { QB_KEPT, QB_BROKEN, QB_UNDECIDED } qb_outcome;
extern const char *const qb_outcome_names[];

/* One limit of one figure of one pair. */
typedef struct qb_judgement {
    const qb_pair *pair;
    qb_limit_id limit;
    qb_figure_id figure;
    qb_amount amount;
    double p; /* of its being kept, corrected; NaN = not known */
    qb_outcome outcome;
    const char *why; /* it is undecided; NULL otherwise */
} qb_judgement;

typedef struct qb_gate {
    const qb_comparison *comparison; /* borrowed */
    qb_judgement *items;
    size_t n, n_broken, n_undecided;
} qb_gate;
/* strict: what is undecided counts as broken. */
qb_status qb_gate_judge(const qb_comparison *comparison, const qb_gate_limits *limits, bool strict,
                        qb_gate *out);
void qb_gate_deinit(qb_gate *gate); /* accepts a zeroed one */

/* "m, coarse: perplexity +0.84 % [+0.71, +0.97], max-ppl-delta 0.5%", and why it is undecided. */
#define QB_JUDGEMENT_BYTES 400
char *qb_judgement_text(const qb_judgement *judgement, char text[QB_JUDGEMENT_BYTES]);

qb_status qb_gate_write_screen(const qb_gate *gate, bool colour, FILE *stream);
qb_status qb_gate_write_markdown(const qb_gate *gate, FILE *stream);
qb_status qb_gate_write_junit(const qb_gate *gate, FILE *stream);
/* Workflow commands of GitHub Actions: ::error, ::warning, with `file` as the place. */
qb_status qb_gate_write_github(const qb_gate *gate, const char *file, FILE *stream);
/* The comparison and, under "limits", the judgements. */
qb_status qb_gate_to_json(const qb_gate *gate, json_t **out);

#ifdef __cplusplus
}
#endif
#endif
