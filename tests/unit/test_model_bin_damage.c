/* tests/unit/test_model_bin_damage.c - model.bin: every damaged or hostile file is refused with a
 * message that names the rule. */
#include "bin_models.h"
#include "support.h"

#include "core/memory.h"
#include "core/rng.h"
#include "model/model_bin.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- files as bytes ---- */

static uint64_t get_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static void put_u64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, 8);
}

/* What an attacker would do after a change: all checksums but the payloads' fit again. */
static void fix_checksums(qb_test_bytes *b)
{
    uint32_t crc = qb_crc32(b->data + 64, get_u64(b->data + 16));
    memcpy(b->data + 12, &crc, 4);
    char hex[65];
    QB_CHECK_OK(qb_sha256_hex(b->data, b->n - 32, hex));
    for (size_t i = 0; i < 32; i++) {
        const char byte[3] = {hex[2 * i], hex[2 * i + 1], 0};
        b->data[b->n - 32 + i] = (uint8_t)strtoul(byte, NULL, 16);
    }
}

/* Writes the bytes and expects verify and open to refuse them with `rule` in the message. */
static void expect_refused(const qb_test_bytes *b, const char *rule)
{
    const char *path = qb_test_in_folder("hostile.bin");
    QB_CHECK_OK(qb_file_write_whole(path, b->data, b->n));
    size_t blocks = qb_memory_live_blocks();
    qb_model *m = NULL;
    assert_int_equal(qb_test_bin_open(path, &m), QB_ERR_FORMAT);
    if (!strstr(qb_error_message(), rule))
        fail_msg("expected \"%s\" in: %s", rule, qb_error_message());
    assert_non_null(strstr(qb_error_message(), path));
    assert_int_equal(qb_model_bin_verify(path, NULL), QB_ERR_FORMAT);
    assert_int_equal(qb_memory_live_blocks(), blocks);
}

/* ---- damage ---- */

/* No bit of the file is unprotected: verify finds each flip, and open all but those in the digest,
 * which protects nothing but itself. */
static void every_flip_is_found(void **state)
{
    (void)state;
    enum { FLIPS = 1000 };
    const qb_test_bin_case *models[] = {&qb_test_bin_cases[1], &qb_test_bin_cases[11]};
    const char *path = qb_test_in_folder("flip.bin");
    for (int level = 0; level < 2; level++) {
        qb_model *m = qb_test_bin_model(models[level]), *back;
        QB_CHECK_OK(qb_model_bin_write(m, path, &(qb_model_bin_options){.zlib_level = level}));
        qb_test_bytes b = qb_test_read_bytes(path);
        int fd = open(path, O_WRONLY);
        assert_true(fd >= 0);
        for (uint64_t i = 0; i < FLIPS; i++) {
            size_t bit = qb_rng_below(42, QB_STREAM_TEST, i, b.n * 8), at = bit / 8;
            if (i < 64 * 8) at = i / 8, bit = i; /* every bit of the header and of the digest */
            if (i >= FLIPS - 32 * 8) at = b.n - (FLIPS - i - 1) / 8 - 1, bit = i;
            uint8_t flipped = b.data[at] ^ (uint8_t)(1u << bit % 8);
            assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
            assert_int_equal(qb_model_bin_verify(path, NULL), QB_ERR_FORMAT);
            qb_status status = qb_test_bin_open(path, &back);
            assert_int_equal(status == QB_OK, at >= b.n - 32);
            if (status == QB_OK) {
                qb_test_same_bin_model(m, back);
                qb_model_close(back);
            }
            assert_int_equal(pwrite(fd, &b.data[at], 1, (off_t)at), 1);
        }
        close(fd);
        QB_CHECK_OK(qb_model_bin_verify(path, NULL)); /* all flips were taken back */
        qb_free(b.data);
        qb_model_close(m);
    }
}

