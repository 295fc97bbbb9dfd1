/* tests/fuzz/fuzz_nll.c - losses of tokens, as compare reads them. */
#include "fuzz.h"

#include "core/memory.h"
#include "infer/nll_file.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qb_file file = fuzz_file(data, bytes);
    qb_nll nll;
    if (qb_nll_parse(&file, &nll) == QB_OK) {
        size_t last = (size_t)nll.window[nll.n - 1];
        if (nll.n_windows != last + 1 || nll.n_windows > nll.n || nll.n > bytes / 16) abort();
        qb_nll_deinit(&nll);
    }
    if (qb_memory_live_blocks()) abort();
    return 0;
}
