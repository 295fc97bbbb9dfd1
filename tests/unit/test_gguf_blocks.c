/* tests/unit/test_gguf_blocks.c - GGUF's block formats: a few bytes of a block set by hand, and the
 * values that the formats' definitions then give its elements. Random blocks of each type are held
 * against a second decoder by tests/cli/convert_tests.py. */
#include "support.h"

#include "core/dtype.h"

#define HALF_AT(i)                                                                                 \
    {i, 0x00},                                                                                     \
    {                                                                                              \
        (i) + 1, 0x38                                                                              \
    } /* f16 0.5 */
#define ONE_AT(i)                                                                                  \
    {i, 0x00},                                                                                     \
    {                                                                                              \
        (i) + 1, 0x3c                                                                              \
    }
#define TWO_AT(i)                                                                                  \
    {i, 0x00},                                                                                     \
    {                                                                                              \
        (i) + 1, 0x40                                                                              \
    }

typedef struct block_case {
    qb_dtype dtype;
    struct {
        uint8_t at, byte;
    } set[10]; /* all other bytes are 0 */
    struct {
        int at; /* -1 = none */
        float value;
    } want[10];
} block_case;

static const block_case cases[] = {
    {QB_Q8_0, {HALF_AT(0), {2, 0x80}, {33, 0x7f}}, {{0, -64}, {1, 0}, {31, 63.5f}, {-1, 0}}},
    {QB_Q4_0, {HALF_AT(0), {2, 0x0f}}, {{0, 3.5f}, {16, -4}, {31, -4}, {-1, 0}}},
    {QB_Q4_1,
     {HALF_AT(0), ONE_AT(2), {4, 0xf3}},
     {{0, 2.5f}, {16, 8.5f}, {1, 1}, {31, 1}, {-1, 0}}},
    /* Fifth bits of elements 0 and 31. */
    {QB_Q5_0,
     {HALF_AT(0), {2, 0x01}, {5, 0x80}, {6, 0x21}, {21, 0x43}},
     {{0, 0.5f}, {16, -7}, {15, -6.5f}, {31, 2}, {1, -8}, {-1, 0}}},
    /* Of elements 8 and 17. */
    {QB_Q5_1,
     {HALF_AT(0), ONE_AT(2), {5, 0x01}, {6, 0x02}, {9, 0x21}},
     {{1, 1.5f}, {17, 10}, {8, 9}, {0, 1}, {31, 1}, {-1, 0}}},
    /* Codes 0, 7, 8 and 15 stand for -127, -10, 1 and 113. */
    {QB_IQ4_NL,
     {HALF_AT(0), {5, 0xf0}, {6, 0x87}},
     {{0, -63.5f}, {3, -63.5f}, {19, 56.5f}, {4, -5}, {20, 0.5f}, {-1, 0}}},
    /* Run 9 has scale 3 and minimum 2, run 13 scale 1; byte 70 holds elements 150 and 214. */
    {QB_Q2_K,
     {TWO_AT(80), HALF_AT(82), {9, 0x23}, {13, 0x01}, {70, 0x12}},
     {{150, 11}, {149, -1}, {159, -1}, {143, 0}, {160, 0}, {214, 2}, {213, 0}, {-1, 0}}},
    /* Run 13 has scale 42 - 32, the others 0 - 32. Element 211: third bit and low bits set. */
    {QB_Q3_K,
     {ONE_AT(108), {101, 0xa0}, {105, 0x80}, {19, 0x40}, {83, 0x30}},
     {{211, 30}, {210, -40}, {223, -40}, {207, 128}, {83, 128}, {0, 128}, {-1, 0}}},
    /* Run 1: scale 5, minimum 3. Run 5: 33 and 22, their high bits above those of run 1. */
    {QB_Q4_K,
     {HALF_AT(0), ONE_AT(2), {5, 0x85}, {9, 0x43}, {13, 0x61}, {24, 0x70}, {90, 0x9f}},
     {{40, 14.5f}, {32, -3}, {8, 0}, {170, 126.5f}, {160, -22}, {191, -22}, {138, 0}, {-1, 0}}},
    /* The same runs; elements 42 and 170 have fifth bits. */
    {QB_Q5_K,
     {HALF_AT(0), ONE_AT(2), {5, 0x85}, {9, 0x43}, {13, 0x61}, {26, 0x22}, {56, 0x70}, {122, 0x90}},
     {{40, 14.5f}, {42, 37}, {41, -3}, {170, 390.5f}, {171, -22}, {10, 0}, {-1, 0}}},
    /* Run 11 has scale -3, run 15 scale 2; codes 37 and 63, less 32. */
    {QB_Q6_K,
     {HALF_AT(208), {203, 0xfd}, {207, 0x02}, {116, 0xf5}, {180, 0xc8}},
     {{180, -7.5f}, {181, 48}, {244, 31}, {245, -32}, {52, 0}, {-1, 0}}},
    /* Run 6 has scale 37 - 32, run 1 63 - 32, the others 0 - 32. */
    {QB_IQ4_XS,
     {ONE_AT(0), {2, 0x0c}, {3, 0x20}, {4, 0xf0}, {7, 0x05}, {107, 0xf0}},
     {{195, -635}, {211, 565}, {192, -635}, {224, 4064}, {32, -3937}, {0, 4064}, {-1, 0}}},
    /* 207 = 256 * 0.21021 and 206 = 256 * 0.2102 in base 3, rounded up. */
    {QB_TQ1_0,
     {TWO_AT(52), {3, 207}, {37, 207}, {49, 206}},
     {{3, 2},
      {35, 0},
      {67, -2},
      {99, 2},
      {131, 0},
      {165, 2},
      {229, 0},
      {241, 2},
      {245, 0},
      {249, -2}}},
    {QB_TQ2_0,
     {TWO_AT(64), {37, 0x86}},
     {{133, 2}, {165, 0}, {197, -2}, {229, 2}, {132, -2}, {5, -2}, {-1, 0}}},
};

