/* tests/unit/test_safetensors.c - every rule of the container refused by name, round trips, and
 * damaged files. */
#include "support.h"

#include "core/file.h"
#include "core/memory.h"
#include "model/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A file in memory: its parse sees exactly these bytes, with a guard page after them. */
static qb_status parse_bytes(const void *data, size_t bytes, qb_safetensors **out)
{
    static uint8_t *guarded;
    static size_t guarded_bytes;
    if (guarded) qb_test_guarded_free(guarded, guarded_bytes);
    guarded = qb_test_guarded_alloc(bytes);
    guarded_bytes = bytes;
    memcpy(guarded, data, bytes);
    static qb_file file; /* outlives the result, as the contract asks */
    file = (qb_file){.data = guarded, .bytes = bytes, .path = (char *)"x.safetensors"};
    return qb_safetensors_parse(&file, out);
}

static size_t make_file(const char *json, size_t json_bytes, size_t data_bytes, uint8_t *out)
{
    memset(out, 0, 8 + json_bytes + data_bytes);
    for (int i = 0; i < 8; i++) out[i] = (uint8_t)((uint64_t)json_bytes >> 8 * i);
    memcpy(out + 8, json, json_bytes);
    for (size_t i = 0; i < data_bytes; i++) out[8 + json_bytes + i] = (uint8_t)i;
    return 8 + json_bytes + data_bytes;
}

static void accepts_what_the_format_allows(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        size_t data_bytes, n_tensors;
    } good[] = {
        {"{}", 0, 0},
        {" \n {\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}  \n", 8, 1},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, 1},
        {"{\"a\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[0,0]}}", 0, 1},
        {"{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[1,2],"
         "\"data_offsets\":[1,5]},\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]"
         "}}",
         5, 2},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[0,3]}}", 3, 1},
    };
    uint8_t bytes[1024];
    for (size_t i = 0; i < QB_COUNT(good); i++) {
        size_t n = make_file(good[i].json, strlen(good[i].json), good[i].data_bytes, bytes);
        qb_safetensors *st;
        QB_CHECK_OK(parse_bytes(bytes, n, &st));
        assert_int_equal(qb_safetensors_n_tensors(st), good[i].n_tensors);
        assert_null(qb_safetensors_find(st, "absent"));
        if (good[i].n_tensors) assert_non_null(qb_safetensors_find(st, "a"));
        qb_safetensors_close(st);
    }
}

#define ENTRY(name, dtype, shape, offsets)                                                         \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void refuses_each_broken_rule_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        size_t data_bytes;
        const char *message;
    } bad[] = {
        {"", 0, "JSON"},
        {"[]", 0, "found another kind of JSON"},
        {"{", 0, "JSON"},
        {"{} x", 0, "JSON"},
        {"{\"a\xff\":1}", 0, "JSON"},
        {"{\"a\":NaN}", 0, "JSON"},
        {"{" ENTRY("a", "U8", "[1]", "[0,1]") "," ENTRY("a", "U8", "[1]", "[0,1]") "}", 1,
         "duplicate"},
        {"{\"__metadata__\":{\"n\":1}}", 0, "__metadata__"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{\"a\":1}", 0, "dtype"},
        {"{" ENTRY("a", "F31", "[1]", "[0,4]") "}", 4, "F31"},
        {"{" ENTRY("a", "F32", "[-1]", "[0,4]") "}", 4, "shape[0]"},
        {"{" ENTRY("a", "F32", "[1.0]", "[0,4]") "}", 4, "shape[0]"},
        {"{" ENTRY("a", "F32", "[1e308]", "[0,4]") "}", 4, "shape[0]"},
        {"{" ENTRY("a", "F32", "[99999999999999999999]", "[0,4]") "}", 4, "JSON"},
        {"{" ENTRY("a", "F32", "\"x\"", "[0,4]") "}", 4, "shape"},
        {"{" ENTRY("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0, "overflow"},
        {"{" ENTRY("a", "F32", "[1152921504606846976]", "[0,0]") "}", 0, "overflow"},
        {"{" ENTRY("a", "F32", "[1]", "[0,3]") "}", 3, "size"},
        {"{" ENTRY("a", "F4", "[1]", "[0,1]") "}", 1, "whole bytes"},
        {"{" ENTRY("a", "F32", "[1]", "[4,0]") "}", 4, "before begin"},
        {"{" ENTRY("a", "F32", "[1]", "[0]") "}", 4, "data_offsets"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4.5]") "}", 4, "data_offsets"},
        {"{" ENTRY("a", "F32", "[1]", "[-4,0]") "}", 4, "data_offsets"},
        {"{" ENTRY("a", "F32", "[2]", "[0,8]") "}", 4, "truncated"},
        {"{" ENTRY("a", "F32", "[1]", "[1,5]") "}", 5, "offset hole before tensor a"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "," ENTRY("b", "F32", "[1]", "[2,6]") "}", 6,
         "offset overlap at tensor b"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "}", 5, "trailing bytes"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "keys"},
        {"{" ENTRY("a\\u0000b", "U8", "[1]", "[0,1]") "}", 1, "JSON"},
        {"{" ENTRY("a", "U8", "[0,0,0,0,0,0,0,0,0]", "[0,0]") "}", 0, "rank"},
    };
    uint8_t bytes[1024];
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        size_t n = make_file(bad[i].json, strlen(bad[i].json), bad[i].data_bytes, bytes);
        qb_safetensors *st = NULL;
        qb_status status = parse_bytes(bytes, n, &st);
        if (status == QB_OK || !strstr(qb_error_message(), bad[i].message))
            fail_msg("%s: expected \"%s\", found \"%s\"", bad[i].json, bad[i].message,
                     status ? qb_error_message() : "accepted");
        assert_int_equal(qb_status_exit_code(status), 3);
        assert_non_null(strstr(qb_error_message(), "x.safetensors: "));
    }
}