static void every_truncation_is_found(void **state)
{
    (void)state;
    const char *path = qb_test_in_folder("short.bin");
    qb_model *m = qb_test_bin_model(&qb_test_bin_cases[8]), *back;
    QB_CHECK_OK(qb_model_bin_write(m, path, NULL));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (off_t n = st.st_size - 1; n >= 0; n--) {
        assert_int_equal(truncate(path, n), 0);
        if (qb_test_bin_open(path, &back) != QB_ERR_FORMAT ||
            !strstr(qb_error_message(), "truncated"))
            fail_msg("%lld bytes: %s", (long long)n, qb_error_message());
    }
    qb_model_close(m);
}

static void bytes_after_the_end_are_refused(void **state)
{
    (void)state;
    qb_model *m = qb_test_bin_model(&qb_test_bin_cases[0]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("long.bin"), NULL));
    qb_test_bytes b = qb_test_read_bytes(qb_test_in_folder("long.bin"));
    qb_test_bytes longer = {.n = b.n + 64};
    QB_CHECK_OK(qb_alloc_zero((void **)&longer.data, longer.n, 1, "file"));
    memcpy(longer.data, b.data, b.n);
    expect_refused(&longer, "bytes after the end");
    put_u64(longer.data + 32, longer.n);
    put_u64(longer.data + 40, longer.n - 32);
    expect_refused(&longer, "payloads: found their end at");
    qb_free(longer.data);
    qb_free(b.data);
    qb_model_close(m);
}

/* A change of the JSON that keeps its length: `from` becomes `to`, spaces fill up. */
static bool replace_in_json(qb_test_bytes *b, const char *from, const char *to)
{
    size_t n = get_u64(b->data + 16), from_n = strlen(from), to_n = strlen(to);
    char *json = (char *)b->data + 64;
    char *at = memmem(json, n, from, from_n);
    if (!at) return false;
    size_t after = (size_t)(json + n - at) - from_n, end = n;
    while (to_n > from_n && end > 0 && json[end - 1] == ' ' && n - end < to_n - from_n) end--;
    if (to_n > from_n && n - end < to_n - from_n) return false;
    size_t move = to_n > from_n ? after - (to_n - from_n) : after;
    memmove(at + to_n, at + from_n, move);
    memcpy(at, to, to_n);
    if (to_n < from_n) memset(json + n - (from_n - to_n), ' ', from_n - to_n);
    return true;
}

