/* quant/calibration.c - the container of calibration maxima and its JSON form. */
#include "quant/calibration.h"

#include "core/json.h"
#include "core/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static size_t index_of(const qb_calibration *c, qb_role role, size_t layer_idx)
{
    size_t row = role == QB_ROLE_HEAD ? c->n_layers : layer_idx;
    return row * QB_ROLE_COUNT + role;
}

qb_calibration_linear *qb_calibration_at(const qb_calibration *c, qb_role role, size_t layer_idx)
{
    return &c->linears[index_of(c, role, layer_idx)];
}

static bool has_linear(const qb_config *config, qb_role role, size_t row, size_t *cols)
{
    size_t rows;
    bool is_head = role == QB_ROLE_HEAD;
    if (is_head != (row == config->n_layers)) return false;
    if (is_head) {
        *cols = config->d_model;
        return true;
    }
    return qb_roles[role].linear && qb_config_has(config, role, row) &&
           qb_config_shape(config, role, &rows, cols);
}

qb_status qb_calibration_create(const qb_config *config, qb_calibration **out)
{
    qb_calibration *c;
    QB_TRY(QB_NEW_ZERO(&c, 1, "calibration"));
    c->n_layers = config->n_layers;
    size_t n = (config->n_layers + 1) * QB_ROLE_COUNT;
    qb_status status = QB_NEW_ZERO(&c->linears, n, "calibration");
    for (size_t i = 0; status == QB_OK && i < n; i++) {
        size_t cols;
        if (!has_linear(config, (qb_role)(i % QB_ROLE_COUNT), i / QB_ROLE_COUNT, &cols)) continue;
        status = QB_NEW_ZERO(&c->linears[i].in_channel_max, cols, "calibration");
        if (status == QB_OK) c->linears[i].cols = cols;
    }
    if (status != QB_OK) {
        qb_calibration_destroy(c);
        return status;
    }
    *out = c;
    return QB_OK;
}

void qb_calibration_destroy(qb_calibration *c)
{
    if (!c) return;
    for (size_t i = 0; c->linears && i < (c->n_layers + 1) * QB_ROLE_COUNT; i++)
        qb_free(c->linears[i].in_channel_max);
    qb_free(c->linears);
    qb_free(c->text_name);
    qb_free(c);
}

/* The tensor's name in model.bin is the key. */
static void key_of(const qb_calibration *c, size_t i, char key[64])
{
    size_t row = i / QB_ROLE_COUNT;
    qb_role_name((qb_role)(i % QB_ROLE_COUNT), row == c->n_layers ? 0 : row, key, 64);
}

qb_status qb_calibration_to_json(const qb_calibration *c, json_t **out)
{
    size_t mark = qb_json_mark();
    json_t *linears = json_object();
    for (size_t i = 0; i < (c->n_layers + 1) * QB_ROLE_COUNT; i++) {
        const qb_calibration_linear *l = &c->linears[i];
        if (!l->cols) continue;
        json_t *channels = json_array();
        for (size_t k = 0; k < l->cols; k++)
            json_array_append_new(channels, json_real((double)l->in_channel_max[k]));
        char key[64];
        key_of(c, i, key);
        json_object_set_new(linears, key,
                            json_pack("{s:f,s:f,s:o}", "in_max", (double)l->in_max, "out_max",
                                      (double)l->out_max, "in_channel_max", channels));
    }
    json_t *object =
        json_pack("{s:s,s:s,s:I,s:o}", "text", c->text_name ? c->text_name : "", "text_sha256",
                  c->text_sha256, "tokens", (json_int_t)c->n_tokens, "linears", linears);
    qb_status status = qb_json_check_memory(mark, "calibration");
    if (status != QB_OK)
        json_decref(object);
    else
        *out = object;
    return status;
}

static qb_status get_max(const json_t *object, const char *key, float *out)
{
    double value = -1;
    QB_TRY(qb_json_get_double(object, key, 0, 3e38, &value));
    if (value < 0)
        return QB_FAIL(QB_ERR_FORMAT, "calibration: key \"%s\": found none, expected one", key);
    *out = (float)value;
    return QB_OK;
}

static qb_status read_linear(const json_t *entry, const char *key, qb_calibration_linear *l)
{
    if (!json_is_object(entry))
        return QB_FAIL(QB_ERR_FORMAT, "calibration: %s: found none, expected one", key);
    QB_TRY(get_max(entry, "in_max", &l->in_max));
    QB_TRY(get_max(entry, "out_max", &l->out_max));
    const json_t *channels = json_object_get(entry, "in_channel_max");
    if (json_array_size(channels) != l->cols)
        return QB_FAIL(QB_ERR_FORMAT, "calibration: %s: found %zu channels, expected %zu", key,
                       json_array_size(channels), l->cols);
    for (size_t k = 0; k < l->cols; k++) {
        const json_t *v = json_array_get(channels, k);
        double value = json_number_value(v);
        if (!json_is_number(v) || !(value >= 0 && value <= 3e38))
            return QB_FAIL(QB_ERR_FORMAT,
                           "calibration: %s: channel %zu: found no number from 0 on, expected one",
                           key, k);
        l->in_channel_max[k] = (float)value;
    }
    return QB_OK;
}

qb_status qb_calibration_from_json(const json_t *object, const qb_config *config,
                                   qb_calibration **out)
{
    qb_calibration *c;
    QB_TRY(qb_calibration_create(config, &c));
    const char *name = "", *hash = "";
    size_t tokens = 0;
    qb_status status;
    QB_TRY_GOTO(status, qb_json_get_string(object, "text", &name), done);
    QB_TRY_GOTO(status, qb_json_get_string(object, "text_sha256", &hash), done);
    QB_TRY_GOTO(status, qb_json_get_size(object, "tokens", 0, SIZE_MAX / 2, &tokens), done);
    QB_TRY_GOTO(status, qb_strdup(&c->text_name, name), done);
    snprintf(c->text_sha256, sizeof c->text_sha256, "%s", hash);
    c->n_tokens = tokens;
    const json_t *linears = json_object_get(object, "linears");
    for (size_t i = 0; i < (c->n_layers + 1) * QB_ROLE_COUNT; i++) {
        if (!c->linears[i].cols) continue;
        char key[64];
        key_of(c, i, key);
        QB_TRY_GOTO(status, read_linear(json_object_get(linears, key), key, &c->linears[i]), done);
    }
done:
    if (status != QB_OK)
        qb_calibration_destroy(c);
    else
        *out = c;
    return status;
}
