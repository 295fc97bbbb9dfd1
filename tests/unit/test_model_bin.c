/* tests/unit/test_model_bin.c - model.bin: what is written comes back bit for bit, and nothing
 * half-written stays. */
#include "bin_models.h"
#include "support.h"

#include "core/memory.h"
#include "model/model_bin.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void what_is_written_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < QB_TEST_BIN_CASES; i++)
        for (int level = 0; level <= 9; level += 3) {
            const char *path = qb_test_in_folder("round.bin");
            qb_model *m = qb_test_bin_model(&qb_test_bin_cases[i]), *back;
            qb_model_bin_options options = {.zlib_level = level};
            QB_CHECK_OK(qb_model_bin_write(m, path, &options));
            QB_CHECK_OK(qb_test_bin_open(path, &back));
            assert_string_equal(back->format, "model.bin");
            qb_test_same_bin_model(m, back);
            size_t n = 0;
            QB_CHECK_OK(qb_model_bin_verify(path, &n));
            assert_true(n > QB_TEST_BIN_N_LAYERS * 8);
            qb_model_close(m);
            qb_model_close(back);
        }
}

static void equal_models_give_equal_bytes(void **state)
{
    (void)state;
    for (int level = 0; level < 2; level++) {
        qb_model *m = qb_test_bin_model(&qb_test_bin_cases[1]), *back;
        qb_model_bin_options options = {.zlib_level = level};
        QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("one.bin"), &options));
        QB_CHECK_OK(qb_test_bin_open(qb_test_in_folder("one.bin"), &back));
        QB_CHECK_OK(qb_model_bin_write(back, qb_test_in_folder("two.bin"), &options));
        qb_test_bytes a = qb_test_read_bytes(qb_test_in_folder("one.bin")),
                      b = qb_test_read_bytes(qb_test_in_folder("two.bin"));
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.data, b.data, a.n);
        qb_free(a.data);
        qb_free(b.data);
        qb_model_close(m);
        qb_model_close(back);
    }
}

static void zlib_makes_repetitive_weights_smaller(void **state)
{
    (void)state;
    qb_model *m = qb_test_bin_model(&qb_test_bin_cases[1]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("raw.bin"), NULL));
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("small.bin"),
                                   &(qb_model_bin_options){.zlib_level = 6}));
    struct stat raw, small;
    assert_int_equal(stat(qb_test_in_folder("raw.bin"), &raw), 0);
    assert_int_equal(stat(qb_test_in_folder("small.bin"), &small), 0);
    assert_true(small.st_size < raw.st_size / 2);
    qb_model_close(m);
}

static void floats_are_narrowed_on_request(void **state)
{
    (void)state;
    static const qb_dtype to[] = {QB_F32, QB_F16, QB_BF16};
    const char *path = qb_test_in_folder("narrow.bin");
    for (size_t i = 0; i < 6; i++)
        for (size_t t = 0; t < QB_COUNT(to); t++) {
            qb_model *m = qb_test_bin_model(&qb_test_bin_cases[i]), *back;
            qb_model_bin_options options = {.convert_floats = true, .float_dtype = to[t]};
            QB_CHECK_OK(qb_model_bin_write(m, path, &options));
            QB_CHECK_OK(qb_test_bin_open(path, &back));
            const qb_tensor *a = qb_model_tensor(m, QB_ROLE_DOWN, 1);
            const qb_tensor *b = qb_model_tensor(back, QB_ROLE_DOWN, 1);
            assert_int_equal(b->dtype, to[t]);
            assert_int_equal(qb_model_tensor(back, QB_ROLE_NORM_F, 0)->dtype, QB_F32);
            float x[2 * QB_TEST_BIN_D_MODEL], y[2 * QB_TEST_BIN_D_MODEL];
            for (size_t r = 0; r < a->rows; r++) {
                qb_tensor_rows_f32(a, r, 1, x);
                qb_tensor_rows_f32(b, r, 1, y);
                for (size_t k = 0; k < a->cols; k++) {
                    float want = to[t] == QB_F32   ? x[k]
                                 : to[t] == QB_F16 ? qb_f32_from_f16(qb_f16_from_f32(x[k]))
                                                   : qb_f32_from_bf16(qb_bf16_from_f32(x[k]));
                    assert_int_equal(qb_f32_bits(y[k]), qb_f32_bits(want));
                }
            }
            qb_model_close(m);
            qb_model_close(back);
        }
}

