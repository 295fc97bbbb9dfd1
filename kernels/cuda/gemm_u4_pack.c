/* kernels/cuda/gemm_u4_pack.c - codes into the order in which the lanes of a warp hold them, and
 * the upload. A constant slice is code 0 with the zero point -1 and its value as the scale, as on
 * the CPU (kernels/gemm_u4_internal.h). */
#include "kernels/cuda/gemm_u4_pack.h"

#include "core/memory.h"
#include "kernels/cuda/gemm_u4.h"
#include "kernels/gemm_u4_internal.h"

#include <assert.h>
#include <string.h>

enum { TILE_N = 16, TILE_K = 64, TILE_WORDS = TILE_N * TILE_K / 8, TILE_ROW_BYTES = TILE_K / 2 };
static_assert(TILE_K == QB_CUDA_ALIGN, "padding is that of the activations");

static bool by_input(const qb_u4_weights *w)
{
    return w->n_step == 0 && w->k_step != 0;
}

static bool one_group(const qb_u4_weights *w)
{
    return w->k_step == 0 || w->k_group >= w->k;
}

/* ---- what the layout cannot hold ---- */

static const char *zero_point_refusal(const qb_u4_weights *w)
{
    const size_t n_slices = qb__u4_slice_idx(w, w->n - 1, w->k - 1) + 1;
    for (size_t s = 0; s < n_slices; s++)
        if (w->scale[s] != 0.0f &&
            (w->zero_point[s] > QB_CUDA_U4_MAX_ZP || w->zero_point[s] < -QB_CUDA_U4_MAX_ZP))
            return "a zero point is beyond 120";
    return NULL;
}

static bool same_input_slices(const qb_u4_weights *a, const qb_u4_weights *b)
{
    for (size_t k = 0; k < a->k; k++) {
        qb__u4_slice x = qb__u4_slice_at(a, 0, k), y = qb__u4_slice_at(b, 0, k);
        if (x.scale != y.scale || x.zero_point != y.zero_point) return false;
    }
    return true;
}

static const char *refusal(const qb_u4_weights *w, size_t n_weights)
{
    for (size_t i = 0; i < n_weights; i++) {
        if (w[i].k != w[0].k) return "layers of different input widths";
        if (by_input(&w[i]) != by_input(&w[0])) return "scales of different axes";
        const char *why = zero_point_refusal(&w[i]);
        if (why) return why;
        if (by_input(&w[0])) {
            if (i && !same_input_slices(&w[0], &w[i])) return "scales per input channel differ";
            continue;
        }
        if (!one_group(&w[i]) && w[i].k_group % TILE_K) return "groups are not of 64 n channels";
        if (one_group(&w[i]) != one_group(&w[0]) ||
            (!one_group(&w[i]) && w[i].k_group != w[0].k_group))
            return "groups of different sizes";
    }
    return NULL;
}

/* ---- codes ---- */

/* A row of the tile: 32 bytes of codes; channels past the width are 0. */
static void tile_row(const qb_u4_weights *w, size_t n, size_t k0, uint8_t row[TILE_ROW_BYTES])
{
    const size_t row_bytes = (w->k + 1) / 2, at = k0 / 2;
    const uint8_t *codes = w->codes + n * row_bytes + at;
    if (w->k - k0 >= TILE_K) {
        memcpy(row, codes, TILE_ROW_BYTES);
        return;
    }
    memset(row, 0, TILE_ROW_BYTES);
    memcpy(row, codes, row_bytes - at);
    if (w->k % 2) row[row_bytes - at - 1] &= 15;
}

/* Word j of lanes 4 g .. 4 g + 3: bytes 8 j .. 8 j + 7 of rows g and g + 8. Byte t holds the codes
 * of channels 2 t and 2 t + 1, byte 4 + t those of 2 t + 8 and 2 t + 9. */
