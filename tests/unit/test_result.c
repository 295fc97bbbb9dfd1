/* tests/unit/test_result.c - records and their writers: JSON against the schema file, CSV,
 * Markdown, JUnit and the screen of made-up results. */
#include "support.h"

#include "core/memory.h"
#include "report/format.h"
#include "report/read_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A record with a different value under every key, so that no key can stand for another. */
static void fill(qb_result *result)
{
    int n = 1;
    for (const qb_result_field *f = qb_result_fields; f->path; f++, n++) {
        char *at = (char *)result + f->offset, text[64];
        snprintf(text, sizeof text, "text \"%d\", <&>", n);
        switch (f->kind) {
        case QB_FIELD_TEXT:
            QB_CHECK_OK(qb_result_set((char **)at, text));
            break;
        case QB_FIELD_COUNT:
            *(int64_t *)at = n;
            break;
        case QB_FIELD_REAL:
            *(double *)at = 1.0 / n;
            break;
        case QB_FIELD_INTERVAL:
            *(qb_interval *)at = (qb_interval){-1.0 / n, 1.0 / n};
            break;
        case QB_FIELD_TEXTS:
            QB_CHECK_OK(qb_texts_add((qb_texts *)at, text));
            QB_CHECK_OK(qb_texts_add((qb_texts *)at, "second"));
            break;
        case QB_FIELD_REALS:
            QB_CHECK_OK(qb_reals_resize((qb_reals *)at, 2));
            ((qb_reals *)at)->items[0] = n;
            ((qb_reals *)at)->items[1] = strstr(f->path, "windows.n") ? n + 1 : n + 0.1;
            break;
        }
    }
    QB_CHECK_OK(qb_result_set(&result->protocol.name, "paper"));
    QB_CHECK_OK(qb_result_set(&result->trust.level, "medium"));
}

/* One full record and one of which nothing is known but its scheme. */
static qb_results two_results(void)
{
    qb_results results = {0};
    qb_result *r;
    QB_CHECK_OK(qb_results_add(&results, &r));
    fill(r);
    QB_CHECK_OK(qb_results_add(&results, &r));
    QB_CHECK_OK(qb_result_set(&r->scheme.name, "coarse"));
    return results;
}

static char *written(qb_results_writer writer, const qb_results *results)
{
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    QB_CHECK_OK(writer(results, stream));
    assert_int_equal(fclose(stream), 0);
    return text;
}

/* 0 = the text is valid. */
static int check_by_schema(const char *text)
{
    char path[] = "/tmp/qb_result_XXXXXX", command[8192];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    snprintf(command, sizeof command,
             "python3 '%s/tests/cli/schema_check.py' '%s/docs/result.schema.json' %s",
             QB_SOURCE_DIR, QB_SOURCE_DIR, path);
    int code = system(command);
    unlink(path);
    return code;
}

static void json_keeps_the_schema(void **state)
{
    (void)state;
    if (system("python3 -c pass")) QB_SKIP("no python3 to check the schema with");
    qb_results results = two_results();
    char *text = written(qb_results_write_json, &results);
    assert_int_equal(check_by_schema(text), 0);
    char *level = strstr(text, "\"medium\"");
    assert_non_null(level);
    memcpy(level, "\"superb\"", 8); /* and the check can fail */
    assert_int_not_equal(check_by_schema(text), 0);
    free(text);
    qb_results empty = {0};
    text = written(qb_results_write_json, &empty);
    assert_int_equal(check_by_schema(text), 0);
    free(text);
    qb_results_deinit(&results);
}

static const json_t *at_path(const json_t *object, const char *path)
{
    char copy[128], *rest = copy;
    snprintf(copy, sizeof copy, "%s", path);
    for (char *key; (key = strsep(&rest, "."));) object = json_object_get(object, key);
    return object;
}

