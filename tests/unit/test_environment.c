/* tests/unit/test_environment.c - what lowers trust, and that reading the machine gives something.
 */
#include "support.h"

#include "infer/environment.h"

#include <math.h>
#include <string.h>

static qb_machine quiet_machine(void)
{
    return (qb_machine){.n_cpus = 4, .governor = "performance", .load = 0.1};
}

static qb_machine_watch quiet_watch(void)
{
    return (qb_machine_watch){
        .wall_s = 10, .own_cpu_s = 20, .busy_cpu_s = 20.5, .stolen_cpu_s = 0, .throttle_events = 0};
}

static qb_trust_input good(const qb_machine *machine, const qb_machine_watch *watch)
{
    return (qb_trust_input){.machine = machine,
                            .watch = watch,
                            .n_threads = 4,
                            .samples = 12,
                            .half_width = 0.01,
                            .steady = true,
                            .windows = 40};
}

static void expect(const qb_trust_input *input, qb_trust_level level, const char *reason)
{
    qb_trust trust;
    qb_trust_judge(input, &trust);
    assert_int_equal(trust.level, level);
    if (!reason) {
        assert_int_equal(trust.n_reasons, 0);
        return;
    }
    assert_int_equal(trust.n_reasons, 1);
    if (!strstr(trust.reasons[0], reason)) fail_msg("found: %s", trust.reasons[0]);
}

static void each_fault_lowers_trust_and_is_named(void **state)
{
    (void)state;
    qb_machine m = quiet_machine();
    qb_machine_watch w = quiet_watch();
    qb_trust_input in = good(&m, &w);
    expect(&in, QB_TRUST_HIGH, NULL);
    m.load = 3;
    expect(&in, QB_TRUST_MEDIUM, "load 3.00 on 4");
    m.load = 5;
    expect(&in, QB_TRUST_LOW, "load 5.00");
    m = quiet_machine();
    strcpy(m.governor, "powersave");
    expect(&in, QB_TRUST_MEDIUM, "powersave");
    m = quiet_machine();
    strcpy(m.hypervisor, "KVM");
    expect(&in, QB_TRUST_MEDIUM, "KVM");
    m = quiet_machine();
    in.n_threads = 8;
    expect(&in, QB_TRUST_LOW, "8 threads on 4");
    in = good(&m, &w);
    w.busy_cpu_s = 24;
    expect(&in, QB_TRUST_MEDIUM, "10 % of the processors");
    w.busy_cpu_s = 32;
    expect(&in, QB_TRUST_LOW, "30 % of the processors");
    w = quiet_watch();
    w.stolen_cpu_s = 4;
    expect(&in, QB_TRUST_LOW, "hypervisor took 10.0 %");
    w = quiet_watch();
    w.throttle_events = 2;
    expect(&in, QB_TRUST_LOW, "throttled 2 times");
    w = quiet_watch();
    in.samples = 9;
    expect(&in, QB_TRUST_LOW, "too few samples: 9");
    in = good(&m, &w);
    in.half_width = 0.05;
    expect(&in, QB_TRUST_MEDIUM, "±5.0 %");
    in = good(&m, &w);
    in.steady = false;
    expect(&in, QB_TRUST_MEDIUM, "warm-up");
    in = good(&m, &w);
    in.windows = 10;
    expect(&in, QB_TRUST_MEDIUM, "few windows");
}

static void faults_of_the_gpu_lower_trust(void **state)
{
    (void)state;
    qb_machine m = quiet_machine();
    qb_machine_watch w = quiet_watch();
    qb_trust_input in = good(&m, &w);
    const qb_nvml_reading quiet = {.throttle = 0, .other_processes = 0};
    w.gpu = (qb_gpu){.in_use = true, .now = quiet};
    expect(&in, QB_TRUST_HIGH, NULL);
    w.gpu.now.throttle = QB_GPU_IDLE | QB_GPU_POWER_CAP;
    expect(&in, QB_TRUST_HIGH, NULL); /* of this moment only; the share of the time counts */
    w.gpu.now.throttle = QB_GPU_HW_THERMAL;
    expect(&in, QB_TRUST_LOW, "slowed itself: thermal (hardware)");
    w.gpu.now = quiet;
    w.gpu.now.thermal_capped_s = 1;
    expect(&in, QB_TRUST_LOW, "heat lowered the GPU's clocks 10 %");
    w.gpu.now = quiet;
    w.gpu.now.power_capped_s = 2.5;
    expect(&in, QB_TRUST_MEDIUM, "power cap lowered the GPU's clocks 25 %");
    w.gpu.now = quiet;
    w.gpu.now.other_processes = 2;
    expect(&in, QB_TRUST_LOW, "2 other processes");
    qb_nvml_read("no such device", &w.gpu.now); /* nothing known */
    expect(&in, QB_TRUST_HIGH, NULL);
}

