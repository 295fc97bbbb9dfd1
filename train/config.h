/* train/config.h - everything that determines a training run, as one table of keys.
 *
 * QB_TRAIN_KEYS is the one home of a key's name, place, kind, range, default and help: a JSON file
 * (--config; _ for -), the flags of `qbench train`, a preset, the configuration that a checkpoint
 * stores and docs/training.md are all read from it. A new key is a line below and the use of its
 * field. */
#ifndef QB_TRAIN_CONFIG_H
#define QB_TRAIN_CONFIG_H

#include "model/arch.h"
#include "train/optimizers.h"
#include "train/params.h"
#include "train/rotation.h"
#include "train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QB_TRAIN_TEXT_BYTES = 1024 }; /* of a text value, with its NUL */

typedef enum {
    QB_TASK_TEXT,   /* shards of tokens (train/data/batches.h) */
    QB_TASK_BB,     /* Bigram-Backcopy sequences (train/data/bb.h) */
    QB_TASK_RANDOM, /* random tokens */
    QB_TASK_COUNT
} qb_train_task;
typedef enum { QB_PRECISION_BF16, QB_PRECISION_F32, QB_PRECISION_COUNT } qb_train_precision;

typedef enum {
    QB_KEY_WORD, /* one of words(i), stored as i */
    QB_KEY_TEXT,
    QB_KEY_SIZE,
    QB_KEY_REAL,
    QB_KEY_SWITCH, /* on, off; JSON true, false */
    QB_KEY_BLOCKS, /* numbers from 1 to 64 with commas, bits of a uint64_t; JSON a text */
} qb_train_key_kind;

/* What belongs to the key decides when it may change between a checkpoint and its resumption. */
typedef enum {
    QB_KEY_FIXED, /* never: another run */
    QB_KEY_FREE,  /* how long, where, how often something is shown or saved */
} qb_train_key_use;

/* X(field, name, kind, use, min, max, default, words, value, help)
 * default NULL: from the architecture's row, the optimiser's row, or another key (the help says).
 */
