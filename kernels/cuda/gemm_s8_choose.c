/* kernels/cuda/gemm_s8_choose.c - which variant of gemm_s8/sm90 a product takes. */
#include "kernels/cuda/gemm_s8_internal.h"

#include <string.h>

static qb__gemm_s8_plan forced;

void qb__gemm_s8_force(qb__gemm_s8_plan plan)
{
    forced = plan;
}

static const qb__gemm_s8_variant *named(const char *name)
{
    const qb__gemm_s8_variant *v;
    for (size_t i = 0; (v = qb__gemm_s8_variant_at(i)); i++)
        if (!strcmp(v->name, name)) return v;
    return qb__gemm_s8_variant_at(0);
}

qb__gemm_s8_plan qb__gemm_s8_choose(const qb_cuda_gemm_s8_args *args)
{
    if (forced.variant) return forced;
    if (args->m <= 64) return (qb__gemm_s8_plan){named("64x64"), 8};
    return (qb__gemm_s8_plan){named(args->k < 1024 ? "128x128/pp" : "128x256"), 16};
}
