/* tests/fuzz/fuzz_text.c - texts: the first byte chooses plain or JSON lines; gzip and xz are found
 * by their magic. The documents must tile the text. */
#include "model/text.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    qb_text text;
    const char *name = data[0] == 'J' ? "fuzz.jsonl" : "fuzz.txt";
    if (qb_text_from_memory(name, (const char *)data + 1, size - 1, &text) != QB_OK) return 0;
    assert(text.n_docs && text.doc_end[text.n_docs - 1] == text.n_bytes);
    for (size_t i = 1; i < text.n_docs; i++) assert(text.doc_end[i - 1] < text.doc_end[i]);
    qb_text_deinit(&text);
    return 0;
}
