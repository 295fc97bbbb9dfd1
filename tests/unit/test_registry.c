/* tests/unit/test_registry.c - tables are well formed; rows are refused and forced as promised. */
#include "support.h"

#include "kernels/gemm_s8.h"
#include "kernels/quantize.h"
#include "kernels/registry.h"

#include <stdlib.h>
#include <string.h>

static const qb_kernel_info *row_at(const qb_kernel_op *op, size_t i)
{
    return (const qb_kernel_info *)((const char *)op->rows + i * op->row_bytes);
}

static void tables_end_in_a_reference(void **state)
{
    (void)state;
    for (const qb_kernel_op *op = qb_kernel_ops; op->name; op++) {
        size_t n = 0;
        for (; row_at(op, n)->name; n++) {
            size_t prefix = strlen(op->name);
            assert_memory_equal(row_at(op, n)->name, op->name, prefix);
            assert_int_equal(row_at(op, n)->name[prefix], '/');
        }
        assert_true(n > 0);
        assert_non_null(strstr(row_at(op, n - 1)->name, "/ref"));
        assert_int_equal(row_at(op, n - 1)->needs, 0);
        assert_null(qb_kernel_refusal(row_at(op, n - 1)));
        assert_true(strlen(op->what) > 0);
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
        for (size_t i = 0; row_at(op, i)->name; i++) {
            const char *why = qb_kernel_refusal(row_at(op, i));
            if (row_at(op, i)->needs) {
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_end_in_a_reference),
        cmocka_unit_test(pick_takes_the_first_usable_row),
        cmocka_unit_test(disabled_rows_say_so),
        cmocka_unit_test(forcing_restricts_one_operation),
        cmocka_unit_test(unknown_rows_are_usage_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
