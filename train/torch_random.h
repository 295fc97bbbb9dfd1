/* train/torch_random.h - the random numbers of PyTorch's processor generator, so that a run can
 * start from the very weights that a published one started from: the 32-bit Mersenne Twister
 * (Matsumoto and Nishimura 1998), uniform numbers of 24 bits, normal ones from blocks of 16. */
#ifndef QB_TRAIN_TORCH_RANDOM_H
#define QB_TRAIN_TORCH_RANDOM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_TWISTER_WORDS = 624 };

typedef struct qb_torch_random {
    uint32_t state[QB_TWISTER_WORDS];
    size_t at;
} qb_torch_random;

/* As torch.manual_seed(seed), of which it takes the lower 32 bits. */
void qb_torch_seed(qb_torch_random *r, uint64_t seed);
/* As the next n numbers pass by unused. */
void qb_torch_skip(qb_torch_random *r, size_t n);
/* As Tensor.uniform_(-bound, bound) and Tensor.normal_() on f32 tensors of n elements; the last
 * bits of normal numbers follow the C library's logarithm, sine and cosine. */
void qb_torch_uniform(qb_torch_random *r, float bound, size_t n, float *out);
void qb_torch_normal(qb_torch_random *r, size_t n, float *out);

#ifdef __cplusplus
}
#endif
#endif
