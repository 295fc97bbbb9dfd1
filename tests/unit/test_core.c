/* tests/unit/test_core.c - status, memory, dtypes, threads, random numbers, files, JSON. */
#include "support.h"

#include "core/dtype.h"
#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"
#include "core/rng.h"
#include "core/threads.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void failing_call_keeps_one_line(void **state)
{
    (void)state;
    qb_status s = QB_FAIL(QB_ERR_FORMAT, "name %s", "with\nnewline");
    assert_int_equal(s, QB_ERR_FORMAT);
    assert_string_equal(qb_error_message(), "name with?newline");
    qb_error_prefix(s, "x.bin");
    assert_string_equal(qb_error_message(), "x.bin: name with?newline");
    s = QB_FAIL_SYSTEM("x.bin", ENOENT, "opened", "a file that can be read");
    assert_int_equal(s, QB_ERR_IO);
    assert_string_equal(qb_error_message(), "x.bin: cannot be opened: found \"No such file or "
                                            "directory\", expected a file that can be read");
    assert_int_equal(qb_status_exit_code(QB_ERR_MEMORY), 4);
    assert_int_equal(qb_status_exit_code(QB_ERR_INTERRUPTED), 130);
}

static void allocation_counts_fails_and_aligns(void **state)
{
    (void)state;
    size_t before = qb_memory_live_bytes();
    void *p = NULL;
    QB_CHECK_OK(qb_alloc(&p, 10, 10, "p"));
    assert_int_equal((uintptr_t)p % QB_ALIGN_BYTES, 0);
    assert_int_equal(qb_memory_live_bytes() - before, 100);
    void *q = p;
    assert_int_equal(qb_alloc(&q, SIZE_MAX / 2, 4, "q"), QB_ERR_MEMORY);
    assert_ptr_equal(q, p);
    qb_memory_fail_at(2);
    void *r;
    QB_CHECK_OK(qb_alloc(&r, 1, 1, "r"));
    assert_int_equal(qb_alloc(&q, 1, 1, "q"), QB_ERR_MEMORY);
    qb_free(r);
    qb_free(p);
    assert_int_equal(qb_memory_live_bytes(), before);
}

static void blocks_are_counted_and_freed_together(void **state)
{
    (void)state;
    size_t before = qb_memory_live_blocks();
    qb_blocks blocks = {0};
    void *p = NULL;
    QB_CHECK_OK(qb_blocks_add(&blocks, qb_alloc_zero, 10, 4, "p", &p));
    QB_CHECK_OK(qb_blocks_add(&blocks, qb_alloc, 1, 60, "p", &p));
    assert_int_equal(blocks.bytes, 100);
    assert_ptr_equal(blocks.items[1], p);
    for (size_t nth = 1; nth <= 2; nth++) { /* of the list, of the block */
        void *kept = p;
        qb_memory_fail_at(nth);
        assert_int_equal(qb_blocks_add(&blocks, qb_alloc, 1, 1, "q", &kept), QB_ERR_MEMORY);
        assert_ptr_equal(kept, p);
        assert_int_equal(blocks.n, 2);
        assert_int_equal(blocks.bytes, 100);
    }
    qb_blocks_free(&blocks, qb_free);
    assert_int_equal(qb_memory_live_blocks(), before);
    qb_blocks_free(&blocks, qb_free); /* empty again */
}

static void f16_and_bf16_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = qb_f32_from_f16((uint16_t)h);
        if (isnan(f)) continue;
        assert_int_equal(qb_f16_from_f32(f), h);
        float b = qb_f32_from_bf16((uint16_t)h);
        if (!isnan(b)) assert_int_equal(qb_bf16_from_f32(b), h);
    }
    assert_int_equal(qb_f16_from_f32(65519.0f), 0x7bff);
    assert_int_equal(qb_f16_from_f32(65520.0f), 0x7c00);
    assert_int_equal(qb_f16_from_f32(1.0f + 0x1p-11f), 0x3c00);     /* a tie goes to even */
    assert_int_equal(qb_f16_from_f32(1.0f + 3 * 0x1p-11f), 0x3c02); /* likewise, upwards */
    assert_int_equal(qb_bf16_from_f32(1.0f + 0x1p-8f), 0x3f80);
    assert_int_equal(qb_bf16_from_f32(1.0f + 3 * 0x1p-8f), 0x3f82);
}