static void refuses_headers_that_do_not_fit(void **state)
{
    (void)state;
    uint8_t bytes[64] = {0};
    qb_safetensors *st;
    for (size_t n = 1; n < 8; n++) {
        assert_int_equal(parse_bytes(bytes, n, &st), QB_ERR_FORMAT);
        assert_non_null(strstr(qb_error_message(), "header too small"));
    }
    memset(bytes, 0xff, 8);
    assert_int_equal(parse_bytes(bytes, 64, &st), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "header too large"));
    make_file("{}", 2, 0, bytes);
    bytes[0] = 3;
    assert_int_equal(parse_bytes(bytes, 10, &st), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "invalid header length"));
}

/* A header that is legal text but asks for far more memory than its size. */
static void refuses_hostile_json_cheaply(void **state)
{
    (void)state;
    enum { N = 6 << 20 };
    uint8_t *bytes = malloc(N + 8);
    char *json = malloc(N);
    static const char *const patterns[] = {"[", "[],", "{\"a\":", "\"\","};
    for (size_t p = 0; p < QB_COUNT(patterns); p++) {
        size_t len = strlen(patterns[p]);
        for (size_t i = 0; i < N; i++) json[i] = patterns[p][i % len];
        json[0] = p == 3 ? '[' : json[0];
        size_t n = make_file(json, N, 0, bytes), peak = qb_memory_peak_bytes();
        qb_safetensors *st;
        assert_int_equal(parse_bytes(bytes, n, &st), QB_ERR_FORMAT);
        assert_true(qb_memory_peak_bytes() < peak + (60u << 20));
    }
    free(json);
    free(bytes);
}

/* Any damage gives a result or a one-line error; under the sanitizer this finds stray reads. */
static void damage_never_crashes(void **state)
{
    (void)state;
    static const char json[] =
        "{\"__metadata__\":{\"format\":\"pt\"}," ENTRY("b", "F32", "[2,3]", "[6,30]") "," ENTRY(
            "a", "F16", "[3]", "[0,6]") "," ENTRY("c", "I32", "[]", "[30,34]") "}";
    uint8_t good[512], bytes[512];
    size_t n = make_file(json, strlen(json), 34, good);
    qb_safetensors *st;
    QB_CHECK_OK(parse_bytes(good, n, &st));
    qb_safetensors_close(st);
    for (size_t cut = 0; cut < n; cut++)
        assert_int_equal(parse_bytes(good, cut, &st), QB_ERR_FORMAT);
    size_t refused = 0;
    for (uint32_t flip = 0; flip < 1000; flip++) {
        uint32_t where[1];
        qb_test_fill_bytes(where, sizeof where, flip);
        memcpy(bytes, good, n);
        bytes[where[0] % n] ^= (uint8_t)(1u << (where[0] >> 28 & 7));
        qb_status status = parse_bytes(bytes, n, &st);
        if (status == QB_OK) {
            for (size_t i = 0; i < qb_safetensors_n_tensors(st); i++) {
                float f[64];
                const qb_st_tensor *t = qb_safetensors_get(st, i);
                assert_true(t->bytes <= 34);
                qb_st_tensor_to_f32(t, f);
            }
            qb_safetensors_close(st);
        } else {
            refused++;
            assert_null(strchr(qb_error_message(), '\n'));
        }
    }
    assert_true(refused > 500);
}

