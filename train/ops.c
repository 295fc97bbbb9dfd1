/* train/ops.c - the table of devices that train, and what they share. */
#include "train/ops.h"

const qb_train_ops *const qb_train_devices[] = {
    &qb__train_ops_cpu,
#ifdef QB_WITH_CUDA
    &qb__train_ops_cuda,
#endif
    NULL,
};

qb_status qb_train_check_tokens(const int32_t *tokens, size_t batch, size_t window, size_t vocab)
{
    for (size_t i = 0; i < batch * window; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= vocab)
            return QB_FAIL(QB_ERR_FORMAT, "token %zu of window %zu: found %d, expected 0 to %zu",
                           i % window, i / window, tokens[i], vocab - 1);
    return QB_OK;
}
