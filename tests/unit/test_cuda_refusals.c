/* tests/unit/test_cuda_refusals.c - what is said of drivers and GPUs that cannot be used, and of
 * memory that is not there: core/cuda.c, compiled in here over a CUDA runtime whose answers the
 * tests choose. Needs no GPU; without CUDA there is one answer to everything. */
#include "support.h"

#include <stdlib.h>
#include <string.h>

#ifdef QB_WITH_CUDA
#define cudaDriverGetVersion fake_driver_version
#define cudaGetDeviceCount fake_device_count
#define cudaDeviceGetAttribute fake_attribute
#define cudaSetDevice fake_set_device
#define cudaMalloc fake_malloc
#define cudaMemGetInfo fake_mem_info
#endif
#include "core/cuda.c"

#ifdef QB_WITH_CUDA

static struct {
    cudaError_t version_code, count_code, malloc_code;
    int version, count, major, minor; /* of every GPU */
} machine;

cudaError_t fake_driver_version(int *version)
{
    *version = machine.version;
    return machine.version_code;
}

cudaError_t fake_device_count(int *count)
{
    *count = machine.count;
    return machine.count_code;
}

cudaError_t fake_attribute(int *value, enum cudaDeviceAttr which, int device)
{
    (void)device;
    *value = which == cudaDevAttrComputeCapabilityMajor ? machine.major : machine.minor;
    return cudaSuccess;
}

cudaError_t fake_set_device(int device)
{
    (void)device;
    return cudaSuccess;
}

cudaError_t fake_malloc(void **dev, size_t bytes)
{
    (void)bytes;
    *dev = NULL;
    return machine.malloc_code;
}

cudaError_t fake_mem_info(size_t *free_bytes, size_t *total)
{
    *free_bytes = 1000;
    *total = 3000;
    return cudaSuccess;
}

static int make_two_hoppers(void **state)
{
    (void)state;
    unsetenv("QB_DISABLE");
    memset(&machine, 0, sizeof machine);
    machine.version = CUDART_VERSION;
    machine.count = 2;
    machine.major = 9;
    return 0;
}

/* The same line comes from every door. */
static void assert_refused(int index, const char *why)
{
    char message[200];
    snprintf(message, sizeof message, "cuda: %s", why);
    assert_string_equal(qb_cuda_refusal(index), why);
    assert_int_equal(qb_cuda_use(index), QB_ERR_DEVICE);
    assert_string_equal(qb_error_message(), message);
    assert_int_equal(qb_cuda_in_use(), -1);
}

static void old_drivers_name_both_versions(void **state)
{
    (void)state;
    char why[100];
    for (int major = 1; major < CUDART_VERSION / 1000; major += 5) {
        machine.version = major * 1000 + 40;
        snprintf(why, sizeof why, "driver %d.4 is older than CUDA %d.%d", major,
                 CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
        assert_refused(0, why);
        assert_int_equal(qb_cuda_count(), 0);
    }
}

static void missing_drivers_and_gpus_are_told_apart(void **state)
{
    (void)state;
    machine.version = 0;
    assert_refused(0, "no CUDA driver");
    machine.version = CUDART_VERSION;
    machine.version_code = cudaErrorInsufficientDriver;
    assert_refused(0, "no CUDA driver");
    machine.version_code = cudaSuccess;
    machine.count = 0;
    assert_refused(0, "no GPU");
    machine.count_code = cudaErrorNoDevice;
    assert_refused(0, "no GPU");
    machine.count_code = cudaErrorSystemDriverMismatch;
    assert_non_null(strstr(qb_cuda_refusal(0), "the driver does not start: "));
    assert_int_equal(strcspn(qb_cuda_refusal(0), "\n"), strlen(qb_cuda_refusal(0)));
}

static void old_gpus_name_what_they_lack(void **state)
{
    (void)state;
    machine.major = 7;
    machine.minor = 5;
    assert_int_equal(qb_cuda_count(), 2);
    assert_int_equal(qb_cuda_features(1), 0);
    assert_refused(1, "GPU 1: compute capability 7.5, needs 8.0");
    machine.major = 6;
    machine.minor = 1;
    assert_refused(0, "GPU 0: compute capability 6.1, needs 8.0");
    machine.major = 8;
    machine.minor = 0;
    assert_null(qb_cuda_refusal(0));
}

static void gpus_that_are_not_there_are_counted(void **state)
{
    (void)state;
    assert_refused(2, "GPU 2: found 2 GPUs, counted from 0");
    assert_refused(-1, "GPU -1: found 2 GPUs, counted from 0");
    machine.count = 1;
    assert_refused(1, "GPU 1: found 1 GPU, counted from 0");
}

/* Each generation's rows run on it; Hopper's own do not on a later one. A device's answer is kept,
 * so each asks for a device of its own. */
static void features_are_those_of_the_generation(void **state)
{
    (void)state;
    static const struct {
        int major, minor;
        uint32_t features;
    } gpus[] = {{8, 0, QB_CUDA_SM80},
                {8, 6, QB_CUDA_SM80},
                {8, 9, QB_CUDA_SM80 | QB_CUDA_SM89},
                {9, 0, QB_CUDA_SM80 | QB_CUDA_SM89 | QB_CUDA_SM90A},
                {10, 0, QB_CUDA_SM80 | QB_CUDA_SM89}};
    machine.count = 60;
    for (int i = 0; i < (int)(sizeof gpus / sizeof gpus[0]); i++) {
        machine.major = gpus[i].major;
        machine.minor = gpus[i].minor;
        assert_int_equal(qb_cuda_features(10 + i), gpus[i].features);
    }
}

static void memory_that_is_not_there_names_both_sizes(void **state)
{
    (void)state;
    void *dev = &machine;
    machine.malloc_code = cudaErrorMemoryAllocation;
    assert_int_equal(qb_cuda_alloc(&dev, 500, 4, "keys"), QB_ERR_MEMORY);
    assert_null(dev);
    assert_string_equal(qb_error_message(),
                        "GPU memory for keys: needed 2000 bytes, found 1000 free of 3000");
    assert_int_equal(qb_cuda_alloc(&dev, SIZE_MAX / 2, 4, "keys"), QB_ERR_MEMORY);
    assert_non_null(strstr(qb_error_message(), "GPU memory for keys: "));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, make_two_hoppers)
    const struct CMUnitTest tests[] = {
        TEST(old_drivers_name_both_versions),       TEST(missing_drivers_and_gpus_are_told_apart),
        TEST(old_gpus_name_what_they_lack),         TEST(gpus_that_are_not_there_are_counted),
        TEST(features_are_those_of_the_generation), TEST(memory_that_is_not_there_names_both_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void everything_is_refused_in_the_same_words(void **state)
{
    (void)state;
    assert_string_equal(qb_cuda_refusal(0), "this build has no CUDA engine");
    assert_int_equal(qb_cuda_count(), 0);
    assert_int_equal(qb_cuda_features(0), 0);
    assert_int_equal(qb_cuda_use(0), QB_ERR_DEVICE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(everything_is_refused_in_the_same_words)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