static void json_has_every_key_and_null_for_the_unmeasured(void **state)
{
    (void)state;
    qb_results results = two_results();
    json_t *full, *bare;
    QB_CHECK_OK(qb_result_to_json(&results.items[0], &full));
    QB_CHECK_OK(qb_result_to_json(&results.items[1], &bare));
    int n = 1;
    for (const qb_result_field *f = qb_result_fields; f->path; f++, n++) {
        const json_t *v = at_path(full, f->path), *w = at_path(bare, f->path);
        assert_non_null(v);
        if (f->kind == QB_FIELD_COUNT) assert_int_equal(json_integer_value(v), n);
        if (f->kind == QB_FIELD_REAL) assert_true(json_real_value(v) == 1.0 / n);
        if (f->kind == QB_FIELD_INTERVAL) {
            assert_true(json_real_value(json_array_get(v, 0)) == -1.0 / n);
            assert_true(json_real_value(json_array_get(v, 1)) == 1.0 / n);
        }
        if (f->kind == QB_FIELD_TEXTS) {
            assert_int_equal(json_array_size(v), 2);
            assert_int_equal(json_array_size(w), 0);
        } else if (f->kind == QB_FIELD_REALS) {
            assert_true(json_number_value(json_array_get(v, 0)) == n);
            assert_true(json_is_null(w));
        } else if (!strncmp(f->path, "energy.", 7)) {
            assert_true(json_is_null(json_object_get(bare, "energy")));
        } else if (!strncmp(f->path, "environment.gpu.", 16)) {
            assert_true(json_is_null(at_path(bare, "environment.gpu")));
        } else if (!strncmp(f->path, "quality.nll_file.", 17)) {
            assert_true(json_is_null(at_path(bare, "quality.nll_file")));
        } else if (strcmp(f->path, "scheme.name")) {
            assert_true(json_is_null(w));
        }
    }
    json_decref(full);
    json_decref(bare);
    qb_results_deinit(&results);
}

/* ---- read again ---- */

static qb_status parse(const char *text, qb_results *out)
{
    return qb_results_parse_json(text, strlen(text), "r.json", out);
}

static void json_reads_back_as_the_same_bytes(void **state)
{
    (void)state;
    size_t live = qb_memory_live_blocks();
    qb_results results = two_results(), again;
    results.items[0].quality.windows.nll.items[1] = NAN; /* of a destroyed model */
    results.items[0].quality.windows.nll.items[0] = 0.1 + 0.2;
    char *text = written(qb_results_write_json, &results);
    assert_non_null(strstr(text, "[0.30000000000000004, null]"));
    QB_CHECK_OK(parse(text, &again));
    assert_int_equal(again.n, 2);
    assert_true(isnan(again.items[0].quality.windows.nll.items[1]));
    char *second = written(qb_results_write_json, &again);
    assert_string_equal(text, second);
    free(text);
    free(second);
    qb_results_deinit(&results);
    qb_results_deinit(&again);
    assert_int_equal(qb_memory_live_blocks(), live);
}

/* The text with the first `from` replaced; owned by the caller. */
static char *changed(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    assert_non_null(at);
    char *out = malloc(strlen(text) + strlen(to) + 1);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

static void json_of_an_older_version_is_read(void **state)
{
    (void)state;
    qb_results results = two_results(), old;
    char *text = written(qb_results_write_json, &results);
    char *without = changed(text, "\"threads\": ", "\"another_key\": ");
    QB_CHECK_OK(parse(without, &old));
    assert_int_equal(old.items[0].environment.threads, -1);
    assert_int_equal(old.items[1].environment.threads, results.items[1].environment.threads);
    free(without);
    free(text);
    qb_results_deinit(&results);
    qb_results_deinit(&old);
}

static void json_that_breaks_a_rule_is_refused_by_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *message;
    } cases[] = {
        {"qbench.results/1", "qbench.results/2", "expected qbench.results/1"},
        {"\"n_layers\": 5", "\"n_layers\": \"5\"", "results[0].model.n_layers: found a text"},
        {"\"n_layers\": 5", "\"n_layers\": -5", "expected a whole number from 0 on, or null"},
        {"\"n_layers\": 5", "\"n_layerz\": 5", "results[0].model.n_layers: found nothing"},
        {"\"n_layers\": 5", "\"n_layers\": 5, \"n_layers\": 5", "duplicate"},
        {"\"n_layers\": 5", "\"n_layers\": NaN", "not JSON: found an error in line"},
        {"\"penalty_ci95\": [", "\"penalty_ci95\": [1, ", "expected [number, number] or null"},
        {"\"samples_ms\": [", "\"samples_ms\": [-1, ", "samples_ms[0]: found -1"},
        {"\"samples_ms\": [", "\"samples_ms\": [null, ", "samples_ms[0]: found nan"},
        {"\"kl\": [", "\"kl\": [1, ", "windows.kl: found 3 items, expected 2"},
        {"\"n\": [", "\"n\": [2, ", "windows.nll: found 2 items, expected 3"},
        {"\"n\": [", "\"n\": [0.5], \"nn\": [", "windows.nll: found 2 items, expected 1"},
        {"\"kept_float\": [", "\"kept_float\": [3, ", "coverage.kept_float: found another list"},
        {"\"kept_float\"", "\"kept_floats\"", "coverage.kept_float: found nothing"},
        {"\"results\"", "\"result\"", "results: found nothing"},
    };
    qb_results results = two_results(), out = {0};
    char *text = written(qb_results_write_json, &results);
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        char *bad = changed(text, cases[i].from, cases[i].to);
        assert_int_equal(parse(bad, &out), QB_ERR_FORMAT);
        if (!strstr(qb_error_message(), cases[i].message))
            fail_msg("case %zu: %s", i, qb_error_message());
        assert_non_null(strstr(qb_error_message(), "r.json"));
        free(bad);
    }
    char *more = changed(text, "\"n_layers\"", "\"later_key\": {\"x\": []}, \"n_layers\"");
    QB_CHECK_OK(parse(more, &out)); /* a key of a later version */
    free(more);
    qb_results_deinit(&out);
    char *older = changed(text, "\"samples_ms\"", "\"samples_older\"");
    QB_CHECK_OK(parse(older, &out)); /* a file from before the lists */
    assert_int_equal(out.items[0].speed.prefill.samples_ms.n, 0);
    free(older);
    free(text);
    qb_results_deinit(&out);
    qb_results_deinit(&results);
}