/* A counter that steps by 40 J each 100 ms, read each 7 ms: 400 W whatever the phase. */
static void the_meter_measures_between_steps(void **state)
{
    (void)state;
    for (double phase_s = 0; phase_s < 0.1; phase_s += 0.013) {
        qb_energy_window w = {.last_j = 1000, .from_s = NAN, .to_s = NAN};
        double now_s = 0;
        bool enough = false;
        while (!enough && now_s < 5) {
            now_s += 0.007;
            enough = qb__energy_note(&w, now_s, 1000 + 40 * floor((now_s + phase_s) / 0.1));
        }
        assert_true(enough && now_s > 1 && now_s < 1.3);
        assert_true(fabs(qb__energy_watts(&w) - 400) < 400 * 0.007);
    }
}

static void a_meter_without_a_counter_gives_nothing(void **state)
{
    (void)state;
    qb_energy_window w = {.last_j = NAN, .from_s = NAN, .to_s = NAN};
    assert_true(qb__energy_note(&w, 0.1, NAN));
    assert_true(isnan(qb__energy_watts(&w)));
    w.last_j = 5; /* one that stands still: not for ever */
    assert_false(qb__energy_note(&w, 0.2, 5));
    assert_true(qb__energy_note(&w, 3.1, 5));
    assert_true(isnan(qb__energy_watts(&w)));
    assert_true(strlen(qb_energy_source()) > 0);
    assert_true(isnan(qb_energy_end(NULL)));
}

static void a_meter_can_be_ended_early(void **state)
{
    (void)state;
    qb_energy_meter *meter;
    QB_CHECK_OK(qb_energy_begin(&meter));
    assert_int_equal(qb_energy_enough(meter), isnan(qb_energy_read_j()));
    assert_true(isnan(qb_energy_end(meter)));
}

static void unknown_is_no_fault(void **state)
{
    (void)state;
    qb_machine m = {.n_cpus = 4, .load = NAN, .memory_bytes = -1};
    qb_machine_watch w = {.wall_s = 10,
                          .own_cpu_s = 20,
                          .busy_cpu_s = NAN,
                          .stolen_cpu_s = NAN,
                          .throttle_events = -1};
    qb_trust_input in = good(&m, &w);
    expect(&in, QB_TRUST_HIGH, NULL);
    m.load = 100;
    in.watch = NULL; /* quality alone does not depend on the load */
    in.windows = -1;
    expect(&in, QB_TRUST_HIGH, NULL);
}

static void this_machine_can_be_read(void **state)
{
    (void)state;
    qb_machine m;
    qb_machine_read(&m);
    assert_true(m.n_cpus >= 1 && *m.cpu && *m.features && *m.os);
    assert_true(m.memory_bytes > 1 << 24);
    qb_machine_watch w;
    qb_machine_watch_start(&w);
    volatile double x = 0;
    for (int i = 0; i < 20000000; i++) x += 1;
    qb_machine_watch_stop(&w);
    assert_true(w.wall_s > 0 && w.wall_s < 60);
    assert_true(w.own_cpu_s > 0 && w.own_cpu_s < 60);
    assert_true(isnan(w.busy_cpu_s) || w.busy_cpu_s >= 0);
    qb_gpu gpu;
    qb_gpu_read(&gpu);
    assert_false(gpu.in_use); /* no qb_cuda_use here */
    double a = qb_energy_read_j(), b = qb_energy_read_j();
    assert_true(isnan(a) ? isnan(b) : qb_energy_difference_j(a, b) >= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_fault_lowers_trust_and_is_named),
        cmocka_unit_test(unknown_is_no_fault),
        cmocka_unit_test(faults_of_the_gpu_lower_trust),
        cmocka_unit_test(the_meter_measures_between_steps),
        cmocka_unit_test(a_meter_without_a_counter_gives_nothing),
        cmocka_unit_test(a_meter_can_be_ended_early),
        cmocka_unit_test(this_machine_can_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
