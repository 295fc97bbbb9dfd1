/* kernels/gelu_internal.h - GELU in its tanh form (Hendrycks and Gimpel, arXiv:1606.08415), as a
 * logistic, which does not cancel; what the forward and the backward pass share:
 *
 *   gelu(x) = 0.5 x (1 + tanh(z / 2)) = x / (1 + e^-z),   z = a (x + b x^3)                  (1)
 */
#ifndef QB_KERNELS_GELU_INTERNAL_H
#define QB_KERNELS_GELU_INTERNAL_H

#define QB__GELU_A 1.59576912160573071176 /* 2 sqrt(2 / pi) */
#define QB__GELU_B 0.044715

#endif
