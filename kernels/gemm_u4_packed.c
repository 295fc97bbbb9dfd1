/* kernels/gemm_u4_packed.c - packs 4-bit weights for the x86 rows (gemm_u4_internal.h). */
#include "kernels/gemm_u4_internal.h"

#include <string.h>

enum {
    PANEL_N = QB__U4_PANEL_N,
    GROUP_K = QB__U4_GROUP_K,
    GROUP_BYTES = QB__U4_GROUP_BYTES,
    MAX_ZERO = 1 << 23, /* and its neighbours are exact in f32 */
};

static qb__u4_packed header_of(const qb_u4_weights *w, size_t run_k)
{
    qb__u4_packed p = {.n = w->n, .k = w->k, .run_k = w->k, .n_runs = 1};
    p.slice_by_k = w->k_step && !w->n_step;
    if (w->k_step && w->n_step) {
        p.run_k = run_k;
        p.n_runs = qb__div_up(w->k, run_k);
    }
    return p;
}

size_t qb__u4_packed_bytes(const qb_u4_weights *w, size_t run_k)
{
    const qb__u4_packed p = header_of(w, run_k);
    return qb__u4_codes_at(&p) + qb__div_up(w->n, PANEL_N) * qb__u4_panel_bytes(w->k);
}

static bool put_slice(qb__u4_slice s, float *scale, float *zero)
{
    *scale = s.scale;
    *zero = (float)(s.zero_point - QB__U4_CENTRE);
    return s.zero_point <= MAX_ZERO && s.zero_point >= -MAX_ZERO;
}

static bool pack_k_slices(const qb_u4_weights *w, float *scale)
{
    float *zero = scale + qb__u4_k_padded(w->k);
    bool fits = true;
    memset(scale, 0, 2 * qb__u4_k_padded(w->k) * sizeof *scale);
    for (size_t k = 0; k < w->k; k++)
        fits &= put_slice(qb__u4_slice_at(w, 0, k), scale + k, zero + k);
    return fits;
}

static bool pack_n_slices(const qb_u4_weights *w, const qb__u4_packed *p, size_t n, float *slices)
{
    bool fits = true;
    for (size_t run = 0; run < p->n_runs; run++, slices += 2 * PANEL_N) {
        float *scale = slices + n % PANEL_N, *zero = scale + PANEL_N;
        if (p->slice_by_k)
            *scale = *zero = 1.0f;
        else
            fits &= put_slice(qb__u4_slice_at(w, n, run * p->run_k), scale, zero);
    }
    return fits;
}

/* Bytes of codes (0 1)(2 3)(4 5)(6 7) into (0 4)(1 5)(2 6)(3 7), the first of a pair low. */
static void pack_group(const uint8_t *in, uint8_t *out)
{
    out[0] = (uint8_t)((in[0] & 15) | in[2] << 4);
    out[1] = (uint8_t)((in[0] >> 4) | (in[2] & 0xf0));
    out[2] = (uint8_t)((in[1] & 15) | in[3] << 4);
    out[3] = (uint8_t)((in[1] >> 4) | (in[3] & 0xf0));
}

static void pack_codes(const qb_u4_weights *w, size_t n, uint8_t *column)
{
    const size_t row_bytes = (w->k + 1) / 2;
    const uint8_t *codes = w->codes + n * row_bytes;
    size_t byte = 0;
    for (; byte + 4 <= row_bytes; byte += 4, column += GROUP_BYTES)
        pack_group(codes + byte, column);
    if (byte == row_bytes) return;
    uint8_t rest[4] = {0};
    memcpy(rest, codes + byte, row_bytes - byte);
    pack_group(rest, column);
}

const char *qb__u4_pack(const qb_u4_weights *w, size_t run_k, size_t n0, size_t n1, void *packed)
{
    const qb__u4_packed header = header_of(w, run_k);
    bool fits = true;
    if (n0 == 0) {
        memcpy(packed, &header, sizeof header);
        if (header.slice_by_k) fits &= pack_k_slices(w, (float *)((qb__u4_packed *)packed + 1));
    }
    for (size_t first = n0; first < n1; first += PANEL_N) {
        const size_t panel_idx = first / PANEL_N, slice_bytes = qb__u4_panel_slices(&header) * 4;
        float *slices =
            (float *)((char *)packed + qb__u4_slices_at(&header) + panel_idx * slice_bytes);
        uint8_t *panel =
            (uint8_t *)packed + qb__u4_codes_at(&header) + panel_idx * qb__u4_panel_bytes(w->k);
        if (n1 - first < PANEL_N) { /* channels that are absent */
            memset(slices, 0, slice_bytes);
            memset(panel, 0, qb__u4_panel_bytes(w->k));
        }
        for (size_t n = first; n < n1 && n < first + PANEL_N; n++) {
            fits &= pack_n_slices(w, &header, n, slices);
            pack_codes(w, n, panel + n % PANEL_N * 4);
        }
    }
    return fits ? NULL : "a zero point beyond 2^23";
}