static void blocks_widen(void **state)
{
    (void)state;
    for (size_t c = 0; c < QB_COUNT(cases); c++) {
        const block_case *k = &cases[c];
        const qb_dtype_info *info = qb_dtype_get(k->dtype);
        uint8_t blocks[2 * 256] = {0}; /* the second of the two is the one */
        float w[2 * 256];
        for (size_t i = 0; i < QB_COUNT(k->set); i++)
            if (k->set[i].byte) blocks[info->block_bytes + k->set[i].at] = k->set[i].byte;
        qb_dtype_to_f32(k->dtype, blocks, 2 * info->block_elems, w);
        for (size_t e = 0; e < info->block_elems; e++) assert_true(w[e] == 0.0f);
        for (size_t i = 0; i < QB_COUNT(k->want) && k->want[i].at >= 0; i++) {
            float found = w[info->block_elems + (size_t)k->want[i].at];
            if (found != k->want[i].value)
                fail_msg("%s: element %d: found %g, expected %g", info->name, k->want[i].at,
                         (double)found, (double)k->want[i].value);
        }
    }
}

static void sizes_are_checked(void **state)
{
    (void)state;
    size_t n_types = 0;
    for (int i = 0; i < QB_DTYPE_COUNT; i++) {
        const qb_dtype_info *info = qb_dtype_get((qb_dtype)i);
        size_t n = info->block_elems, bytes;
        if (!info->block_to_f32) continue;
        n_types++;
        assert_true(info->is_float);
        assert_true(qb_dtype_bytes((qb_dtype)i, 3, 2 * n, &bytes));
        assert_int_equal(bytes, 6 * info->block_bytes);
        assert_false(qb_dtype_bytes((qb_dtype)i, 3, 2 * n + n / 2, &bytes));
        assert_false(qb_dtype_bytes((qb_dtype)i, SIZE_MAX / 16, n, &bytes));
    }
    assert_int_equal(n_types, QB_COUNT(cases));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_widen),
        cmocka_unit_test(sizes_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
