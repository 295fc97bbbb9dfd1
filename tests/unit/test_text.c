/* tests/unit/test_text.c - texts of every kind: documents, compression, JSON lines, limits. */
#include "support.h"

#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"
#include "model/text.h"

#include <fcntl.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

static const char *temp_path(const char *suffix)
{
    static char path[96];
    snprintf(path, sizeof path, "/tmp/qb_test_text.%ld%s", (long)getpid(), suffix);
    return path;
}

static qb_status open_bytes(const char *suffix, const void *data, size_t n, size_t max_bytes,
                            qb_text *out)
{
    const char *path = temp_path(suffix);
    QB_CHECK_OK(qb_file_write_whole(path, data, n));
    qb_status status = qb_text_open(path, max_bytes, out);
    unlink(path);
    return status;
}

/* The documents, joined by '|'. */
static void check_documents(const qb_text *text, const char *expected)
{
    char got[256] = "";
    size_t start = 0;
    for (size_t i = 0; i < text->n_docs; start = text->doc_end[i++])
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%.*s", i ? "|" : "",
                 (int)(text->doc_end[i] - start), text->bytes + start);
    assert_string_equal(got, expected);
    assert_int_equal(text->n_docs ? text->doc_end[text->n_docs - 1] : 0, text->n_bytes);
}

static size_t gzip(const char *text, size_t n, uint8_t *out, size_t capacity)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)text;
    z.avail_in = (uInt)n;
    z.next_out = out;
    z.avail_out = (uInt)capacity;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return z.total_out;
}

static size_t xz(const char *text, size_t n, uint8_t *out, size_t capacity)
{
    size_t at = 0;
    assert_int_equal(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC64, NULL, (const uint8_t *)text, n,
                                             out, &at, capacity),
                     LZMA_OK);
    return at;
}

