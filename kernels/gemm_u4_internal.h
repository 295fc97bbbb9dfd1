/* kernels/gemm_u4_internal.h - slices of 4-bit weights, and the packed form of the x86 rows.
 *
 * Packed: a header, the slices, and panels of 32 output channels of [ceil(k / 8)][32][4] bytes. A
 * byte holds the codes of channels k (low nibble) and k + 4 (high) of its group of eight, so that
 * an integer row gets two operands of vpdpbusd by one and and one shift, and a float row the code
 * of each channel in its own 32-bit lane by a shift and an and. */
#ifndef QB_KERNELS_GEMM_U4_INTERNAL_H
#define QB_KERNELS_GEMM_U4_INTERNAL_H

#include "kernels/gemm_u4.h"

#include <stdbool.h>

/* A slice as (code - zero_point) * scale, constants included: a constant slice has codes 0, so it
 * becomes zero point -1 and scale = its value. */
typedef struct qb__u4_slice {
    float scale;
    int32_t zero_point;
} qb__u4_slice;

static inline size_t qb__u4_slice_idx(const qb_u4_weights *w, size_t n, size_t k)
{
    return n * w->n_step + k / w->k_group * w->k_step;
}

static inline qb__u4_slice qb__u4_slice_at(const qb_u4_weights *w, size_t n, size_t k)
{
    size_t s = qb__u4_slice_idx(w, n, k);
    if (w->scale[s] != 0.0f) return (qb__u4_slice){w->scale[s], w->zero_point[s]};
    return (qb__u4_slice){w->fill ? w->fill[s] : 0.0f, -1};
}

static inline uint8_t qb__u4_code(const uint8_t *codes, size_t k)
{
    return k % 2 ? codes[k / 2] >> 4 : codes[k / 2] & 15;
}

enum {
    QB__U4_PANEL_N = 32,
    QB__U4_GROUP_K = 8,
    QB__U4_GROUP_BYTES = QB__U4_PANEL_N * QB__U4_GROUP_K / 2,
    QB__U4_CENTRE = 8, /* stored zeros are zero points less this */
};

typedef struct qb__u4_packed {
    _Alignas(64) size_t n;
    size_t k;
    size_t run_k;    /* channels of k that share their slices (or a row's finer choice) */
    size_t n_runs;   /* runs that have slices of their own: 1, or ceil(k / run_k) */
    bool slice_by_k; /* per-k slices, shared by all n, instead */
    /* then, each 64-byte aligned:
     * float k_slices[2][k_padded]                        where slice_by_k: scales, then zeros
     * float slices[n_panels][n_runs][2][PANEL_N]         scales, then zeros; 1 where slice_by_k
     * uint8_t codes[n_panels][ceil(k / 8)][PANEL_N][4] */
} qb__u4_packed;

static inline size_t qb__div_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}
static inline size_t qb__u4_k_padded(size_t k)
{
    return qb__div_up(k, QB_GEMM_U4_BLOCK) * QB_GEMM_U4_BLOCK;
}
static inline size_t qb__u4_panel_bytes(size_t k)
{
    return qb__div_up(k, QB__U4_GROUP_K) * QB__U4_GROUP_BYTES;
}
static inline size_t qb__u4_panel_slices(const qb__u4_packed *p)
{
    return p->n_runs * 2 * QB__U4_PANEL_N;
}
/* Offsets in bytes from the header. */
static inline size_t qb__u4_slices_at(const qb__u4_packed *p)
{
    return sizeof *p + (p->slice_by_k ? 2 * qb__u4_k_padded(p->k) * sizeof(float) : 0);
}
static inline size_t qb__u4_codes_at(const qb__u4_packed *p)
{
    return qb__u4_slices_at(p) +
           qb__div_up(p->n, QB__U4_PANEL_N) * qb__u4_panel_slices(p) * sizeof(float);
}
static inline const float *qb__u4_k_slices(const qb__u4_packed *p) /* NULL = by n */
{
    return p->slice_by_k ? (const float *)(p + 1) : NULL;
}
static inline const float *qb__u4_slices_of(const qb__u4_packed *p, size_t panel)
{
    return (const float *)((const char *)p + qb__u4_slices_at(p)) + panel * qb__u4_panel_slices(p);
}
static inline const uint8_t *qb__u4_codes_of(const qb__u4_packed *p, size_t panel)
{
    return (const uint8_t *)p + qb__u4_codes_at(p) + panel * qb__u4_panel_bytes(p->k);
}

/* run_k: of weights in groups along k, at most k_group and a divisor of it; else ignored. */
size_t qb__u4_packed_bytes(const qb_u4_weights *weights, size_t run_k);
/* Output channels [n0, n1); NULL, or why not: zeros must be exact in f32. */
const char *qb__u4_pack(const qb_u4_weights *weights, size_t run_k, size_t n0, size_t n1,
                        void *packed);

#define QB__GEMM_U4_ROW(isa)                                                                       \
    size_t qb__gemm_u4_packed_bytes_##isa(const qb_u4_weights *weights);                           \
    const char *qb__gemm_u4_pack_##isa(const qb_u4_weights *weights, size_t n0, size_t n1,         \
                                       void *packed);                                              \
    size_t qb__gemm_u4_n_tasks_##isa(const qb_gemm_u4_args *args, size_t n_threads);               \
    void qb__gemm_u4_task_##isa(const qb_gemm_u4_args *args, size_t i, size_t n_tasks);
QB__GEMM_U4_ROW(avx512vnni)
QB__GEMM_U4_ROW(avx512)
QB__GEMM_U4_ROW(avx2)
#undef QB__GEMM_U4_ROW
size_t qb__gemm_u4_prepared_bytes_avx512vnni(size_t m, size_t k);
void qb__gemm_u4_prepare_avx512vnni(const float *x, size_t x_stride, size_t m0, size_t m1, size_t m,
                                    size_t k, const void *packed, void *prepared);

#endif
