/* tests/unit/test_html.c - scales, ticks and texts of the page's figures, and the reader of
 * training curves. */
#include "support.h"

#include "core/file.h"
#include "core/memory.h"
#include "quant/schemes.h"
#include "report/format.h"
#include "report/html_internal.h"
#include "report/svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- scales ---- */

static void check_ticks(const qb_scale *scale, const char *expected)
{
    double ticks[QB_SCALE_MAX_TICKS];
    char text[QB_FORMAT_BYTES], all[1024] = "";
    size_t n = qb_scale_ticks(scale, ticks);
    for (size_t i = 0; i < n; i++) {
        strcat(all, i ? " " : "");
        strcat(all, qb_scale_tick_text(scale, ticks[i], text));
    }
    assert_string_equal(all, expected);
}

static void ticks_are_round_numbers(void **state)
{
    (void)state;
    static const struct {
        qb_scale_kind kind;
        double low, high, linear_to;
        const char *ticks;
    } cases[] = {
        {QB_SCALE_LINEAR, 0, 9.3, 0, "0 2 4 6 8 10"},
        {QB_SCALE_LINEAR, 0.012, 0.031, 0, "0.010 0.015 0.020 0.025 0.030 0.035"},
        {QB_SCALE_LINEAR, -3, 7, 0, "−4 −2 0 2 4 6 8"},
        {QB_SCALE_LINEAR, 0, 6408, 0, "0 2,000 4,000 6,000 8,000"},
        {QB_SCALE_LINEAR, 5, 5, 0, "4.4 4.6 4.8 5.0 5.2 5.4 5.6"},
        {QB_SCALE_LINEAR, 0, 0, 0, "−0.6 −0.4 −0.2 0 0.2 0.4 0.6"},
        {QB_SCALE_LOG, 30, 95, 0, "20 50 100"},
        {QB_SCALE_LOG, 0.004, 2500, 0, "0.01 0.1 1 10 100 1,000"},
        {QB_SCALE_LOG, 1, 1, 0, "1 2"},
        {QB_SCALE_LOG, 1, 1e14, 0, "1 1,000 1,000,000 1e9 1e12"},
        {QB_SCALE_SYMLOG, -0.2, 60, 0.1, "−0.2 −0.1 0 0.1 1 10 100"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_scale s = qb_scale_make(cases[i].kind, cases[i].low, cases[i].high, cases[i].linear_to);
        assert_true(s.low <= cases[i].low && s.high >= cases[i].high && s.low < s.high);
        check_ticks(&s, cases[i].ticks);
    }
}

static void scales_are_monotonic_and_clamp(void **state)
{
    (void)state;
    static const double limits[][2] = {{0.5, 80}, {1e-9, 1e15}, {3, 3.0000001}, {0.02, 0.021}};
    for (int kind = QB_SCALE_LINEAR; kind <= QB_SCALE_SYMLOG; kind++)
        for (size_t i = 0; i < QB_COUNT(limits); i++) {
            qb_scale s = qb_scale_make((qb_scale_kind)kind, limits[i][0], limits[i][1], 0.01);
            s.from = 300, s.to = 20; /* as a vertical axis */
            double last = INFINITY;
            for (int k = 0; k <= 20; k++) {
                double v = limits[i][0] + k / 20.0 * (limits[i][1] - limits[i][0]);
                double at = qb_scale_at(&s, v);
                assert_true(at >= 20 && at <= 300 && at <= last);
                last = at;
            }
            assert_true(qb_scale_at(&s, s.low) == 300 && qb_scale_at(&s, 2 * s.high) == 20);
        }
    qb_scale s = qb_scale_make(QB_SCALE_SYMLOG, -10, 10, 1);
    assert_true(fabs(qb_scale_at(&s, 0) - 0.5) < 1e-12); /* odd around zero */
    assert_true(fabs(qb_scale_at(&s, 3) + qb_scale_at(&s, -3) - 1) < 1e-12);
}

static void ranges_choose_the_scale(void **state)
{
    (void)state;
    qb_range range = {0};
    qb_range_add(&range, NAN);
    qb_range_add(&range, 1e300);
    assert_int_equal(range.n, 0);
    qb_range_add(&range, 2);
    qb_range_add(&range, 60);
    assert_int_equal(qb_scale_from_zero(&range).kind, QB_SCALE_LINEAR);
    assert_true(qb_scale_from_zero(&range).low == 0);
    qb_range_add(&range, -0.03);
    qb_range_widen(&range, -0.5);
    qb_scale s = qb_scale_from_zero(&range);
    assert_true(s.kind == QB_SCALE_SYMLOG && s.low <= -0.5 && fabs(s.linear_to - 0.1) < 1e-12);
}

/* ---- texts ---- */

static void check_shortened(const char *value, size_t max_chars, const char *expected)
{
    char text[256];
    assert_string_equal(qb_shorten(value, max_chars, text), expected);
}

static void texts_are_cut_between_characters(void **state)
{
    (void)state;
    check_shortened("model", 5, "model");
    check_shortened("models", 5, "mode…");
    check_shortened("žluťoučký", 9, "žluťoučký");
    check_shortened("žluťoučký", 8, "žluťouč…");
    check_shortened("", 3, "");
}

static void texts_are_escaped(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    qb_svg_open(stream, 7, 100, "<script>&\"", "\x01\xef\xbf\xbf]]>");
    qb_svg_text(stream, 1, 2, "start", "</text><a>");
    qb_svg_marker(stream, 0, 5, 5, 3, "\"><b>");
    assert_int_equal(fclose(stream), 0);
    assert_non_null(strstr(text, "<title id=\"t7\">&lt;script&gt;&amp;&quot;</title>"));
    assert_non_null(strstr(text, "<desc id=\"d7\">  ]]&gt;</desc>"));
    assert_non_null(strstr(text, ">&lt;/text&gt;&lt;a&gt;</text>"));
    assert_non_null(strstr(text, "<title>&quot;&gt;&lt;b&gt;</title>"));
    free(text);
}

/* As records from elsewhere may hold them. */
static void odd_schemes_fit_the_text(void **state)
{
    (void)state;
    char axis[200] = "", text[QB_FORMAT_BYTES];
    qb_result r;
    qb_result_init(&r);
    assert_string_equal(qb_format_scheme(&r, text), "-");
    r.scheme.weight_bits = 8;
    r.scheme.weight_axis = axis;
    r.scheme.act_bits = r.scheme.out_bits = INT64_MAX;
    for (size_t n = 0; n < 90; n++) {
        strcat(axis, n % 2 ? "é" : "x");
        qb_format_scheme(&r, text);
        size_t bytes = strlen(text), k = bytes - 1;
        assert_true(bytes < QB_FORMAT_BYTES && text[k] != ' ');
        if ((unsigned char)text[k] >= 0x80) assert_int_equal((unsigned char)text[k - 1], 0xc3);
    }
    assert_string_equal(qb_format_significant(5e-324, text), "4.94e-324");
}

/* ---- training curves ---- */

static qb_status parse(const char *text, const char *path, qb_metrics *out)
{
    return qb_metrics_parse(text, strlen(text), path, out);
}

static bool is_run(const char *text)
{
    bool is;
    QB_CHECK_OK(qb_metrics_recognise(text, strlen(text), &is));
    return is;
}

static void curves_know_their_tokens(void **state)
{
    (void)state;
    qb_metrics m;
    const char *text = "{\"kind\": \"eval\", \"step\": 5, \"ppl\": 90.5}\n"
                       "{\"kind\": \"train\", \"step\": 10, \"loss\": 4.5, \"tokens\": 1000}\n"
                       "{\"kind\": \"note\", \"step\": 10}\n"
                       "{\"kind\": \"eval\", \"step\": 20, \"ppl\": 40, \"kurt_token_rest\": 3}\n"
                       "{\"kind\": \"train\", \"step\": 3";
    assert_true(is_run(text));
    QB_CHECK_OK(parse(text, "runs/vanilla/metrics.jsonl", &m));
    assert_string_equal(m.name, "vanilla");
    assert_int_equal(m.n, 3);
    assert_true(m.has_tokens && m.points[0].tokens == 500 && m.points[2].tokens == 2000);
    assert_true(m.points[0].values[QB_CURVE_PPL] == 90.5);
    assert_true(isnan(m.points[0].values[QB_CURVE_LOSS]));
    assert_true(m.points[1].values[QB_CURVE_LOSS] == 4.5);
    assert_true(m.points[2].values[QB_CURVE_KURT_REST] == 3);
    qb_metrics_deinit(&m);
    QB_CHECK_OK(parse("{\"kind\": \"eval\", \"step\": 5, \"ppl\": 9}\n", "a.metrics.jsonl", &m));
    assert_string_equal(m.name, "a");
    assert_false(m.has_tokens);
    qb_metrics_deinit(&m);
}

/* A run that went on from step 10 wrote 11 again. */
static void resumed_steps_count_once(void **state)
{
    (void)state;
    qb_metrics m;
    QB_CHECK_OK(parse("{\"kind\": \"train\", \"step\": 10, \"loss\": 3, \"tokens\": 10}\n"
                      "{\"kind\": \"train\", \"step\": 11, \"loss\": 2, \"tokens\": 11}\n"
                      "{\"kind\": \"train\", \"step\": 12, \"loss\": 1, \"tokens\": 12}\n"
                      "{\"kind\": \"train\", \"step\": 11, \"loss\": 5, \"tokens\": 11}\n",
                      "x.jsonl", &m));
    assert_int_equal(m.n, 2);
    assert_true(m.points[1].step == 11 && m.points[1].values[QB_CURVE_LOSS] == 5);
    qb_metrics_deinit(&m);
}

static void bad_curves_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"kind\": \"train\"}\n", "f: line 1: key \"step\": found nothing"},
        {"{\"step\": 1}\n", "f: line 1: key \"kind\": found nothing"},
        {"{\"kind\": \"train\", \"step\": -1}\n", "f: line 1: key \"step\": found -1"},
        {"{\"kind\": \"train\", \"step\": 1, \"loss\": \"low\"}\n", "expected a number"},
        {"[1]\n", "f: line 1: found no object"},
        {"{\"kind\": \"train\", \"step\": 1}\nx\n", "f: line 2: not JSON"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        qb_metrics m;
        assert_int_equal(parse(cases[i].text, "f", &m), QB_ERR_FORMAT);
        assert_non_null(strstr(qb_error_message(), cases[i].message));
    }
    assert_false(is_run("{\n \"kind\": 1}\n"));
    assert_false(is_run("{\"schema\": 1}\n"));
    assert_false(is_run(""));
}

