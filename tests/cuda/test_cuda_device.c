/* tests/cuda/test_cuda_device.c - the device layer: what a GPU says of itself, memory, copies,
 * errors. */
#include "gpu.h"

#include "core/status.h"
#include "infer/environment.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void a_gpu_describes_itself(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    qb_cuda_info info;
    QB_CHECK_OK(qb_cuda_info_get(0, &info));
    assert_true(*info.name && info.major >= 8 && info.n_sms > 0);
    assert_true(info.memory_bytes > (size_t)1 << 30 && info.smem_bytes >= 48 << 10);
    assert_true(info.driver >= info.runtime / 1000 * 1000 && info.runtime >= 12000);
    assert_true(qb_cuda_features(0) & QB_CUDA_SM80);
    assert_int_equal(!!(qb_cuda_features(0) & QB_CUDA_SM90A), info.major == 9);
    assert_int_equal(qb_cuda_current(), 0);
    assert_true(qb_cuda_count_alike() >= 1 && qb_cuda_count_alike() <= qb_cuda_count());
}

static void a_gpu_that_is_not_there_is_refused(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    assert_non_null(strstr(qb_cuda_refusal(63), "GPU 63: found "));
    assert_non_null(strstr(qb_cuda_refusal(-1), "GPU -1: found "));
    assert_int_equal(qb_cuda_features(63), 0);
    assert_int_equal(qb_cuda_use(63), QB_ERR_DEVICE);
    assert_int_equal(qb_cuda_current(), 0); /* a failed call changes nothing */
}

static void too_much_memory_names_both_sizes(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    void *dev = (void *)1;
    assert_int_equal(qb_cuda_alloc(&dev, (size_t)1 << 44, 4, "a giant"), QB_ERR_MEMORY);
    assert_null(dev);
    assert_non_null(strstr(qb_error_message(), "a giant: needed 70368744177664 bytes, found "));
    assert_non_null(strstr(qb_error_message(), " free of "));
    assert_int_equal(qb_cuda_alloc(&dev, SIZE_MAX / 2, 4, "a giant"), QB_ERR_MEMORY);
    assert_non_null(strstr(qb_error_message(), "overflow"));
    QB_CHECK_OK(qb_cuda_alloc(&dev, 0, 4, "nothing"));
    assert_null(dev);
    QB_CHECK_OK(qb_cuda_sync(NULL)); /* the failure is not the next call's */
}

static void copies_and_zeros_arrive(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    enum { BYTES = 100003 };
    uint8_t *in = malloc(BYTES), *out = malloc(BYTES);
    qb_test_fill_bytes(in, BYTES, 7);
    void *dev = qb_gpu_upload(in, BYTES);
    assert_int_equal((uintptr_t)dev % 256, 0);
    qb_gpu_fetch(out, dev, BYTES);
    assert_memory_equal(in, out, BYTES);
    QB_CHECK_OK(qb_cuda_zero(dev, 1000, NULL));
    qb_gpu_fetch(out, dev, BYTES);
    memset(in, 0, 1000);
    assert_memory_equal(in, out, BYTES);
    qb_gpu_free(dev);
    dev = qb_gpu_poison(BYTES);
    qb_gpu_fetch(out, dev, BYTES);
    assert_true(qb_gpu_is_poison(out, BYTES));
    qb_gpu_free(dev);
    QB_CHECK_OK(qb_cuda_alloc_zero(&dev, BYTES, 1, "zeros"));
    QB_CHECK_OK(qb_cuda_download(out, dev, BYTES, NULL));
    QB_CHECK_OK(qb_cuda_sync(NULL));
    memset(in, 0, BYTES);
    assert_memory_equal(in, out, BYTES);
    qb_cuda_free(dev);
    free(in);
    free(out);
}

static void streams_keep_order(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    enum { N = 1 << 16 };
    qb_cuda_stream stream;
    uint32_t *host;
    void *dev;
    QB_CHECK_OK(qb_cuda_stream_create(&stream));
    QB_CHECK_OK(qb_cuda_host_alloc((void **)&host, N, sizeof *host, "page-locked words"));
    QB_CHECK_OK(qb_cuda_alloc(&dev, N, sizeof *host, "words"));
    for (uint32_t i = 0; i < N; i++) host[i] = i * 2654435761u;
    QB_CHECK_OK(qb_cuda_upload(dev, host, N * sizeof *host, stream));
    QB_CHECK_OK(qb_cuda_sync(stream));
    memset(host, 0, N * sizeof *host);
    QB_CHECK_OK(qb_cuda_download(host, dev, N * sizeof *host, stream));
    QB_CHECK_OK(qb_cuda_sync(stream));
    for (uint32_t i = 0; i < N; i++) assert_int_equal(host[i], i * 2654435761u);
    qb_cuda_free(dev);
    qb_cuda_host_free(host);
    qb_cuda_stream_destroy(stream);
}

static void the_management_library_knows_the_gpu(void **state)
{
    (void)state;
    qb_gpu gpu;
    QB_NEEDS_GPU();
    if (qb_nvml_refusal()) QB_SKIP("%s", qb_nvml_refusal());
    qb_gpu_read(&gpu);
    assert_true(gpu.in_use && gpu.index == 0 && *gpu.info.name && *gpu.now.driver);
    assert_true(gpu.now.sm_mhz > 0 && gpu.now.sm_mhz <= gpu.now.sm_max_mhz);
    assert_true(gpu.now.power_w > 0 && gpu.now.temperature_c > 0);
    assert_string_equal(qb_energy_source(), "NVML total energy of the GPU");
}

/* Copies keep the memory busy, which costs more than idling does. */
static void energy_is_metered_under_load(void **state)
{
    (void)state;
    QB_NEEDS_GPU();
    if (isnan(qb_energy_read_j())) QB_SKIP("the GPU has no energy counter");
    if (qb_test_is_small()) QB_SKIP("a sanitiser stretches the time");
    enum { BYTES = 1 << 28 };
    qb_energy_meter *meter;
    void *dev;
    QB_CHECK_OK(qb_cuda_alloc(&dev, BYTES, 1, "load"));
    QB_CHECK_OK(qb_energy_begin(&meter));
    while (!qb_energy_enough(meter)) {
        for (int i = 0; i < 20; i++) QB_CHECK_OK(qb_cuda_zero(dev, BYTES, NULL));
        QB_CHECK_OK(qb_cuda_sync(NULL));
    }
    double watts = qb_energy_end(meter);
    qb_cuda_free(dev);
    printf("%.1f W under load\n", watts);
    assert_true(watts > 80 && watts < 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gpu_describes_itself),
        cmocka_unit_test(a_gpu_that_is_not_there_is_refused),
        cmocka_unit_test(too_much_memory_names_both_sizes),
        cmocka_unit_test(copies_and_zeros_arrive),
        cmocka_unit_test(streams_keep_order),
        cmocka_unit_test(the_management_library_knows_the_gpu),
        cmocka_unit_test(energy_is_metered_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
