/* tests/unit/test_registry.c - tables are well formed; rows are refused and forced as promised. */
#include "support.h"

#include "core/cuda.h"
#include "kernels/gemm_s8.h"
#include "kernels/quantize.h"
#include "kernels/registry.h"

#include <stdlib.h>
#include <string.h>

static void rows_are_named_after_their_operation(void **state)
{
    (void)state;
    static const char *const devices[QB_KERNEL_TABLES] = {"cpu", "cuda"};
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++)
        for (size_t t = 0; t < QB_KERNEL_TABLES; t++)
            for (size_t i = 0; qb_kernel_row(&op->tables[t], i)->name; i++) {
                const qb_kernel_info *row = qb_kernel_row(&op->tables[t], i);
                size_t prefix = strlen(op->name);
                assert_memory_equal(row->name, op->name, prefix);
                assert_int_equal(row->name[prefix], '/');
                assert_string_equal(row->device, devices[t]);
            }
}

static void operations_have_rows_and_the_processor_a_reference(void **state)
{
    (void)state;
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++) {
        const qb_kernel_table *cpu = &op->tables[QB_KERNEL_CPU];
        size_t n = 0;
        assert_true(strlen(op->what) > 0);
        assert_true(cpu->rows || op->tables[QB_KERNEL_CUDA].rows);
        if (!cpu->rows) continue;
        while (qb_kernel_row(cpu, n)->name) n++;
        assert_true(n > 0);
        assert_non_null(strstr(qb_kernel_row(cpu, n - 1)->name, "/ref"));
        assert_int_equal(qb_kernel_row(cpu, n - 1)->needs, 0);
        assert_null(qb_kernel_refusal(qb_kernel_row(cpu, n - 1)));
    }
}

static void pick_takes_the_first_usable_row(void **state)
{
    (void)state;
    const qb_quantize_row *row = QB_KERNEL_PICK(qb_quantize_kernels);
    for (const qb_quantize_row *r = qb_quantize_kernels; r < row; r++)
        assert_non_null(qb_kernel_refusal(&r->info));
    assert_null(qb_kernel_refusal(&row->info));
}

static void disabled_rows_say_so(void **state)
{
    (void)state;
    setenv("QB_DISABLE", "avx2,quantize/ref", 1);
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++)
        for (size_t i = 0; qb_kernel_row(&op->tables[QB_KERNEL_CPU], i)->name; i++) {
            const qb_kernel_info *row = qb_kernel_row(&op->tables[QB_KERNEL_CPU], i);
            const char *why = qb_kernel_refusal(row);
            if (row->needs) {
                assert_non_null(why);
                assert_true(!strcmp(why, "disabled by QB_DISABLE") || !strncmp(why, "needs ", 6));
            } else {
                assert_null(why); /* a reference cannot be taken away */
            }
        }
    const qb_quantize_row *row = QB_KERNEL_PICK(qb_quantize_kernels);
    assert_string_equal(row->info.name, "quantize/ref");
    unsetenv("QB_DISABLE");
}

static void forcing_restricts_one_operation(void **state)
{
    (void)state;
    const qb_quantize_row *before = QB_KERNEL_PICK(qb_quantize_kernels);
    QB_CHECK_OK(qb_kernel_force("gemm_s8/ref"));
    const qb_gemm_s8_row *row = QB_KERNEL_PICK(qb_gemm_s8_kernels);
    assert_string_equal(row->info.name, "gemm_s8/ref");
    for (const qb_gemm_s8_row *r = qb_gemm_s8_kernels; r < row; r++)
        assert_string_equal(qb_kernel_refusal(&r->info), "not forced");
    assert_ptr_equal(QB_KERNEL_PICK(qb_quantize_kernels), before);
    QB_CHECK_OK(qb_kernel_force(NULL));
    for (const qb_gemm_s8_row *r = qb_gemm_s8_kernels; r->info.name; r++) {
        const char *why = qb_kernel_refusal(&r->info);
        assert_true(!why || strcmp(why, "not forced"));
    }
}