/* ---- the page ---- */

static qb_status write_page(const qb_report *report, char **text)
{
    size_t bytes;
    FILE *stream = open_memstream(text, &bytes);
    qb_status status = qb_report_write_html(report, "title", stream);
    assert_int_equal(fclose(stream), 0);
    return status;
}

static const char *const inputs[] = {QB_SOURCE_DIR "/share/models/results-builtin.json",
                                     QB_SOURCE_DIR "/share/models/gpt2-8m-ours.metrics.jsonl"};

/* ---- analyses and profiles ---- */

static const char analysis[] =
    "{\"schema\": \"qbench.analysis/1\", \"model\": {\"name\": \"m\"}, \"command\": \"c\","
    " \"texts\": [{\"name\": \"t\", \"protocol\": {\"context\": 16}}], \"layers\": ["
    "{\"layer\": 1, \"kurt_token_first\": 3, \"max_abs_rest\": null},"
    "{\"layer\": 2, \"kurt_token_first\": 300, \"attn_first_share\": 0.25}],"
    " \"heads\": [{\"layer\": 2, \"head\": 3, \"attn_first_share\": 0.5}],"
    " \"sensitivity\": {\"scheme\": {\"name\": \"fine\"}, \"parts\": [{\"name\": \"1.qkv\","
    " \"penalty\": 0.5, \"penalty_ci95\": [0.25, 0.75], \"input_kurtosis\": null}]},"
    " \"maps\": {\"channels\": 8, \"layers\": [{\"layer\": null,"
    " \"attention\": [[1, 0], [0.5, 0.004]], \"hidden\": [[1, 2, null], [30, 4, 5]]}]}}";