static void values_too_large_are_refused(void **state)
{
    (void)state;
    qb_model *m = qb_test_bin_model(&qb_test_bin_cases[0]);
    float *w = (float *)qb_model_tensor(m, QB_ROLE_DOWN, 1)->data;
    const char *path = qb_test_in_folder("large.bin");
    w[5] = 65520.0f; /* rounds to 65536, which f16 has not */
    qb_model_bin_options options = {.convert_floats = true, .float_dtype = QB_F16};
    assert_int_equal(qb_model_bin_write(m, path, &options), QB_ERR_UNSUPPORTED);
    assert_non_null(strstr(qb_error_message(), "h.1.mlp.down"));
    assert_int_equal(access(path, F_OK), -1);
    w[5] = 65519.0f;
    QB_CHECK_OK(qb_model_bin_write(m, path, &options));
    qb_model_close(m);
}

static void golden_models_come_back(void **state)
{
    (void)state;
    static const char *const golden[] = {"a-gpt2", "a-llama-gqa-tied", "a-llama-mha",
                                         "a-llama3-scaled"};
    for (size_t i = 0; i < QB_COUNT(golden); i++) {
        const char *from = qb_test_golden(golden[i]);
        if (!from) QB_SKIP("no golden qb_test_bin_cases");
        qb_model *m, *back;
        QB_CHECK_OK(qb_model_open(from, &m));
        QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("golden.bin"), NULL));
        QB_CHECK_OK(qb_model_open(qb_test_in_folder("golden.bin"), &back));
        qb_test_same_bin_model(m, back);
        qb_model_close(m);
        qb_model_close(back);
    }
}

/* A file of version 1 as the first writer made it, byte for byte: later readers must take it. */
static const char version_1_json[] =
    "{'architecture':{'arch':'gpt2','n_layers':1,'d_model':2,'n_heads':1,'n_kv_heads':1,'head_dim':"
    "2,'d_ff':1,"
    "'vocab':2,'context':4,'norm':'rmsnorm','norm_eps':1e-05,'act':'relu','pos':'none','softmax':'"
    "softmax1','attn_bias':false,'mlp_bias':false,'norm_bias':false,"
    "'tied_head':true,'fused_qkv':false},'name':'one','tensors':[{'name':'tok_embd','dtype':'f32','"
    "shape':[2,2],"
    "'offset':2048,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':1567524266},"
    "{'name':'h.0.norm1','dtype':'f32','shape':[2],"
    "'offset':2112,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':3733578258},"
    "{'name':'h.0.attn.q','dtype':'f32','shape':[2,2],"
    "'offset':2176,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':1579461987},"
    "{'name':'h.0.attn.k','dtype':'f32','shape':[2,2],"
    "'offset':2240,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':4055500680},"
    "{'name':'h.0.attn.v','dtype':'f32','shape':[2,2],"
    "'offset':2304,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':1020772188},"
    "{'name':'h.0.attn.o','dtype':'f32','shape':[2,2],"
    "'offset':2368,'bytes':16,'stored_bytes':16,'encoding':'raw','crc32':691749420},"
    "{'name':'h.0.norm2','dtype':'f32','shape':[2],"
    "'offset':2432,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':311387328},"
    "{'name':'h.0.mlp.up','dtype':'f32','shape':[2],"
    "'offset':2496,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':915542263},"
    "{'name':'h.0.mlp.down','dtype':'f32','shape':[2,1],"
    "'offset':2560,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':2139488317},"
    "{'name':'norm_f','dtype':'f32','shape':[2],"
    "'offset':2624,'bytes':8,'stored_bytes':8,'encoding':'raw','crc32':2763665763}]}";

