/* tests/unit/test_shards.c - token shards: round trips of both widths, every rule refused by name,
 * damage found. */
#include "support.h"

#include "core/memory.h"
#include "train/data/shards.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char sha_a[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
static const char sha_b[] = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";
static char path[64];

static int in_new_file(void **state)
{
    (void)state;
    strcpy(path, "/tmp/qb_shard_XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 || close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

static qb_shard_contents contents(size_t vocab)
{
    static int32_t tokens[200];
    static const uint64_t doc_end[] = {1, 80, 200};
    for (size_t i = 0; i < QB_COUNT(tokens); i++) tokens[i] = (int32_t)(i * 7919 % vocab);
    return (qb_shard_contents){.tokens = tokens,
                               .n_tokens = QB_COUNT(tokens),
                               .doc_end = doc_end,
                               .n_docs = QB_COUNT(doc_end),
                               .vocab = vocab,
                               .eos = 5,
                               .text_bytes = 777,
                               .tokenizer_sha256 = sha_a,
                               .text_sha256 = sha_b};
}

static void round_trip(void **state)
{
    (void)state;
    static const size_t vocabs[] = {6, 65536, 65537, 200000};
    for (size_t i = 0; i < QB_COUNT(vocabs); i++) {
        qb_shard_contents c = contents(vocabs[i]);
        char digest[65];
        QB_CHECK_OK(qb_shard_write(path, &c, digest));
        qb_shard s;
        QB_CHECK_OK(qb_shard_open(path, &s));
        QB_CHECK_OK(qb_shard_verify(&s));
        assert_int_equal(s.header.token_bytes, i < 2 ? 2 : 4);
        assert_int_equal(s.header.n_tokens, 200);
        assert_int_equal(s.header.eos, 5);
        assert_int_equal(s.header.text_bytes, 777);
        assert_memory_equal(s.header.tokenizer_sha256, sha_a, 64);
        assert_memory_equal(s.header.text_sha256, sha_b, 64);
        assert_memory_equal(s.header.digest, digest, 64);
        assert_memory_equal(s.doc_end, c.doc_end, 24);
        assert_int_equal((uintptr_t)s.tokens % QB_SHARD_ALIGN_BYTES, 0);
        int32_t got[200];
        QB_CHECK_OK(qb_shard_read(&s, 3, 197, got));
        assert_memory_equal(got, c.tokens + 3, 197 * sizeof *got);
        qb_shard_close(&s);
    }
    qb_shard_contents empty = contents(6);
    empty.n_tokens = empty.n_docs = 0;
    QB_CHECK_OK(qb_shard_write(path, &empty, NULL));
    qb_shard s;
    QB_CHECK_OK(qb_shard_open(path, &s));
    QB_CHECK_OK(qb_shard_verify(&s));
    qb_shard_close(&s);
    assert_int_equal(qb_memory_live_blocks(), 0);
}

/* The file of contents(100) as bytes that end before a guard page. */
typedef struct image {
    uint8_t *bytes;
    size_t n;
} image;

static image make_image(size_t n_cut)
{
    qb_shard_contents c = contents(100);
    QB_CHECK_OK(qb_shard_write(path, &c, NULL));
    qb_file file;
    QB_CHECK_OK(qb_file_open(path, &file));
    image m = {qb_test_guarded_alloc(file.bytes - n_cut), file.bytes - n_cut};
    memcpy(m.bytes, file.data, m.n);
    qb_file_close(&file);
    return m;
}

static qb_status parse(const image *m, qb_shard *s)
{
    return qb_shard_parse(&(qb_file){.data = m->bytes, .bytes = m->n, .path = (char *)"x.qbs"}, s);
}

static void every_rule_is_named(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint64_t value;
        size_t bytes;
        const char *message;
    } bad[] = {
        {0, 'X', 1, "expected a token shard"},
        {8, 2, 4, "version: found 2, expected 1"},
        {12, 4, 4, "bytes a token: found 4, expected 2"},
        {12, 0, 4, "bytes a token: found 0"},
        {16, 0, 4, "vocabulary: found 0"},
        {16, 0xffffffff, 4, "vocabulary: found 4294967295"},
        {20, 100, 4, "end-of-text token: found 100, expected -1 to 99"},
        {20, 0xfffffffe, 4, "end-of-text token: found -2"},
        {24, 4, 8, "the documents end at token|end of document 3|size"},
        {24, UINT64_MAX / 8, 8, "more than a file can hold"},
        {24, UINT64_MAX, 8, "more than a file can hold"},
        {32, 201, 8, "size: found 720 bytes, expected 722"},
        {32, UINT64_MAX / 2, 8, "more than a file can hold"},
        {48, 384, 8, "offset of the tokens: found 384, expected 320"},
        {56, 1, 8, "reserved field"},
        {64, 'g', 1, "expected a hexadecimal number"},
        {130, 'A', 1, "expected a hexadecimal number"},
        {255, 0, 1, "expected a hexadecimal number"},
        {256, 0, 8, "end of document 0: found 0, expected 1 to 200"},
        {264, 1, 8, "end of document 1: found 1, expected 2 to 200"},
        {272, 199, 8, "documents: found their end at token 199, expected 200"},
        {272, UINT64_MAX, 8, "end of document 2"},
    };
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        image m = make_image(0);
        memcpy(m.bytes + bad[i].at, &bad[i].value, bad[i].bytes);
        qb_shard s;
        qb_status status = parse(&m, &s);
        assert_true(status == QB_ERR_FORMAT || status == QB_ERR_UNSUPPORTED);
        char words[128], *word, *rest = words;
        strcpy(words, bad[i].message);
        bool found = false;
        while ((word = strsep(&rest, "|"))) found |= strstr(qb_error_message(), word) != NULL;
        if (!found)
            fail_msg("case %zu: found \"%s\", expected \"%s\"", i, qb_error_message(),
                     bad[i].message);
        assert_memory_equal(qb_error_message(), "x.qbs: ", 7);
        qb_test_guarded_free(m.bytes, m.n);
    }
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    for (size_t cut = 1; cut <= 720; cut += cut < 410 ? 1 : 37) {
        image m = make_image(cut);
        qb_shard s;
        assert_int_equal(parse(&m, &s), QB_ERR_FORMAT);
        qb_test_guarded_free(m.bytes, m.n);
    }
}

