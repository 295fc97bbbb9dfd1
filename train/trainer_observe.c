/* train/trainer_observe.c - activations of forward passes, for evaluations (qb_trainer_observe). */
#include "train/trainer_internal.h"

#include "core/memory.h"

enum { OBSERVED_WINDOWS = 64 }; /* of a pass at most: what the host holds of its activations */

typedef struct observation {
    qb_trainer *t;
    const qb_observer *observer;
    size_t most;         /* windows of a pass */
    size_t first, batch; /* of the present pass */
    float *host;         /* the widest buffer that is looked at */
} observation;

static qb_status show(observation *o, qb_status (*to)(void *, const qb_observed *), size_t layer,
                      size_t width, const void *buffer)
{
    const qb_observed seen = {layer, o->first, o->batch, o->host, width};
    QB_TRY(o->t->ops->read(o->t->device, QB_BUFFER_ACTIVATION, width, buffer, o->host));
    return to(o->observer->context, &seen);
}

static qb_status show_attention(void *context, size_t layer, const void *qkv)
{
    observation *o = context;
    return show(o, o->observer->attention, layer, qb_train_qkv_width(&o->t->params.config), qkv);
}

static qb_status show_stream(void *context, size_t layer, const void *x)
{
    observation *o = context;
    return show(o, o->observer->stream, layer, o->t->params.config.d_model, x);
}

static qb_status show_head_input(void *context, const void *h)
{
    observation *o = context;
    return show(o, o->observer->head_input, 0, o->t->params.config.d_model, h);
}

static qb_status observe(observation *o, const int32_t *tokens, size_t n_windows)
{
    qb_trainer *t = o->t;
    const qb_walk_tap tap = {show_attention, show_stream, show_head_input, o, o->observer->skip};
    QB_TRY(t->ops->begin(t->device, false));
    for (o->first = 0; o->first < n_windows; o->first += o->most) {
        o->batch = n_windows - o->first < o->most ? n_windows - o->first : o->most;
        QB_TRY(t->ops->load_tokens(t->device, tokens + o->first * (t->options.context + 1),
                                   o->batch, false));
        QB_TRY(qb_transformer_observe(t->walk, &tap));
    }
    return QB_OK;
}

qb_status qb_trainer_observe(qb_trainer *t, const int32_t *tokens, size_t n_windows,
                             const qb_observer *observer)
{
    const size_t micro_batch = t->options.micro_batch;
    observation o = {.t = t,
                     .observer = observer,
                     .most = micro_batch < OBSERVED_WINDOWS ? micro_batch : OBSERVED_WINDOWS};
    const qb_config *c = &t->params.config;
    size_t qkv = qb_train_qkv_width(c), width = qkv > c->d_model ? qkv : c->d_model;
    QB_TRY(QB_NEW(&o.host, o.most * t->options.context * width, "observed activations"));
    qb_status status = observe(&o, tokens, n_windows);
    qb_free(o.host);
    return status;
}