static const char profile[] =
    "{\"schema\": \"qbench.profile/1\", \"model\": {\"name\": \"m\"}, \"scheme\": \"fine\","
    " \"batch\": 1, \"peaks\": {\"read_gb_per_s\": 20, \"s8_gops_per_s\": 900},"
    " \"operations\": [{\"operation\": \"decode\", \"full\": {\"scheme\": \"full\", \"ms\": 2,"
    " \"phases\": [{\"phase\": \"gemm\", \"ms\": 1}], \"kernels\": [{\"kernel\": \"k\","
    " \"phase\": \"gemm\", \"role\": null, \"ops\": 100, \"bytes\": 50, \"gops_per_s\": 30}]},"
    " \"scheme\": null}], \"verdict\": [{\"text\": \"slow\"}]}";

static json_t *parsed(const char *text)
{
    json_t *root;
    QB_CHECK_OK(qb_json_parse(text, strlen(text), strlen(text), "text", &root));
    return root;
}

static void analyses_and_profiles_are_read(void **state)
{
    (void)state;
    qb_analysis_record a;
    qb_profile_seen p;
    json_t *root = parsed(analysis);
    QB_CHECK_OK(qb_analysis_record_read(root, "a.json", &a));
    json_decref(root);
    assert_int_equal(a.n_layers, 2);
    assert_true(a.values[QB_LAYER_METRIC_COUNT + QB_LAYER_KURT_FIRST] == 300);
    assert_true(isnan(a.values[QB_LAYER_MAX_REST]));
    assert_true(a.heads.n_rows == 2 && a.heads.n_cols == 3 && a.heads.cells[5] == 0.5);
    assert_true(isnan(a.heads.cells[0]));
    assert_true(a.maps[0].layer == -1 && a.maps[0].attention.cells[3] == 0.004);
    assert_true(a.maps[0].hidden.n_cols == 3 && isnan(a.maps[0].hidden.cells[2]));
    assert_true(a.context == 16 && a.channels == 8);
    assert_true(a.parts[0].penalty == 0.5 && a.parts[0].penalty_ci95.high == 0.75);
    assert_true(isnan(a.parts[0].input_kurtosis));
    root = parsed(profile);
    QB_CHECK_OK(qb_profile_seen_read(root, "p.json", &p));
    json_decref(root);
    assert_int_equal(p.operations[0].n_runs, 1);
    assert_true(p.operations[0].runs[0].kernels[0].gops_per_s == 30);
    assert_true(p.memory_gb_per_s == 20 && isnan(p.roofs_gops_per_s[0]));
    assert_string_equal(p.verdicts.items[0], "-: slow");
    qb_analysis_record_deinit(&a);
    qb_profile_seen_deinit(&p);
}

