/* infer/nvtx.h - ranges that NVIDIA's tools show (nsys, ncu --nvtx), in builds whose CUDA toolkit
 * has the header-only NVTX 3. Without such a tool a range costs a branch. */
#ifndef QB_INFER_NVTX_H
#define QB_INFER_NVTX_H

#if defined(QB_WITH_CUDA) && defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#define QB_WITH_NVTX 1
#endif
#endif

#ifdef QB_WITH_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

static inline void qb_nvtx_push(const char *name)
{
#ifdef QB_WITH_NVTX
    nvtxRangePushA(name);
#else
    (void)name;
#endif
}

static inline void qb_nvtx_pop(void)
{
#ifdef QB_WITH_NVTX
    nvtxRangePop();
#endif
}

#ifdef __cplusplus
}
#endif
#endif
