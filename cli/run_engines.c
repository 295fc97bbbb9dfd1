/* cli/run_engines.c - the schemes of a run, their shared codes, and engines of them; see run.h. */
#include "cli/run.h"

#include "cli/prepare.h"
#include "core/memory.h"
#include "quant/quantize_model.h"

#include <string.h>

static bool quantises_nothing(const qb_scheme *s)
{
    return !s->weights.bits && !s->input.bits && !s->output.bits;
}

/* ---- which schemes ---- */

static qb_status add_scheme(const qb_cli *cli, const char *name, const qb_model *model,
                            const qb_device *device, qb_run_schemes *schemes)
{
    qb_run_scheme item = {0};
    for (size_t i = 0; i < schemes->n; i++)
        if (!strcmp(schemes->items[i].scheme.name, name)) return QB_OK; /* named twice */
    QB_TRY(qb_cli_scheme(cli, name, model, &item.scheme));
    item.is_full =
        quantises_nothing(&item.scheme) && (!item.scheme.f32 || qb_device_full_is_f32(device));
    QB_TRY(
        qb_realloc((void **)&schemes->items, schemes->n, schemes->n + 1, sizeof item, "schemes"));
    schemes->items[schemes->n++] = item;
    return QB_OK;
}

static qb_status list_schemes(const qb_cli *cli, const qb_model *model, const qb_device *device,
                              qb_run_schemes *schemes)
{
    for (size_t i = 0; i < qb_cli_list_n_items(cli, "scheme"); i++) {
        const char *name = qb_cli_list_item(cli, "scheme", i);
        if (strcmp(name, "all")) {
            QB_TRY(add_scheme(cli, name, model, device, schemes));
            continue;
        }
        for (const qb_scheme *s = qb_schemes; s->name; s++)
            if (!quantises_nothing(s)) QB_TRY(add_scheme(cli, s->name, model, device, schemes));
    }
    return QB_OK;
}

/* ---- their codes ---- */

static bool same_quant(const qb_weight_quant *a, const qb_weight_quant *b)
{
    return a->bits == b->bits && a->axis == b->axis && a->group_elems == b->group_elems &&
           a->fold_inputs == b->fold_inputs && a->smooth_alpha == b->smooth_alpha;
}

static qb_status find_codes(const qb_model *model, qb_pool *pool, qb_run_schemes *schemes,
                            qb_run_scheme *item)
{
    if (!item->scheme.weights.bits) return QB_OK;
    for (size_t i = 0; i < schemes->n_codes && !item->codes; i++)
        if (same_quant(&schemes->codes[i].quant, &item->scheme.weights))
            item->codes = schemes->codes[i].model;
    if (item->codes) return QB_OK;
    qb_run_codes codes = {.quant = item->scheme.weights};
    QB_TRY(qb_realloc((void **)&schemes->codes, schemes->n_codes, schemes->n_codes + 1,
                      sizeof codes, "codes of the schemes"));
    QB_TRY(qb_quantize_model(model, &item->scheme, schemes->calibration, schemes->quantize_head,
                             pool, &codes.model));
    schemes->codes[schemes->n_codes++] = codes;
    item->codes = codes.model;
    return QB_OK;
}

static qb_status open_schemes(const qb_cli *cli, const qb_model *model, const qb_device *device,
                              qb_pool *pool, qb_run_schemes *s)
{
    QB_TRY(list_schemes(cli, model, device, s));
    s->quantize_head = qb_cli_flag(cli, "quantize-head");
    for (size_t i = 0; i < s->n && !s->calibration; i++)
        QB_TRY(qb_cli_calibration(cli, &s->items[i].scheme, model, pool, &s->calibration));
    for (size_t i = 0; i < s->n; i++) QB_TRY(find_codes(model, pool, s, &s->items[i]));
    return QB_OK;
}

qb_status qb_run_schemes_open(const qb_cli *cli, const qb_model *model, const qb_device *device,
                              qb_pool *pool, qb_run_schemes *out)
{
    qb_run_schemes schemes = {0};
    qb_status status = open_schemes(cli, model, device, pool, &schemes);
    if (status != QB_OK)
        qb_run_schemes_close(&schemes);
    else
        *out = schemes;
    return status;
}

void qb_run_schemes_close(qb_run_schemes *schemes)
{
    for (size_t i = 0; i < schemes->n_codes; i++) qb_model_close(schemes->codes[i].model);
    qb_free(schemes->codes);
    qb_free(schemes->items);
    qb_calibration_destroy(schemes->calibration);
    *schemes = (qb_run_schemes){0};
}

/* ---- engines ---- */

static qb_status create_engines(const qb_run_schemes *schemes, qb_backbone *backbone,
                                bool with_fakes, size_t cache_batch, size_t cache_context,
                                qb_run_engines *e)
{
    qb_engine_options options = {.scheme = qb_scheme_find("full"),
                                 .cache_batch = cache_batch,
                                 .cache_context = cache_context};
    e->n = schemes->n;
    QB_TRY(QB_NEW_ZERO(&e->items, schemes->n + 1, "engines"));
    QB_TRY(QB_NEW_ZERO(&e->fakes, schemes->n, "engines"));
    QB_TRY(qb_engine_create(backbone, &options, &e->items[0]));
    options.quantize_head = schemes->quantize_head;
    options.calibration = schemes->calibration;
    for (size_t i = 0; i < schemes->n; i++) {
        const qb_run_scheme *item = &schemes->items[i];
        if (item->is_full) continue;
        options.scheme = &item->scheme;
        options.quantized = item->codes;
        options.fake = false;
        QB_TRY(qb_engine_create(backbone, &options, &e->items[1 + i]));
        options.fake = true;
        if (with_fakes && !quantises_nothing(&item->scheme))
            QB_TRY(qb_engine_create(backbone, &options, &e->fakes[i]));
    }
    return QB_OK;
}

qb_status qb_run_engines_create(const qb_run_schemes *schemes, qb_backbone *backbone,
                                bool with_fakes, size_t cache_batch, size_t cache_context,
                                qb_run_engines *out)
{
    qb_run_engines engines = {0};
    qb_status status =
        create_engines(schemes, backbone, with_fakes, cache_batch, cache_context, &engines);
    if (status != QB_OK)
        qb_run_engines_destroy(&engines);
    else
        *out = engines;
    return status;
}

void qb_run_engines_destroy(qb_run_engines *e)
{
    for (size_t i = 0; e->items && i <= e->n; i++) qb_engine_destroy(e->items[i]);
    for (size_t i = 0; e->fakes && i < e->n; i++) qb_engine_destroy(e->fakes[i]);
    qb_free(e->items);
    qb_free(e->fakes);
    *e = (qb_run_engines){0};
}
