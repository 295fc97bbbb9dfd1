/* score.c - scores a text under a scheme: score MODEL SCHEME TEXT
 *
 *     cc score.c $(pkg-config --cflags --libs qbench) -o score
 *     ./score gpt2-8m-ours.bin coarse my.txt */
#include <qbench/qbench.h>
#include <stdio.h>
#include <stdlib.h>

static char *read_all(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) return NULL;
    *n = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*n + 1);
    if (text && fread(text, 1, *n, f) != *n) text = NULL;
    fclose(f);
    return text;
}

int main(int argc, char **argv)
{
    static const char *const options[] = {"--no-speed", "--no-fake", "--device", "cpu", NULL};
    qbench_model *model = NULL;
    char *json = NULL;
    size_t n;
    char *text = argc == 4 ? read_all(argv[3], &n) : NULL;
    if (!text) return fprintf(stderr, "usage: score MODEL SCHEME TEXT\n"), 2;
    qbench_status status = qbench_model_open(argv[1], &model);
    if (!status) status = qbench_evaluate_text(model, argv[2], text, n, options, &json);
    if (status)
        fprintf(stderr, "score: %s\n", qbench_error());
    else
        puts(json); /* a document of qbench.results/1 */
    qbench_free(json);
    qbench_model_close(model);
    free(text);
    return status;
}
