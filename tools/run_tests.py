#!/usr/bin/env python3
"""Builds and runs every test and adds up the counts: the last line is `N passed, N failed, N
skipped`, the exit code 1 if something failed. Standard library only."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
JOBS = len(os.sched_getaffinity(0))
LOGS = ROOT / "build" / "test-logs"
SKIP_CODE = 77  # of a test script: nothing could be tested, the reason is its last line

# name: (folder, what cmake is told). One build carries both sanitisers: they find the same faults
# apart, and a second build would cost a minute. The release is what `make` made; where it made
# nothing yet, CUDA is left out, since compiling it takes as long as all other code.
BUILDS = {
    "release": ("build", ["-DQB_CUDA=OFF"]),
    "sanitize": ("build-san", ["-DQB_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug",
                               "-DCMAKE_C_FLAGS_DEBUG=-O1 -g1", "-DQB_BENCH=OFF", "-DQB_CUDA=OFF"]),
    "fuzz": ("build-fuzz", ["-DQB_FUZZ=ON", "-DQB_TESTS=OFF", "-DQB_BENCH=OFF", "-DQB_CUDA=OFF",
                            "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]),
}


class Tally:
    """Counts of all suites; prints a line a suite as it ends."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failed_suites = []
        self.lock = threading.Lock()

    def add(self, suite, passed, failed, skipped, seconds=0.0, cpu_s=0.0, note=""):
        with self.lock:
            self.passed += passed
            self.failed += failed
            self.skipped += skipped
            state = "FAILED" if failed else "ok"
            if failed:
                self.failed_suites.append(suite)
            counts = f"{passed} passed" + (f", {failed} failed" if failed else "") + (
                f", {skipped} skipped" if skipped else "")
            print(f"{state:6} {suite:38} {counts:30} {seconds:5.1f} s {cpu_s:6.1f} cpu s{note}",
                  flush=True)


TALLY = Tally()


def run_logged(suite, command, cwd=ROOT, env=None, timeout=600):
    """Runs the command without input; returns (exit code, output, seconds on the clock, seconds of
    processors). The output goes to a log file."""
    start = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / (suite.replace("/", "-") + ".log")
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT)
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        _, status, used = os.wait4(process.pid, 0)
        in_time = timer.is_alive()
        timer.cancel()
        process.returncode = code = os.waitstatus_to_exitcode(status)
    output = log.read_text(errors="replace")
    if not in_time:
        code, output = 124, output + "\ntimed out\n"
    return code, output, time.monotonic() - start, used.ru_utime + used.ru_stime


def show_tail(output, lines=40):
    told = [line for line in output.splitlines() if not line.startswith("passed: ")]
    print("".join("    | " + line + "\n" for line in told[-lines:]), end="")


def build(name):
    folder, settings = BUILDS[name]
    path = ROOT / folder
    seconds = cpu_s = 0.0
    target = ["--target", "fuzzers"] if name == "fuzz" else []
    commands = [["cmake", "--build", str(path), "--parallel", str(JOBS), *target]]
    cache = path / "CMakeCache.txt"
    if not cache.exists():
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []  # a fifth sooner than make
        commands.insert(0, ["cmake", "-S", str(ROOT), "-B", str(path), *generator, *settings])
    elif name != "fuzz" and "CMOCKA_FOUND:INTERNAL=1" not in cache.read_text():
        commands.insert(0, ["cmake", str(path)])  # `make` did without the tests
    for command in commands:
        code, output, took, used = run_logged(f"build/{name}", command)
        seconds, cpu_s = seconds + took, cpu_s + used
        if code:
            show_tail(output)
            TALLY.add(f"build/{name}", 0, 1, 0, seconds, cpu_s)
            return False
    TALLY.add(f"build/{name}", 1, 0, 0, seconds, cpu_s)
    return True


def sum_counts(pattern, output):
    return sum(int(n) for n in re.findall(pattern, output, re.M))


