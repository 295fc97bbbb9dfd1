/* kernels/cuda/wgmma_u4.cuh - wgmma m64nNk16, bf16 x bf16 -> f32, A in registers, B in shared
 * memory (K-major, 128-byte swizzle: qb_wgmma_desc).
 *
 * a is a warp's fragment of 16 of the 64 rows, as of mma.m16n8k16. d[4 j + 2 h + i] is row
 * 16 warp + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + i. accumulate = 0 overwrites d. */
#ifndef QB_KERNELS_CUDA_WGMMA_U4_CUH
#define QB_KERNELS_CUDA_WGMMA_U4_CUH

#include <stdint.h>

/* clang-format off */
#define QB__F4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define QB__F16(i) QB__F4(i), QB__F4((i) + 4), QB__F4((i) + 8), QB__F4((i) + 12)
#define QB__F32(i) QB__F16(i), QB__F16((i) + 16)
static __device__ __forceinline__ void qb_wgmma_bf16_rs(float (&d)[32], const uint32_t (&a)[4],
                                                        uint64_t b, int accumulate)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
                 "%30, %31"
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
                 : QB__F32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

static __device__ __forceinline__ void qb_wgmma_bf16_rs(float (&d)[64], const uint32_t (&a)[4],
                                                        uint64_t b, int accumulate)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
                 "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
                 "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
                 "%58, %59, %60, %61, %62, %63"
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
                 : QB__F32(0), QB__F32(32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

static __device__ __forceinline__ void qb_wgmma_bf16_rs(float (&d)[128], const uint32_t (&a)[4],
                                                        uint64_t b, int accumulate)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
                 "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
                 "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
                 "%58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, "
                 "%72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
                 "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "
                 "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
                 "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, "
                 "%122, %123, %124, %125, %126, %127"
                 "}, {%128, %129, %130, %131}, %132, p, 1, 1, 0;\n}\n"
                 : QB__F32(0), QB__F32(32), QB__F32(64), QB__F32(96)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
#undef QB__F4
#undef QB__F16
#undef QB__F32
/* clang-format on */

#endif