static void f64_and_sizes(void **state)
{
    (void)state;
    const double wide[2] = {0.1, -1e300};
    float out[2];
    qb_dtype_to_f32(QB_F64, wide, 2, out);
    assert_true(out[0] == 0.1f && out[1] == -INFINITY);
    size_t bytes;
    assert_true(qb_dtype_bytes(QB_Q8_0, 3, 64, &bytes) && bytes == 3 * 68);
    assert_false(qb_dtype_bytes(QB_Q8_0, 3, 65, &bytes));
    assert_true(qb_dtype_bytes(QB_U4, 3, 5, &bytes) && bytes == 9);
    assert_false(qb_dtype_bytes(QB_F32, SIZE_MAX / 2, 4, &bytes));
}

static void mark(void *context, size_t i, size_t thread_idx)
{
    (void)thread_idx;
    ((int *)context)[i]++;
}

static void every_task_runs_once(void **state)
{
    (void)state;
    enum { N = 1000 };
    for (size_t threads = 1; threads <= 4; threads++) {
        qb_pool *pool;
        QB_CHECK_OK(qb_pool_create(threads, &pool));
        int counts[N] = {0};
        for (int loop = 0; loop < 200; loop++) {
            qb_parallel_for(pool, N, mark, counts);
            if (loop == 100) usleep(20000); /* long enough for the workers to fall asleep */
        }
        for (int i = 0; i < N; i++) assert_int_equal(counts[i], 200);
        qb_pool_destroy(pool);
    }
}

static void mark_span(void *context, size_t begin, size_t end)
{
    assert_true(end > begin && end - begin <= 7 && begin % 7 == 0);
    for (size_t i = begin; i < end; i++) ((int *)context)[i]++;
}

static void spans_tile_the_whole(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 6, 7, 8, 70, 71};
    qb_pool *pool;
    QB_CHECK_OK(qb_pool_create(3, &pool));
    for (size_t s = 0; s < QB_COUNT(sizes); s++) {
        int counts[72] = {0};
        qb_parallel_spans(pool, sizes[s], 7, mark_span, counts);
        for (size_t i = 0; i < 72; i++) assert_int_equal(counts[i], i < sizes[s]);
    }
    qb_pool_destroy(pool);
}

static void philox_matches_published_vectors(void **state)
{
    (void)state;
    uint32_t w[4];
    qb_philox(0, 0, 0, w); /* kat_vectors of Random123: philox4x32 10, all zero */
    assert_int_equal(w[0], 0x6627e8d5u);
    assert_int_equal(w[1], 0xe169c58du);
    assert_int_equal(w[2], 0xbc57ac4cu);
    assert_int_equal(w[3], 0x9b00dbd8u);
    enum { N = 20000 };
    static float x[N], y[N];
    qb_rng_normal_f32(7, 3, 0, N, 1.0f, x);
    qb_rng_normal_f32(7, 3, 5, N - 5, 1.0f, y);
    assert_memory_equal(x + 5, y, (N - 5) * sizeof(float));
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) sum += x[i], squares += (double)x[i] * x[i];
    assert_true(fabs(sum / N) < 0.03 && fabs(squares / N - 1) < 0.05);
}