static void pack_rows(const uint8_t *row_g, const uint8_t *row_g8, uint32_t *lanes)
{
    const uint64_t low = 0x0f0f0f0f0f0f0f0f;
    for (size_t j = 0; j < 4; j++) {
        uint64_t a, b;
        memcpy(&a, row_g + 8 * j, 8);
        memcpy(&b, row_g8 + 8 * j, 8);
        const uint64_t first = (a & low) | (b & low) << 4;
        const uint64_t second = (a >> 4 & low) | (b & ~low);
        for (size_t t = 0; t < 4; t++)
            lanes[4 * t + j] = (uint32_t)(first >> 8 * t & 255) |
                               (uint32_t)(first >> (32 + 8 * t) & 255) << 8 |
                               (uint32_t)(second >> 8 * t & 255) << 16 |
                               (uint32_t)(second >> (32 + 8 * t) & 255) << 24;
    }
}

typedef struct channel { /* an output channel of several layers put together */
    const qb_u4_weights *w;
    size_t n; /* of w */
} channel;

static void pack_tile(const channel *rows, size_t n_rows, size_t k0, uint32_t *tile)
{
    uint8_t bytes[TILE_N][TILE_ROW_BYTES];
    if (n_rows < TILE_N) memset(bytes, 0, sizeof bytes);
    for (size_t i = 0; i < n_rows; i++) tile_row(rows[i].w, rows[i].n, k0, bytes[i]);
    for (size_t g = 0; g < TILE_N / 2; g++) pack_rows(bytes[g], bytes[g + 8], tile + 16 * g);
}

static void pack_codes(const channel *channels, qb__cuda_u4_host *h)
{
    const size_t k_tiles = h->k_pad / TILE_K;
    memset(h->codes, 0, h->n_pad * h->k_pad / 2);
    for (size_t n0 = 0; n0 < h->n; n0 += TILE_N)
        for (size_t kt = 0; kt < k_tiles; kt++)
            pack_tile(channels + n0, h->n - n0 < TILE_N ? h->n - n0 : TILE_N, kt * TILE_K,
                      h->codes + (n0 / TILE_N * k_tiles + kt) * TILE_WORDS);
}

/* ---- scales ---- */

static void pack_slices(const channel *channels, qb__cuda_u4_host *h)
{
    const size_t n_slices = h->n_groups * h->n_pad;
    memset(h->scale, 0, n_slices * sizeof *h->scale);
    memset(h->zero_point, 0, n_slices * sizeof *h->zero_point);
    for (size_t i = 0; i < h->n_groups; i++)
        for (size_t n = 0; n < h->n; n++) {
            const channel *c = &channels[n];
            qb__u4_slice s =
                h->x_scale ? (qb__u4_slice){1.0f, 0} : qb__u4_slice_at(c->w, c->n, i * h->group);
            h->scale[i * h->n_pad + n] = s.scale;
            h->zero_point[i * h->n_pad + n] = (int16_t)s.zero_point;
        }
    for (size_t k = 0; h->x_scale && k < h->k_pad; k++) {
        qb__u4_slice s = k < h->k ? qb__u4_slice_at(channels[0].w, 0, k) : (qb__u4_slice){0.0f, 0};
        h->x_scale[k] = s.scale;
        h->x_zero_point[k] = (int16_t)s.zero_point;
    }
}

static qb_status host_alloc(qb__cuda_u4_host *h, bool input_scales)
{
    QB_TRY(QB_NEW(&h->codes, h->n_pad * h->k_pad / 8, "4-bit codes"));
    QB_TRY(QB_NEW(&h->scale, h->n_groups * h->n_pad, "4-bit scales"));
    QB_TRY(QB_NEW(&h->zero_point, h->n_groups * h->n_pad, "4-bit zero points"));
    if (!input_scales) return QB_OK;
    QB_TRY(QB_NEW(&h->x_scale, h->k_pad, "4-bit scales"));
    return QB_NEW(&h->x_zero_point, h->k_pad, "4-bit zero points");
}

