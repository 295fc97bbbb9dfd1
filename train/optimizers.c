/* train/optimizers.c - the table of optimisers and their element-wise rules. */
#include "train/optimizers.h"

#include <math.h>
#include <string.h>

/* beta2 of RMSProp is torch's alpha. */
#define ADAM_SETTINGS(decay)                                                                       \
    {                                                                                              \
        .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = (decay)                         \
    }

const qb_optimizer qb_optimizers[] = {
    {"adam", QB_RULE_ADAM, 2, false, ADAM_SETTINGS(0), 1e-3, "arXiv:1412.6980"},
    {"adamw", QB_RULE_ADAM, 2, false, ADAM_SETTINGS(0.1), 1e-3, "arXiv:1711.05101"},
    {"orthoadam", QB_RULE_ADAM, 2, true, ADAM_SETTINGS(0), 1e-3, "arXiv:2410.17174, Algorithm 1"},
    {"rmsprop",
     QB_RULE_RMSPROP,
     1,
     false,
     {.beta2 = 0.99, .eps = 1e-8},
     1e-3,
     "Tieleman and Hinton 2012, as in torch.optim"},
    {"sgd", QB_RULE_SGD, 0, false, {.momentum = 0}, 0.2, "arXiv:2410.17174, sec. 5.3"},
    {"sgd_momentum",
     QB_RULE_SGD,
     1,
     false,
     {.momentum = 0.9},
     0.05,
     "Polyak 1964, as in torch.optim"},
    {0},
};

const qb_optimizer *qb_optimizer_find(const char *name)
{
    for (const qb_optimizer *o = qb_optimizers; o->name; o++)
        if (!strcmp(o->name, name)) return o;
    return NULL;
}

qb_update qb_update_make(const qb_optimizer *optimizer, const qb_optimizer_settings *settings,
                         double lr, uint64_t step, double grad_scale)
{
    const qb_optimizer_settings *s = settings;
    qb_update u = {.rule = optimizer->rule,
                   .beta1 = (float)s->beta1,
                   .beta2 = (float)s->beta2,
                   .one_minus_beta1 = (float)(1 - s->beta1),
                   .one_minus_beta2 = (float)(1 - s->beta2),
                   .eps = (float)s->eps,
                   .momentum = (float)s->momentum,
                   .inv_bias1 = 1,
                   .inv_sqrt_bias2 = 1,
                   .lr = (float)lr,
                   .decay = (float)(lr * s->weight_decay),
                   .grad_scale = (float)grad_scale};
    if (optimizer->rule == QB_RULE_ADAM) {
        u.inv_bias1 = (float)(1 / (1 - pow(s->beta1, (double)step)));
        u.inv_sqrt_bias2 = (float)(1 / sqrt(1 - pow(s->beta2, (double)step)));
    }
    return u;
}

static void adam(const qb_update *u, size_t n, const float *g, float *m, float *v, float *delta)
{
    for (size_t i = 0; i < n; i++) {
        float x = u->grad_scale * g[i];
        m[i] = u->beta1 * m[i] + u->one_minus_beta1 * x;
        v[i] = u->beta2 * v[i] + u->one_minus_beta2 * x * x;
        delta[i] = m[i] * u->inv_bias1 / (sqrtf(v[i]) * u->inv_sqrt_bias2 + u->eps);
    }
}

static void rmsprop(const qb_update *u, size_t n, const float *g, float *v, float *delta)
{
    for (size_t i = 0; i < n; i++) {
        float x = u->grad_scale * g[i];
        v[i] = u->beta2 * v[i] + u->one_minus_beta2 * x * x;
        delta[i] = x / (sqrtf(v[i]) + u->eps);
    }
}

/* The state of a rule with one is m for SGD and v for RMSProp. */
void qb_update_delta(const qb_update *u, size_t n, const float *g, float *m, float *v, float *delta)
{
    switch (u->rule) {
    case QB_RULE_ADAM:
        adam(u, n, g, m, v, delta);
        break;
    case QB_RULE_RMSPROP:
        rmsprop(u, n, g, v, delta);
        break;
    case QB_RULE_SGD:
        for (size_t i = 0; i < n; i++) {
            float x = u->grad_scale * g[i];
            delta[i] = m ? (m[i] = u->momentum * m[i] + x) : x;
        }
        break;
    case QB_RULE_COUNT:
        break;
    }
}