static void files_are_whole_or_absent(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "/tmp/qb_test_core.%ld", (long)getpid());
    QB_CHECK_OK(qb_file_write_whole(path, "hello", 5));
    qb_file file;
    QB_CHECK_OK(qb_file_open(path, &file));
    assert_int_equal(file.bytes, 5);
    assert_memory_equal(file.data, "hello", 5);
    qb_file_close(&file);
    qb_writer *w;
    QB_CHECK_OK(qb_writer_open(path, &w));
    QB_CHECK_OK(qb_writer_write(w, "new", 3));
    qb_writer_abandon(w);
    QB_CHECK_OK(qb_file_open(path, &file));
    assert_int_equal(file.bytes, 5);
    qb_file_close(&file);
    unlink(path);
    assert_int_equal(qb_writer_open("/dev/null", &w), QB_ERR_IO);
    assert_int_equal(qb_writer_open("/tmp", &w), QB_ERR_IO);
    QB_CHECK_OK(qb_file_write_whole("/dev/null", "hello", 5));
    struct stat st;
    assert_true(!stat("/dev/null", &st) && S_ISCHR(st.st_mode));
    assert_int_equal(qb_file_open(path, &file), QB_ERR_IO);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(qb_file_open(path, &file), QB_ERR_IO); /* and does not hang */
    unlink(path);
    assert_int_equal(qb_file_open("/tmp", &file), QB_ERR_IO);
    assert_int_equal(qb_file_open("/dev/zero", &file), QB_ERR_IO);
    char hex[65];
    QB_CHECK_OK(qb_sha256_hex("abc", 3, hex));
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(qb_crc32("123456789", 9), 0xcbf43926u);
}

static unsigned permissions(const char *path)
{
    struct stat st;
    return stat(path, &st) ? 0 : st.st_mode & 0777;
}

/* A link stays one, also a link to nothing yet; the file behind it keeps its permissions. */
static void outputs_go_behind_links(void **state)
{
    (void)state;
    char folder[] = "/tmp/qb_test_links.XXXXXX", link[64], second[64], real[64];
    assert_non_null(mkdtemp(folder));
    snprintf(link, sizeof link, "%s/link", folder);
    snprintf(second, sizeof second, "%s/second", folder);
    snprintf(real, sizeof real, "%s/real", folder);
    assert_int_equal(symlink("second", link) | symlink(real, second), 0);
    QB_CHECK_OK(qb_file_write_whole(link, "new", 3));
    assert_int_equal(chmod(real, 0640), 0);
    QB_CHECK_OK(qb_file_write_whole(link, "newer", 5));
    assert_int_equal(permissions(real), 0640);
    qb_file file;
    QB_CHECK_OK(qb_file_open(real, &file));
    assert_int_equal(file.bytes, 5);
    qb_file_close(&file);
    char held[64];
    assert_int_equal(readlink(link, held, sizeof held), 6);
    unlink(second);
    assert_int_equal(symlink("link", second), 0);
    assert_int_equal(qb_file_write_whole(link, "x", 1), QB_ERR_IO); /* a ring of links */
    unlink(link);
    unlink(second);
    unlink(real);
    assert_int_equal(rmdir(folder), 0); /* nothing is left */
}

