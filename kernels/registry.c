/* kernels/registry.c - the list of operations, and the choice of a row. */
#include "kernels/registry.h"

#include "core/cuda.h"
#include "core/nearest.h"
#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_train.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gemm_bf16.h"
#include "kernels/cuda/gemm_float.h"
#include "kernels/cuda/gemm_s8.h"
#include "kernels/cuda/gemm_u4.h"
#include "kernels/cuda/logits.h"
#include "kernels/cuda/pointwise.h"
#include "kernels/gemm_f32.h"
#include "kernels/gemm_s8.h"
#include "kernels/gemm_u4.h"
#include "kernels/gradient.h"
#include "kernels/pointwise.h"
#include "kernels/quantize.h"
#include "kernels/reflections.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CPU(name)                                                                                  \
    {                                                                                              \
        qb_##name##_kernels, sizeof(qb_##name##_row)                                               \
    }
#ifdef QB_WITH_CUDA
#define CUDA(name) CPU(cuda_##name)
#else
#define CUDA(name) NONE
#endif
#define NONE                                                                                       \
    {                                                                                              \
        NULL, 0                                                                                    \
    }
#ifdef QB_WITH_CUDA
/* Passes that the GPU has one kernel for, or one set: the list has a row of each, and their callers
 * call them by name. */
#define ONE(op)                                                                                    \
    {                                                                                              \
        (const qb_kernel_info[]){{op "/cuda", "cuda", QB_CUDA_SM80}, {0}}, sizeof(qb_kernel_info)  \
    }
#endif
/* clang-format off */
const qb_kernel_op qb_kernel_ops[] = {
    {"gemm_s8", "s8 x s8 -> s32 matrix product, scaled to f32", {CPU(gemm_s8), CUDA(gemm_s8)}},
    {"gemm_u4", "f32 or bf16 x 4-bit zero-point weights", {CPU(gemm_u4), CUDA(gemm_u4)}},
    {"quantize", "absmax, quantise and requantise passes", {CPU(quantize), NONE}},
    {"gemm_f32", "f32 matrix product", {CPU(gemm_f32), NONE}},
    {"attention", "causal attention over a KV cache", {CPU(attention), CUDA(attention)}},
    {"gradient", "backward passes of norms, activations and softmax", {CPU(gradient), NONE}},
    {"reflections", "products of Householder reflections, for OrthoAdam's bases",
        {CPU(reflections), NONE}},
    {"pointwise", "norms, activations, rotary positions, statistics of logits",
        {CPU(pointwise), CUDA(pointwise)}},
#ifdef QB_WITH_CUDA
    {"gemm_float", "bf16 and f32 matrix products", {NONE, CUDA(gemm_float)}},
    {"gemm_bf16", "products of a training step with GELU, its slope or the loss behind them",
        {NONE, CUDA(gemm_bf16)}},
    {"absmax", "largest magnitudes of a matrix", {NONE, ONE("absmax")}},
    {"head_gates", "gates of attention's heads", {NONE, ONE("head_gates")}},
    {"attention_train", "causal attention and its gradients", {NONE, CUDA(attention_train)}},
    {"train_embed", "embeddings and their gradients", {NONE, ONE("train_embed")}},
    {"train_norm", "norms and their gradients", {NONE, ONE("train_norm")}},
    {"train_act", "activations, biases, rotary positions, gates, and their gradients",
        {NONE, ONE("train_act")}},
    {"train_loss", "losses and the gradient of logits", {NONE, ONE("train_loss")}},
    {"train_softmax", "the same of exponentials that the product leaves",
        {NONE, ONE("train_softmax")}},
    {"train_update", "norms of gradients, steps of the optimisers", {NONE, ONE("train_update")}},
    {"ranks", "sums over the ranks of a training run", {NONE, ONE("ranks")}},
    {"outliers", "products whose outlying input channels stay float", {NONE, ONE("outliers")}},
    {"stamp", "the time on the device, for profiles", {NONE, ONE("stamp")}},
    {"logits", "statistics of rows of logits", {NONE, CUDA(logits)}},
    {"decode", "one token of one sequence through a whole model", {NONE, CUDA(decode)}},
#endif
    {0},
};
/* clang-format on */

