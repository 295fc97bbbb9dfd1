/* model/nfc_internal.h - the generated tables of nfc_table.c. */
#ifndef QB_MODEL_NFC_INTERNAL_H
#define QB_MODEL_NFC_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

typedef struct qb__nfc_run { /* code points of one combining class that is not 0 */
    uint32_t first;
    uint16_t n;
    uint8_t ccc;
} qb__nfc_run;
typedef struct qb__nfc_pair { /* canonical decomposition; second 0 = into one */
    uint32_t code, first, second;
} qb__nfc_pair;

extern const qb__nfc_run qb__nfc_runs[]; /* by first */
extern const size_t qb__nfc_n_runs;
extern const qb__nfc_pair qb__nfc_pairs[]; /* by code */
extern const size_t qb__nfc_n_pairs;
extern const uint16_t qb__nfc_composed[]; /* pairs that are put together, by (first, second) */
extern const size_t qb__nfc_n_composed;

#endif