/* Whichever allocation fails, reading gives QB_ERR_MEMORY and everything back. */
static void reading_survives_every_failed_allocation(void **state)
{
    (void)state;
    size_t live = qb_memory_live_blocks();
    qb_results results = two_results(), out;
    char *text = written(qb_results_write_json, &results);
    qb_results_deinit(&results);
    qb_status status = QB_ERR_MEMORY;
    for (size_t n = 1; status != QB_OK; n++) {
        qb_memory_fail_at(n);
        status = parse(text, &out);
        assert_true(status == QB_OK || status == QB_ERR_MEMORY);
    }
    qb_memory_fail_at(0);
    qb_results_deinit(&out);
    free(text);
    assert_int_equal(qb_memory_live_blocks(), live);
}

/* A path may hold any bytes. */
static void text_that_is_not_utf8_still_writes(void **state)
{
    (void)state;
    qb_results results = two_results();
    QB_CHECK_OK(qb_result_set(&results.items[0].model.path, "m\xff.bin"));
    assert_string_equal(results.items[0].model.path, "m?.bin");
    static const char *const good[] = {"m\xc3\xbc.bin", "\xe2\x82\xac", "\xf0\x9f\x98\x80", ""};
    for (size_t i = 0; i < QB_COUNT(good); i++) {
        QB_CHECK_OK(qb_result_set(&results.items[0].model.path, good[i]));
        assert_string_equal(results.items[0].model.path, good[i]);
    }
    static const char *const bad[] = {"\xc0\x80", "\xe2\x82", "\xed\xa0\x80", "\xf5\x80\x80\x80"};
    for (size_t i = 0; i < QB_COUNT(bad); i++) {
        QB_CHECK_OK(qb_result_set(&results.items[0].model.path, bad[i]));
        assert_non_null(strchr(results.items[0].model.path, '?'));
        json_t *valid = json_string(results.items[0].model.path);
        assert_non_null(valid);
        json_decref(valid);
    }
    json_t *json;
    QB_CHECK_OK(qb_result_to_json(&results.items[0], &json));
    json_decref(json);
    qb_results_deinit(&results);
}

/* Fields of one CSV line with quotes taken away; returns their number. */
static size_t csv_fields(const char **text, char fields[][128], size_t capacity)
{
    size_t n = 0, length = 0;
    bool quoted = false;
    const char *p = *text;
    for (;; p++) {
        if (*p == '"' && quoted && p[1] == '"') {
            fields[n][length++] = *++p;
        } else if (*p == '"') {
            quoted = !quoted;
        } else if (!quoted && (*p == ',' || *p == '\r' || !*p)) {
            fields[n++][length] = 0;
            length = 0;
            assert_true(n < capacity);
            if (*p != ',') break;
        } else {
            fields[n][length++] = *p;
        }
    }
    *text = *p ? p + 2 : p;
    return n;
}

