/* cli/analyze_sensitivity.c - `analyze --sensitivity`: engines of full precision and the scheme,
 * and what infer/sensitivity.h finds with them on the first text. */
#include "cli/analyze.h"

#include "cli/prepare.h"
#include "infer/sensitivity.h"

#include <string.h>

bool qb_analyze_wants_sensitivity(const qb_cli *cli)
{
    return qb_cli_flag(cli, "sensitivity");
}

/* Engines on one backbone; those of the CPU say what products do (infer/sensitivity_probe.c). */
typedef struct engines {
    qb_backbone *own_backbone; /* NULL = the analysis' one */
    qb_engine *own_full, *full, *scheme;
} engines;

static void destroy_engines(engines *e)
{
    qb_engine_destroy(e->scheme);
    qb_engine_destroy(e->own_full);
    qb_backbone_destroy(e->own_backbone);
}

/* The analysis' own engine is in f32: full precision of the CPU, not of every device. */
static qb_status create_engines(qb_analyze *a, bool on_cpu, const qb_scheme *scheme,
                                const qb_calibration *calibration, engines *e)
{
    const bool here = !on_cpu || qb_device_full_is_f32(&a->device);
    qb_backbone_options options = {.max_tokens = a->max_rows, .pool = a->pool};
    qb_engine_options full = {.scheme = qb_scheme_find("full")};
    qb_engine_options quantised = {.scheme = scheme, .calibration = calibration};
    if (!here) QB_TRY(qb_backbone_create(a->model, &options, &e->own_backbone));
    qb_backbone *backbone = here ? a->backbone : e->own_backbone;
    if (here && qb_device_full_is_f32(&a->device)) {
        e->full = a->engine;
    } else {
        QB_TRY(qb_engine_create(backbone, &full, &e->own_full));
        e->full = e->own_full;
    }
    return qb_engine_create(backbone, &quantised, &e->scheme);
}

static qb_sensitivity_by parts_of(const qb_cli *cli)
{
    size_t by = 0;
    while (strcmp(qb_sensitivity_words[by], qb_cli_string(cli, "by"))) by++;
    return (qb_sensitivity_by)by;
}

static json_t *scheme_to_json(const qb_scheme *s)
{
    char axis[32];
    qb_weight_axis_text(&s->weights, axis);
    json_t *object = json_object();
    json_object_set_new(object, "name", json_string(s->name));
    json_object_set_new(object, "weight_bits", json_integer(s->weights.bits));
    json_object_set_new(object, "weight_axis", json_string(axis));
    if (!s->input.bits) return object;
    json_object_set_new(object, "act_bits", json_integer(s->input.bits));
    json_object_set_new(object, "act_axis", json_string(qb_span_text(&s->input)));
    json_object_set_new(object, "act_scale",
                        json_string(s->input.is_static ? "static" : "dynamic"));
    if (s->output.bits) json_object_set_new(object, "out_bits", json_integer(s->output.bits));
    return object;
}

static qb_status measure(qb_analyze *a, const qb_scheme *scheme, const engines *main_engines,
                         const engines *probes, json_t *root)
{
    const qb_run_text *text = &a->texts[0].run;
    const qb_sensitivity_plan plan = {.stream = &text->stream,
                                      .windows = &text->windows,
                                      .batch = text->batch,
                                      .full = main_engines->full,
                                      .scheme = main_engines->scheme,
                                      .probe_full = probes->full,
                                      .probe = probes->scheme,
                                      .by = parts_of(a->cli)};
    qb_sensitivity found;
    QB_TRY(qb_sensitivity_measure(&plan, &found));
    json_t *object = qb_sensitivity_to_json(&found);
    json_object_set_new(object, "scheme", scheme_to_json(scheme));
    json_object_set_new(root, "sensitivity", object);
    qb_sensitivity_deinit(&found);
    return QB_OK;
}

qb_status qb_analyze_add_sensitivity(qb_analyze *a, json_t *root)
{
    qb_scheme scheme;
    qb_calibration *calibration = NULL;
    engines on_device = {0}, on_cpu = {0};
    QB_TRY(qb_cli_scheme(a->cli, qb_cli_string(a->cli, "scheme"), a->model, &scheme));
    if (!scheme.weights.bits)
        return QB_FAIL(QB_ERR_USAGE, "--sensitivity: scheme %s quantises nothing", scheme.name);
    qb_status status = qb_cli_calibration(a->cli, &scheme, a->model, a->pool, &calibration);
    if (status == QB_OK) status = create_engines(a, false, &scheme, calibration, &on_device);
    bool apart = !qb_device_full_is_f32(&a->device); /* the device cannot be asked for a product */
    if (status == QB_OK && apart) status = create_engines(a, true, &scheme, calibration, &on_cpu);
    if (status == QB_OK)
        status = measure(a, &scheme, &on_device, apart ? &on_cpu : &on_device, root);
    destroy_engines(&on_cpu);
    destroy_engines(&on_device);
    qb_calibration_destroy(calibration);
    return status;
}