def count(code, output):
    """(passed, failed, skipped) of a program: cmocka's summaries, or our own last line, or its
    exit code."""
    own = re.findall(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", output, re.M)
    if "[==========]" in output:
        passed = sum_counts(r"\[  PASSED  \] (\d+) test", output)
        failed = sum_counts(r"\[  FAILED  \] (\d+) test", output)
        skipped = sum_counts(r"\[  SKIPPED \] (\d+) test", output)
    elif re.search(r"^Ran \d+ tests? in", output, re.M):  # Python's unittest
        ran = sum_counts(r"^Ran (\d+) tests? in", output)
        skipped = sum_counts(r"skipped=(\d+)", output)
        failed = sum_counts(r"(?:failures|errors)=(\d+)", output)
        passed = ran - skipped - failed
    elif own:
        passed, failed, skipped = (int(n) for n in own[-1])
    elif code == SKIP_CODE and re.search("^skipped: ", output, re.M):
        return 0, 0, 1  # libFuzzer ends with 77 too, when it found something
    else:
        passed, failed, skipped = (1, 0, 0) if code == 0 else (0, 1, 0)
    if code and not failed:  # died before its summary
        failed = 1
    return passed, failed, skipped


def run_suite(suite, command, cwd=ROOT, env=None, timeout=1800):  # a busy machine takes long
    code, output, seconds, cpu_s = run_logged(suite, command, cwd, env, timeout)
    passed, failed, skipped = count(code, output)
    reasons = sorted(set(re.findall(r"^skipped: (.*)$", output, re.M)))
    note = "".join(f"\n         skipped: {reason}" for reason in reasons[:8])
    TALLY.add(suite, passed, failed, skipped, seconds, cpu_s, note)
    if failed:
        with TALLY.lock:
            show_tail(output)


def sanitizer_env():
    env = dict(os.environ)
    env.setdefault("ASAN_OPTIONS", "allocator_may_return_null=1")
    env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    return env


def ctest_suites(name):
    """The tests that CMake registered in a build: (suite, command, folder, environment)."""
    folder = ROOT / BUILDS[name][0]
    listing = subprocess.run(["ctest", "--test-dir", str(folder), "--show-only=json-v1"],
                             stdout=subprocess.PIPE, check=True).stdout
    env = sanitizer_env() if name == "sanitize" else None
    for test in json.loads(listing)["tests"]:
        if name == "sanitize" and test["name"] in ("test_smollm2", "test_logits"):
            continue  # long; the tiny models take the same paths
        yield f"{name}/{test['name']}", test["command"], ROOT, env


def fuzz_suites(seconds):
    """Each target for some seconds on its seed corpus, and what it found before."""
    folder = ROOT / BUILDS["fuzz"][0]
    seeds = folder / "seeds"
    make_seeds = ROOT / "tests" / "fuzz" / "make_seeds.py"
    if make_seeds.exists():
        command = [sys.executable, str(make_seeds), str(seeds)]
        code, output, seconds_made, cpu_s = run_logged("fuzz/seeds", command)
        if code:
            show_tail(output)
            TALLY.add("fuzz/seeds", 0, 1, 0, seconds_made, cpu_s)
    for target in sorted(path for path in folder.rglob("fuzz_*")
                         if path.is_file() and os.access(path, os.X_OK)):
        corpus = folder / "corpus" / target.name
        corpus.mkdir(parents=True, exist_ok=True)
        own_seeds = seeds / target.name.removeprefix("fuzz_")
        command = [str(target), f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=1024",
                   "-print_final_stats=1", f"-artifact_prefix={folder}/", str(corpus)]
        if own_seeds.is_dir():
            command.append(str(own_seeds))
        yield f"fuzz/{target.name}", command, folder, sanitizer_env()


# Started first, so that none is left at the end.
LONG = ("test_smollm2", "cli", "test_logits", "test_model_bin", "test_model_bin_damage", "test_engine", "test_trainer",
        "test_package", "test_python", "test_quality", "test_attention")


def run_all(suites):
    suites.sort(key=lambda suite: not suite[0].endswith(LONG))
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for future in [pool.submit(run_suite, *suite) for suite in suites]:
            future.result()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="order,release,sanitize,fuzz,cli",
                        help="comma list of: order, release, sanitize, fuzz, cli")
    parser.add_argument("--fuzz-seconds", type=int, default=1, help="seconds a fuzz target")
    options = parser.parse_args()
    parts = options.only.split(",")
    start = time.monotonic()

    suites = []
    if "order" in parts:
        suites.append(("include-order", [sys.executable, str(ROOT / "tests/cli/include_order.py")]))
    if "release" in parts and build("release"):
        suites += ctest_suites("release")
    if "cli" in parts and ("release" in parts or build("release")):
        suites.append(("cli", [sys.executable, str(ROOT / "tests/cli/run.py"),
                               str(ROOT / "build" / "qbench")]))
        suites += [(path.stem, [sys.executable, str(path)])
                   for path in sorted((ROOT / "tests" / "cli").glob("test_*.py"))]
    if "sanitize" in parts and build("sanitize"):
        suites += ctest_suites("sanitize")
    if "fuzz" in parts:
        if not shutil.which("clang"):
            TALLY.add("fuzz", 0, 0, 1, note="\n         skipped: clang is not installed")
        elif build("fuzz"):
            suites += fuzz_suites(options.fuzz_seconds)
    run_all(suites)

    if TALLY.failed_suites:
        print("failed: " + ", ".join(TALLY.failed_suites))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"logs in {LOGS.relative_to(ROOT)}/; {time.monotonic() - start:.0f} s, "
          f"{used.ru_utime + used.ru_stime:.0f} s of processor time")
    print(f"{TALLY.passed} passed, {TALLY.failed} failed, {TALLY.skipped} skipped")
    return 1 if TALLY.failed else 0


if __name__ == "__main__":
    sys.exit(main())
