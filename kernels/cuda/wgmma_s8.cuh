/* kernels/cuda/wgmma_s8.cuh - wgmma m64nNk32, s8 x s8 -> s32, both operands in shared memory.
 *
 * d is the thread's fragment of a 64 x N tile: d[4 j + 2 h + i] is row 16 warp + lane / 4 + 8 h,
 * column 8 j + 2 (lane % 4) + i. accumulate = 0 overwrites it. */
#ifndef QB_KERNELS_CUDA_WGMMA_S8_CUH
#define QB_KERNELS_CUDA_WGMMA_S8_CUH

#include <stdint.h>

/* clang-format off */
#define QB__D4(i) "+r"(d[i]), "+r"(d[(i) + 1]), "+r"(d[(i) + 2]), "+r"(d[(i) + 3])
#define QB__D16(i) QB__D4(i), QB__D4((i) + 4), QB__D4((i) + 8), QB__D4((i) + 12)
#define QB__D32(i) QB__D16(i), QB__D16((i) + 16)
static __device__ __forceinline__ void qb_wgmma_s8(int (&d)[32], uint64_t a, uint64_t b,
                                                   int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %34, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p;\n\t}"
        : QB__D32(0)
        : "l"(a), "l"(b), "r"(accumulate));
}

static __device__ __forceinline__ void qb_wgmma_s8(int (&d)[64], uint64_t a, uint64_t b,
                                                   int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p;\n\t}"
        : QB__D32(0), QB__D32(32)
        : "l"(a), "l"(b), "r"(accumulate));
}

static __device__ __forceinline__ void qb_wgmma_s8(int (&d)[96], uint64_t a, uint64_t b,
                                                   int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %98, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p;\n\t}"
        : QB__D32(0), QB__D32(32), QB__D32(64)
        : "l"(a), "l"(b), "r"(accumulate));
}

static __device__ __forceinline__ void qb_wgmma_s8(int (&d)[128], uint64_t a, uint64_t b,
                                                   int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %130, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p;\n\t}"
        : QB__D32(0), QB__D32(32), QB__D32(64), QB__D32(96)
        : "l"(a), "l"(b), "r"(accumulate));
}

#undef QB__D4
#undef QB__D16
#undef QB__D32
/* clang-format on */

#endif
