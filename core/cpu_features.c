/* core/cpu_features.c - cpuid through the compiler's builtins, which also check the OS state. */
#include "core/cpu_features.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const struct {
    const char *name;
    uint32_t bit, implied_off; /* also lost when this one is disabled */
} features[] = {
    {"avx2", QB_CPU_AVX2, QB_CPU_AVX512 | QB_CPU_AVX512VNNI | QB_CPU_AVX512BF16},
    {"avx512", QB_CPU_AVX512, QB_CPU_AVX512VNNI | QB_CPU_AVX512BF16},
    {"avx512vnni", QB_CPU_AVX512VNNI, 0},
    {"avx512bf16", QB_CPU_AVX512BF16, 0},
};
enum { N_FEATURES = sizeof features / sizeof features[0] };

static uint32_t detect(void)
{
    uint32_t have = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) have |= QB_CPU_AVX2;
    if ((have & QB_CPU_AVX2) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        have |= QB_CPU_AVX512;
    if ((have & QB_CPU_AVX512) && __builtin_cpu_supports("avx512vnni")) have |= QB_CPU_AVX512VNNI;
    unsigned a, b, c, d;
    if ((have & QB_CPU_AVX512) && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5))
        have |= QB_CPU_AVX512BF16;
#endif
    return have;
}

/* Asked for once: in a virtual machine each cpuid costs tens of microseconds. */
uint32_t qb_cpu_features_present(void)
{
    const uint32_t known = 1u << 31; /* so that "nothing" is remembered too */
    static _Atomic uint32_t cached;
    uint32_t have = cached;
    if (!have) cached = have = detect() | known;
    return have & ~known;
}

const char *qb_cpu_feature_name(unsigned i)
{
    return i < N_FEATURES ? features[i].name : NULL;
}

bool qb_is_disabled(const char *word)
{
    const char *list = getenv("QB_DISABLE");
    size_t n = strlen(word);
    while (list && *list) {
        size_t m = strcspn(list, ",");
        if (m == n && !strncmp(list, word, n)) return true;
        list += m + (list[m] == ',');
    }
    return false;
}

uint32_t qb_cpu_features(void)
{
    uint32_t have = qb_cpu_features_present();
    for (int i = 0; i < N_FEATURES; i++)
        if (qb_is_disabled(features[i].name)) have &= ~(features[i].bit | features[i].implied_off);
    return have;
}

void qb_cpu_features_text(uint32_t have, char *text, unsigned capacity)
{
    unsigned used = 0;
    if (!capacity) return;
    snprintf(text, capacity, "none");
    for (int i = 0; i < N_FEATURES; i++)
        if ((have & features[i].bit) && used < capacity)
            used += (unsigned)snprintf(text + used, capacity - used, "%s%s", used ? "+" : "",
                                       features[i].name);
}

void qb_cpu_name(char *text, unsigned capacity)
{
    char brand[49] = "";
#if defined(__x86_64__)
    unsigned r[12];
    if (__get_cpuid(0x80000002, r, r + 1, r + 2, r + 3) &&
        __get_cpuid(0x80000003, r + 4, r + 5, r + 6, r + 7) &&
        __get_cpuid(0x80000004, r + 8, r + 9, r + 10, r + 11))
        memcpy(brand, r, 48);
#endif
    const char *start = brand;
    while (*start == ' ') start++;
    size_t n = strlen(start);
    while (n && start[n - 1] == ' ') n--;
    if (n)
        snprintf(text, capacity, "%.*s", (int)n, start);
    else
        snprintf(text, capacity, "unknown");
}