static void version_1_stays_readable(void **state)
{
    (void)state;
    enum { JSON_BYTES = 1984, TOTAL = 2720, N = 10 };
    static const uint8_t n_floats[N] = {4, 2, 4, 4, 4, 4, 2, 2, 2, 2};
    static const uint8_t digest[32] = {0xaa, 0x28, 0xd7, 0x4d, 0x6c, 0xc1, 0xc8, 0x2f,
                                       0xe9, 0xdb, 0x74, 0xe2, 0x76, 0x46, 0xc3, 0x77,
                                       0x49, 0xff, 0xae, 0x9e, 0x22, 0xbd, 0xf4, 0x68,
                                       0x20, 0xc5, 0x9d, 0x0f, 0x6d, 0x9f, 0x05, 0x0d};
    uint8_t file[TOTAL] = "QBENCH";
    const uint64_t header[] = {1 | 0x87e5f51eull << 32, /* version, CRC-32 of the JSON */
                               JSON_BYTES, N, TOTAL, TOTAL - 32};
    memcpy(file + 8, header, sizeof header);
    memset(file + 64, ' ', JSON_BYTES);
    for (size_t i = 0; version_1_json[i]; i++)
        file[64 + i] = version_1_json[i] == '\'' ? '"' : (uint8_t)version_1_json[i];
    int value = 0;
    for (size_t t = 0; t < N; t++)
        for (size_t i = 0; i < n_floats[t]; i++) {
            float x = 0.5f * (float)value++;
            memcpy(file + 2048 + 64 * t + 4 * i, &x, 4);
        }
    memcpy(file + TOTAL - 32, digest, 32);
    const char *path = qb_test_in_folder("v1.bin");
    QB_CHECK_OK(qb_file_write_whole(path, file, TOTAL));
    size_t n = 0;
    QB_CHECK_OK(qb_model_bin_verify(path, &n));
    assert_int_equal(n, N);
    qb_model *m;
    QB_CHECK_OK(qb_test_bin_open(path, &m));
    assert_string_equal(m->name, "one");
    assert_int_equal(m->config.softmax, QB_SOFTMAX1);
    assert_null(m->tokenizer);
    float x[2];
    qb_tensor_rows_f32(qb_model_tensor(m, QB_ROLE_NORM_F, 0), 0, 1, x);
    assert_true(x[0] == 14.0f && x[1] == 14.5f);
    qb_model_close(m);
}

/* The folder holds `path` (or not) and nothing that was begun beside it. */
static void check_left(const char *path, bool expected)
{
    char tmp[300];
    snprintf(tmp, sizeof tmp, "%s.tmp.%ld", path, (long)getpid());
    assert_int_equal(access(tmp, F_OK), -1);
    assert_int_equal(access(path, F_OK), expected ? 0 : -1);
}

/* With sanitizers, under which a write takes ten times as long, at every 17th allocation. */
static void a_failed_write_leaves_no_file(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    enum { STEP = 17 };
#else
    enum { STEP = 1 };
#endif
    for (int level = 0; level < 2; level++) {
        qb_model *m = qb_test_bin_model(&qb_test_bin_cases[11]);
        char path[256];
        snprintf(path, sizeof path, "%s/failed%d.bin", qb_test_folder(), level);
        qb_model_bin_options options = {level, true, QB_F16, 2};
        size_t n = 1, blocks = qb_memory_live_blocks();
        for (;; n += STEP) {
            qb_memory_fail_at(n);
            qb_status status = qb_model_bin_write(m, path, &options);
            qb_memory_fail_at(0);
            assert_int_equal(qb_memory_live_blocks(), blocks);
            if (status == QB_OK) break;
            assert_int_equal(status, QB_ERR_MEMORY);
            check_left(path, false);
        }
        assert_true(n > 20);
        check_left(path, true);
        QB_CHECK_OK(qb_model_bin_verify(path, NULL));
        /* A later failure leaves the good file as it was. */
        qb_memory_fail_at(n / 2);
        assert_int_equal(qb_model_bin_write(m, path, &options), QB_ERR_MEMORY);
        qb_memory_fail_at(0);
        check_left(path, true);
        QB_CHECK_OK(qb_model_bin_verify(path, NULL));
        qb_model_close(m);
    }
    assert_int_equal(qb_model_bin_write(NULL, "x", &(qb_model_bin_options){.zlib_level = 10}),
                     QB_ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_comes_back),
        cmocka_unit_test(equal_models_give_equal_bytes),
        cmocka_unit_test(zlib_makes_repetitive_weights_smaller),
        cmocka_unit_test(floats_are_narrowed_on_request),
        cmocka_unit_test(values_too_large_are_refused),
        cmocka_unit_test(golden_models_come_back),
        cmocka_unit_test(version_1_stays_readable),
        cmocka_unit_test(a_failed_write_leaves_no_file),
    };
    return cmocka_run_group_tests(tests, qb_test_make_folder, qb_test_remove_folder);
}
