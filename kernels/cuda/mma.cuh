/* kernels/cuda/mma.cuh - instructions of sm_80 and later that C++ has no words for, and launches
 * that overlap the end of the kernel before. */
#ifndef QB_KERNELS_CUDA_MMA_CUH
#define QB_KERNELS_CUDA_MMA_CUH

#include "core/cuda.h"

#include <cuda_runtime.h>

/* Addresses of shared memory are 32 bits wide. */
__device__ __forceinline__ uint32_t qb_smem(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Asks for the 128 bytes around an address to be in L2: for what does not depend on the kernel
 * before and is needed late. */
__device__ __forceinline__ void qb__prefetch(const void *from)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

/* 16 bytes that are read once: past L1, first to leave L2. */
__device__ __forceinline__ uint4 qb__load_once(const uint4 *from)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

/* 16 bytes to shared memory, zeros but for the first `bytes`, which are read. */
__device__ __forceinline__ void qb__cp_async_16(uint32_t to_shared, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void qb__cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void qb__cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void qb__ldmatrix_x4(uint32_t out[4], uint32_t row_shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row_shared)
                 : "memory");
}

/* The same, each matrix transposed. */
__device__ __forceinline__ void qb__ldmatrix_x4_trans(uint32_t out[4], uint32_t row_shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row_shared)
                 : "memory");
}

/* Four 8 x 8 matrices from fragments to rows of 16 bytes, each transposed on its way. */
__device__ __forceinline__ void qb__stmatrix_x4_trans(uint32_t row_shared, uint32_t a, uint32_t b,
                                                      uint32_t c, uint32_t d)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_shared),
        "r"(a), "r"(b), "r"(c), "r"(d)
        : "memory");
}

/* d (16 x 8, f32) += a (16 x 16, bf16) b (16 x 8, bf16) */
__device__ __forceinline__ void qb__mma_bf16(float d[4], const uint32_t a[4], uint32_t b0,
                                             uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* d (16 x 8, s32) += a (16 x 32, s8) b (32 x 8, s8) */
__device__ __forceinline__ void qb__mma_s8(int d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* A kernel launched by qb__launch_overlapped may start before the one ahead of it has ended: what
 * that one writes, or reads and this one writes, is touched only after the wait. */
__device__ __forceinline__ void qb__start_next_grid()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void qb__wait_previous_grid()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <typename... Parameters, typename... Arguments>
static inline qb_status qb__launch_overlapped(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                              size_t shared_bytes, qb_cuda_stream stream,
                                              const Arguments &...arguments)
{
    int device, major;
    QB_CUDA_TRY(cudaGetDevice(&device));
    QB_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes, config.stream = stream;
    config.attrs = &overlap, config.numAttrs = major >= 9;
    QB_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, arguments...));
    return QB_OK;
}

#endif