static void hostile_json_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *rule;
    } changes[] = {
        {"\"dtype\":\"f32\"", "\"dtype\":\"f99\"", "dtype: found"},
        {"\"dtype\":\"f32\"", "\"dtype\":\"s32\"", "expected a float type"},
        {"\"dtype\":\"f32\"", "\"dtype\":\"f16\"", "expected its size"},
        {"\"shape\":[40,30]", "\"shape\":[30,40]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[4,300]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[40,-3]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[40, 0]", "shape"},
        {"\"shape\":[40,30]", "\"shape\":[]", "dimensions"},
        {"\"shape\":[40,30]", "\"shape\":[1,1,2]", "dimensions"},
        {"\"bytes\":4800", "\"bytes\":4801", "expected its size"},
        {"\"stored_bytes\":4800", "\"stored_bytes\":4736", "stored bytes"},
        {"\"offset\":", "\"offset\":1", "offset: found"},
        {"\"encoding\":\"raw\"", "\"encoding\":\"xyz\"", "encoding"},
        {"\"encoding\":\"raw\"", "\"encoding\":7", "expected a string"},
        {"\"encoding\":\"raw\"", "\"encodinG\":\"raw\"", "found none"},
        {"\"name\":\"tok_embd\"", "\"name\":\"pos_embd\"", "twice"},
        {"\"name\":\"norm_f\"", "\"name\":\"norm_g\"", "missing"},
        {"\"name\":\"h.1.attn.o\"", "\"name\":\"h.7.attn.o\"", "missing"},
        {"\"name\":\"h.1.attn.o\"", "\"name\":\"h.0.attn.o\"", "twice"},
        {"h.0.attn.o.scale", "h.0.attn.o.scalf", "found no h.0"},
        {"h.0.attn.o.zero_point", "h.0.attn.o.zero_poinu", "found no h.0"},
        {"h.0.attn.o.fill", "h.0.attn.o.film", "no such tensor"},
        {"\"axis\":\"group\"", "\"axis\":\"grope\"", "quant axis"},
        {"\"axis\":\"group\"", "\"axis\":\"out\"", "expected (96) f32"},
        {"\"bits\":4", "\"bits\":8", "expected 8 as s8 or 4 as u4"},
        {"\"bits\":4", "\"bits\":5", "expected 8 as s8 or 4 as u4"},
        {"\"group\":24", "\"group\":0", "key \"group\""},
        {"\"group\":24", "\"group\":31", "expected (96) f32"},
        {"\"group\":24", "\"group\":12", "expected ("},
        {"\"n_layers\":2", "\"n_layers\":1", "no such tensor"},
        {"\"n_layers\":2", "\"n_layers\":3", "missing"},
        {"\"n_layers\":2", "\"n_layers\":0", "n_layers"},
        {"\"vocab\":40", "\"vocab\":41", "expected (41, 30)"},
        {"\"name\":\"the name\"", "\"name\":17", "expected a string"},
        {"\"training\":{", "\"training\":[", "JSON"},
        {"\"crc32\":", "\"crc32\":-", "crc32"},
        {"\"tensors\":[", "\"tensorz\":[", "payload table"},
        {"{", "[", "JSON"},
        {"\"pre\":\"gpt-2\"", "\"sha256\":\"0\"", "JSON"},
    };
    const qb_test_bin_case group = {"gpt2", 30, QB_U4, QB_AXIS_GROUP, false, false};
    qb_model *m = qb_test_bin_model(&group);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("good.bin"), NULL));
    for (size_t i = 0; i < QB_COUNT(changes); i++) {
        qb_test_bytes b = qb_test_read_bytes(qb_test_in_folder("good.bin"));
        if (!replace_in_json(&b, changes[i].from, changes[i].to))
            fail_msg("no %s in the file", changes[i].from);
        fix_checksums(&b);
        expect_refused(&b, changes[i].rule);
        qb_free(b.data);
    }
    qb_model_close(m);
}

static void hostile_headers_are_refused(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint64_t value;
        const char *rule;
    } changes[] = {
        {0, 0x48434e454258ull, "magic"},
        {8, 2, "format version"},
        {8, 0, "format version"},
        {16, UINT64_MAX, "JSON length"},
        {16, (uint64_t)1 << 40, "JSON length"},
        {24, 0, "payload table"},
        {24, UINT64_MAX, "payload table"},
        {32, UINT64_MAX, "truncated"},
        {32, 64, "bytes after the end"},
        {40, 0, "digest offset"},
        {40, UINT64_MAX, "digest offset"},
        {48, 1, "reserved"},
    };
    qb_model *m = qb_test_bin_model(&qb_test_bin_cases[0]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("good.bin"), NULL));
    for (size_t i = 0; i < QB_COUNT(changes); i++) {
        qb_test_bytes b = qb_test_read_bytes(qb_test_in_folder("good.bin"));
        uint64_t json_crc_word = get_u64(b.data + 8);
        put_u64(b.data + changes[i].at, changes[i].value);
        if (changes[i].at == 8) /* the version is a u32, the JSON's CRC stands after it */
            put_u64(b.data + 8, (json_crc_word & ~(uint64_t)UINT32_MAX) | changes[i].value);
        expect_refused(&b, changes[i].rule);
        qb_free(b.data);
    }
    qb_model_close(m);
}

/* A scale that is no number, codes past the last column, a broken deflate stream: with CRCs that
 * fit, made by writing a model that has them. */
