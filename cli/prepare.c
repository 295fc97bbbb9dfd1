/* cli/prepare.c - see prepare.h. */
#include "cli/prepare.h"

#include "infer/calibrate.h"
#include "kernels/registry.h"

#include <stdio.h>
#include <string.h>

static qb_status check_device(const qb_cli *cli)
{
    const char *device = qb_cli_string(cli, "device");
    if (strncmp(device, "cuda", 4)) return QB_OK;
    return QB_FAIL(QB_ERR_DEVICE,
                   "--device %s: this build has no CUDA engine, expected auto or cpu", device);
}

qb_status qb_cli_prepare(const qb_cli *cli, qb_pool **pool)
{
    QB_TRY(check_device(cli));
    QB_TRY(qb_kernel_force(qb_cli_string(cli, "kernel")));
    return qb_pool_create(qb_cli_size(cli, "threads"), pool);
}

static qb_status unknown_scheme(const char *name)
{
    char names[512];
    size_t n = 0;
    for (const qb_scheme *s = qb_schemes; s->name && n < sizeof names; s++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", s->name);
    return QB_FAIL(QB_ERR_USAGE, "--scheme: found %s, expected one of %s", name, names);
}

qb_status qb_cli_scheme(const qb_cli *cli, const char *name, const qb_model *model, qb_scheme *out)
{
    if (!name) name = model->stored_scheme ? model->stored_scheme : "full";
    const qb_scheme *row = qb_scheme_find(name);
    if (!row) return unknown_scheme(name);
    const qb_scheme_overrides overrides = {.weight_axis = qb_cli_string(cli, "weight-axis"),
                                           .act_axis = qb_cli_string(cli, "act-axis"),
                                           .act_scale = qb_cli_string(cli, "act-scale")};
    return qb_scheme_override(row, &overrides, out);
}

qb_status qb_cli_calibration(const qb_cli *cli, const qb_scheme *scheme, qb_backbone *backbone,
                             qb_calibration **out)
{
    *out = NULL;
    if (!qb_scheme_needs_calibration(scheme)) return QB_OK;
    QB_TRY(qb_calibrate(backbone, NULL, 0, out));
    qb_cli_note(cli, "static scales of %s come from %s (%zu tokens)", scheme->name,
                (*out)->text_name, (*out)->n_tokens);
    return QB_OK;
}