void qb__cuda_u4_host_free(qb__cuda_u4_host *h)
{
    qb_free(h->codes);
    qb_free(h->scale);
    qb_free(h->zero_point);
    qb_free(h->x_scale);
    qb_free(h->x_zero_point);
    *h = (qb__cuda_u4_host){0};
}

qb_status qb__cuda_u4_pack_host(const qb_u4_weights *weights, size_t n_weights,
                                qb__cuda_u4_host *out, const char **why)
{
    *why = refusal(weights, n_weights);
    if (*why) return QB_OK;
    qb__cuda_u4_host h = {.k = weights[0].k};
    for (size_t i = 0; i < n_weights; i++) h.n += weights[i].n;
    h.n_pad = qb_round_up(h.n, 64);
    h.k_pad = qb_round_up(h.k, TILE_K);
    h.group = by_input(&weights[0]) || one_group(&weights[0]) ? h.k_pad : weights[0].k_group;
    h.n_groups = qb__div_up(h.k, h.group);

    channel *channels;
    QB_TRY(QB_NEW(&channels, h.n, "4-bit channels"));
    for (size_t i = 0, at = 0; i < n_weights; i++)
        for (size_t n = 0; n < weights[i].n; n++) channels[at++] = (channel){&weights[i], n};
    qb_status status = host_alloc(&h, by_input(&weights[0]));
    if (status == QB_OK) {
        pack_codes(channels, &h);
        pack_slices(channels, &h);
        *out = h;
    } else {
        qb__cuda_u4_host_free(&h);
    }
    qb_free(channels);
    return status;
}

/* ---- upload ---- */

static qb_status upload(void *out, const void *host, size_t bytes, qb_cuda_u4 *u)
{
    void **dev = out;
    if (!host) return QB_OK;
    QB_TRY(qb_cuda_alloc(dev, bytes, 1, "4-bit weights"));
    u->bytes += bytes;
    return qb_cuda_upload(*dev, host, bytes, NULL);
}

static qb_status upload_all(const qb__cuda_u4_host *h, qb_cuda_u4 *u)
{
    const size_t n_slices = h->n_groups * h->n_pad;
    QB_TRY(upload(&u->codes, h->codes, h->n_pad * h->k_pad / 2, u));
    QB_TRY(upload(&u->scale, h->scale, n_slices * sizeof *h->scale, u));
    QB_TRY(upload(&u->zero_point, h->zero_point, n_slices * sizeof *h->zero_point, u));
    QB_TRY(upload(&u->x_scale, h->x_scale, h->k_pad * sizeof *h->x_scale, u));
    QB_TRY(upload(&u->x_zero_point, h->x_zero_point, h->k_pad * sizeof *h->x_zero_point, u));
    return qb_cuda_sync(NULL); /* the host arrays are freed next */
}

qb_status qb_cuda_u4_pack_many(const qb_u4_weights *weights, size_t n_weights, qb_cuda_u4 *out,
                               const char **why)
{
    qb__cuda_u4_host h = {0};
    QB_TRY(qb__cuda_u4_pack_host(weights, n_weights, &h, why));
    if (*why) return QB_OK;
    qb_cuda_u4 u = {.n = h.n,
                    .k = h.k,
                    .n_pad = h.n_pad,
                    .k_pad = h.k_pad,
                    .group = h.group,
                    .n_groups = h.n_groups};
    qb_status status = upload_all(&h, &u);
    qb__cuda_u4_host_free(&h);
    if (status != QB_OK)
        qb_cuda_u4_free(&u);
    else
        *out = u;
    return status;
}

qb_status qb_cuda_u4_pack(const qb_u4_weights *weights, qb_cuda_u4 *out, const char **why)
{
    return qb_cuda_u4_pack_many(weights, 1, out, why);
}

void qb_cuda_u4_free(qb_cuda_u4 *u)
{
    qb_cuda_free(u->codes);
    qb_cuda_free(u->scale);
    qb_cuda_free(u->zero_point);
    qb_cuda_free(u->x_scale);
    qb_cuda_free(u->x_zero_point);
    *u = (qb_cuda_u4){0};
}
