/* train/presets.c - the table of presets.
 *
 * The paper (arXiv:2410.17174, sections 5 and A) gives: batch 512, context 256, peak rate 1e-3,
 * cosine with linear warm-up, steps and warm-up by size, RMSNorm-Single, no biases in linear
 * layers, a tied head. It names sizes, and widths in table 8, but no numbers of layers and heads:
 * those are GPT2's at that width. It says nothing of clipping: a norm of 1 is the default of the
 * library that it trained with. The rate is the optimiser's, 1e-3 for Adam. Vanilla is the preset
 * as it is; "ours" adds softmax=softmax1 optimizer=orthoadam. */
#include "train/presets.h"

#include "core/nearest.h"

#include <string.h>

/* clang-format off */
const qb_preset qb_presets[] = {
    {"paper", NULL, "batch=512 context=256 optimizer=adam schedule=cosine clip=1", NULL},
    {"paper-gpt2", "paper", "arch=gpt2 norm=rmsnorm_single norm-bias=off attn-bias=off "
        "mlp-bias=off tied-head=on act=gelu_tanh pos=learned", NULL},
    {"gpt2-60m", "paper-gpt2", "n-layers=8 d-model=512 n-heads=8 vocab=50304 steps=160000 "
        "warmup=1000", "GPT2 of arXiv:2410.17174, 21 billion tokens"},
    {"gpt2-130m", "paper-gpt2", "n-layers=12 d-model=768 n-heads=12 vocab=50304 steps=320000 "
        "warmup=2000", "GPT2 of arXiv:2410.17174, 42 billion tokens"},
    {"gpt2-350m", "paper-gpt2", "n-layers=24 d-model=1024 n-heads=16 vocab=50304 steps=960000 "
        "warmup=6000", "GPT2 of arXiv:2410.17174, 126 billion tokens"},
    {"gpt2-1.4b", "paper-gpt2", "n-layers=24 d-model=2048 n-heads=16 vocab=50304 steps=600000 "
        "warmup=10000", "GPT2 of arXiv:2410.17174, 79 billion tokens"},
    {"llama2-130m", "paper", "arch=llama norm=rmsnorm_single n-layers=12 d-model=768 n-heads=12 "
        "d-ff=2048 vocab=32000 steps=320000 warmup=2000",
        "Llama2 of arXiv:2410.17174, 42 billion tokens"},
    {"gpt2-8m", "paper-gpt2", "n-layers=8 d-model=256 n-heads=4 vocab=8192 tokens=1500000000 "
        "warmup=500", "the shipped pair: small enough for one GPU and minutes"},
    {"gpt2-1m", "paper-gpt2", "n-layers=4 d-model=128 n-heads=4 context=128 batch=32 steps=1000 "
        "warmup=50 eval-every=200 save-every=200", "for a processor: minutes on two cores"},
    {"bb", NULL, "task=bb arch=gpt2 norm=layernorm norm-bias=on attn-bias=off mlp-bias=off "
        "act=relu pos=learned tied-head=off init=pytorch n-heads=1 d-model=256 context=256 "
        "batch=512 optimizer=adamw lr=3e-4 schedule=constant beta1=0.9 beta2=0.99 eps=1e-8 "
        "weight-decay=1e-4 decay-all=on seed=42 steps=10000 log-every=20 eval-windows=512", NULL},
    {"bb-1l", "bb", "n-layers=1", "Bigram-Backcopy, one block (arXiv:2410.13835)"},
    {"bb-3l", "bb", "n-layers=3", "Bigram-Backcopy, three blocks (arXiv:2410.13835)"},
    {"bb-3l-minimal", "bb-3l", "no-attention=3",
        "the same without the last block's attention: the least that makes residual peaks"},
    {0},
};
/* clang-format on */

static const qb_preset *find(const char *name)
{
    for (const qb_preset *p = qb_presets; p->name; p++)
        if (!strcmp(p->name, name)) return p;
    return NULL;
}

static qb_status apply_settings(const char *settings, qb_train_config *config)
{
    while (*settings) {
        char key[32], value[64];
        size_t n = strcspn(settings, "="), m = strcspn(settings + n + 1, " ");
        snprintf(key, sizeof key, "%.*s", (int)n, settings);
        snprintf(value, sizeof value, "%.*s", (int)m, settings + n + 1);
        QB_TRY(qb_train_config_set(config, key, value));
        settings += n + 1 + m;
        settings += strspn(settings, " ");
    }
    return QB_OK;
}

static qb_status apply(const qb_preset *preset, qb_train_config *config)
{
    if (preset->base) QB_TRY(apply(find(preset->base), config));
    return apply_settings(preset->settings, config);
}

qb_status qb_preset_apply(const char *name, qb_train_config *config)
{
    const qb_preset *preset = find(name);
    if (!preset || !preset->summary) {
        qb_nearest nearest = qb_nearest_begin(name);
        for (const qb_preset *p = qb_presets; p->name; p++)
            if (p->summary) qb_nearest_consider(&nearest, p->name);
        return QB_FAIL(QB_ERR_USAGE, "no such preset: found '%.40s', %s%s%s", name,
                       nearest.word ? "did you mean '" : "expected one that qbench presets lists",
                       nearest.word ? nearest.word : "", nearest.word ? "'?" : "");
    }
    QB_TRY(apply(preset, config));
    return qb_train_config_set(config, "name", preset->name);
}