static void bad_analyses_and_profiles_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *message;
    } cases[] = {
        {"\"layer\": 2, \"kurt", "\"layer\": 3, \"kurt",
         "f: layers[1]: layer: found 3, expected 2"},
        {"\"kurt_token_first\": 3,", "\"kurt_token_first\": [],", "f: layers[0]: key \"kurt"},
        {"\"head\": 3", "\"head\": 3000", "f: heads: found head 3000"},
        {"\"layer\": 2, \"head\"", "\"layer\": 9, \"head\"", "f: heads[0]: key \"layer\""},
        {"[0.5, 0.004]", "[0.5]", "f: maps.layers[0]: attention[1]: found 1 columns, expected 2"},
        {"[30, 4, 5]", "[30, 4, \"5\"]",
         "f: maps.layers[0]: hidden[1][2]: found another kind of value, expected a number"},
        {"\"layers\": [{\"layer\": 1", "\"layers_\": [{\"layer\": 1", "f: layers: found nothing"},
        {"[0.25, 0.75]", "[0.25, []]", "f: sensitivity.parts[0]: penalty_ci95: found another"},
        {"\"phases\": [{", "\"phases\": [1, {",
         "f: operations[0]: full: phases[0]: found no object"},
        {"\"ms\": 2", "\"ms\": \"2\"", "f: operations[0]: full: key \"ms\""},
        {"\"scheme\": null", "\"scheme\": []", "f: operations[0]: scheme: found no object"},
    };
    for (size_t i = 0; i < QB_COUNT(cases); i++) {
        char text[2000];
        bool is_profile = strstr(profile, cases[i].from);
        const char *whole = is_profile ? profile : analysis, *at = strstr(whole, cases[i].from);
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - whole), whole, cases[i].to,
                 at + strlen(cases[i].from));
        json_t *root = parsed(text);
        qb_analysis_record a;
        qb_profile_seen p;
        qb_status status = is_profile ? qb_profile_seen_read(root, "f", &p)
                                      : qb_analysis_record_read(root, "f", &a);
        json_decref(root);
        assert_int_equal(status, QB_ERR_FORMAT);
        if (!strstr(qb_error_message(), cases[i].message))
            fail_msg("case %zu: %s", i, qb_error_message());
    }
}

