/* cli/cmd_presets.c - qbench presets: the presets of qbench train. */
#include "cli/cli.h"

#include "core/json.h"
#include "core/memory.h"
#include "report/format.h"
#include "train/presets.h"

#include <stdio.h>
#include <string.h>

/* Where a preset leaves the vocabulary to the data: that of a small tokenizer. */
enum { SMALL_VOCAB = 8192, BB_VOCAB = 67 };

static qb_status configuration_of(const char *name, qb_train_config *config)
{
    qb_train_config_init(config);
    QB_TRY(qb_preset_apply(name, config));
    bool text = config->task == QB_TASK_TEXT && !config->model.vocab;
    return qb_train_config_resolve(config, text                         ? SMALL_VOCAB
                                           : config->task == QB_TASK_BB ? BB_VOCAB
                                                                        : config->model.vocab);
}

static qb_status print_list(void)
{
    printf("%-13s %10s %6s %5s %6s %8s %7s\n", "preset", "parameters", "layers", "d", "vocab",
           "batch", "steps");
    for (const qb_preset *p = qb_presets; p->name; p++) {
        qb_train_config c;
        if (!p->summary) continue;
        QB_TRY(configuration_of(p->name, &c));
        printf("%-13s %8.2f M %6zu %5zu %6zu %4zux%-4zu %6llu\n", p->name,
               (double)qb_config_n_params(&c.model) / 1e6, c.model.n_layers, c.model.d_model,
               c.model.vocab, c.batch, c.model.context,
               (unsigned long long)qb_train_config_n_steps(&c));
    }
    printf("\n");
    for (const qb_preset *p = qb_presets; p->name; p++)
        if (p->summary) qb_write_labelled(stdout, p->name, 15, "%s", p->summary);
    printf("\nVanilla as they stand; softmax-1 and OrthoAdam:\n"
           "--softmax softmax1 --optimizer orthoadam\n");
    return QB_OK;
}

static qb_status print_one(const char *name)
{
    qb_train_config config;
    json_t *object;
    char *text;
    QB_TRY(configuration_of(name, &config));
    QB_TRY(qb_train_config_to_json(&config, &object));
    qb_status status =
        qb_json_dump(object, JSON_INDENT(1) | JSON_REAL_PRECISION(15), "preset", &text);
    json_decref(object);
    QB_TRY(status);
    printf("%s\n", text);
    qb_library_free(text);
    return QB_OK;
}

qb_status qb_cmd_presets(const qb_cli *cli)
{
    return qb_cli_n_args(cli) ? print_one(qb_cli_arg(cli, 0)) : print_list();
}
