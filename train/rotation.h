/* train/rotation.h - the orthogonal bases of OrthoAdam (arXiv:2410.17174, section 4.2).
 *
 * A basis is a number-free recipe: (kind, seed, parameter, axis) give it again at any time, on any
 * machine, so that it is never stored. Haar: Q of the QR decomposition of a Gaussian matrix with
 * the signs of R's diagonal moved into Q (Mezzadri 2007), worked out in double. Block: Haar blocks
 * along the diagonal. Hadamard: D1 H D2 / sqrt(n), D random signs, H Walsh-Hadamard of the largest
 * power of two that divides n, with Haar on the odd factor (Kronecker): n log n operations a
 * vector. */
#ifndef QB_TRAIN_ROTATION_H
#define QB_TRAIN_ROTATION_H

#include "train/params.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    QB_ROTATION_HAAR,
    QB_ROTATION_BLOCK,
    QB_ROTATION_HADAMARD,
    QB_ROTATION_COUNT
} qb_rotation_kind;
extern const char *const qb_rotation_names[QB_ROTATION_COUNT]; /* haar block hadamard */

#define QB_ROTATION_MAX_AXIS 8192 /* longer axes (the vocabulary) are left as they are */

typedef struct qb_rotation {
    qb_rotation_kind kind;
    size_t block_elems; /* BLOCK: size of a block (the last may be smaller) */
    bool both_axes;     /* rotate the other axis of a matrix too, up to QB_ROTATION_MAX_AXIS */
    uint64_t seed;
} qb_rotation;

/* Elements of that axis (0 rows, 1 columns) if the recipe rotates it, else 0. */
size_t qb_rotation_axis_elems(const qb_rotation *rotation, const qb_param *param, size_t axis);
/* q (n, n) row-major = the basis of one axis (0 rows, 1 columns) of a parameter. */
qb_status qb_rotation_fill(const qb_rotation *rotation, const qb_param *param, size_t axis,
                           size_t n, float *q);

/* A Hadamard basis by its factors, n = odd * power:
 * Q = left (odd Haar (x) H) right, left and right diagonal, 1 / sqrt(power) in left. */
typedef struct qb_hadamard {
    size_t n, power;
    float *left, *right; /* (n) */
    float *haar;         /* (odd, odd) row-major */
} qb_hadamard;
qb_status qb_hadamard_create(const qb_rotation *rotation, const qb_param *param, size_t axis,
                             size_t n, qb_hadamard *out);
void qb_hadamard_destroy(qb_hadamard *hadamard); /* accepts a zeroed one */
/* QB_HADAMARD_LANES vectors side by side, x[i * QB_HADAMARD_LANES + lane], become Q x, or Q^T x
 * where back; scratch has the size of x. */
enum { QB_HADAMARD_LANES = 16 };
void qb_hadamard_turn(const qb_hadamard *hadamard, bool back, float *x, float *scratch);

#ifdef __cplusplus
}
#endif
#endif
