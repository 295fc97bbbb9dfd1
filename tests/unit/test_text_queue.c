/* tests/unit/test_text_queue.c - texts come in order at any depth; a bad one says so at its turn.
 */
#include "support.h"

#include "core/memory.h"
#include "train/data/text_queue.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N = 9, BAD = 5 };
static char folder[64], names[N][96];
static const char *paths[N];

static int write_texts(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/qb_queue_XXXXXX");
    if (!mkdtemp(folder)) return 1;
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "%s/%d.txt", folder, i);
        paths[i] = names[i];
        FILE *f = fopen(names[i], "w");
        if (!f) return 1;
        if (i != BAD) fprintf(f, "text %d", i);
        fclose(f);
    }
    return 0;
}

static int remove_texts(void **state)
{
    (void)state;
    for (int i = 0; i < N; i++) unlink(names[i]);
    return rmdir(folder);
}

static void texts_come_in_order(void **state)
{
    (void)state;
    for (size_t n_ahead = 0; n_ahead <= QB_TEXT_QUEUE_MAX + 1; n_ahead++)
        for (int n_read = 0; n_read <= N; n_read++) { /* closed early, too */
            qb_text_queue *q;
            QB_CHECK_OK(qb_text_queue_open(paths, N, n_ahead, 0, &q));
            for (int i = 0; i < n_read; i++) {
                qb_text text;
                char expected[24];
                snprintf(expected, sizeof expected, "text %d", i);
                qb_status status = qb_text_queue_next(q, &text);
                if (i == BAD) {
                    assert_int_equal(status, QB_ERR_FORMAT);
                    assert_non_null(strstr(qb_error_message(), "5.txt: "));
                    continue;
                }
                assert_int_equal(status, QB_OK);
                assert_int_equal(text.n_bytes, strlen(expected));
                assert_memory_equal(text.bytes, expected, strlen(expected));
                qb_text_deinit(&text);
            }
            qb_text_queue_close(q);
            assert_int_equal(qb_memory_live_blocks(), 0);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(texts_come_in_order)};
    return cmocka_run_group_tests(tests, write_texts, remove_texts);
}