static void csv_lines_match_the_header(void **state)
{
    (void)state;
    qb_results results = two_results();
    char *text = written(qb_results_write_csv, &results);
    static char header[200][128], row[200][128];
    const char *p = text;
    size_t n = csv_fields(&p, header, 200);
    assert_int_equal(csv_fields(&p, row, 200), n);
    assert_string_equal(header[0], "model.path");
    assert_string_equal(row[0], "text \"1\", <&>");
    for (size_t i = 0; i < n; i++) {
        if (!strcmp(header[i], "model.n_layers")) assert_string_equal(row[i], "5");
        if (!strcmp(header[i], "quality.penalty_ci95.low")) assert_true(atof(row[i]) < 0);
        if (!strcmp(header[i], "quality.penalty_ci95.high")) assert_true(atof(row[i]) > 0);
    }
    assert_int_equal(csv_fields(&p, row, 200), n);
    for (size_t i = 0; i < n; i++)
        if (!strcmp(header[i], "quality.ppl")) assert_string_equal(row[i], "");
    assert_int_equal(*p, 0);
    free(text);
    qb_results_deinit(&results);
}

static void junit_is_one_case_a_scheme(void **state)
{
    (void)state;
    if (system("python3 -c pass")) QB_SKIP("no python3 to parse XML with");
    qb_results results = two_results();
    char *text = written(qb_results_write_junit, &results);
    char path[] = "/tmp/qb_junit_XXXXXX", command[512];
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    snprintf(command, sizeof command,
             "python3 -c \"import xml.etree.ElementTree as e, sys; r = e.parse('%s').getroot(); "
             "sys.exit(len(r.findall('.//testcase')) != 2 or "
             "r[0].get('name') != 'text \\\"2\\\", <&>')\"",
             path);
    int code = system(command);
    unlink(path);
    free(text);
    qb_results_deinit(&results);
    assert_int_equal(code, 0);
}

static size_t columns_of_longest_line(const char *text)
{
    size_t longest = 0, n = 0;
    for (; *text; text++) {
        if (*text == '\n')
            n = 0;
        else if (((unsigned char)*text & 0xc0) != 0x80)
            n++;
        if (n > longest) longest = n;
    }
    return longest;
}

static qb_result_timing timing(double rate)
{
    return (qb_result_timing){rate, {rate * 0.99, rate * 1.01}, 1, 2, 3, 12, {0}};
}

static void screen_fits_and_says_what_stands_out(void **state)
{
    (void)state;
    qb_results results = {0};
    static const char *const names[] = {"fine", "zeropoint4-tensor"};
    for (size_t i = 0; i < 2; i++) {
        qb_result *r;
        QB_CHECK_OK(qb_results_add(&results, &r));
        QB_CHECK_OK(qb_result_set(&r->model.path, "m.bin"));
        QB_CHECK_OK(qb_result_set(&r->model.name, "SmolLM2-135M"));
        QB_CHECK_OK(qb_result_set(&r->protocol.name, "paper"));
        QB_CHECK_OK(qb_result_set(&r->text.name, "built-in"));
        QB_CHECK_OK(qb_result_set(&r->scheme.name, names[i]));
        QB_CHECK_OK(qb_result_set(&r->scheme.weight_axis, "out"));
        QB_CHECK_OK(qb_result_set(&r->trust.level, "low"));
        QB_CHECK_OK(qb_texts_add(&r->trust.reasons, "load 3.1 on 2 processors"));
        r->scheme.weight_bits = 8;
        r->quality.ppl_full = 8.09;
        r->quality.ppl = i ? 1.7e6 : 8.2249;
        r->quality.penalty = r->quality.ppl - 8.09;
        r->quality.penalty_ci95 = (qb_interval){r->quality.penalty * 0.9, r->quality.penalty * 1.1};
        r->quality.kl_mean = 0.0123;
        r->quality.top1_agreement = 0.951;
        r->quality.ppl_fake = i ? 1.8e6 : 8.2250;
        r->speed.prefill = timing(3456.7);
        r->speed.decode = timing(152);
        r->speed.full.prefill = timing(1234);
        r->speed.full.decode = timing(40);
        r->memory.weights_bytes = 163000000;
    }
    char *text = written(qb_results_write_markdown, &results);
    if (getenv("QB_SHOW")) printf("%s", text);
    assert_non_null(strstr(text, "| fine | w8/out | 8.090 | 8.225 | +0.135 [0.121, 0.148] |"));
    free(text);
    FILE *stream = open_memstream(&text, &(size_t){0});
    QB_CHECK_OK(qb_results_write_screen(&results, false, stream));
    fclose(stream);
    if (getenv("QB_SHOW")) printf("%s", text);
    assert_true(columns_of_longest_line(text) <= 100);
    assert_null(strchr(text, '\033'));
    assert_non_null(strstr(text, "2.80x"));
    assert_non_null(strstr(text, "3,457 ±1.0 %"));
    assert_non_null(strstr(text, "zeropoint4-tensor: integer and fake differ by 5.9 %"));
    assert_null(strstr(text, "fine: integer and fake"));
    assert_non_null(strstr(text, "zeropoint4-tensor costs most"));
    assert_non_null(strstr(text, "trust     low\n          load 3.1"));
    free(text);
    qb_results_deinit(&results);
}