const qb_kernel_info *qb_kernel_row(const qb_kernel_table *table, size_t i)
{
    static const qb_kernel_info end;
    if (!table->rows) return &end;
    return (const qb_kernel_info *)((const char *)table->rows + i * table->row_bytes);
}

enum { MAX_FORCED = 32 };
static struct {
    size_t n;
    const qb_kernel_info *rows[MAX_FORCED];
} forced;

typedef struct missing {
    uint32_t bit; /* 0 ends the list */
    const char *reason;
} missing;
static const missing cpu_missing[] = {
    {QB_CPU_AVX2, "needs avx2"},
    {QB_CPU_AVX512, "needs avx512"},
    {QB_CPU_AVX512VNNI, "needs avx512vnni"},
    {QB_CPU_AVX512BF16, "needs avx512bf16"},
    {0},
};
#ifdef QB_WITH_CUDA
static const missing cuda_missing[] = {
    {QB_CUDA_SM80, "needs compute capability 8.0"},
    {QB_CUDA_SM89, "needs compute capability 8.9"},
    {QB_CUDA_SM90A, "needs compute capability 9.0a (Hopper)"},
    {0},
};
#endif

static const char *reason_of(const missing *list, uint32_t lacks)
{
    for (; list->bit; list++)
        if (lacks & list->bit) return list->reason;
    return NULL;
}

static bool is_cuda(const qb_kernel_info *row)
{
    return !strcmp(row->device, "cuda");
}

/* The part of a row's name before the slash names its operation. */
static bool same_table(const qb_kernel_info *a, const qb_kernel_info *b)
{
    size_t n = strcspn(a->name, "/");
    return n == strcspn(b->name, "/") && !strncmp(a->name, b->name, n) && is_cuda(a) == is_cuda(b);
}

static bool is_reference(const qb_kernel_info *row)
{
    const char *slash = strchr(row->name, '/');
    return slash && !strcmp(slash, "/ref") && !is_cuda(row);
}

#ifdef QB_WITH_CUDA
static const char *refused_by_gpu(const qb_kernel_info *row)
{
    int device = qb_cuda_current();
    uint32_t have = qb_cuda_features(device);
    if (!have) return qb_cuda_refusal(device);
    const char *why = reason_of(cuda_missing, row->needs & ~have);
    return !why && row->needs & QB_CUDA_BLASLT ? qb_cublaslt_refusal() : why;
}
#else
static const char *refused_by_gpu(const qb_kernel_info *row)
{
    (void)row;
    return qb_cuda_refusal(0);
}
#endif

static const char *refused_here(const qb_kernel_info *row)
{
    if (is_reference(row)) return NULL;
    const char *why = is_cuda(row)
                          ? refused_by_gpu(row)
                          : reason_of(cpu_missing, row->needs & ~qb_cpu_features_present());
    if (why) return why;
    if (!is_cuda(row) && row->needs & ~qb_cpu_features()) return "disabled by QB_DISABLE";
    return qb_is_disabled(row->name) || qb_is_disabled(row->device) ? "disabled by QB_DISABLE"
                                                                    : NULL;
}

const char *qb_kernel_refusal(const qb_kernel_info *row)
{
    bool restricted = false;
    for (size_t i = 0; i < forced.n; i++) {
        if (forced.rows[i] == row) return refused_here(row);
        restricted |= same_table(forced.rows[i], row);
    }
    return restricted ? "not forced" : refused_here(row);
}