static void unknown_rows_are_usage_errors(void **state)
{
    (void)state;
    assert_int_equal(qb_kernel_force("gemm_s8/none"), QB_ERR_USAGE);
    assert_non_null(strstr(qb_error_message(), "gemm_s8/none"));
    assert_int_equal(qb_kernel_force("gemm_s8/ref,gemm_s8"), QB_ERR_USAGE);
    assert_int_equal(qb_kernel_force(",gemm_s8/ref"), QB_ERR_USAGE);
    const qb_gemm_s8_row *first = QB_KERNEL_PICK(qb_gemm_s8_kernels);
    assert_null(qb_kernel_refusal(&first->info)); /* a failed call forces nothing */
    setenv("QB_DISABLE", "quantize/avx2", 1);
    assert_int_equal(qb_kernel_force("quantize/avx2"), QB_ERR_USAGE);
    unsetenv("QB_DISABLE");
}

/* Each row of the GPU: with its table's operation. */
static size_t for_each_cuda_row(void (*check)(const qb_kernel_info *row))
{
    size_t n = 0;
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++)
        for (size_t i = 0; qb_kernel_row(&op->tables[QB_KERNEL_CUDA], i)->name; i++, n++)
            check(qb_kernel_row(&op->tables[QB_KERNEL_CUDA], i));
    return n;
}

/* Without a GPU the reason is the device's; forcing the row is an error that says so. */
static void check_without_gpu(const qb_kernel_info *row)
{
    char why[160];
    snprintf(why, sizeof why, "%s", qb_cuda_refusal(0));
    assert_string_equal(qb_kernel_refusal(row), why);
    assert_int_equal(qb_kernel_force(row->name), QB_ERR_USAGE);
    assert_non_null(strstr(qb_error_message(), row->name));
    assert_non_null(strstr(qb_error_message(), why));
}

static void check_with_gpu(const qb_kernel_info *row)
{
    const char *why = qb_kernel_refusal(row);
    if (!(row->needs & ~qb_cuda_features(0)))
        assert_null(why);
    else
        assert_non_null(why);
    if (why) return;
    QB_CHECK_OK(qb_kernel_force(row->name)); /* the processor's rows stay as they were */
    assert_string_equal(((const qb_gemm_s8_row *)QB_KERNEL_PICK(qb_gemm_s8_kernels))->info.device,
                        "cpu");
    QB_CHECK_OK(qb_kernel_force(NULL));
}

static void check_disabled(const qb_kernel_info *row)
{
    assert_string_equal(qb_kernel_refusal(row), "disabled by QB_DISABLE");
}

static void rows_of_the_gpu_are_refused_with_its_reason(void **state)
{
    (void)state;
    for_each_cuda_row(qb_cuda_refusal(0) ? check_without_gpu : check_with_gpu);
    setenv("QB_DISABLE", "cuda", 1);
    assert_int_equal(qb_cuda_count(), 0);
    assert_non_null(qb_cuda_refusal(0));
#ifdef QB_WITH_CUDA
    assert_string_equal(qb_cuda_refusal(0), "disabled by QB_DISABLE");
    for_each_cuda_row(check_disabled);
#else
    assert_int_equal(for_each_cuda_row(check_disabled), 0);
    assert_string_equal(qb_cuda_refusal(0), "this build has no CUDA engine");
#endif
    unsetenv("QB_DISABLE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_named_after_their_operation),
        cmocka_unit_test(operations_have_rows_and_the_processor_a_reference),
        cmocka_unit_test(pick_takes_the_first_usable_row),
        cmocka_unit_test(disabled_rows_say_so),
        cmocka_unit_test(forcing_restricts_one_operation),
        cmocka_unit_test(unknown_rows_are_usage_errors),
        cmocka_unit_test(rows_of_the_gpu_are_refused_with_its_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