/* clang-format off */
#define QB_TRAIN_KEYS(X)                                                                           \
    /* the model */                                                                                \
    X(name, "name", TEXT, FIXED, 0, 0, NULL, NULL, "TEXT",                                         \
        "the model's name for display (default: the preset's)")                                    \
    X(arch, "arch", WORD, FIXED, 0, 0, "gpt2", qb_words_arch, "FAMILY",                            \
        "architecture whose defaults the next keys start from")                                    \
    X(model.n_layers, "n-layers", SIZE, FIXED, 1, 4096, NULL, NULL, "N", "blocks")                 \
    X(model.d_model, "d-model", SIZE, FIXED, 1, 1048576, NULL, NULL, "N",                          \
        "width of the residual stream")                                                            \
    X(model.n_heads, "n-heads", SIZE, FIXED, 1, 4096, NULL, NULL, "N",                             \
        "attention heads (default: d_model / 64, at least 1)")                                     \
    X(model.n_kv_heads, "n-kv-heads", SIZE, FIXED, 1, 4096, NULL, NULL, "N",                       \
        "heads of keys and values (default: n_heads)")                                             \
    X(model.head_dim, "head-dim", SIZE, FIXED, 1, 256, NULL, NULL, "N",                            \
        "width of a head (default: d_model / n_heads)")                                            \
    X(model.d_ff, "d-ff", SIZE, FIXED, 1, 1048576, NULL, NULL, "N",                                \
        "width inside the MLP (default: 4 d_model)")                                               \
    X(model.vocab, "vocab", SIZE, FIXED, 1, 16777216, NULL, NULL, "N",                             \
        "rows of the embedding (default: the data's, rounded up to a multiple of 64)")             \
    X(model.context, "context", SIZE, FIXED, 1, 1048575, "256", NULL, "T",                         \
        "targets a window, and the model's context")                                               \
    X(model.norm, "norm", WORD, FIXED, 0, 0, NULL, qb_words_norm, "KIND",                          \
        "normalisation (default: the architecture's)")                                             \
    X(model.norm_eps, "norm-eps", REAL, FIXED, 0, 1, NULL, NULL, "E",                              \
        "added to the variance (default: the architecture's)")                                     \
    X(model.norm_bias, "norm-bias", SWITCH, FIXED, 0, 0, NULL, NULL, NULL,                         \
        "LayerNorm has a bias (default: the architecture's; off with another norm)")               \
    X(model.act, "act", WORD, FIXED, 0, 0, NULL, qb_words_act, "KIND",                             \
        "activation of the MLP (default: the architecture's)")                                     \
    X(model.pos, "pos", WORD, FIXED, 0, 0, NULL, qb_words_pos, "KIND",                             \
        "positions (default: the architecture's)")                                                 \
    X(model.rope.theta, "rope-theta", REAL, FIXED, 1e-3, 1e12, NULL, NULL, "X",                    \
        "base of rotary positions (default: the architecture's)")                                  \
    X(model.softmax, "softmax", WORD, FIXED, 0, 0, NULL, qb_words_softmax, "KIND",                 \
        "normalisation of attention (default: the architecture's)")                                \
    X(model.softmax_gamma, "softmax-gamma", REAL, FIXED, -1, 0, NULL, NULL, "X",                   \
        "lower end of clipped softmax (default: the architecture's)")                              \
    X(model.softmax_zeta, "softmax-zeta", REAL, FIXED, 1, 2, NULL, NULL, "X",                      \
        "upper end of clipped softmax (default: the architecture's)")                              \
    X(model.attn_gate, "attn-gate", SWITCH, FIXED, 0, 0, NULL, NULL, NULL,                         \
        "a learned gate on each head's output (default: off)")                                     \
    X(model.free_prefix, "free-prefix", SIZE, FIXED, 0, 1048575, NULL, NULL, "N",                  \
        "the first N tokens see each other, and score nothing (default: 0)")                       \
    X(model.no_attention, "no-attention", BLOCKS, FIXED, 0, 0, NULL, NULL, "LIST",                 \
        "blocks, from 1, with commas, that have an MLP alone (default: none)")                     \
    X(model.attn_bias, "attn-bias", SWITCH, FIXED, 0, 0, NULL, NULL, NULL,                         \
        "biases in the attention's linear layers (default: the architecture's)")                   \
    X(model.mlp_bias, "mlp-bias", SWITCH, FIXED, 0, 0, NULL, NULL, NULL,                           \
        "biases in the MLP's linear layers (default: the architecture's)")                         \
    X(model.tied_head, "tied-head", SWITCH, FIXED, 0, 0, NULL, NULL, NULL,                         \
        "the embedding is the output projection too (default: the architecture's)")                \
    X(init, "init", WORD, FIXED, 0, 0, "gpt2", qb_words_init, "KIND",                              \
        "how weights are drawn (pytorch: as after torch.manual_seed)")                             \
    /* what it learns from */                                                                      \
    X(task, "task", WORD, FIXED, 0, 0, "text", qb_words_task, "TASK",                              \
        "token shards, Bigram-Backcopy sequences (arXiv:2410.13835), or random tokens")                           \
    X(data, "data", TEXT, FREE, 0, 0, NULL, NULL, "DIR",                                           \
        "folder of token shards, as `qbench data` writes it")                                      \
    X(valid, "valid", TEXT, FREE, 0, 0, NULL, NULL, "DIR",                                         \
        "folder of validation shards (default: those of data that are named valid*)")              \
    X(bb_counts, "bb-counts", TEXT, FREE, 0, 0, NULL, NULL, "FILE",                                \
        "counts of Bigram-Backcopy (default: those built in)")                                     \
    X(bb_triggers, "bb-triggers", SIZE, FIXED, 0, 64, "3", NULL, "N",                              \
        "Bigram-Backcopy: the N commonest characters are triggers")                                \
    X(bb_bos, "bb-bos", SIZE, FIXED, 0, 2, "1", NULL, "N",                                         \
        "Bigram-Backcopy: first tokens <s>")                                                       \
    X(seed, "seed", SIZE, FIXED, 0, 9007199254740992.0, "42", NULL, "N",                           \
        "seed of weights, data order and rotations")                                               \
    /* how it learns */                                                                            \
    X(optimizer, "optimizer", WORD, FIXED, 0, 0, "adam", qb_words_optimizer, "NAME",               \
        "rule of the update")                                                                      \
    X(schedule.peak, "lr", REAL, FIXED, 0, 1e3, NULL, NULL, "X",                                   \
        "highest learning rate (default: the optimiser's)")                                        \
    X(schedule.kind, "schedule", WORD, FIXED, 0, 0, "cosine", qb_words_schedule, "KIND",           \
        "learning rate after the warm-up")                                                         \
    X(schedule.warmup, "warmup", SIZE, FIXED, 0, 1e12, "0", NULL, "STEPS",                         \
        "steps over which the rate rises linearly")                                                \
    X(schedule.floor, "lr-floor", REAL, FIXED, 0, 1, "0", NULL, "SHARE",                           \
        "share of the highest rate that cosine ends at")                                           \
    X(settings.beta1, "beta1", REAL, FIXED, 0, 1, NULL, NULL, "X",                                 \
        "decay of the first moment (default: the optimiser's)")                                    \
    X(settings.beta2, "beta2", REAL, FIXED, 0, 1, NULL, NULL, "X",                                 \
        "decay of the second moment (default: the optimiser's)")                                   \
    X(settings.eps, "eps", REAL, FIXED, 0, 1, NULL, NULL, "X",                                     \
        "added to the root of the second moment (default: the optimiser's)")                       \
    X(settings.momentum, "momentum", REAL, FIXED, 0, 1, NULL, NULL, "X",                           \
        "momentum of SGD (default: the optimiser's)")                                              \
    X(settings.weight_decay, "weight-decay", REAL, FIXED, 0, 10, NULL, NULL, "X",                  \
        "decoupled weight decay (default: the optimiser's)")                                       \
    X(settings.decay_all, "decay-all", SWITCH, FIXED, 0, 0, NULL, NULL, NULL,                      \
        "gains and biases decay too (default: the optimiser's)")                                   \
    X(clip, "clip", REAL, FIXED, 0, 1e9, "0", NULL, "NORM",                                        \
        "largest global norm of the gradient; 0 = any")                                            \
    X(rotation, "rotation", WORD, FIXED, 0, 0, "haar", qb_words_rotation, "KIND",                  \
        "bases of a rotated optimiser")                                                            \
    X(rotation_block, "rotation-block", SIZE, FIXED, 1, 8192, "64", NULL, "N",                     \
        "size of a block where rotation is block")                                                 \
    X(rotate_both, "rotate-both", SWITCH, FIXED, 0, 0, "off", NULL, NULL,                          \
        "rotate both axes of a matrix, not the residual stream's alone")                           \
    X(batch, "batch", SIZE, FIXED, 1, 1048576, "512", NULL, "B", "windows a step")                 \
    X(micro_batch, "micro-batch", SIZE, FIXED, 0, 1048576, "0", NULL, "B",                         \
        "windows of one pass, a divisor of batch; 0 = the most that is likely to fit")             \
    X(precision, "precision", WORD, FIXED, 0, 0, "bf16", qb_words_precision, "TYPE",               \
        "of products on a GPU; the processor computes in f32")                                     \
    X(recompute, "recompute", SWITCH, FIXED, 0, 0, "off", NULL, NULL,                              \
        "work out a block's activations again in the backward pass, to save memory")               \
    X(deterministic, "deterministic", SWITCH, FIXED, 0, 0, "on", NULL, NULL,                       \
        "every sum in a fixed order: the same bits in every run")                                  \
    X(graphs, "graphs", SWITCH, FREE, 0, 0, "on", NULL, NULL,                                      \
        "a GPU repeats a step's launches as CUDA graphs; the same bits without")                   \
    /* how long */                                                                                 \
    X(steps, "steps", SIZE, FREE, 0, 1e12, "0", NULL, "N",                                         \
        "steps of the run and of its schedule; 0 = by tokens")                                     \
    X(tokens, "tokens", SIZE, FREE, 0, 9007199254740992.0, "0", NULL, "N",                         \
        "targets of the run, rounded up to whole steps, where steps is 0")                         \
    X(minutes, "minutes", REAL, FREE, 0, 1e6, "0", NULL, "M",                                      \
        "save and stop after that time, wherever the schedule is; 0 = never")                      \
    /* where */                                                                                    \
    X(device, "device", TEXT, FREE, 0, 0, "auto", NULL, "DEVICE",                                  \
        "auto, cpu, cuda or cuda:N")                                                               \
    X(threads, "threads", SIZE, FREE, 0, 256, "0", NULL, "N",                                      \
        "threads; 0 = the processors that this process may use")                                   \
    X(peak_tflops, "peak-tflops", REAL, FREE, 0, 1e6, "0", NULL, "X",                              \
        "peak of the device that MFU is a share of; 0 = known or measured")                        \
    /* what is shown and kept */                                                                   \
    X(log_every, "log-every", SIZE, FREE, 1, 1e12, "10", NULL, "STEPS",                            \
        "steps between two lines of metrics.jsonl")                                                \
    X(eval_every, "eval-every", SIZE, FREE, 0, 1e12, "500", NULL, "STEPS",                         \
        "steps between evaluations on the validation text; 0 = at the end alone")                  \
    X(eval_log, "eval-log", SWITCH, FREE, 0, 0, "off", NULL, NULL,                                 \
        "evaluations after 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, ... steps too")       \
    X(eval_windows, "eval-windows", SIZE, FREE, 1, 1e9, "256", NULL, "N",                          \
        "windows of an evaluation")                                                                \
    X(outliers, "outliers", SWITCH, FREE, 0, 0, "on", NULL, NULL,                                  \
        "kurtosis, largest activations and first-token attention in each evaluation")              \
    X(observe_windows, "observe-windows", SIZE, FREE, 0, 1048576, "0", NULL, "N",                  \
        "windows that those are measured on; 0 = 16, of Bigram-Backcopy 64")                       \
    X(save_every, "save-every", SIZE, FREE, 0, 1e12, "500", NULL, "STEPS",                         \
        "steps between checkpoints; 0 = at the end alone")                                         \
    X(keep, "keep", SIZE, FREE, 1, 1000, "2", NULL, "N",                                           \
        "checkpoints that are kept, the newest")                                                   \
    X(keep_models, "keep-models", SWITCH, FREE, 0, 0, "off", NULL, NULL,                           \
        "the model of every checkpoint stays, as model-00001000.bin")                              \
    X(checkpoints, "checkpoints", SWITCH, FREE, 0, 0, "on", NULL, NULL,                            \
        "off: nothing is saved, neither checkpoints nor models; for measuring speed")              \
    X(tensorboard, "tensorboard", SWITCH, FREE, 0, 0, "off", NULL, NULL,                           \
        "write a TensorBoard event file too")