static const qb_kernel_info *find_in_table(const qb_kernel_table *table, const char *name,
                                           size_t n_chars)
{
    const qb_kernel_info *row = qb_kernel_row(table, 0);
    for (size_t i = 1; row->name; row = qb_kernel_row(table, i++))
        if (strlen(row->name) == n_chars && !strncmp(row->name, name, n_chars)) return row;
    return NULL;
}

static const qb_kernel_info *find_row(const char *name, size_t n_chars)
{
    const qb_kernel_info *row = NULL;
    for (const qb_kernel_op *op = qb_kernel_ops; op->name && !row; op++)
        for (size_t t = 0; t < QB_KERNEL_TABLES && !row; t++)
            row = find_in_table(&op->tables[t], name, n_chars);
    return row;
}

/* ---- what QB_DISABLE may name ---- */

static bool consider(qb_nearest *nearest, const char *word)
{
    qb_nearest_consider(nearest, word);
    return !strcmp(nearest->typed, word);
}

static bool is_in_table(const qb_kernel_table *table, qb_nearest *nearest)
{
    const qb_kernel_info *row = qb_kernel_row(table, 0);
    for (size_t i = 1; row->name; row = qb_kernel_row(table, i++))
        if (consider(nearest, row->name)) return true;
    return false;
}

static bool can_be_disabled(const char *word, qb_nearest *nearest)
{
    *nearest = qb_nearest_begin(word);
    for (unsigned i = 0; qb_cpu_feature_name(i); i++)
        if (consider(nearest, qb_cpu_feature_name(i))) return true;
    if (consider(nearest, "cpu") || consider(nearest, "cuda")) return true;
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++)
        for (size_t t = 0; t < QB_KERNEL_TABLES; t++)
            if (is_in_table(&op->tables[t], nearest)) return true;
    return false;
}

bool qb_kernel_check_disabled(char *text, size_t capacity)
{
    const char *list = getenv("QB_DISABLE");
    while (list && *list) {
        char word[64];
        qb_nearest nearest;
        size_t n = strcspn(list, ",");
        snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word), list);
        if (n && !can_be_disabled(word, &nearest)) {
            snprintf(text, capacity,
                     "QB_DISABLE: found \"%s\", expected a feature, a device or a row of "
                     "`qbench kernels`%s%s%s",
                     word, nearest.word ? "; did you mean " : "", nearest.word ? nearest.word : "",
                     nearest.word ? "?" : "");
            return false;
        }
        list += n + (list[n] == ',');
    }
    return true;
}

/* ---- the choice of a row ---- */

qb_status qb_kernel_force(const char *list)
{
    size_t n = 0;
    const qb_kernel_info *rows[MAX_FORCED];
    while (list && *list) {
        size_t n_chars = strcspn(list, ",");
        const qb_kernel_info *row = find_row(list, n_chars);
        if (!row)
            return QB_FAIL(QB_ERR_USAGE,
                           "kernel: found \"%.*s\", expected a row of `qbench kernels`",
                           (int)(n_chars < 80 ? n_chars : 80), list);
        const char *why = refused_here(row);
        if (why) return QB_FAIL(QB_ERR_USAGE, "kernel %s: %s", row->name, why);
        if (n == MAX_FORCED)
            return QB_FAIL(QB_ERR_USAGE, "kernel: more than %d rows named", MAX_FORCED);
        rows[n++] = row;
        list += n_chars + (list[n_chars] == ',');
    }
    memcpy(forced.rows, rows, n * sizeof rows[0]);
    forced.n = n;
    return QB_OK;
}

const void *qb_kernel_pick(const void *rows, size_t row_bytes)
{
    const qb_kernel_table table = {rows, row_bytes};
    size_t i = 0;
    for (; qb_kernel_row(&table, i)->name; i++)
        if (!qb_kernel_refusal(qb_kernel_row(&table, i))) return qb_kernel_row(&table, i);
    assert(i > 0);
    return qb_kernel_row(&table, i - 1);
}
