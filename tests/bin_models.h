/* tests/bin_models.h - small models of every kind that model.bin holds, and what of them must come
 * back from a file. */
#ifndef QB_TESTS_BIN_MODELS_H
#define QB_TESTS_BIN_MODELS_H

#include "model/model.h"

enum {
    QB_TEST_BIN_D_MODEL = 32, /* where a case does not say another */
    QB_TEST_BIN_N_LAYERS = 2,
    QB_TEST_BIN_VOCAB = 40,
    QB_TEST_BIN_CASES = 14
};

typedef struct qb_test_bin_case {
    const char *arch;
    size_t d_model;
    qb_dtype matrix; /* of the linear layers; QB_S8 and QB_U4 = codes over slices of axis */
    qb_axis axis;
    bool repetitive; /* weights that deflate well */
    bool flags;      /* sink logits, gated attention, a free prefix */
} qb_test_bin_case;
extern const qb_test_bin_case qb_test_bin_cases[QB_TEST_BIN_CASES];

qb_model *qb_test_bin_model(const qb_test_bin_case *c);
qb_status qb_test_bin_open(const char *path, qb_model **out);
/* Every field and every byte of the tensors. */
void qb_test_same_bin_model(const qb_model *a, const qb_model *b);

typedef struct qb_test_bytes {
    uint8_t *data; /* qb_free */
    size_t n;
} qb_test_bytes;
qb_test_bytes qb_test_read_bytes(const char *path);

#endif