static void writes_what_it_reads(void **state)
{
    (void)state;
    const float f[6] = {1, 2, 3, 4, 5, 6};
    const int32_t tokens[4] = {7, -8, 9, 2147483647};
    const int8_t codes[3] = {-127, 0, 127};
    const qb_st_entry entries[] = {
        {"codes", QB_S8, 1, {3}, codes},
        {"tokens", QB_S32, 2, {2, 2}, tokens},
        {"logits", QB_F32, 3, {1, 2, 3}, f},
        {"empty", QB_F32, 2, {0, 5}, f},
    };
    char path[64];
    snprintf(path, sizeof path, "/tmp/qb_test_st.%ld.safetensors", (long)getpid());
    json_t *metadata = json_pack("{s:s}", "made by", "test");
    QB_CHECK_OK(qb_safetensors_write(path, entries, QB_COUNT(entries), metadata));
    json_decref(metadata);
    qb_safetensors *st;
    QB_CHECK_OK(qb_safetensors_open(path, &st));
    assert_string_equal(json_string_value(json_object_get(qb_safetensors_metadata(st), "made by")),
                        "test");
    assert_int_equal(qb_safetensors_n_tensors(st), 4);
    assert_string_equal(qb_safetensors_get(st, 3)->name, "codes"); /* smallest alignment last */
    for (size_t i = 0; i < QB_COUNT(entries); i++) {
        const qb_st_tensor *t = qb_safetensors_find(st, entries[i].name);
        assert_non_null(t);
        assert_int_equal(t->as, entries[i].dtype);
        assert_int_equal(t->rank, entries[i].rank);
        assert_memory_equal(t->shape, entries[i].shape, t->rank * sizeof(size_t));
        if (t->bytes) assert_memory_equal(t->data, entries[i].data, t->bytes);
    }
    int32_t back[4];
    float back_f[6];
    QB_CHECK_OK(qb_st_tensor_to_s32(qb_safetensors_find(st, "tokens"), back));
    assert_memory_equal(back, tokens, sizeof tokens);
    QB_CHECK_OK(qb_st_tensor_to_s32(qb_safetensors_find(st, "codes"), back));
    assert_int_equal(back[0], -127);
    QB_CHECK_OK(qb_st_tensor_to_f32(qb_safetensors_find(st, "logits"), back_f));
    assert_memory_equal(back_f, f, sizeof f);
    assert_int_equal(qb_st_tensor_to_f32(qb_safetensors_find(st, "tokens"), back_f), QB_ERR_FORMAT);
    qb_safetensors_close(st);
    unlink(path);
    const qb_st_entry block = {"q", QB_Q8_0, 1, {32}, f};
    assert_int_equal(qb_safetensors_write(path, &block, 1, NULL), QB_ERR_UNSUPPORTED);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void every_failing_allocation_is_clean(void **state)
{
    (void)state;
    static const char json[] = "{" ENTRY("a", "F32", "[2]", "[0,8]") "}";
    uint8_t bytes[256];
    size_t n = make_file(json, strlen(json), 8, bytes), live = qb_memory_live_blocks();
    for (size_t at = 1;; at++) {
        qb_safetensors *st;
        qb_memory_fail_at(at);
        qb_status status = parse_bytes(bytes, n, &st);
        qb_memory_fail_at(0);
        if (status == QB_OK) {
            qb_safetensors_close(st);
            assert_true(at > 3);
            break;
        }
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(qb_memory_live_blocks(), live);
    }
}

static void golden_files_open(void **state)
{
    (void)state;
    const char *path = qb_test_golden("a-llama3-scaled/golden.safetensors");
    if (!path) QB_SKIP("no golden files");
    qb_safetensors *st;
    QB_CHECK_OK(qb_safetensors_open(path, &st));
    size_t n;
    int32_t *want = qb_test_safetensor(path, "tokens", "I32", &n);
    const qb_st_tensor *t = qb_safetensors_find(st, "tokens");
    assert_int_equal(t->n_elems, n);
    int32_t *got = malloc(n * 4);
    QB_CHECK_OK(qb_st_tensor_to_s32(t, got));
    assert_memory_equal(got, want, n * 4);
    free(got);
    qb_free(want);
    qb_safetensors_close(st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_what_the_format_allows),
        cmocka_unit_test(refuses_each_broken_rule_by_name),
        cmocka_unit_test(refuses_headers_that_do_not_fit),
        cmocka_unit_test(refuses_hostile_json_cheaply),
        cmocka_unit_test(damage_never_crashes),
        cmocka_unit_test(writes_what_it_reads),
        cmocka_unit_test(every_failing_allocation_is_clean),
        cmocka_unit_test(golden_files_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