static void separator_lines_end_documents(void **state)
{
    (void)state;
    static const struct {
        const char *text, *documents;
    } cases[] = {
        {"one", "one"},
        {"one\ntwo\n<|endoftext|>\nthree\n", "one\ntwo\n|three\n"},
        {"<|endoftext|>\n<|endoftext|>\na\n<|endoftext|>", "a\n"},
        {"a\r\n<|endoftext|>\r\nb", "a\r\n|b"},
        {"a\n <|endoftext|>\nb<|endoftext|>\n<|endoftext|>x\n",
         "a\n <|endoftext|>\nb<|endoftext|>\n<|endoftext|>x\n"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_text text;
        QB_CHECK_OK(qb_text_from_memory("t", cases[i].text, strlen(cases[i].text), &text));
        check_documents(&text, cases[i].documents);
        assert_int_equal(text.raw_bytes, strlen(cases[i].text));
        assert_memory_equal(text.raw, cases[i].text, text.raw_bytes);
        qb_text_deinit(&text);
    }
    qb_text text;
    QB_CHECK_OK(qb_text_from_memory("t", "abc", 3, &text));
    assert_string_equal(text.sha256,
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    qb_text_deinit(&text);
}

static void compressed_files_are_unpacked(void **state)
{
    (void)state;
    size_t (*const packers[])(const char *, size_t, uint8_t *, size_t) = {gzip, xz};
    static const char *const suffixes[] = {".gz", ".xz"};
    for (size_t k = 0; k < 2; k++) {
        uint8_t data[1024];
        size_t n = packers[k]("first\n", 6, data, 512);
        size_t both = n + packers[k]("second\n", 7, data + n, 512); /* concatenated */
        memset(data + both, 0, 16);
        qb_text text;
        QB_CHECK_OK(open_bytes(suffixes[k], data, both, 0, &text));
        check_documents(&text, "first\nsecond\n");
        qb_text_deinit(&text);
        QB_CHECK_OK(open_bytes(".txt", data, both + 4, 0, &text)); /* padding; found by content */
        check_documents(&text, "first\nsecond\n");
        qb_text_deinit(&text);
        for (size_t cut = 7; cut < both; cut++)
            if (cut != n)
                assert_int_equal(open_bytes(suffixes[k], data, cut, 0, &text), QB_ERR_FORMAT);
        data[both] = 'x';
        assert_int_equal(open_bytes(suffixes[k], data, both + 1, 0, &text), QB_ERR_FORMAT);
        data[n / 2] ^= 0x55;
        assert_int_equal(open_bytes(suffixes[k], data, both, 0, &text), QB_ERR_FORMAT);
    }
}

static void bombs_are_refused(void **state)
{
    (void)state;
    enum { N = 4 << 20 };
    char *zeros = calloc(N, 1);
    uint8_t *data = malloc(1 << 16);
    for (int k = 0; k < 3; k++) {
        size_t n = k == 0 ? gzip(zeros, N, data, 1 << 16) : xz(zeros, N, data, 1 << 16);
        qb_text text;
        if (k == 2) n = 1000, memset(data, 'a', n);
        size_t limit = k == 2 ? 999 : N / 2;
        assert_int_equal(open_bytes("", data, n, limit, &text), QB_ERR_FORMAT);
        assert_non_null(strstr(qb_error_message(), k == 2 ? "999" : "2097152"));
    }
    free(zeros);
    free(data);
}

static void json_lines_are_documents(void **state)
{
    (void)state;
    static const char lines[] =
        "{\"text\":\"one\"}\n\n {\"id\":7,\"text\":\"t\\u00e9\\n<|endoftext|>"
        "\\n\"}\r\n{\"text\":\"\"}\n{\"text\":\"end\"}";
    qb_text text;
    QB_CHECK_OK(open_bytes(".jsonl", lines, sizeof lines - 1, 0, &text));
    check_documents(&text, "one|té\n<|endoftext|>\n|end");
    qb_text_deinit(&text);
    uint8_t data[512];
    size_t n = gzip(lines, sizeof lines - 1, data, sizeof data);
    QB_CHECK_OK(open_bytes(".jsonl.gz", data, n, 0, &text));
    assert_int_equal(text.n_docs, 3);
    qb_text_deinit(&text);
    static const char *const bad[] = {"{\"text\":\"a\"}\n{\"text\":7}\n", "{\"text\":\"a\"}\n{}",
                                      "{\"text\":\"a\"}\n[1]\n",
                                      "{\"text\":\"a\"}\n{\"text\":\"a\n"};
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        assert_int_equal(open_bytes(".jsonl", bad[i], strlen(bad[i]), 0, &text), QB_ERR_FORMAT);
        assert_non_null(strstr(qb_error_message(), "line 2"));
    }
}

static void what_is_no_text_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *data, *named;
        size_t n;
    } cases[] = {
        {"", "empty", 0},
        {"<|endoftext|>\n", "no text", 14},
        {"PK\003\004aaaa", "zip", 8},
        {"GGUF\003", "GGUF", 5},
        {"QBENCH\0\0", "NUL at byte 6", 8},
        {"version https://git-lfs.github.com/spec/v1\n", "LFS", 43},
    };
    qb_text text;
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        assert_int_equal(open_bytes("", cases[i].data, cases[i].n, 0, &text), QB_ERR_FORMAT);
        assert_non_null(strstr(qb_error_message(), cases[i].named));
        assert_non_null(strstr(qb_error_message(), "qb_test_text"));
    }
    assert_int_equal(qb_text_open("/tmp", 0, &text), QB_ERR_IO);
    assert_int_equal(qb_text_open("/dev/zero", 0, &text), QB_ERR_IO);
    assert_int_equal(qb_text_open("/nonexistent/text", 0, &text), QB_ERR_IO);
}

static void standard_input_is_read(void **state)
{
    (void)state;
    uint8_t data[512];
    size_t n = xz("from a pipe\n", 12, data, sizeof data);
    int pipe_ends[2], saved = dup(STDIN_FILENO);
    assert_int_equal(pipe(pipe_ends), 0);
    assert_int_equal(write(pipe_ends[1], data, n), n);
    close(pipe_ends[1]);
    dup2(pipe_ends[0], STDIN_FILENO);
    qb_text text;
    QB_CHECK_OK(qb_text_open("-", 0, &text));
    check_documents(&text, "from a pipe\n");
    assert_string_equal(text.name, "standard input");
    qb_text_deinit(&text);
    dup2(saved, STDIN_FILENO);
    close(saved);
    close(pipe_ends[0]);
}

static void built_in_texts_are_there(void **state)
{
    (void)state;
    qb_text eval, calibration;
    QB_CHECK_OK(qb_text_builtin(&eval));
    QB_CHECK_OK(qb_text_builtin_calibration(&calibration));
    assert_true(eval.n_bytes >= 40000 && calibration.n_bytes > 1000);
    assert_string_not_equal(eval.sha256, calibration.sha256);
    qb_text_deinit(&eval);
    qb_text_deinit(&calibration);
}

