/* train/presets.h - the presets of `qbench train`: names for sets of keys. */
#ifndef QB_TRAIN_PRESETS_H
#define QB_TRAIN_PRESETS_H

#include "train/config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_preset {
    const char *name;     /* NULL ends the table */
    const char *base;     /* preset or group whose settings come first; NULL = none */
    const char *settings; /* "key=value key=value": train/config.h's keys, texts as on flags */
    const char *summary;  /* one line; NULL = a group, which is no preset by itself */
} qb_preset;
extern const qb_preset qb_presets[];

/* Sets the preset's keys, and `name` to its name. QB_ERR_USAGE: no such preset (with the nearest).
 */
qb_status qb_preset_apply(const char *name, qb_train_config *config);

#ifdef __cplusplus
}
#endif
#endif
