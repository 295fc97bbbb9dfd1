#!/usr/bin/env python3
"""Runs the qbench program as a user would: every verb's success, usage error and bad files; what
signals and closed outputs do. Usage: run.py QBENCH [NAME...]. Standard library only.

QB_FLIPS=1000 makes that many bit flips a format (default 200). Each test is a function test_*; it
raises AssertionError, or Skip with its reason."""
import concurrent.futures
import inspect
import os
import pathlib
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import analyze_tests
import bad_input_tests
import convert_tests
import data_tests
import device_tests
import front_tests
import gate_tests
import live_tests
import model_tests
import pair_tests
import profile_tests
import ranks_tests
import report_tests
import run_verb_tests
import support
import table_tests
import tokenize_tests
import train_tests
import watch_tests


def collect(names):
    for module in (analyze_tests, front_tests, model_tests, convert_tests, data_tests, bad_input_tests,
                   tokenize_tests, run_verb_tests, gate_tests, watch_tests, device_tests, train_tests,
                   ranks_tests, pair_tests, profile_tests, report_tests, live_tests, table_tests):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("test_") and (not names or any(n in name for n in names)):
                yield name, function


def run_one(name, function, folder):
    """(kind, text): kind is passed, failed or skipped."""
    own = pathlib.Path(folder) / name
    own.mkdir()
    start = time.monotonic()
    support.SPENT.cpu_s = 0.0
    try:
        function(own)
        return "passed", (f"passed: {name} ({time.monotonic() - start:.1f} s, "
                          f"{support.SPENT.cpu_s:.1f} of processors)")
    except support.Skip as reason:
        return "skipped", f"skipped: {name}: {reason}"
    except Exception:
        return "failed", f"failed: {name}\n{traceback.format_exc(limit=-3)}"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    support.QBENCH = str(pathlib.Path(sys.argv[1]).resolve())
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="qbench-cli-") as folder:
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            jobs = [pool.submit(run_one, name, function, folder)
                    for name, function in collect(sys.argv[2:])]
            for job in jobs:
                kind, text = job.result()
                counts[kind] += 1
                print(text, flush=True)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
