/* infer/cuda/cuda_taps.c - shows device rows to an observer (infer/taps.h): copied to the host,
 * widened to f32, and where the observer edits them copied back. It waits for each view, which is
 * right for looking and wrong for speed; engines that nobody observes do not come here. */
#include "infer/cuda/cuda_engine.h"

#include "core/dtype.h"
#include "core/memory.h"

#include <cuda_runtime_api.h>

static void widen(const uint16_t *from, size_t n, float *to)
{
    for (size_t i = 0; i < n; i++) to[i] = qb_f32_from_bf16(from[i]);
}

static void narrow(const float *from, size_t n, uint16_t *to)
{
    for (size_t i = 0; i < n; i++) to[i] = qb_bf16_from_f32(from[i]);
}

static qb_status show_rows(const cuda_shown *s, const qb_taps *taps, qb_tap_view *view, void *raw)
{
    size_t rows = view->batch * view->n_tokens, elems = rows * view->width;
    size_t elem_bytes = qb_cuda_dtype_bytes(s->type), row_bytes = view->width * elem_bytes;
    bool is_bf16 = s->type == QB_CUDA_BF16;
    QB_CUDA_TRY(cudaMemcpy2DAsync(raw, row_bytes, s->dev, s->stride * elem_bytes, row_bytes, rows,
                                  cudaMemcpyDeviceToHost, s->stream));
    QB_TRY(qb_cuda_sync(s->stream));
    if (is_bf16) widen(raw, elems, view->x);
    QB_TRY(qb__taps_show(taps, view));
    if (!(taps->edits & QB_TAP_BIT(view->tap))) return QB_OK;
    if (is_bf16) narrow(view->x, elems, raw);
    QB_CUDA_TRY(cudaMemcpy2DAsync(s->dev, s->stride * elem_bytes, raw, row_bytes, row_bytes, rows,
                                  cudaMemcpyHostToDevice, s->stream));
    return qb_cuda_sync(s->stream);
}

qb_status qb__cuda_show(const cuda_shown *s, const qb_taps *taps, qb_tap_view view)
{
    size_t elems = view.batch * view.n_tokens * view.width;
    uint16_t *halves = NULL;
    if (!(taps->sees & QB_TAP_BIT(view.tap))) return QB_OK;
    view.stride = view.width;
    QB_TRY(QB_NEW(&view.x, elems, "observed rows"));
    qb_status status = QB_OK;
    if (s->type == QB_CUDA_BF16) status = QB_NEW(&halves, elems, "observed rows");
    if (status == QB_OK)
        status = show_rows(s, taps, &view, halves ? (void *)halves : (void *)view.x);
    qb_free(halves);
    qb_free(view.x);
    return status;
}
