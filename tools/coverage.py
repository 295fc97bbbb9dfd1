#!/usr/bin/env python3
"""Builds with --coverage in build-cov, runs the unit, golden and CLI tests, and prints the line
coverage of the library's folders. Uses gcov's JSON; standard library only."""
import collections
import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build-cov"
COUNTED = ["core", "kernels", "quant", "infer"]  # what the goal of 90 % is about
SHOWN = COUNTED + ["model", "report", "cli"]
JOBS = str(len(os.sched_getaffinity(0)))


def run(*command, may_fail=False):
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    if done.returncode and not may_fail:
        sys.exit(f"coverage: {' '.join(map(str, command))}: exit {done.returncode}")
    return done.returncode == 0


def build_and_run():
    if not (BUILD / "CMakeCache.txt").exists():
        run("cmake", "-S", ROOT, "-B", BUILD, "-DQB_COVERAGE=ON", "-DQB_BENCH=OFF", "-DQB_CUDA=OFF")
    run("cmake", "--build", BUILD, "--parallel", JOBS)
    for counts in BUILD.rglob("*.gcda"):
        counts.unlink()
    good = run("ctest", "--test-dir", BUILD, "--parallel", JOBS, "--output-on-failure",
               may_fail=True)
    return run(sys.executable, ROOT / "tests/cli/run.py", BUILD / "qbench", may_fail=True) and good


def line_counts():
    """{file: {line: times run}} of the files under ROOT, summed over the objects they are in."""
    lines = collections.defaultdict(lambda: collections.defaultdict(int))
    objects = [str(path) for path in BUILD.rglob("*.gcno")]  # those that never ran count too
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, len(objects), 50):
            subprocess.run(["gcov", "--json-format", "--preserve-paths", *objects[first:first + 50]],
                           cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for report in pathlib.Path(folder).glob("*.gcov.json.gz"):
            for entry in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                path = pathlib.Path(os.path.normpath(BUILD / entry["file"]))
                if ROOT not in path.parents:
                    continue
                counts = lines[str(path.relative_to(ROOT))]
                for line in entry["lines"]:
                    counts[line["line_number"]] += line["count"]
    return lines


def share(hit, total):
    return f"{hit:6} of {total:6} lines  {100 * hit / total if total else 100:5.1f} %"


def main():
    good = build_and_run()
    lines = line_counts()
    per_file = {path: (sum(1 for n in counts.values() if n), len(counts))
                for path, counts in lines.items()}
    total = [0, 0]
    for folder in SHOWN:
        files = {path: n for path, n in per_file.items() if path.startswith(folder + "/")}
        hit, n = sum(f[0] for f in files.values()), sum(f[1] for f in files.values())
        print(f"{folder + '/':40} {share(hit, n)}")
        for path in sorted(files, key=lambda p: files[p][0] - files[p][1])[:5]:
            if files[path][0] < files[path][1]:
                print(f"    {path:36} {share(*files[path])}")
        if folder in COUNTED:
            total = [total[0] + hit, total[1] + n]
    print(f"{'total of ' + ', '.join(COUNTED):40} {share(*total)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
