/* model/nfc.h - Unicode's canonical composition (normalization form C, UAX #15), which some
 * tokenizers apply to a text before they cut it. */
#ifndef QB_MODEL_NFC_H
#define QB_MODEL_NFC_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* True where the text is its own form for sure: no character from U+0300 on. */
bool qb_nfc_is_plain(const char *text, size_t n_bytes);
/* The text composed, owned by the caller (qb_free); no NUL at its end. Bytes that are no UTF-8 stay
 * as they are and compose with nothing. */
qb_status qb_nfc(const char *text, size_t n_bytes, char **out, size_t *out_bytes);

#ifdef __cplusplus
}
#endif
#endif
