/* kernels/registry.c - the list of operations, and the choice of a row. */
#include "kernels/registry.h"

#include "kernels/attention.h"
#include "kernels/gemm_f32.h"
#include "kernels/gemm_s8.h"
#include "kernels/gemm_u4.h"
#include "kernels/pointwise.h"
#include "kernels/quantize.h"

#include <assert.h>
#include <string.h>

#define OP(name, what)                                                                             \
    {                                                                                              \
#name, what, qb_##name##_kernels, sizeof(qb_##name##_row)                                  \
    }
const qb_kernel_op qb_kernel_ops[] = {
    OP(gemm_s8, "s8 x s8 -> s32 matrix product, scaled to f32"),
    OP(gemm_u4, "f32 x 4-bit zero-point weights"),
    OP(quantize, "absmax, quantise and requantise passes"),
    OP(gemm_f32, "f32 matrix product"),
    OP(attention, "causal attention over a KV cache"),
    OP(pointwise, "norms, activations, rotary positions, statistics of logits"),
    {0},
};

enum { MAX_FORCED = 32 };
static struct {
    size_t n;
    const qb_kernel_info *rows[MAX_FORCED];
} forced;

static const struct {
    uint32_t bit;
    const char *reason;
} missing[] = {
    {QB_CPU_AVX2, "needs avx2"},
    {QB_CPU_AVX512, "needs avx512"},
    {QB_CPU_AVX512VNNI, "needs avx512vnni"},
    {QB_CPU_AVX512BF16, "needs avx512bf16"},
};

/* The part of a row's name before the slash names its operation. */
static bool same_op(const char *a, const char *b)
{
    size_t n = strcspn(a, "/");
    return n == strcspn(b, "/") && !strncmp(a, b, n);
}

static bool is_reference(const qb_kernel_info *row)
{
    const char *slash = strchr(row->name, '/');
    return slash && !strcmp(slash, "/ref");
}

static const char *refused_here(const qb_kernel_info *row)
{
    if (is_reference(row)) return NULL;
    uint32_t lacks = row->needs & ~qb_cpu_features_present();
    for (size_t i = 0; i < QB_COUNT(missing); i++)
        if (lacks & missing[i].bit) return missing[i].reason;
    if (row->needs & ~qb_cpu_features() || qb_is_disabled(row->name) || qb_is_disabled(row->device))
        return "disabled by QB_DISABLE";
    return NULL;
}

const char *qb_kernel_refusal(const qb_kernel_info *row)
{
    bool restricted = false;
    for (size_t i = 0; i < forced.n; i++) {
        if (forced.rows[i] == row) return refused_here(row);
        restricted |= same_op(forced.rows[i]->name, row->name);
    }
    return restricted ? "not forced" : refused_here(row);
}

static const qb_kernel_info *row_at(const void *rows, size_t row_bytes, size_t i)
{
    return (const qb_kernel_info *)((const char *)rows + i * row_bytes);
}

static const qb_kernel_info *find_row(const char *name, size_t n_chars)
{
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++)
        for (size_t i = 0; row_at(op->rows, op->row_bytes, i)->name; i++) {
            const qb_kernel_info *row = row_at(op->rows, op->row_bytes, i);
            if (strlen(row->name) == n_chars && !strncmp(row->name, name, n_chars)) return row;
        }
    return NULL;
}

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
    size_t i = 0;
    for (; row_at(rows, row_bytes, i)->name; i++)
        if (!qb_kernel_refusal(row_at(rows, row_bytes, i))) return row_at(rows, row_bytes, i);
    assert(i > 0);
    return row_at(rows, row_bytes, i - 1);
}
