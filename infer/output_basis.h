/* infer/output_basis.h - what each product adds to the stream, in the basis that OrthoAdam stepped
 * in (arXiv:2410.17174, appendix F): the kurtosis of X, X Q, X Q^T, and of X V, with V the right
 * singular vectors of a window's X: about the most that a rotation can do.
 *
 * An observer (infer/taps.h): X is what attention's and the MLP's last products add. Nothing is
 * changed. */
#ifndef QB_INFER_OUTPUT_BASIS_H
#define QB_INFER_OUTPUT_BASIS_H

#include "core/threads.h"
#include "infer/taps.h"

#include <jansson.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qb_output_basis qb_output_basis;
/* Q (C, C) row-major of the product `role` (O or DOWN) of a layer, into q; *found is false where it
 * has none. */
typedef qb_status (*qb_output_basis_fill)(void *context, qb_role role, size_t layer, float *q,
                                          bool *found);
qb_status qb_output_basis_create(const qb_config *config, size_t max_rows, qb_pool *pool,
                                 qb_output_basis_fill fill, void *context, qb_output_basis **out);
void qb_output_basis_destroy(qb_output_basis *basis); /* accepts NULL */
const qb_taps *qb_output_basis_taps(const qb_output_basis *basis);
/* A list: layer (from 1), part "attn" or "mlp", and for each basis own, q, qt, v {first, rest}. */
qb_status qb_output_basis_to_json(qb_output_basis *basis, json_t **out);

/* x (n_rows, n_cols), by columns: columns become orthogonal by rotations of pairs (one-sided
 * Jacobi, Hestenes 1958), so x becomes x V. */
void qb_rotate_to_singular(double *x, size_t n_rows, size_t n_cols);

#ifdef __cplusplus
}
#endif
#endif
