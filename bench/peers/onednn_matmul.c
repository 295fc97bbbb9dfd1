/* bench/peers/onednn_matmul.c - speed of oneDNN's u8 * s8 -> s32 matmul, one JSON line a shape.
 *
 *     y[m][n] = sum over k < K of x[m][k] * w[k][n]                                          (1)
 *
 * x (M, K) u8 is row-major; w (K, N) s8 lies in whatever order the library asks for and is put
 * there before the clock starts, as an engine packs its weights when it loads them. y (M, N) is
 * s32, row-major. A sample of the elements of each result is compared with (1), computed by a plain
 * loop. Buffers are warm: the same ones serve every call. Threads: set OMP_NUM_THREADS.
 *
 * usage: onednn_matmul REPETITIONS SECONDS M N K [M N K]...
 * A repetition calls the primitive for at least SECONDS and gives one figure in GOP/s, 2 M N K
 * operations a call. Built by onednn.sh against API version 2 or 3 of the library. */
#define _POSIX_C_SOURCE 200809L
#include <dnnl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MAX_REPETITIONS 1000
#define MAX_DIM 65536  /* keeps (1) within s32: 65536 * 255 * 128 < 2^31 */
#define N_CHECKED 4096 /* elements of y compared with (1) */

#define TRY(call)                                                                                  \
    do {                                                                                           \
        dnnl_status_t status_ = (call);                                                            \
        if (status_ != dnnl_success) {                                                             \
            fprintf(stderr, "onednn_matmul: line %d: oneDNN returned status %d\n", __LINE__,       \
                    (int)status_);                                                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
} device;

typedef struct {
    int64_t m, n, k;
    dnnl_primitive_t matmul;
    dnnl_memory_t x, w, y; /* w in the library's order */
    uint8_t *x_data;       /* (M, K) */
    int8_t *w_data;        /* (K, N), plain order, for the check */
    int32_t *y_data;       /* (M, N) */
    char kernel[128];      /* the implementation that the library chose */
} problem;

static void *xalloc(size_t n_bytes)
{
    void *p = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    if (!p) {
        fprintf(stderr, "onednn_matmul: out of memory: %zu bytes\n", n_bytes);
        exit(1);
    }
    return p;
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A linear congruential generator (constants of Knuth's MMIX): the values only need to vary. */
static uint8_t next_byte(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(*state >> 56);
}

/* The two API generations differ in how a memory or a primitive is described, and only in that. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t layout; /* a handle */
typedef const_dnnl_memory_desc_t layout_ref;

static layout layout_create(const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    layout l;
    TRY(dnnl_memory_desc_create_with_tag(&l, 2, dims, type, tag));
    return l;
}
static layout_ref layout_get(const layout *l)
{
    return *l;
}
static void layout_destroy(layout *l)
{
    TRY(dnnl_memory_desc_destroy(*l));
}
static void matmul_desc_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const layout *x,
                               const layout *w, const layout *y)
{
    TRY(dnnl_matmul_primitive_desc_create(pd, engine, *x, *w, NULL, *y, NULL));
}
#else
typedef dnnl_memory_desc_t layout; /* a plain struct */
typedef const dnnl_memory_desc_t *layout_ref;

static layout layout_create(const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    layout l;
    TRY(dnnl_memory_desc_init_by_tag(&l, 2, dims, type, tag));
    return l;
}
static layout_ref layout_get(const layout *l)
{
    return l;
}
static void layout_destroy(layout *l)
{
    (void)l;
}
static void matmul_desc_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const layout *x,
                               const layout *w, const layout *y)
{
    dnnl_matmul_desc_t desc;
    TRY(dnnl_matmul_desc_init(&desc, x, w, NULL, y));
    TRY(dnnl_primitive_desc_create(pd, &desc, NULL, engine, NULL));
}
#endif

static problem problem_create(device *dev, int64_t m, int64_t n, int64_t k)
{
    problem p = {.m = m, .n = n, .k = k};
    uint64_t seed = 42;
    p.x_data = xalloc((size_t)(m * k));
    p.w_data = xalloc((size_t)(k * n));
    p.y_data = xalloc((size_t)(m * n) * sizeof *p.y_data);
    for (int64_t i = 0; i < m * k; i++) p.x_data[i] = next_byte(&seed);
    for (int64_t i = 0; i < k * n; i++) p.w_data[i] = (int8_t)(next_byte(&seed) - 128);

    const dnnl_dims_t x_dims = {m, k}, w_dims = {k, n}, y_dims = {m, n};
    layout x = layout_create(x_dims, dnnl_u8, dnnl_ab);
    layout w_plain = layout_create(w_dims, dnnl_s8, dnnl_ab);
    layout w_any = layout_create(w_dims, dnnl_s8, dnnl_format_tag_any);
    layout y = layout_create(y_dims, dnnl_s32, dnnl_ab);

    dnnl_primitive_desc_t pd, reorder_pd;
    matmul_desc_create(&pd, dev->engine, &x, &w_any, &y);
    layout_ref w_packed = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    const char *kernel = NULL;
    TRY(dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&kernel));
    snprintf(p.kernel, sizeof p.kernel, "%s", kernel);
    TRY(dnnl_primitive_create(&p.matmul, pd));
    TRY(dnnl_memory_create(&p.x, layout_get(&x), dev->engine, p.x_data));
    TRY(dnnl_memory_create(&p.w, w_packed, dev->engine, DNNL_MEMORY_ALLOCATE));
    TRY(dnnl_memory_create(&p.y, layout_get(&y), dev->engine, p.y_data));

    dnnl_memory_t w_source;
    dnnl_primitive_t reorder;
    TRY(dnnl_memory_create(&w_source, layout_get(&w_plain), dev->engine, p.w_data));
    TRY(dnnl_reorder_primitive_desc_create(&reorder_pd, layout_get(&w_plain), dev->engine, w_packed,
                                           dev->engine, NULL));
    TRY(dnnl_primitive_create(&reorder, reorder_pd));
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, w_source}, {DNNL_ARG_TO, p.w}};
    TRY(dnnl_primitive_execute(reorder, dev->stream, 2, args));
    TRY(dnnl_stream_wait(dev->stream));

    TRY(dnnl_primitive_destroy(reorder));
    TRY(dnnl_primitive_desc_destroy(reorder_pd));
    TRY(dnnl_memory_destroy(w_source));
    TRY(dnnl_primitive_desc_destroy(pd));
    layout_destroy(&x);
    layout_destroy(&w_plain);
    layout_destroy(&w_any);
    layout_destroy(&y);
    return p;
}

