/* report/read_json.h - result files back as records, by the same table that writes them.
 *
 * Files come from anywhere: size, depth, types, ranges and the lists that belong together are
 * checked, and a message names the place ("results[2].quality.ppl: found a text, expected ...").
 * Keys that the table does not know are left out; of those it knows only lists of numbers may be
 * missing, since older files have none. */
#ifndef QB_REPORT_READ_JSON_H
#define QB_REPORT_READ_JSON_H

#include "report/result.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QB_RESULTS_MAX_BYTES ((size_t)256 << 20)

/* QB_ERR_FORMAT: the file breaks a rule. *out is set on success alone. */
qb_status qb_results_read_json(const char *path, qb_results *out);
qb_status qb_results_parse_json(const char *text, size_t bytes, const char *what, qb_results *out);
/* The same of a file that was parsed. */
qb_status qb_results_from_json(const json_t *root, const char *what, qb_results *out);
/* One record; `where` ("results[2]") opens the messages. The caller has initialised *out and
 * deinits it in every case. */
qb_status qb_result_from_json(const json_t *object, const char *where, qb_result *out);

#ifdef __cplusplus
}
#endif
#endif