static void verify_finds_every_flipped_byte(void **state)
{
    (void)state;
    image m = make_image(0);
    for (size_t at = 0; at < m.n; at++) {
        m.bytes[at] ^= 1;
        qb_shard s;
        if (parse(&m, &s) == QB_OK) assert_int_equal(qb_shard_verify(&s), QB_ERR_FORMAT);
        m.bytes[at] ^= 1;
    }
    qb_shard s;
    QB_CHECK_OK(parse(&m, &s));
    QB_CHECK_OK(qb_shard_verify(&s));
    uint16_t outside = 100;
    memcpy(m.bytes + 320 + 2 * 50, &outside, 2);
    int32_t got[20];
    QB_CHECK_OK(qb_shard_read(&s, 30, 20, got));
    assert_int_equal(qb_shard_read(&s, 31, 20, got), QB_ERR_FORMAT);
    assert_non_null(strstr(qb_error_message(), "x.qbs: found token 100, expected at most 99"));
    qb_test_guarded_free(m.bytes, m.n);
}

static void failed_write_leaves_nothing(void **state)
{
    (void)state;
    qb_shard_contents c = contents(100);
    assert_int_equal(qb_shard_write("/nonexistent/x.qbs", &c, NULL), QB_ERR_IO);
    for (size_t n = 1; n < 8; n++) {
        qb_memory_fail_at(n);
        qb_status status = qb_shard_write("/tmp/qb_shard_never", &c, NULL);
        qb_memory_fail_at(0);
        if (status == QB_OK) {
            assert_true(n > 1);
            unlink("/tmp/qb_shard_never");
            assert_int_equal(qb_memory_live_blocks(), 0);
            return;
        }
        assert_int_equal(status, QB_ERR_MEMORY);
        assert_int_equal(access("/tmp/qb_shard_never", F_OK), -1);
    }
    fail_msg("more allocations than expected");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(every_rule_is_named),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(verify_finds_every_flipped_byte),
        cmocka_unit_test(failed_write_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, in_new_file, remove_file);
}