/* a, b and <|endoftext|>. */
static qb_tokenizer *small_tokenizer(bool with_eos)
{
    static const char *const texts[] = {"a", "b", "Ċ", "<", "<|endoftext|>"};
    static const size_t bytes[] = {1, 1, 2, 1, 13};
    static const uint8_t types[] = {0, 0, 0, 0, QB_TOKEN_CONTROL};
    const qb_tokenizer_spec spec = {.kind = QB_TOKENIZER_BPE,
                                    .pre = "gpt-2",
                                    .vocab = 5,
                                    .texts = texts,
                                    .text_bytes = bytes,
                                    .types = types,
                                    .bos = -1,
                                    .eos = with_eos ? 4 : -1,
                                    .unk = -1};
    qb_tokenizer *t;
    QB_CHECK_OK(qb_tokenizer_create(&spec, &t));
    return t;
}

static void check_tokens(qb_tokens *got, size_t n, const int32_t *want)
{
    assert_int_equal(got->n, n);
    assert_memory_equal(got->ids, want, n * sizeof *want);
    qb_tokens_deinit(got);
}

static void eos_stands_between_documents(void **state)
{
    (void)state;
    static const char data[] = "a\n<|endoftext|>\nb";
    qb_text text;
    QB_CHECK_OK(qb_text_from_memory("t", data, sizeof data - 1, &text));
    for (int with_eos = 0; with_eos < 2; with_eos++) {
        qb_tokenizer *t = small_tokenizer(with_eos);
        qb_tokens ids = {0};
        QB_CHECK_OK(qb_text_tokenize(&text, t, &ids));
        if (with_eos)
            check_tokens(&ids, 4, (int32_t[]){0, 2, 4, 1});
        else
            check_tokens(&ids, 3, (int32_t[]){0, 2, 1});
        QB_CHECK_OK(qb_text_tokenize_raw(&text, t, true, &ids));
        check_tokens(&ids, 5, (int32_t[]){0, 2, 4, 2, 1});
        QB_CHECK_OK(qb_text_tokenize_raw(&text, t, false, &ids));
        check_tokens(&ids, 5, (int32_t[]){0, 2, 3, 2, 1}); /* of the line only < is a token */
        qb_tokenizer_destroy(t);
    }
    qb_text_deinit(&text);
}

static void every_failed_allocation_is_reported(void **state)
{
    (void)state;
    uint8_t data[2][512];
    size_t n[2] = {gzip("{\"text\":\"a\"}\n", 13, data[0], 512),
                   xz("{\"text\":\"a\"}\n", 13, data[1], 512)};
    for (int kind = 0; kind < 2; kind++) {
        size_t live = qb_memory_live_blocks();
        for (size_t k = 1;; k++) {
            qb_text text = {0};
            qb_memory_fail_at(k);
            qb_status status =
                qb_text_from_memory("a.jsonl", (const char *)data[kind], n[kind], &text);
            qb_memory_fail_at(0);
            qb_text_deinit(&text);
            assert_int_equal(qb_memory_live_blocks(), live);
            if (status == QB_OK) break;
            assert_int_equal(status, QB_ERR_MEMORY);
        }
    }
}

static void documents_by_number_and_by_place(void **state)
{
    (void)state;
    static const char data[] = "one\n<|endoftext|>\ntwo or so\n<|endoftext|>\nthree";
    qb_text text;
    QB_CHECK_OK(qb_text_from_memory("x", data, sizeof data - 1, &text));
    static const char *const documents[] = {"one\n", "two or so\n", "three"};
    static const size_t starts[] = {0, 4, 14};
    assert_int_equal(text.n_docs, 3);
    for (size_t i = 0; i < 3; i++) {
        size_t n;
        const char *document = qb_text_document(&text, i, &n);
        assert_int_equal(n, strlen(documents[i]));
        assert_memory_equal(document, documents[i], n);
        assert_int_equal(qb_text_document_from(&text, starts[i]), i);
        assert_int_equal(qb_text_document_from(&text, starts[i] + 1), i + 1);
    }
    assert_int_equal(qb_text_document_from(&text, 1000), 3);
    qb_text_deinit(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(separator_lines_end_documents),
        cmocka_unit_test(compressed_files_are_unpacked),
        cmocka_unit_test(bombs_are_refused),
        cmocka_unit_test(json_lines_are_documents),
        cmocka_unit_test(what_is_no_text_is_refused),
        cmocka_unit_test(standard_input_is_read),
        cmocka_unit_test(built_in_texts_are_there),
        cmocka_unit_test(eos_stands_between_documents),
        cmocka_unit_test(every_failed_allocation_is_reported),
        cmocka_unit_test(documents_by_number_and_by_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
