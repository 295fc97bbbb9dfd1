// bench/shim.cc - registers the cases of shim.h with Google Benchmark and runs it. The only C++.
#include "bench/shim.h"

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstring>

static void run_case(benchmark::State &state, const qb_bench_case &c)
{
    qb_pool *pool = nullptr;
    void *data = nullptr;
    qb_status status = c.n_threads > 1 ? qb_pool_create(c.n_threads, &pool) : QB_OK;
    if (status == QB_OK) status = c.setup(c.params, pool, &data);
    if (status != QB_OK) {
        state.SkipWithError(qb_error_message());
    } else {
        c.run(data); // warms caches, branch predictors and the pool
        for (auto _ : state) c.run(data);
        using benchmark::Counter;
        // wall time: the pool's threads are not in the caller's processor time
        if (c.ops_per_iter > 0)
            state.counters["ops_per_s"] =
                Counter(c.ops_per_iter, Counter::kIsIterationInvariantRate);
        if (c.bytes_per_iter > 0)
            state.counters["bytes_per_s"] =
                Counter(c.bytes_per_iter, Counter::kIsIterationInvariantRate);
        c.teardown(data);
    }
    qb_pool_destroy(pool);
}

extern "C" void qb_bench_add(const qb_bench_case *bench_case)
{
    const qb_bench_case c = *bench_case;
    auto *b = benchmark::RegisterBenchmark(
        c.name, [c](benchmark::State &state) { run_case(state, c); });
    b->Unit(benchmark::kMicrosecond)->UseRealTime();
}

extern "C" void qb_bench_name_threads(qb_bench_case *c)
{
    size_t used = std::strlen(c->name);
    if (c->n_threads > 1)
        std::snprintf(c->name + used, sizeof c->name - used, "/threads:%zu", c->n_threads);
}

int main(int argc, char **argv)
{
#define X(name) qb_bench_##name();
    QB_BENCH_FILES(X)
#undef X
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
