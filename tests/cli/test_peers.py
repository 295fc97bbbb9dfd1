#!/usr/bin/env python3
"""Tests bench/peers/peers.py on stand-ins that print what the real programs print: the arithmetic
of ratios, what a missing side looks like, and what a failing one does."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

PEERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../bench/peers/peers.py")

# Each stand-in counts its calls in a file, so that every round sees another speed.
COUNT = """#!{python}
import json, os, sys
path = __file__ + ".calls"
n = int(open(path).read()) if os.path.exists(path) else 0
open(path, "w").write(str(n + 1))
"""
LLAMA_BENCH = COUNT + """
decode = "-d" in sys.argv
print(json.dumps({{"samples_ts": [10, 20, 90] if decode else [200, 100, 300]}}))
"""
QBENCH = COUNT + """
def speed(x): return {{"tok_per_s": x * (1 + n % 3)}}
print(json.dumps({{"results": [{{
    "scheme": {{"name": "fine"}}, "qbench_version": "1", "git_commit": "c",
    "speed": {{"context": 512, "prefill": speed(200), "decode": None,
              "full": {{"prefill": speed(50), "decode": speed(5)}}}}}}]}}))
sys.exit({status})
"""
ONEDNN = COUNT + """
for m, n, k in zip(*[iter(map(int, sys.argv[3:]))] * 3):
    print(json.dumps({{"m": m, "n": n, "k": k, "kernel": "x", "onednn": "9.9.9",
                      "gop_per_s": [100 * int(os.environ["OMP_NUM_THREADS"])]}}))
"""
QBENCH_BENCH = COUNT + """
names = ["gemm_s8/%s/M:100/N:100/K:100" % row for row in ("slow", "fast", "ref")]
if "--benchmark_list_tests=true" in sys.argv:
    print("\\n".join(names))
else:
    us = {{"slow": 40.0, "fast": 10.0, "ref": 1.0}}
    print(json.dumps({{"benchmarks":
        [{{"name": n, "run_name": n, "run_type": "iteration", "real_time": us[n.split("/")[1]],
          "time_unit": "us"}} for n in names] +
        [{{"name": n + "_mean", "run_name": n, "run_type": "aggregate", "real_time": 0.5,
          "time_unit": "us"}} for n in names]}}))
"""


class PeersTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = scratch.name

    def path(self, name):
        return os.path.join(self.dir, name)

    def program(self, name, text, **values):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text.format(python=sys.executable, **values))
        os.chmod(self.path(name), 0o755)
        return self.path(name)

    def run_peers(self, *words):
        """(the process, the record or None)"""
        out = self.path("out.jsonl")
        done = subprocess.run([sys.executable, PEERS, *words, "--out", out], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if not os.path.exists(out):
            return done, None
        with open(out, encoding="utf-8") as f:
            lines = f.readlines()
        self.assertEqual(len(lines), 1)
        return done, json.loads(lines[0])

    def run_llama_cpp(self, qbench):
        return self.run_peers("llama.cpp", "--llama-bench",
                              self.program("llama-bench", LLAMA_BENCH), "--gguf", "Q8_0=a.gguf",
                              "--gguf", "F16=b.gguf", "--qbench", qbench, "--model", PEERS,
                              "--rounds", "3", "--command", "script --dir /some/folder/x")

    def test_llama_cpp_ratio_is_the_median_over_rounds(self):
        for status in 0, 5:     # 5: qbench found the noise large, the figures are there
            with self.subTest(status=status):
                self.setUp()
                done, record = self.run_llama_cpp(self.program("qbench", QBENCH, status=status))
                self.assertEqual(done.returncode, 0, done.stderr)
                fine, full = record["ratios"]
                self.assertEqual((fine["qbench"], fine["llama.cpp"]), ("fine", "Q8_0"))
                self.assertEqual(fine["prefill"], {"median": 2.0, "min": 1.0, "max": 3.0})
                self.assertIsNone(fine["decode"])
                self.assertEqual((full["qbench"], full["llama.cpp"]), ("full", "F16"))
                self.assertEqual(full["decode"], {"median": 0.5, "min": 0.25, "max": 0.75})
                self.assertEqual(len(record["rounds"]), 3)
                self.assertNotIn("/some", json.dumps(record))

    def test_llama_cpp_without_qbench(self):
        done, record = self.run_llama_cpp(self.path("missing"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("qbench: skipped", done.stderr)
        self.assertEqual(record["ratios"], [])
        self.assertIsNone(record["rounds"][0]["qbench"])
        self.assertEqual(record["summary"][0]["decode"]["median"], 20)

    def test_failing_program_records_nothing(self):
        done, record = self.run_llama_cpp(self.program("qbench", QBENCH, status=4))
        self.assertEqual(done.returncode, 1)
        self.assertIn("qbench: exit status 4", done.stderr)
        self.assertIsNone(record)

    def run_onednn(self, bench):
        return self.run_peers("onednn", "--onednn", self.program("onednn", ONEDNN),
                              "--qbench-bench", bench, "--shape", "100x100x100", "--threads", "1",
                              "--threads", "2", "--rounds", "2", "--command", "script")

    def test_onednn_takes_the_fastest_row_but_never_ref(self):
        done, record = self.run_onednn(self.program("bench", QBENCH_BENCH))
        self.assertEqual(done.returncode, 0, done.stderr)
        one, two = record["summary"]
        self.assertEqual(one["qbench_kernel"], "fast")
        self.assertAlmostEqual(one["qbench_gop_per_s"]["median"], 200)  # 2e6 operations in 10 us
        self.assertAlmostEqual(one["ratio"]["median"], 2)
        self.assertEqual(two["onednn_gop_per_s"]["median"], 200)
        self.assertIsNone(two["ratio"])     # no case with two threads

    def test_onednn_without_qbench(self):
        done, record = self.run_onednn(self.path("missing"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("qbench: skipped", done.stderr)
        self.assertIsNone(record["summary"][0]["ratio"])


if __name__ == "__main__":
    unittest.main()
