/* tests/fault/test_allocation.c - the n-th allocation fails, for n = 1, 2, ... until the work is
 * done: whatever reads files or makes a model gives an error status, keeps nothing and leaves no
 * file. JSON and zlib allocate through the same counter. */
#include "support.h"

#include "core/json.h"
#include "core/memory.h"
#include "infer/calibrate.h"
#include "infer/nll_file.h"
#include "infer/sensitivity.h"
#include "model/export_hf.h"
#include "model/model_bin.h"
#include "model/safetensors.h"
#include "model/text.h"
#include "model/tokenizer.h"
#include "quant/quantize_model.h"
#include "report/table.h"
#include "train/loop.h"
#include "train/run_data.h"
#include "train/run_folder.h"
#include "train/trainer.h"
#include "tiny_model.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/qb_allocation.XXXXXX";
static qb_model *tiny; /* of every work below; with a tokenizer */

static const char *in_folder(const char *name)
{
    static char paths[2][256];
    static unsigned next;
    char *path = paths[next++ % 2];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static qb_status open_and_close(const char *path)
{
    qb_model *model;
    QB_TRY(qb_model_open(path, &model));
    qb_model_close(model);
    return QB_OK;
}

/* ---- the works: each gives back all it took ---- */

static qb_status read_raw(void)
{
    return open_and_close(in_folder("raw.bin"));
}

static qb_status read_deflated(void)
{
    return open_and_close(in_folder("deflated.bin"));
}

static qb_status read_codes(void)
{
    return open_and_close(in_folder("codes.bin"));
}

static qb_status verify(void)
{
    return qb_model_bin_verify(in_folder("deflated.bin"), NULL);
}

static qb_status read_hf_folder(void)
{
    return open_and_close(in_folder("hf"));
}

static qb_status read_safetensors(void)
{
    return open_and_close(in_folder("hf/model.safetensors"));
}

static qb_status read_losses(void)
{
    static const double nll[4] = {1, 2, 3, 4};
    static const int32_t target[4] = {5, 6, 7, 8}, window[4] = {0, 0, 1, 1};
    const qb_st_entry entries[] = {{"nll_full", QB_F64, 1, {4}, nll},
                                   {"target", QB_S32, 1, {4}, target},
                                   {"window", QB_S32, 1, {4}, window}};
    qb_file file;
    qb_nll out;
    QB_TRY(qb_safetensors_write(in_folder("losses"), entries, QB_COUNT(entries), NULL));
    QB_TRY(qb_file_open(in_folder("losses"), &file));
    qb_status status = qb_nll_parse(&file, &out);
    qb_file_close(&file);
    if (status == QB_OK) qb_nll_deinit(&out);
    unlink(in_folder("losses"));
    return status;
}

static qb_status write_bin(void)
{
    return qb_model_bin_write(tiny, in_folder("out.bin"), &(qb_model_bin_options){.zlib_level = 1});
}

static qb_status write_hf(void)
{
    return qb_model_export_hf(tiny, in_folder("out_hf"));
}

static qb_status read_tokenizer_json(void)
{
    qb_tokenizer *tokenizer;
    QB_TRY(qb_tokenizer_open_json(in_folder("hf/tokenizer.json"), &tokenizer));
    qb_tokenizer_destroy(tokenizer);
    return QB_OK;
}

static qb_status tokenize_builtin_text(void)
{
    qb_text text;
    qb_tokens tokens = {0};
    QB_TRY(qb_text_builtin_calibration(&text));
    qb_status status = qb_text_tokenize(&text, tiny->tokenizer, &tokens);
    qb_tokens_deinit(&tokens);
    qb_text_deinit(&text);
    return status;
}

static qb_status read_text_file(void)
{
    qb_text text;
    QB_TRY(qb_text_open(in_folder("text.jsonl"), 0, &text));
    qb_text_deinit(&text);
    return QB_OK;
}

static qb_status describe_config(void)
{
    json_t *json;
    qb_config back;
    QB_TRY(qb_config_to_json(&tiny->config, &json));
    qb_status status = qb_config_from_json(json, &back);
    json_decref(json);
    return status;
}

static qb_status quantize(void)
{
    qb_model *codes;
    QB_TRY(qb_quantize_model(tiny, qb_scheme_find("zeropoint4"), NULL, true, NULL, &codes));
    qb_model_close(codes);
    return QB_OK;
}

static qb_status run_scheme(qb_backbone *backbone, const char *scheme, bool fake)
{
    qb_engine *engine;
    const int32_t tokens[4] = {0, 1, 2, 3};
    const qb_engine_options options = {
        .scheme = qb_scheme_find(scheme), .fake = fake, .cache_batch = 1, .cache_context = 8};
    QB_TRY(qb_engine_create(backbone, &options, &engine));
    qb_status status = qb_engine_prefill(engine, tokens, 1, 4);
    if (status == QB_OK) status = qb_engine_decode_step(engine, tokens);
    qb_engine_destroy(engine);
    return status;
}

static qb_status run_engines(void)
{
    qb_backbone *backbone;
    QB_TRY(qb_backbone_create(tiny, &(qb_backbone_options){.max_tokens = 4}, &backbone));
    qb_status status = run_scheme(backbone, "full", false);
    if (status == QB_OK) status = run_scheme(backbone, "coarse", false);
    if (status == QB_OK) status = run_scheme(backbone, "zeropoint4", true);
    qb_backbone_destroy(backbone);
    return status;
}

static qb_calibration *constant; /* for what needs calibration */

static qb_status take_apart(const qb_sensitivity_plan *plan)
{
    qb_sensitivity s;
    QB_TRY(qb_sensitivity_measure(plan, &s));
    size_t mark = qb_json_mark();
    json_t *json = qb_sensitivity_to_json(&s);
    qb_status status = qb_json_check_memory(mark, "sensitivity");
    json_decref(json);
    qb_sensitivity_deinit(&s);
    return status;
}

static qb_status measure_sensitivity(const char *scheme, bool quantize_head, qb_backbone *backbone)
{
    int32_t ids[8] = {1, 2, 3, 4, 3, 2, 1, 0};
    qb_stream stream = {.tokens = {.ids = ids, .n = 8}};
    qb_window items[] = {{.first_target = 1, .n_feed = 3, .n_scored = 3, .first_id = -1},
                         {.first_target = 5, .n_feed = 3, .n_scored = 3, .first_id = -1}};
    qb_windows windows = {.items = items, .n = 2, .n_feed_max = 3, .context = 3, .n_scored = 6};
    qb_sensitivity_plan plan = {.stream = &stream, .windows = &windows, .batch = 1};
    qb_engine_options options = {.scheme = qb_scheme_find("full"), .calibration = constant};
    QB_TRY(qb_engine_create(backbone, &options, &plan.full));
    options.scheme = qb_scheme_find(scheme);
    options.quantize_head = quantize_head;
    qb_status status = qb_engine_create(backbone, &options, &plan.scheme);
    plan.probe_full = plan.full;
    plan.probe = plan.scheme;
    if (status == QB_OK) status = take_apart(&plan);
    qb_engine_destroy(plan.scheme);
    qb_engine_destroy(plan.full);
    return status;
}

static qb_status find_sensitivity(void)
{
    qb_backbone *backbone;
    const qb_backbone_options options = {.max_tokens = 4, .logit_slots = 1, .logit_rows = 2};
    QB_TRY(qb_backbone_create(tiny, &options, &backbone));
    qb_status status = measure_sensitivity("llm-int8", true, backbone);
    if (status == QB_OK) status = measure_sensitivity("smoothquant", false, backbone);
    qb_backbone_destroy(backbone);
    return status;
}

static qb_status calibrate(void)
{
    qb_calibration *calibration = NULL, *back = NULL;
    json_t *json = NULL;
    qb_status status = qb_calibrate(tiny, NULL, NULL, 64, &calibration);
    if (status == QB_OK) status = qb_calibration_to_json(calibration, &json);
    if (status == QB_OK) status = qb_calibration_from_json(json, &tiny->config, &back);
    qb_calibration_destroy(back);
    json_decref(json);
    qb_calibration_destroy(calibration);
    return status;
}

static qb_status train_and_copy(qb_trainer *trainer, float *weights)
{
    static const int32_t tokens[2 * 6] = {1, 2, 3, 4, 5, 6, 0, 1, 0, 2, 0, 3};
    qb_step_stats stats;
    qb_model *model;
    QB_TRY(qb_params_from_model(qb_trainer_params(trainer), tiny, weights));
    QB_TRY(qb_trainer_set_weights(trainer, weights));
    QB_TRY(qb_trainer_step(trainer, tokens, 2, 1e-3, 1, &stats));
    QB_TRY(qb_params_to_model(qb_trainer_params(trainer), weights, "copy", &model));
    qb_model_close(model);
    return QB_OK;
}

static qb_status train(void)
{
    const qb_optimizer *optimizer = qb_optimizer_find("orthoadam");
    const qb_trainer_options options = {.device = "cpu",
                                        .micro_batch = 1,
                                        .context = 5,
                                        .optimizer = optimizer,
                                        .settings = optimizer->defaults,
                                        .n_threads = 1};
    qb_trainer *trainer;
    float *weights = NULL;
    QB_TRY(qb_trainer_create(&tiny->config, &options, &trainer));
    qb_status status = QB_NEW(&weights, qb_trainer_params(trainer)->n_elems, "weights");
    if (status == QB_OK) status = train_and_copy(trainer, weights);
    qb_free(weights);
    qb_trainer_destroy(trainer);
    return status;
}

static qb_status write_table(const qb_table_records *records)
{
    qb_table table;
    FILE *stream = fopen("/dev/null", "w");
    qb_status status = qb_table_make(qb_paper_table_find(9), records, &table);
    if (status == QB_OK) {
        status = qb_table_write_screen(&table, false, stream);
        if (status == QB_OK) status = qb_table_write_json(&table, stream);
        qb_table_deinit(&table);
    }
    fclose(stream);
    return status;
}

static qb_status tabulate(void)
{
    qb_table_records records = {0};
    qb_status status = qb_table_records_add(&records, in_folder("records"));
    if (status == QB_OK) status = write_table(&records);
    qb_table_records_deinit(&records);
    return status;
}

static qb_status run_one_more_step(const qb_run_folder *run_folder)
{
    qb_train_config config;
    qb_checkpoint from;
    qb_run_data data;
    size_t n_broken;
    QB_TRY(qb_run_folder_resume(run_folder, &config, &from, &n_broken));
    config.steps = from.state.step + 1;
    qb_status status = qb_train_config_resolve(&config, 0);
    if (status == QB_OK) status = qb_run_data_open(&config, &data);
    if (status == QB_OK) {
        const qb_loop_options options = {.folder = run_folder->path,
                                         .device = "cpu",
                                         .from = from.file.path ? &from : NULL,
                                         .train = data.train,
                                         .valid = data.valid,
                                         .bb = &data.bb};
        qb_loop_result result;
        status = qb_loop_run(&options, &config, &result);
        qb_run_data_close(&data);
    }
    qb_checkpoint_close(&from);
    return status;
}

/* A run in a folder: its files are read, one step is done, evaluated and saved. */
static qb_status resume_run(void)
{
    qb_run_folder run_folder;
    QB_TRY(qb_run_folder_open(in_folder("run"), false, &run_folder));
    qb_status status = run_one_more_step(&run_folder);
    qb_run_folder_close(&run_folder);
    return status;
}

/* ---- the loop ---- */

static size_t n_temporaries(const char *path)
{
    size_t n = 0;
    DIR *dir = opendir(path);
    if (!dir) return 0;
    for (struct dirent *e; (e = readdir(dir));) n += strstr(e->d_name, ".tmp.") != NULL;
    closedir(dir);
    return n;
}

/* Every n at first, then one in fifty: works with thousands of allocations repeat themselves. */
static void fail_each_allocation(qb_status (*work)(void), const char *name)
{
    QB_CHECK_OK(work()); /* what is made once (tables of the library) is made now */
    size_t blocks = qb_memory_live_blocks(), bytes = qb_memory_live_bytes(), n_failed = 0;
    for (size_t n = 1;; n += 1 + n / 50) {
        qb_memory_fail_at(n);
        qb_status status = work();
        qb_memory_fail_at(0);
        if (qb_memory_live_blocks() != blocks || qb_memory_live_bytes() != bytes)
            fail_msg("%s: allocation %zu failed: %zu blocks are left", name, n,
                     qb_memory_live_blocks() - blocks);
        if (n_temporaries(folder) + n_temporaries(in_folder("out_hf")) +
            n_temporaries(in_folder("run")))
            fail_msg("%s: allocation %zu failed: a temporary file is left", name, n);
        if (status == QB_OK) break;
        if (status != QB_ERR_MEMORY || !*qb_error_message())
            fail_msg("%s: allocation %zu failed: status %d, %s", name, n, (int)status,
                     qb_error_message());
        n_failed++;
    }
    assert_true(n_failed > 0);
}

#define WORK(work)                                                                                 \
    static void test_##work(void **state)                                                          \
    {                                                                                              \
        (void)state;                                                                               \
        fail_each_allocation(work, #work);                                                         \
    }
WORK(read_raw)
WORK(read_deflated)
WORK(read_codes)
WORK(verify)
WORK(read_hf_folder)
WORK(read_safetensors)
WORK(read_losses)
WORK(write_bin)
WORK(write_hf)
WORK(read_tokenizer_json)
WORK(tokenize_builtin_text)
WORK(read_text_file)
WORK(describe_config)
WORK(quantize)
WORK(run_engines)
WORK(find_sensitivity)
WORK(calibrate)
WORK(train)
WORK(tabulate)
WORK(resume_run)

/* ---- what the works read ---- */

static qb_tokenizer *letters(void)
{
    static const char *const texts[] = {"a", "e", "n", "t", "an", "te", "<|end|>"};
    static const size_t text_bytes[] = {1, 1, 1, 1, 2, 2, 7}, merge_bytes[] = {3, 3};
    static const uint8_t types[] = {0, 0, 0, 0, 0, 0, QB_TOKEN_CONTROL};
    static const char *const merges[] = {"a n", "t e"};
    qb_tokenizer_spec spec = {.kind = QB_TOKENIZER_BPE,
                              .pre = "gpt-2",
                              .vocab = QB_COUNT(texts),
                              .texts = texts,
                              .text_bytes = text_bytes,
                              .types = types,
                              .n_merges = 2,
                              .merges = merges,
                              .merge_bytes = merge_bytes,
                              .bos = 6,
                              .eos = 6,
                              .unk = -1};
    qb_tokenizer *tokenizer;
    QB_CHECK_OK(qb_tokenizer_create(&spec, &tokenizer));
    return tokenizer;
}

static int make_files(void **state)
{
    (void)state;
    static const char lines[] = "{\"text\": \"an ant\"}\n{\"text\": \"\\u00e9 tea\"}\n";
    static const char run[] = "{\"preset\": \"bb-1l\", \"d_model\": 8, \"context\": 6, "
                              "\"batch\": 2, \"micro_batch\": 1, \"vocab\": 67, "
                              "\"eval_windows\": 2, \"threads\": 1, \"tensorboard\": true}";
    static const char record[] = "{\"schema\": \"qbench.run/1\", \"name\": \"a\", \"row\": "
                                 "\"gpt2-60m\", \"sessions\": [{\"gpu\": \"g\"}]}";
    static const char analysis[] = "{\"schema\": \"qbench.analysis/1\", \"model\": {\"sha256\": "
                                   "\"0\"}, \"kurt_norm_ratio_correlation\": {\"first\": 0.5}}";
    if (!mkdtemp(folder)) return -1;
    qb_config config = qb_test_tiny_config("gpt2");
    tiny = qb_test_tiny_model(&config, 1);
    constant = qb_test_constant_calibration(&config);
    tiny->tokenizer = letters();
    tiny->training = json_pack("{s:s}", "optimizer", "adam");
    qb_model *codes;
    QB_CHECK_OK(qb_quantize_model(tiny, qb_scheme_find("zeropoint4"), NULL, true, NULL, &codes));
    QB_CHECK_OK(qb_model_bin_write(tiny, in_folder("raw.bin"), NULL));
    QB_CHECK_OK(qb_model_bin_write(codes, in_folder("codes.bin"), NULL));
    QB_CHECK_OK(qb_model_bin_write(tiny, in_folder("deflated.bin"),
                                   &(qb_model_bin_options){.zlib_level = 1}));
    QB_CHECK_OK(qb_model_export_hf(tiny, in_folder("hf")));
    QB_CHECK_OK(qb_file_write_whole(in_folder("text.jsonl"), lines, sizeof lines - 1));
    assert_int_equal(mkdir(in_folder("run"), 0777), 0);
    QB_CHECK_OK(qb_file_write_whole(in_folder("run/config.json"), run, sizeof run - 1));
    assert_int_equal(mkdir(in_folder("records"), 0777), 0);
    QB_CHECK_OK(qb_file_write_whole(in_folder("records/run.json"), record, sizeof record - 1));
    QB_CHECK_OK(
        qb_file_write_whole(in_folder("records/analysis.json"), analysis, sizeof analysis - 1));
    qb_model_close(codes);
    return 0;
}

static int remove_files(void **state)
{
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    qb_model_close(tiny);
    qb_calibration_destroy(constant);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_raw),
        cmocka_unit_test(test_read_deflated),
        cmocka_unit_test(test_read_codes),
        cmocka_unit_test(test_verify),
        cmocka_unit_test(test_read_hf_folder),
        cmocka_unit_test(test_read_safetensors),
        cmocka_unit_test(test_read_losses),
        cmocka_unit_test(test_write_bin),
        cmocka_unit_test(test_write_hf),
        cmocka_unit_test(test_read_tokenizer_json),
        cmocka_unit_test(test_tokenize_builtin_text),
        cmocka_unit_test(test_read_text_file),
        cmocka_unit_test(test_describe_config),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_run_engines),
        cmocka_unit_test(test_find_sensitivity),
        cmocka_unit_test(test_calibrate),
        cmocka_unit_test(test_train),
        cmocka_unit_test(test_tabulate),
        cmocka_unit_test(test_resume_run),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
