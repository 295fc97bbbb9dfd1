/* tests/fuzz/replay.c - a main for the fuzz targets where there is no libFuzzer: runs each file
 * given once, so that a seed corpus or a found input can be replayed under any sanitizer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        perror(path);
        if (file) fclose(file);
        return 1;
    }
    long n = ftell(file);
    rewind(file);
    uint8_t *data = malloc(n > 0 ? (size_t)n : 1);
    size_t got = data && n > 0 ? fread(data, 1, (size_t)n, file) : 0;
    fclose(file);
    if (data) LLVMFuzzerTestOneInput(data, got);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    int failures = 0;
    for (int i = 1; i < argc; i++)
        if (argv[i][0] != '-') failures += replay(argv[i]); /* libFuzzer's options are not ours */
    return failures != 0;
}
