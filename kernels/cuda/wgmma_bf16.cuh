/* kernels/cuda/wgmma_bf16.cuh - wgmma m64nNk16, bf16 x bf16 -> f32.
 *
 * d is the thread's fragment of a 64 x N tile: d[4 j + 2 h + i] is row 16 warp + lane / 4 + 8 h,
 * column 8 j + 2 (lane % 4) + i. qb_wgmma_bf16: both operands K-major in shared memory, or B with N
 * contiguous where it says B_IS_KN; accumulate = 0 overwrites d. qb_wgmma_bf16_ra: adds to d; A in
 * registers, as mma.m16n8k16 has it, B in shared memory with N contiguous. qb_wgmma_bf16_mn: both
 * in shared memory with M and N contiguous. */
#ifndef QB_KERNELS_CUDA_WGMMA_BF16_CUH
#define QB_KERNELS_CUDA_WGMMA_BF16_CUH

#include <stdint.h>

/* clang-format off */
#define QB__D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define QB__D16(i) QB__D4(i), QB__D4((i) + 4), QB__D4((i) + 8), QB__D4((i) + 12)

static __device__ __forceinline__ void qb_wgmma_bf16(float (&d)[32], uint64_t a, uint64_t b,
                                                     int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %34, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, 0;\n\t}"
        : QB__D16(0), QB__D16(16)
        : "l"(a), "l"(b), "r"(accumulate));
}

static __device__ __forceinline__ void qb_wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b,
                                                     int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, 0;\n\t}"
        : QB__D16(0), QB__D16(16), QB__D16(32), QB__D16(48)
        : "l"(a), "l"(b), "r"(accumulate));
}

template <bool B_IS_KN>
static __device__ __forceinline__ void qb_wgmma_bf16(float (&d)[96], uint64_t a, uint64_t b,
                                                     int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %98, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, p, 1, 1, 0, %99;\n\t}"
        : QB__D16(0), QB__D16(16), QB__D16(32), QB__D16(48), QB__D16(64), QB__D16(80)
        : "l"(a), "l"(b), "r"(accumulate), "n"(B_IS_KN));
}

static __device__ __forceinline__ void qb_wgmma_bf16_ra(float (&d)[32], uint32_t a0, uint32_t a1,
                                                        uint32_t a2, uint32_t a3, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
        : QB__D16(0), QB__D16(16)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

static __device__ __forceinline__ void qb_wgmma_bf16_ra(float (&d)[48], uint32_t a0, uint32_t a1,
                                                        uint32_t a2, uint32_t a3, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 1;"
        : QB__D16(0), QB__D16(16), QB__D16(32)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

static __device__ __forceinline__ void qb_wgmma_bf16_ra(float (&d)[64], uint32_t a0, uint32_t a1,
                                                        uint32_t a2, uint32_t a3, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
        : QB__D16(0), QB__D16(16), QB__D16(32), QB__D16(48)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

static __device__ __forceinline__ void qb_wgmma_bf16_ra(float (&d)[128], uint32_t a0, uint32_t a1,
                                                        uint32_t a2, uint32_t a3, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
        : QB__D16(0), QB__D16(16), QB__D16(32), QB__D16(48), QB__D16(64), QB__D16(80), QB__D16(96), QB__D16(112)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

static __device__ __forceinline__ void qb_wgmma_bf16_mn(float (&d)[32], uint64_t a, uint64_t b,
                                                        int accumulate)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %34, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 1, 1;\n\t}"
        : QB__D16(0), QB__D16(16)
        : "l"(a), "l"(b), "r"(accumulate));
}

#undef QB__D4
#undef QB__D16
/* clang-format on */

#endif
