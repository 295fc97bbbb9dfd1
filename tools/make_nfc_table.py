#!/usr/bin/env python3
"""Writes model/nfc_table.c: what Unicode's canonical composition needs, from Python's unicodedata.

    tools/make_nfc_table.py > model/nfc_table.c"""
import sys
import unicodedata

HANGUL = range(0xAC00, 0xAC00 + 11172)  # by arithmetic


def rows(items, per_line):
    for i in range(0, len(items), per_line):
        print("    " + " ".join(items[i:i + per_line]))


def main():
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and c not in HANGUL]
    classes = []  # runs: first, length, class
    for c in codes:
        ccc = unicodedata.combining(chr(c))
        if not ccc:
            continue
        if classes and classes[-1][0] + classes[-1][1] == c and classes[-1][2] == ccc:
            classes[-1][1] += 1
        else:
            classes.append([c, 1, ccc])
    pairs = []
    for c in codes:
        text = unicodedata.decomposition(chr(c))
        if text and not text.startswith("<"):
            parts = [int(part, 16) for part in text.split()]
            pairs.append((c, parts[0], parts[1] if len(parts) > 1 else 0))
    # Whatever NFC puts together again; singletons and exclusions stay apart.
    composed = sorted((first, second, i) for i, (c, first, second) in enumerate(pairs)
                      if second and unicodedata.normalize("NFC", chr(c)) == chr(c))
    print("/* model/nfc_table.c - made by tools/make_nfc_table.py from Unicode "
          f"{unicodedata.unidata_version}; see nfc.h. */")
    print('#include "model/nfc_internal.h"\n\n/* clang-format off */')
    print("const qb__nfc_run qb__nfc_runs[] = {")
    rows(["{0x%X, %d, %d}," % tuple(run) for run in classes], 4)
    print("};\nconst size_t qb__nfc_n_runs = sizeof qb__nfc_runs / sizeof *qb__nfc_runs;\n")
    print("const qb__nfc_pair qb__nfc_pairs[] = {")
    rows(["{0x%X, 0x%X, 0x%X}," % pair for pair in pairs], 3)
    print("};\nconst size_t qb__nfc_n_pairs = sizeof qb__nfc_pairs / sizeof *qb__nfc_pairs;\n")
    print("const uint16_t qb__nfc_composed[] = {")
    rows(["%d," % i for _, _, i in composed], 14)
    print("};\nconst size_t qb__nfc_n_composed = "
          "sizeof qb__nfc_composed / sizeof *qb__nfc_composed;")
    return 0


sys.exit(main())