/* The temporary name may be there: of another machine's process, or a link that leads elsewhere. */
static void temporary_names_are_not_shared(void **state)
{
    (void)state;
    char folder[] = "/tmp/qb_test_names.XXXXXX", path[64], taken[96], victim[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/out", folder);
    snprintf(taken, sizeof taken, "%s.tmp.%ld", path, (long)getpid());
    snprintf(victim, sizeof victim, "%s/victim", folder);
    assert_int_equal(symlink(victim, taken), 0);
    QB_CHECK_OK(qb_file_write_whole(path, "new", 3));
    assert_int_equal(access(victim, F_OK), -1);
    assert_int_equal(access(path, F_OK), 0);
    unlink(path);
    unlink(taken);
    assert_int_equal(rmdir(folder), 0);
}

static void json_allocations_are_counted_and_may_fail(void **state)
{
    (void)state;
    static const char text[] = "{\"a\":[1,2.5,\"x\\u00e9\",{\"b\":null}],\"c\":true}";
    size_t blocks = qb_memory_live_blocks(), bytes = qb_memory_live_bytes(), n = 1;
    for (;; n++) {
        json_t *v = NULL;
        qb_memory_fail_at(n);
        qb_status status = qb_json_parse(text, sizeof text - 1, 1000, "t", &v);
        qb_memory_fail_at(0);
        if (status == QB_OK) assert_true(qb_memory_live_blocks() > blocks);
        json_decref(v);
        assert_int_equal(qb_memory_live_blocks(), blocks);
        assert_int_equal(qb_memory_live_bytes(), bytes);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
    }
    assert_true(n > 5);
}

static void json_marks_are_those_outside_of_strings(void **state)
{
    (void)state;
    static const char text[] = "{\"a,[\\\"}\": [1, 2], \"b\\\\\": {}, \"open{";
    char seen[sizeof text], c;
    size_t n = 0, at = 0;
    while ((c = qb_json_next_mark(text, sizeof text - 1, &at))) seen[n++] = c;
    seen[n] = 0;
    assert_string_equal(seen, "{[,],{},");
    assert_int_equal(at, sizeof text - 1);
}

static void json_limits(void **state)
{
    (void)state;
    json_t *v = NULL;
    QB_CHECK_OK(qb_json_parse(" {\"a\":3} ", 9, 100, "t", &v));
    size_t n = 9;
    QB_CHECK_OK(qb_json_get_size(v, "a", 0, 5, &n));
    assert_int_equal(n, 3);
    assert_int_equal(qb_json_get_size(v, "a", 4, 5, &n), QB_ERR_FORMAT);
    QB_CHECK_OK(qb_json_get_size(v, "absent", 4, 5, &n));
    assert_int_equal(n, 3);
    json_decref(v);
    static const char *const bad[] = {"{\"a\":1,\"a\":2}", "[1",      "[1] x",      "",
                                      "{\"a\":NaN}",       "[1e999]", "\"\\u0000\""};
    for (size_t i = 0; i < QB_COUNT(bad); i++)
        assert_int_equal(qb_json_parse(bad[i], strlen(bad[i]), 100, "t", &v), QB_ERR_FORMAT);
    char deep[300];
    memset(deep, '[', 150);
    memset(deep + 150, ']', 150);
    assert_int_equal(qb_json_parse(deep, 300, 1000, "t", &v), QB_ERR_FORMAT);
    assert_int_equal(qb_json_parse("[]", 2, 1, "t", &v), QB_ERR_FORMAT);
    enum { LISTS = (1 << 20) + 1, BYTES = 3 * LISTS + 1 };
    char *wide; /* [[],[],...] */
    QB_CHECK_OK(QB_NEW(&wide, BYTES, "text"));
    for (size_t i = 0; i < BYTES; i++) wide[i] = "[],"[(i + 2) % 3];
    wide[0] = '[';
    wide[BYTES - 1] = ']';
    assert_int_equal(qb_json_parse(wide, BYTES, BYTES, "t", &v), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "lists and objects"));
    qb_free(wide);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failing_call_keeps_one_line),
        cmocka_unit_test(allocation_counts_fails_and_aligns),
        cmocka_unit_test(blocks_are_counted_and_freed_together),
        cmocka_unit_test(f16_and_bf16_round_trip),
        cmocka_unit_test(f64_and_sizes),
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(spans_tile_the_whole),
        cmocka_unit_test(philox_matches_published_vectors),
        cmocka_unit_test(files_are_whole_or_absent),
        cmocka_unit_test(json_marks_are_those_outside_of_strings),
        cmocka_unit_test(json_limits),
        cmocka_unit_test(outputs_go_behind_links),
        cmocka_unit_test(temporary_names_are_not_shared),
        cmocka_unit_test(json_allocations_are_counted_and_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