static void problem_destroy(problem *p)
{
    TRY(dnnl_primitive_destroy(p->matmul));
    TRY(dnnl_memory_destroy(p->x));
    TRY(dnnl_memory_destroy(p->w));
    TRY(dnnl_memory_destroy(p->y));
    free(p->x_data);
    free(p->w_data);
    free(p->y_data);
}

static void problem_run(const problem *p, device *dev)
{
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, p->w}, {DNNL_ARG_DST, p->y}};
    TRY(dnnl_primitive_execute(p->matmul, dev->stream, 3, args));
    TRY(dnnl_stream_wait(dev->stream));
}

/* Ends the program where a sampled element of y differs from (1): a wrong result has no speed. */
static void problem_check(const problem *p)
{
    const int64_t n_elems = p->m * p->n;
    const int64_t step =
        n_elems > N_CHECKED ? n_elems / N_CHECKED | 1 : 1; /* odd: varies columns */
    for (int64_t i = 0; i < n_elems; i += step) {
        const int64_t row = i / p->n, col = i % p->n;
        int32_t want = 0;
        for (int64_t k = 0; k < p->k; k++)
            want += p->x_data[row * p->k + k] * p->w_data[k * p->n + col];
        if (p->y_data[i] != want) {
            fprintf(stderr,
                    "onednn_matmul: M=%" PRId64 " N=%" PRId64 " K=%" PRId64
                    " (%s): element (%" PRId64 ", %" PRId64 ") is %" PRId32 ", expected %" PRId32
                    "\n",
                    p->m, p->n, p->k, p->kernel, row, col, p->y_data[i], want);
            exit(1);
        }
    }
}

/* GOP/s over at least `seconds`; the clock is read once a batch of calls, about 1 ms. */
static double problem_time(const problem *p, device *dev, double seconds, int64_t n_batch)
{
    int64_t n_calls = 0;
    double start = now_s(), elapsed;
    do {
        for (int64_t i = 0; i < n_batch; i++) problem_run(p, dev);
        n_calls += n_batch;
        elapsed = now_s() - start;
    } while (elapsed < seconds);
    return 2e-9 * (double)p->m * (double)p->n * (double)p->k * (double)n_calls / elapsed;
}

static void measure(device *dev, int64_t m, int64_t n, int64_t k, int n_repetitions, double seconds)
{
    problem p = problem_create(dev, m, n, k);
    problem_run(&p, dev);
    problem_check(&p);

    const double gop_per_s = problem_time(&p, dev, seconds / 4, 1); /* warms up, sizes the batch */
    const double call_s = 2e-9 * (double)m * (double)n * (double)k / gop_per_s;
    const int64_t n_batch = call_s < 1e-3 ? (int64_t)(1e-3 / call_s) + 1 : 1;

    printf("{\"m\":%" PRId64 ",\"n\":%" PRId64 ",\"k\":%" PRId64 ",\"kernel\":\"%s\","
           "\"onednn\":\"%d.%d.%d\",\"gop_per_s\":[",
           m, n, k, p.kernel, dnnl_version()->major, dnnl_version()->minor, dnnl_version()->patch);
    for (int i = 0; i < n_repetitions; i++)
        printf("%s%.2f", i ? "," : "", problem_time(&p, dev, seconds, n_batch));
    printf("]}\n");
    fflush(stdout);
    problem_destroy(&p);
}

static double parse_number(const char *text, const char *what, double min, double max)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (errno || end == text || *end || !(value >= min && value <= max)) {
        fprintf(stderr, "onednn_matmul: %s: found %s, expected %g to %g\n", what, text, min, max);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    if (argc < 6 || argc % 3) {
        fprintf(stderr, "usage: onednn_matmul REPETITIONS SECONDS M N K [M N K]...\n");
        return 2;
    }
    const int n_repetitions = (int)parse_number(argv[1], "REPETITIONS", 1, MAX_REPETITIONS);
    const double seconds = parse_number(argv[2], "SECONDS", 1e-3, 60);

    device dev;
    TRY(dnnl_engine_create(&dev.engine, dnnl_cpu, 0));
    TRY(dnnl_stream_create(&dev.stream, dev.engine, dnnl_stream_default_flags));
    for (int i = 3; i < argc; i += 3)
        measure(&dev, (int64_t)parse_number(argv[i], "M", 1, MAX_DIM),
                (int64_t)parse_number(argv[i + 1], "N", 1, MAX_DIM),
                (int64_t)parse_number(argv[i + 2], "K", 1, MAX_DIM), n_repetitions, seconds);
    TRY(dnnl_stream_destroy(dev.stream));
    TRY(dnnl_engine_destroy(dev.engine));
    return 0;
}