static void numbers_read_well(void **state)
{
    (void)state;
    char t[QB_FORMAT_BYTES];
    assert_string_equal(qb_format_count(1234567, t), "1,234,567");
    assert_string_equal(qb_format_count(999, t), "999");
    assert_string_equal(qb_format_count(-1, t), "-");
    assert_string_equal(qb_format_significant(8.0912, t), "8.09");
    assert_string_equal(qb_format_significant(99.96, t), "100.0");
    assert_string_equal(qb_format_significant(1234.5, t), "1234");
    assert_string_equal(qb_format_significant(23456.7, t), "23,457");
    assert_string_equal(qb_format_significant(1.7e6, t), "1.70e6");
    assert_string_equal(qb_format_significant(9.999e6, t), "1.00e7");
    assert_string_equal(qb_format_significant(-2e-5, t), "-2.00e-5");
    assert_string_equal(qb_format_significant(NAN, t), "-");
    assert_string_equal(qb_format_perplexity(24.8859, t), "24.886");
    assert_string_equal(qb_format_perplexity(170.414, t), "170.41");
    assert_string_equal(qb_format_perplexity(12345.6, t), "12,346");
    assert_string_equal(qb_format_perplexity(NAN, t), "-");
    assert_string_equal(qb_format_signed(-0.25, t), "-0.250");
    assert_string_equal(qb_format_percent(0.9514, t), "95.1 %");
    assert_string_equal(qb_format_params(134515008, t), "134.5 M");
    assert_string_equal(qb_format_bytes(163400000, t), "163 MB");
}

static char *labelled(const char *label, const char *text)
{
    char *written;
    size_t bytes;
    FILE *stream = open_memstream(&written, &bytes);
    qb_write_labelled(stream, label, 10, "%s", text);
    fclose(stream);
    return written;
}

static void paragraphs_fit_the_screen(void **state)
{
    (void)state;
    char long_word[120], *text = labelled("note", "short");
    assert_string_equal(text, "note      short\n");
    free(text);
    /* 70 characters fill a line, however many bytes they have */
    text =
        labelled("é", "ééééééééé ééééééééé ééééééééé ééééééééé ééééééééé ééééééééé éééééééééé x");
    assert_string_equal(text,
                        "é         ééééééééé ééééééééé ééééééééé ééééééééé ééééééééé ééééééééé "
                        "éééééééééé\n          x\n");
    free(text);
    memset(long_word, 'a', sizeof long_word - 1);
    long_word[sizeof long_word - 1] = 0;
    memcpy(long_word, "two ", 4);
    text = labelled("", long_word); /* a word that fits nowhere has a line of its own */
    assert_non_null(strstr(text, "          two\n          aaa"));
    assert_non_null(strstr(text, "a\n"));
    free(text);
}

static void failed_allocations_come_back_clean(void **state)
{
    (void)state;
    size_t before = qb_memory_live_blocks();
    for (size_t n = 1; n <= 12; n++) {
        qb_results results = {0};
        qb_result *r;
        qb_memory_fail_at(n);
        qb_status status = qb_results_add(&results, &r);
        if (status == QB_OK) status = qb_result_set(&r->model.name, "x");
        if (status == QB_OK) status = qb_texts_add(&r->trust.reasons, "y");
        qb_memory_fail_at(0);
        if (n <= 4) assert_int_equal(status, QB_ERR_MEMORY);
        qb_results_deinit(&results);
        assert_int_equal(qb_memory_live_blocks(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_keeps_the_schema),
        cmocka_unit_test(json_has_every_key_and_null_for_the_unmeasured),
        cmocka_unit_test(json_reads_back_as_the_same_bytes),
        cmocka_unit_test(json_of_an_older_version_is_read),
        cmocka_unit_test(json_that_breaks_a_rule_is_refused_by_its_place),
        cmocka_unit_test(reading_survives_every_failed_allocation),
        cmocka_unit_test(text_that_is_not_utf8_still_writes),
        cmocka_unit_test(csv_lines_match_the_header),
        cmocka_unit_test(junit_is_one_case_a_scheme),
        cmocka_unit_test(screen_fits_and_says_what_stands_out),
        cmocka_unit_test(numbers_read_well),
        cmocka_unit_test(paragraphs_fit_the_screen),
        cmocka_unit_test(failed_allocations_come_back_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
