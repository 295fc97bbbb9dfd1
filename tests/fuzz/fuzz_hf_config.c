/* tests/fuzz/fuzz_hf_config.c - config.json: what is accepted can be written and read again. */
#include "fuzz.h"

#include "core/json.h"
#include "core/memory.h"
#include "model/hf_internal.h"

#include <stdlib.h>

static void write_and_read(const qb_config *config)
{
    json_t *root;
    bool foreign;
    qb_config again;
    qb_model *model;
    if (qb__hf_config_to_json(config, &root, &foreign) != QB_OK) abort();
    if (qb__hf_config_from_json(root, &again) != QB_OK) abort();
    if (qb_config_n_params(config) != qb_config_n_params(&again)) abort();
    json_decref(root);
    if (qb_model_create(config, "input", "hf", &model) != QB_OK) abort();
    qb_model_close(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    json_t *root;
    qb_config config;
    if (qb_json_parse((const char *)data, bytes, QB__HF_MAX_JSON_BYTES, "input", &root) == QB_OK) {
        if (qb__hf_config_from_json(root, &config) == QB_OK) write_and_read(&config);
        json_decref(root);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
