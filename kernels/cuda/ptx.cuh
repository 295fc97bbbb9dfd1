/* kernels/cuda/ptx.cuh - thin wrappers of the PTX that CUDA C++ has no words for: mbarriers, the
 * bulk copy engine (TMA), clusters, wgmma's fences, register budgets. All but stmatrix and the
 * named barriers need sm_90(a). Shared-memory addresses are 32-bit, from qb_smem. */
#ifndef QB_KERNELS_CUDA_PTX_CUH
#define QB_KERNELS_CUDA_PTX_CUH

#include "kernels/cuda/mma.cuh"

#include <cuda.h>
#include <stdint.h>

/* ---- mbarriers ---- */

static __device__ __forceinline__ void qb_mbar_init(uint32_t bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

/* Makes initialised barriers visible to the copy engine and to the cluster. */
static __device__ __forceinline__ void qb_mbar_init_fence(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void qb_mbar_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void qb_mbar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* Arrives at the same barrier of another block of the cluster. Orders nothing that this thread
 * wrote: a release at cluster scope would cost a fence of hundreds of cycles. */
static __device__ __forceinline__ void qb_mbar_arrive_cluster(uint32_t bar, uint32_t cta)
{
    asm volatile("{\n\t.reg .b32 remote;\n\t"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n\t}" ::"r"(bar),
                 "r"(cta)
                 : "memory");
}

static __device__ __forceinline__ bool qb_mbar_try(uint32_t bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n\t.reg .pred p;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                 "selp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done;
}

/* Waits for the end of the phase with that parity. With QB_SPIN_LIMIT_NS defined a wait that takes
 * longer is a fault instead of a hang (for development). */
static __device__ __forceinline__ void qb_mbar_wait(uint32_t bar, uint32_t parity)
{
#ifdef QB_SPIN_LIMIT_NS
    uint64_t start = 0, now;
    while (!qb_mbar_try(bar, parity)) {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (!start) start = now;
        if (now - start > QB_SPIN_LIMIT_NS) __trap();
    }
#else
    while (!qb_mbar_try(bar, parity)) {
    }
#endif
}

/* The same for barriers and data of this block alone, all in one asm: kernels at the limit of their
 * registers keep the compiler's hands free. Development's limit is a number of tries here. */
static __device__ __forceinline__ void qb_mbar_wait_block(uint32_t bar, uint32_t parity)
{
#ifdef QB_SPIN_LIMIT_NS
    asm volatile("{\n\t.reg .pred p, q;\n\t.reg .u32 n;\n\tmov.u32 n, 0;\n\t"
                 "AGAIN_%=:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t@p bra DONE_%=;\n\t"
                 "add.u32 n, n, 1;\n\tsetp.gt.u32 q, n, 4000000;\n\t@q trap;\n\t"
                 "bra AGAIN_%=;\n\tDONE_%=:\n\t}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
#else
    asm volatile("{\n\t.reg .pred p;\n\tAGAIN_%=:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t@p bra DONE_%=;\n\t"
                 "bra AGAIN_%=;\n\tDONE_%=:\n\t}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
#endif
}

/* ---- the bulk copy engine ---- */

static __device__ __forceinline__ void qb_tma_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Box at (column c, row r) of a 2D map into shared memory, completing on bar. */
static __device__ __forceinline__ void qb_tma_load(uint32_t dst, const CUtensorMap *map,
                                                   uint32_t bar, int c, int r)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c), "r"(r)
                 : "memory");
}

/* The same into (and completing on) the same addresses of each block of the mask. */
static __device__ __forceinline__ void qb_tma_load_multicast(uint32_t dst, const CUtensorMap *map,
                                                             uint32_t bar, int c, int r,
                                                             uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c), "r"(r), "h"(mask)
                 : "memory");
}

/* The same of 4D maps. */
static __device__ __forceinline__ void qb_tma_load_4d(uint32_t dst, const CUtensorMap *map,
                                                      uint32_t bar, int c0, int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}

/* Contiguous bytes, a multiple of 16, 16-byte aligned on both sides. */
static __device__ __forceinline__ void qb_bulk_load(uint32_t dst, const void *src, uint32_t bar,
                                                    uint32_t bytes)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}

/* Shared memory to the box at (c, r); what lies outside of the map is not written. */
static __device__ __forceinline__ void qb_tma_store(const CUtensorMap *map, uint32_t src, int c,
                                                    int r)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
        "r"(src), "r"(c), "r"(r)
        : "memory");
}

/* The same to plane p of a map of several. */
static __device__ __forceinline__ void qb_tma_store_plane(const CUtensorMap *map, uint32_t src,
                                                          int c, int r, int p)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
            map),
        "r"(src), "r"(c), "r"(r), "r"(p)
        : "memory");
}

static __device__ __forceinline__ void qb_tma_store_4d(const CUtensorMap *map, uint32_t src, int c0,
                                                       int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group "
                 "[%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(src), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}

/* As qb_tma_store, adding to what is there, in the map's type. */
static __device__ __forceinline__ void qb_tma_add(const CUtensorMap *map, uint32_t src, int c,
                                                  int r)
{
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];" ::
            "l"(map),
        "r"(src), "r"(c), "r"(r)
        : "memory");
}

static __device__ __forceinline__ void qb_tma_commit(void)
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until at most N committed groups have shared memory left to read. */
template <int N> static __device__ __forceinline__ void qb_tma_wait_read(void)
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

/* Orders this thread's ordinary writes to shared memory before the copy engine's and wgmma's reads.
 */
static __device__ __forceinline__ void qb_fence_async(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- barriers of some of a block's threads; ids 1 to 15 ---- */

static __device__ __forceinline__ void qb_bar_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

static __device__ __forceinline__ void qb_bar_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ---- clusters ---- */

static __device__ __forceinline__ uint32_t qb_cluster_rank(void)
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

static __device__ __forceinline__ void qb_cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/* Without the fence of the whole GPU that a release is: for what barriers' own fence makes seen. */
static __device__ __forceinline__ void qb_cluster_arrive_relaxed(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

static __device__ __forceinline__ void qb_cluster_wait(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

static __device__ __forceinline__ uint32_t qb_cluster_map(uint32_t addr, uint32_t cta)
{
    uint32_t remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(addr), "r"(cta));
    return remote;
}

static __device__ __forceinline__ void qb_cluster_store(uint32_t addr, int a, int b, int c, int d)
{
    asm volatile("st.shared::cluster.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}

/* ---- wgmma ---- */

static __device__ __forceinline__ void qb_wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void qb_wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void qb_wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* A K-major operand of 128-byte rows in 128-byte swizzle, 1024-byte aligned: eight rows are 1024
 * bytes. Step k bytes (a multiple of 32) within the row by adding k / 16. */
static __device__ __forceinline__ uint64_t qb_wgmma_desc(uint32_t addr)
{
    return (uint64_t)((addr & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

template <int N> static __device__ __forceinline__ void qb_regs_give(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void qb_regs_take(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- other ---- */

/* Four 8x8 matrices of 16-bit values from fragments to rows of 16 bytes; lane i has the address of
 * row i % 8 of matrix i / 8. */
static __device__ __forceinline__ void qb_stmatrix_x4(uint32_t addr, uint32_t a, uint32_t b,
                                                      uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

#endif