/* The same as the last test, of every allocation, since these files are small. */
static void small_pages_survive_failed_allocations(void **state)
{
    (void)state;
    char folder[] = "/tmp/qb_html_XXXXXX", paths[2][64];
    const char *const texts[] = {analysis, profile};
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < 2; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%zu.json", folder, i);
        QB_CHECK_OK(qb_file_write_whole(paths[i], texts[i], strlen(texts[i])));
    }
    size_t before = qb_memory_live_blocks(), n = 0;
    qb_status status;
    do {
        qb_report report = {0};
        char *text = NULL;
        qb_memory_fail_at(++n);
        status = qb_report_add(&report, paths[0]);
        if (status == QB_OK) status = qb_report_add(&report, paths[1]);
        if (status == QB_OK) status = write_page(&report, &text);
        qb_memory_fail_at(0);
        if (status == QB_OK && (!strstr(text, "Roofline") || !strstr(text, "Attention of m")))
            fail_msg("no figures: %s", text);
        qb_report_deinit(&report);
        free(text);
        assert_int_equal(qb_memory_live_blocks(), before);
    } while (status == QB_ERR_MEMORY);
    QB_CHECK_OK(status);
    assert_true(n > 100);
    for (size_t i = 0; i < 2; i++) unlink(paths[i]);
    rmdir(folder);
}

/* Reading and writing give everything back, whichever allocation fails. */
static void pages_survive_failed_allocations(void **state)
{
    (void)state;
    size_t before = qb_memory_live_blocks(), n = 1, n_failed = 0;
    for (bool done = false; !done; n = n < 40 ? n + 1 : n + n / 3) {
        qb_report report = {0};
        char *text = NULL;
        qb_status status = QB_OK;
        qb_memory_fail_at(n);
        for (size_t i = 0; i < QB_COUNT(inputs) && status == QB_OK; i++)
            status = qb_report_add(&report, inputs[i]);
        if (status == QB_OK) status = write_page(&report, &text);
        qb_memory_fail_at(0);
        done = status == QB_OK;
        if (!done) {
            assert_int_equal(status, QB_ERR_MEMORY);
            n_failed++;
        }
        qb_report_deinit(&report);
        free(text);
        assert_int_equal(qb_memory_live_blocks(), before);
    }
    assert_true(n_failed > 40);
    qb_report report = {0};
    for (size_t i = 0; i < QB_COUNT(inputs); i++) QB_CHECK_OK(qb_report_add(&report, inputs[i]));
    for (n = 1;; n++) {
        char *text = NULL;
        qb_memory_fail_at(n);
        qb_status status = write_page(&report, &text);
        qb_memory_fail_at(0);
        free(text);
        if (status == QB_OK) break;
        assert_int_equal(status, QB_ERR_MEMORY);
    }
    assert_true(n > 5);
    qb_report_deinit(&report);
    assert_int_equal(qb_memory_live_blocks(), before);
}

static void schemes_have_colours_of_their_own(void **state)
{
    (void)state;
    qb_page page = {0};
    for (const qb_scheme *s = qb_schemes; s->name; s++)
        QB_CHECK_OK(qb_texts_add(&page.schemes, s->name));
    for (const qb_scheme *s = qb_schemes; s->name; s++)
        for (const qb_scheme *t = qb_schemes; t < s; t++)
            if (qb_page_colour(&page, s->name) == qb_page_colour(&page, t->name))
                fail_msg("%s and %s have one colour: qb_page_colour", s->name, t->name);
    qb_texts_deinit(&page.schemes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ticks_are_round_numbers),
        cmocka_unit_test(scales_are_monotonic_and_clamp),
        cmocka_unit_test(ranges_choose_the_scale),
        cmocka_unit_test(texts_are_cut_between_characters),
        cmocka_unit_test(texts_are_escaped),
        cmocka_unit_test(odd_schemes_fit_the_text),
        cmocka_unit_test(schemes_have_colours_of_their_own),
        cmocka_unit_test(curves_know_their_tokens),
        cmocka_unit_test(resumed_steps_count_once),
        cmocka_unit_test(bad_curves_are_refused),
        cmocka_unit_test(analyses_and_profiles_are_read),
        cmocka_unit_test(bad_analyses_and_profiles_are_refused),
        cmocka_unit_test(small_pages_survive_failed_allocations),
        cmocka_unit_test(pages_survive_failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