/* clang-format on */

enum {
#define QB__PLUS_ONE(...) +1
    QB_TRAIN_N_KEYS = 0 QB_TRAIN_KEYS(QB__PLUS_ONE)
#undef QB__PLUS_ONE
};

typedef struct qb_train_config {
    char name[QB_TRAIN_TEXT_BYTES], data[QB_TRAIN_TEXT_BYTES], valid[QB_TRAIN_TEXT_BYTES],
        bb_counts[QB_TRAIN_TEXT_BYTES], device[QB_TRAIN_TEXT_BYTES];
    unsigned arch; /* row of qb_archs */
    qb_config model;
    unsigned init; /* qb_init_kind */
    unsigned task; /* qb_train_task */
    size_t bb_triggers, bb_bos;
    unsigned optimizer; /* row of qb_optimizers */
    qb_optimizer_settings settings;
    qb_schedule schedule;
    double clip;
    unsigned rotation;
    size_t rotation_block;
    bool rotate_both;
    size_t batch, micro_batch, steps, tokens;
    double minutes;
    size_t seed;
    unsigned precision; /* qb_train_precision */
    bool recompute, deterministic, graphs;
    size_t threads;
    size_t log_every, eval_every, eval_windows, observe_windows, save_every, keep;
    bool eval_log, outliers, keep_models, checkpoints, tensorboard;
    double peak_tflops;
    bool given[QB_TRAIN_N_KEYS]; /* set by a preset, a file or a flag */
} qb_train_config;

