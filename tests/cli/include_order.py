#!/usr/bin/env python3
"""Checks that the folders include each other one way only, that every header compiles alone as C
and as C++, and that file stems are unique. Standard library only."""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# What the files of a folder may include, beside their own folder.
LIBRARY = {"core", "model", "kernels", "quant", "infer", "train", "report"}
MAY_INCLUDE = {
    "core": set(),
    "model": {"core"},
    "kernels": {"core"},
    "quant": {"core", "model", "kernels"},
    "infer": {"core", "model", "kernels", "quant"},
    "train": {"core", "model", "kernels", "quant"},
    "report": {"core"},
    "cli": LIBRARY,
    "include": set(),
    "api": LIBRARY | {"cli", "qbench"},
    "bench": LIBRARY,
    "tests": LIBRARY | {"cli", "bench", "qbench"},
}
LOOK_INSIDE = {"tests", "bench"}  # they test and tune what others need not know of


def sources():
    for folder in MAY_INCLUDE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".c", ".h", ".cc", ".cu", ".cuh"):
                yield folder, path.relative_to(ROOT)


def check_includes(folder, path):
    for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
        if not match or "/" not in match[1]:
            continue  # a system header, one beside this file, or the generated version.h
        target = match[1].split("/")[0]
        if target != folder and target not in MAY_INCLUDE[folder]:
            yield f"{path}:{number}: {folder}/ includes {match[1]}: found {target}/, expected " + (
                ", ".join(sorted(MAY_INCLUDE[folder])) or "only its own folder")
        if match[1].endswith("_internal.h") and target != folder and folder not in LOOK_INSIDE:
            yield f"{path}:{number}: {match[1]} is internal to {target}/"


def check_alone(path):
    """A header must not lean on what its user included before."""
    flags = subprocess.run(["pkg-config", "--cflags", "jansson"], stdout=subprocess.PIPE,
                           check=True, text=True).stdout.split()
    for language, standard in (("c", "c17"), ("c++", "c++17")):
        done = subprocess.run(
            ["gcc", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE",
             f"-std={standard}", f"-I{ROOT}", f"-I{ROOT}/include", *flags, "-x", language, "-"],
            input=f'#include "{path}"\n#include "{path}"\n', stderr=subprocess.PIPE, text=True)
        if done.returncode:
            yield f"{path}: does not compile alone as {language}: {done.stderr.splitlines()[0]}"


def check_stems(paths):
    """A folder cuda/ may repeat the stems of what it does on the processor."""
    seen = {}
    for path in paths:
        stem = str(path.with_suffix(""))
        other = seen.setdefault(("cuda" in path.parts, path.stem), stem)
        if other != stem:
            yield f"{path}: the stem {path.stem} is taken by {other}"


def main():
    files = list(sources())
    public = [path for folder, path in files
              if path.suffix == ".h" and folder != "tests" and not path.stem.endswith("_internal")]
    faults = [fault for folder, path in files for fault in check_includes(folder, path)]
    faults += check_stems([path for folder, path in files if folder != "tests"])
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        faults += [fault for found in pool.map(lambda p: list(check_alone(p)), public)
                   for fault in found]
    print("\n".join(faults + [f"{len(files) - len(faults)} passed, {len(faults)} failed, 0 skipped"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