static void hostile_payloads_are_refused(void **state)
{
    (void)state;
    static const float bad_scales[] = {-1.0f, INFINITY, NAN};
    const char *path = qb_test_in_folder("payload.bin");
    for (size_t i = 0; i <= QB_COUNT(bad_scales); i++) {
        const qb_test_bin_case odd = {"gpt2", 31, QB_U4, QB_AXIS_OUT, false, false};
        qb_model *m = qb_test_bin_model(&odd);
        const qb_tensor_quant *q = &qb_model_tensor(m, QB_ROLE_UP, 1)->quant;
        if (i < QB_COUNT(bad_scales))
            ((float *)q->scale)[3] = bad_scales[i];
        else
            ((float *)q->fill)[3] = NAN;
        QB_CHECK_OK(qb_model_bin_write(m, path, NULL));
        qb_test_bytes b = qb_test_read_bytes(path);
        expect_refused(&b, i < QB_COUNT(bad_scales) ? "scale[3]" : "fill[3]");
        qb_free(b.data);
        qb_model_close(m);
    }
}

static void spare_nibbles_and_broken_streams_are_refused(void **state)
{
    (void)state;
    const qb_test_bin_case odd = {"gpt2", 31, QB_U4, QB_AXIS_OUT, false, false};
    qb_model *m = qb_test_bin_model(&odd);
    const qb_tensor *t = qb_model_tensor(m, QB_ROLE_UP, 0);
    ((uint8_t *)t->data)[2 * 16 - 1] |= 0x10; /* row 1, column 31 of 31 */
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("payload.bin"), NULL));
    qb_test_bytes b = qb_test_read_bytes(qb_test_in_folder("payload.bin"));
    expect_refused(&b, "row 1: found a code past the last column");
    qb_free(b.data);
    qb_model_close(m);

    /* One chunk that inflates to fewer bytes than it should; its CRC is of what is stored. */
    m = qb_test_bin_model(&qb_test_bin_cases[1]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("payload.bin"),
                                   &(qb_model_bin_options){.zlib_level = 9}));
    b = qb_test_read_bytes(qb_test_in_folder("payload.bin"));
    assert_true(replace_in_json(&b, "\"shape\":[40,32]", "\"shape\":[80,32]"));
    assert_true(replace_in_json(&b, "\"bytes\":5120", "\"bytes\":10240"));
    assert_true(replace_in_json(&b, "\"vocab\":40", "\"vocab\":80"));
    fix_checksums(&b);
    expect_refused(&b, "expected those declared");
    assert_true(replace_in_json(&b, "\"chunks\":[", "\"chunks\":[1")); /* 34 becomes 134 */
    fix_checksums(&b);
    expect_refused(&b, "bytes in all");
    qb_free(b.data);
    qb_model_close(m);
}

/* Sizes that no deflate stream of that length can have are refused before anything is allocated. */
static void a_deflate_bomb_allocates_nothing(void **state)
{
    (void)state;
    qb_model *m = qb_test_bin_model(&qb_test_bin_cases[1]);
    QB_CHECK_OK(qb_model_bin_write(m, qb_test_in_folder("bomb.bin"),
                                   &(qb_model_bin_options){.zlib_level = 9}));
    qb_test_bytes b = qb_test_read_bytes(qb_test_in_folder("bomb.bin"));
    assert_true(replace_in_json(&b, "\"shape\":[40,32]", "\"shape\":[400000,32]"));
    assert_true(replace_in_json(&b, "\"bytes\":5120", "\"bytes\":51200000"));
    fix_checksums(&b);
    expect_refused(&b, "chunks: found 1, expected 49");
    assert_true(replace_in_json(&b, "\"chunk_bytes\":1048576", "\"chunk_bytes\":67108864"));
    fix_checksums(&b);
    size_t peak = qb_memory_peak_bytes();
    expect_refused(&b, "for 51200000, expected at most");
    assert_int_equal(qb_memory_peak_bytes(), peak);
    qb_free(b.data);
    qb_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_flip_is_found),
        cmocka_unit_test(every_truncation_is_found),
        cmocka_unit_test(bytes_after_the_end_are_refused),
        cmocka_unit_test(hostile_json_is_refused),
        cmocka_unit_test(hostile_headers_are_refused),
        cmocka_unit_test(hostile_payloads_are_refused),
        cmocka_unit_test(spare_nibbles_and_broken_streams_are_refused),
        cmocka_unit_test(a_deflate_bomb_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, qb_test_make_folder, qb_test_remove_folder);
}