/* The i-th word of a key, NULL after the last. */
const char *qb_words_arch(size_t i);
const char *qb_words_norm(size_t i);
const char *qb_words_act(size_t i);
const char *qb_words_pos(size_t i);
const char *qb_words_softmax(size_t i);
const char *qb_words_init(size_t i);
const char *qb_words_task(size_t i);
const char *qb_words_optimizer(size_t i);
const char *qb_words_schedule(size_t i);
const char *qb_words_rotation(size_t i);
const char *qb_words_precision(size_t i);

typedef struct qb_train_key {
    const char *name; /* NULL ends the table */
    qb_train_key_kind kind;
    qb_train_key_use use;
    double min, max;
    const char *default_text;
    const char *(*words)(size_t i);
    const char *value, *help; /* as in qb_option */
    size_t offset;            /* in qb_train_config */
} qb_train_key;
extern const qb_train_key qb_train_keys[QB_TRAIN_N_KEYS + 1];
/* Either spelling of the name, with - or with _. NULL = none. */
const qb_train_key *qb_train_key_find(const char *name);
/* The name with _, as JSON has it; at most 32 bytes. */
void qb_train_key_json_name(const qb_train_key *key, char name[32]);

void qb_train_config_init(qb_train_config *config);
/* QB_ERR_USAGE: no such key (with the nearest), or no value of it. */
qb_status qb_train_config_set(qb_train_config *config, const char *name, const char *text);
/* Sets what the object holds, null = as it is; "preset" comes first, wherever it stands.
 * QB_ERR_FORMAT: as above. */
qb_status qb_train_config_merge(qb_train_config *config, const json_t *object);
/* Fills what was not set from the architecture, the optimiser and the vocabulary of the data, and
 * checks everything. QB_ERR_USAGE names the key. data_vocab 0 = not known: vocab must be set. */
qb_status qb_train_config_resolve(qb_train_config *config, size_t data_vocab);
/* Every key of a resolved configuration, in the table's order. */
qb_status qb_train_config_to_json(const qb_train_config *config, json_t **out);
/* QB_ERR_USAGE names the first fixed key in which the two differ. */
qb_status qb_train_config_check_same(const qb_train_config *stored, const qb_train_config *wanted);
/* Steps of the whole run. */
uint64_t qb_train_config_n_steps(const qb_train_config *config);

#ifdef __cplusplus
}
#endif
#endif
