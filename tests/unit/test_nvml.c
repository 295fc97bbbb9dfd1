/* tests/unit/test_nvml.c - readings through a fake management library; what it lacks is unknown. */
#include "support.h"

#include "infer/nvml.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int use_the_fake(void **state)
{
    (void)state;
    return setenv("QB_NVML_PATH", FAKE_NVML, 1);
}

static void values_are_read_in_their_units(void **state)
{
    (void)state;
    qb_nvml_reading r;
    assert_null(qb_nvml_refusal());
    qb_nvml_read("0000:06:00.0", &r);
    assert_string_equal(r.driver, "580.1.2");
    assert_int_equal(r.sm_mhz, 1755);
    assert_int_equal(r.sm_max_mhz, 1980);
    assert_int_equal(r.memory_mhz, 2619);
    assert_true(fabs(r.power_w - 512.345) < 1e-9 && r.power_limit_w == 700);
    assert_int_equal(r.throttle, QB_GPU_POWER_CAP | QB_GPU_SW_THERMAL);
    assert_int_equal(r.ecc, 1);
    assert_int_equal(r.other_processes, 1);
    assert_true(r.power_capped_s == 2.5);
    double first = qb_nvml_energy_j("0000:06:00.0");
    assert_true(first >= 1000 && qb_nvml_energy_j("0000:06:00.0") == first + 1);
}

static void what_cannot_be_read_is_unknown(void **state)
{
    (void)state;
    qb_nvml_reading r;
    qb_nvml_read("0000:06:00.0", &r);
    assert_true(isnan(r.temperature_c) && isnan(r.thermal_capped_s));
    qb_nvml_read("0000:07:00.0", &r);
    assert_true(r.sm_mhz == -1 && r.throttle == -1 && r.ecc == -1 && r.other_processes == -1);
    assert_true(isnan(r.power_w) && isnan(r.power_capped_s) && !*r.driver);
    assert_true(isnan(qb_nvml_energy_j("0000:07:00.0")));
}

static void throttle_bits_have_names(void **state)
{
    (void)state;
    char text[160];
    qb_gpu_throttle_text(QB_GPU_POWER_CAP | QB_GPU_HW_SLOWDOWN, text, sizeof text);
    assert_string_equal(text, "power cap, slowdown");
    qb_gpu_throttle_text(0, text, sizeof text);
    assert_string_equal(text, "none");
    qb_gpu_throttle_text(0x1ff, text, 20);
    assert_int_equal(strlen(text), 19);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_read_in_their_units),
        cmocka_unit_test(what_cannot_be_read_is_unknown),
        cmocka_unit_test(throttle_bits_have_names),
    };
    return cmocka_run_group_tests(tests, use_the_fake, NULL);
}
