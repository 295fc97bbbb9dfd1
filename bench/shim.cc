// bench/shim.cc - registers the cases of shim.h with Google Benchmark and runs it. The only C++.
#include "bench/shim.h"

#include "core/memory.h"
#include "infer/environment.h"
#include "version.h"

#include <benchmark/benchmark.h>
#ifdef QB_WITH_CUDA
#include "kernels/cuda/logits.h"

#include <cuda_runtime_api.h>
#endif

#include <cstdio>
#include <cstring>
#include <string>

#ifdef QB_WITH_CUDA
static qb_status use_gpu()
{
    return qb_cuda_use(0);
}

// Reading this much leaves nothing else in the L2 cache, and nothing there to be written back.
enum { FLUSH_ROWS = 1024, FLUSH_COLUMNS = 1 << 16 };

// What an event before and one after the call say: gaps between the kernels of a call are included.
// The pass or the call before the first event keeps the queue filled meanwhile, so that the time of
// a launch is not.
static void time_on_gpu(benchmark::State &state, const qb_bench_case &c, void *data)
{
    float *flush = nullptr;
    int32_t *ids = nullptr;
    cudaEvent_t before, after;
    cudaEventCreate(&before);
    cudaEventCreate(&after);
    cudaMalloc((void **)&ids, FLUSH_ROWS * sizeof *ids);
    if (c.cold) {
        cudaMalloc((void **)&flush, sizeof(float) * FLUSH_ROWS * FLUSH_COLUMNS);
        cudaMemset(flush, 0, sizeof(float) * FLUSH_ROWS * FLUSH_COLUMNS);
    }
    for (auto _ : state) {
        float ms = 0;
        if (c.cold)
            qb_cuda_argmax(flush, FLUSH_ROWS, FLUSH_COLUMNS, FLUSH_COLUMNS, ids, nullptr);
        else
            c.run(data);
        cudaEventRecord(before, nullptr);
        c.run(data);
        cudaEventRecord(after, nullptr);
        cudaEventSynchronize(after);
        cudaEventElapsedTime(&ms, before, after);
        state.SetIterationTime(ms * 1e-3);
    }
    cudaFree(flush);
    cudaFree(ids);
    cudaEventDestroy(before);
    cudaEventDestroy(after);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) state.SkipWithError(cudaGetErrorString(error));
    qb_gpu gpu; // right behind the last call, still at the clock that its power leaves
    qb_gpu_read(&gpu);
    state.counters["sm_mhz"] = (double)gpu.now.sm_mhz;
}
#else
static qb_status use_gpu()
{
    return QB_OK;
}

static void time_on_gpu(benchmark::State &, const qb_bench_case &, void *)
{
}
#endif

static void run_case(benchmark::State &state, const qb_bench_case &c)
{
    qb_pool *pool = nullptr;
    void *data = nullptr;
    qb_status status = qb_alloc_zero(&data, 1, c.state_bytes, "benchmark");
    if (status == QB_OK && c.n_threads > 1) status = qb_pool_create(c.n_threads, &pool);
    if (status == QB_OK && c.on_gpu) status = use_gpu();
    if (status == QB_OK) status = c.setup(data, c.params, pool);
    if (status != QB_OK) {
        state.SkipWithError(qb_error_message());
    } else {
        c.run(data); // warms caches, branch predictors and the pool
        if (c.on_gpu) {
            time_on_gpu(state, c, data);
        } else {
            for (auto _ : state) c.run(data);
        }
        using benchmark::Counter;
        // wall time: the pool's threads are not in the caller's processor time
        if (c.ops_per_iter > 0)
            state.counters["ops_per_s"] =
                Counter(c.ops_per_iter, Counter::kIsIterationInvariantRate);
        if (c.bytes_per_iter > 0)
            state.counters["bytes_per_s"] =
                Counter(c.bytes_per_iter, Counter::kIsIterationInvariantRate);
        if (c.floor_s > 0)
            state.counters["roofline_share"] =
                Counter(c.floor_s, Counter::kIsIterationInvariantRate);
    }
    if (data && c.teardown) c.teardown(data);
    qb_free(data);
    qb_pool_destroy(pool);
}

extern "C" void qb_bench_add(const qb_bench_case *bench_case)
{
    const qb_bench_case c = *bench_case;
    auto *b =
        benchmark::RegisterBenchmark(c.name, [c](benchmark::State &state) { run_case(state, c); });
    b->Unit(benchmark::kMicrosecond);
    if (c.on_gpu)
        b->UseManualTime();
    else
        b->UseRealTime();
}

extern "C" void qb_bench_name_threads(qb_bench_case *c)
{
    size_t used = std::strlen(c->name);
    if (c->n_threads > 1)
        std::snprintf(c->name + used, sizeof c->name - used, "/threads:%zu", c->n_threads);
}

// What makes a record of the figures, beside the date and processor that the library writes.
static void describe_run(int argc, char **argv)
{
    std::string command;
    for (int i = 0; i < argc; i++) command += (i ? " " : "") + std::string(argv[i]);
    benchmark::AddCustomContext("command", command);
    benchmark::AddCustomContext("git_commit", QB_GIT_COMMIT);
    if (use_gpu() != QB_OK) return;
    qb_gpu gpu;
    qb_gpu_read(&gpu);
    if (!gpu.in_use) return;
    benchmark::AddCustomContext("gpu", gpu.info.name);
    benchmark::AddCustomContext("gpu_driver", gpu.now.driver);
    benchmark::AddCustomContext("gpu_power_limit_w", std::to_string(gpu.now.power_limit_w));
}

int main(int argc, char **argv)
{
    describe_run(argc, argv); // Initialize takes its own words out of argv
#define X(name) qb_bench_##name();
    QB_BENCH_FILES(X)
    QB_BENCH_CUDA_FILES(X)
#undef X
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
