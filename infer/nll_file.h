/* infer/nll_file.h - what each scored token cost under a scheme, in a file: `run --nll` writes it,
 * `compare` and `gate` read it.
 *
 * A safetensors file with one element a scored token, in the order of windows and positions: target
 * (s32, its id), window (s32, from 0 on), nll_full, nll, nll_fake, kl (f64, nats) and agree (u8, 1
 * where scheme and full precision have the same likeliest token). What was not measured is left
 * out; of full precision itself, all but the first three. */
#ifndef QB_INFER_NLL_FILE_H
#define QB_INFER_NLL_FILE_H

#include "core/file.h"
#include "infer/quality.h"

#ifdef __cplusplus
extern "C" {
#endif

/* FOLDER/NAME.safetensors, atomically; the folder is made if it is not there. *path is that name,
 * owned by the caller. */
qb_status qb_nll_file_write(const qb_quality *quality, size_t case_idx, const qb_windows *windows,
                            const json_t *metadata, const char *folder, const char *name,
                            char **path);

/* One element a scored token. */
typedef struct qb_nll {
    size_t n, n_windows;
    int32_t *target, *window; /* window: ascending from 0, none without a token */
    double *nll_full, *nll;   /* of full precision both are the same */
    double *kl;               /* NULL = not in the file */
    uint8_t *agree;           /* the same */
} qb_nll;

/* Files come from anywhere: QB_ERR_FORMAT names the tensor and what is wrong with it. Allocates at
 * most some times the file's size. */
qb_status qb_nll_parse(const qb_file *file, qb_nll *out);
void qb_nll_deinit(qb_nll *nll); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
