/* core/cpu_features.h - what this processor can run, found once by cpuid and the OS state, less
 * what the environment variable QB_DISABLE (a comma list: "avx512", "avx512vnni,avx2", "cuda")
 * takes away. Disabling a feature disables those that build on it. */
#ifndef QB_CORE_CPU_FEATURES_H
#define QB_CORE_CPU_FEATURES_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    QB_CPU_AVX2 = 1u << 0,   /* AVX2, FMA and F16C */
    QB_CPU_AVX512 = 1u << 1, /* F, BW, VL, DQ */
    QB_CPU_AVX512VNNI = 1u << 2,
    QB_CPU_AVX512BF16 = 1u << 3,
};

uint32_t qb_cpu_features(void);         /* after QB_DISABLE */
uint32_t qb_cpu_features_present(void); /* before it */
/* "avx2+avx512+avx512vnni" into text; "none" for 0. */
void qb_cpu_features_text(uint32_t features, char *text, unsigned capacity);
/* Name of feature i as QB_DISABLE takes it, narrowest first; NULL at the end. */
const char *qb_cpu_feature_name(unsigned i);
/* True if QB_DISABLE names `word` (a feature, a device, or a kernel row such as gemm_s8/avx2). */
bool qb_is_disabled(const char *word);
/* The processor's own name, e.g. "AMD EPYC 9354"; "unknown" where it has none. */
void qb_cpu_name(char *text, unsigned capacity);

#ifdef __cplusplus
}
#endif
#endif
