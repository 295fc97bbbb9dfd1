#!/usr/bin/env python3
"""Tests bench/peers/gpu.py and gpu_table.py on stand-ins that print what the real programs print:
which figure lands in which row, what a missing side looks like, when a goal counts as met."""
import importlib.util
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "bench/peers"
for folder in PEERS, ROOT / "tools":
    sys.path.insert(0, str(folder))
import gpu_sides  # noqa: E402
import gpu_table  # noqa: E402
import readme_tables  # noqa: E402

QBENCH = """#!{python}
import json, sys
def after(word): return sys.argv[sys.argv.index(word) + 1]
def speed(x): return {{"tok_per_s": x, "tok_per_s_ci95": [x - 1, x + 1], "samples": 10}}
def result(name, x, full=None):
    return {{"scheme": {{"name": name}}, "qbench_version": "1", "git_commit": "abc",
            "text": {{"tokens": 7}}, "protocol": {{"scored_tokens": 6}},
            "speed": {{"prefill": speed(x), "decode": speed(x / 100), "full": full}}}}
batch = 1 if "all" in sys.argv else int(after("--speed-batch"))
full = {{"prefill": speed(200000.0 + batch), "decode": speed(900.0)}}
print(json.dumps({{"results": [result("fine", 390000.0 + batch, full),
                              result("coarse", 350000.0 + batch)]}}))
sys.exit({status})
"""
LLAMA_BENCH = """#!{python}
import json, sys
for n_prompt in 512, 0:
    for n_depth, x in (0, 10), (256, 100):
        print(json.dumps({{"n_prompt": n_prompt, "n_depth": n_depth,
                          "samples_ts": [x, 3 * x, 2 * x]}}))
"""
BATCHED_BENCH = """#!{python}
import sys
def after(word): return sys.argv[sys.argv.index(word) + 1]
for i, batch in enumerate(after("-npl").split(",")):
    tg = int(after("-ntg"))
    print('{{"pp": %s, "tg": %d, "pl": %s, "speed_pp": %d.0, "speed_tg": %s}}'
          % (after("-npp"), tg, batch, 100 * i, 7 * i if tg else "-nan"))
"""
# In place of a Python with torch: called as `python torch_gpu.py --models ...`.
TORCH = """#!{python}
import json, sys
print(json.dumps({{"versions": {{"torch": "2.x", "torchao": None}}}}))
for logits, x in ("last", 210000.0), ("all", 190000.0):
    print(json.dumps({{"model": "gpt2-1.4b", "scheme": "bf16", "work": "prefill", "batch": 64,
                      "context": 256, "logits": logits, "tok_per_s": x}}))
print(json.dumps({{"model": "gpt2-1.4b", "scheme": "int8", "work": "decode", "batch": 1,
                  "context": 256, "logits": "last", "tok_per_s": None, "refused": "few rows"}}))
"""


class GpuTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = pathlib.Path(scratch.name)

    def program(self, name, text, **values):
        path = self.dir / name
        path.write_text(text.format(python=sys.executable, **values))
        path.chmod(0o755)
        return str(path)

    def run_gpu(self, *words):
        """(the process, the record or None)"""
        out = self.dir / "out.jsonl"
        done = subprocess.run([sys.executable, str(PEERS / "gpu.py"), *words, "--out", str(out),
                               "--command", "script"], text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done, json.loads(out.read_text()) if out.exists() else None

    def test_all_sides(self):
        self.program("llama-bench", LLAMA_BENCH)
        self.program("llama-batched-bench", BATCHED_BENCH)
        done, record = self.run_gpu(
            "--qbench", self.program("qbench", QBENCH, status=5), "--model", "gpt2-1.4b=x.bin",
            "--gguf", "gpt2-1.4b:Q8_0=x.gguf", "--llama", str(self.dir), "--text", "t.txt",
            "--all-schemes-model", "gpt2-1.4b", "--python", self.program("python", TORCH))
        self.assertEqual(done.returncode, 0, done.stderr)
        many, _, single, decode1, decode16 = gpu_table.ROWS[:5]

        def find(*words, **more):
            return gpu_table.find(record, *words, **more)
        self.assertEqual(find(many, "qbench", "fine"), 390064)
        self.assertEqual(find(many, "qbench", "full"), 200064)
        self.assertEqual(find(many, "torch", "bf16"), 210000)
        self.assertEqual(find(many, "torch", "bf16", logits="all"), 190000)
        self.assertEqual(find(many, "llama.cpp", "Q8_0"), 200)      # the first of four warms up
        self.assertEqual(find(single, "llama.cpp", "Q8_0"), 20)
        self.assertEqual(find(decode1, "llama.cpp", "Q8_0"), 200)
        self.assertEqual(find(decode16, "llama.cpp", "Q8_0"), 14)
        self.assertEqual(find(decode16, "qbench", "coarse"), 3500.16)
        self.assertIsNone(find(decode1, "torch", "int8"))
        verdicts = dict(gpu_table.goals(record, many))
        self.assertEqual(verdicts["int8 ≥ 380,000"], "met (fine)")
        self.assertEqual(verdicts["bf16 ≥ 235,000"], "missed (85 %)")
        self.assertEqual(verdicts["int8 ≥ 1.7 × torch bf16"], "met (fine)")     # 357,000
        self.assertEqual(verdicts["int8 ≥ 1.6 × full"], "met")                  # 320,102
        self.assertEqual(record["all_schemes"]["schemes"], 2)
        self.assertIn("int8 ≥ 380,000: met (fine)", done.stdout)
        self.assertEqual(record["versions"]["torch"], "2.x")
        self.assertEqual(record["git_commit"], "abc")

    def test_missing_sides_are_left_out(self):
        done, record = self.run_gpu(
            "--qbench", self.program("qbench", QBENCH, status=0), "--model", "gpt2-130m=x.bin",
            "--python", str(self.dir / "missing"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("torch: left out", done.stderr)
        self.assertIn("llama.cpp: left out", done.stderr)
        self.assertEqual({f["who"] for f in record["figures"]}, {"qbench"})
        self.assertEqual({r["who"] for r in record["refused"]}, {"torch", "llama.cpp"})

    def test_nothing_measured_records_nothing(self):
        done, record = self.run_gpu(
            "--qbench", self.program("qbench", QBENCH, status=4), "--model", "gpt2-130m=x.bin",
            "--python", str(self.dir / "missing"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("exit status 4", done.stderr)
        self.assertIsNone(record)

    def test_an_ended_run_keeps_what_it_has(self):
        mark = self.dir / "printed"
        slow = self.program("python", TORCH + "import pathlib, time\nsys.stdout.flush()\n"
                            "pathlib.Path('%s').touch()\ntime.sleep(60)" % mark)
        out = self.dir / "out.jsonl"
        process = subprocess.Popen(
            [sys.executable, str(PEERS / "gpu.py"), "--only", "torch,llama.cpp", "--model",
             "gpt2-1.4b=x.bin", "--python", slow, "--out", str(out), "--command", "script"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            if mark.exists():
                break
            time.sleep(0.1)
        time.sleep(0.5)
        process.terminate()
        self.assertEqual(process.wait(20), 0)
        record = json.loads(out.read_text())
        self.assertEqual(len(record["figures"]), 3)
        self.assertEqual(record["refused"], [{"who": "torch", "why": "the run was ended"}])

    def test_clocks_are_those_under_load(self):
        lines = ["300, 1593, 70.0, 30\n", "1900, 2619, 600.0, 50\n", "1800, 2619, 650.0, 60\n",
                 "[N/A], 2619, 650.0, 60\n", "18"]
        found = gpu_sides.clock_summary(lines)
        self.assertEqual(found["sm_mhz"], {"median": 1850, "min": 1800, "max": 1900})
        self.assertIsNone(gpu_sides.clock_summary([]))

    def test_readme_table(self):
        record = {"machine": {"gpu": None}, "command": "script", "time_utc": "2026-01-02T03:04:05Z",
                  "git_commit": None, "versions": {"torch": "2"}, "all_schemes": None,
                  "figures": [{"who": "qbench", "what": "fine", "model": "gpt2-130m",
                               "work": "decode", "batch": 1, "context": 256, "logits": "last",
                               "tok_per_s": 5123.4}]}
        self.assertEqual(readme_tables.gpu_inference(self.dir), [])
        (self.dir / "peers_gpu.jsonl").write_text("not the last line\n" + json.dumps(record) + "\n")
        lines = readme_tables.gpu_inference(self.dir)
        self.assertIn("| 130M decode, batch 1 | – | 5,123 | – |", lines[-1])
        self.assertIn("| any ≥ 5,000: met |", lines[-1])
        self.assertEqual(lines[-2].count("|"), lines[-1].count("|"))

    def test_gemm_table_takes_the_best_cold_row(self):
        def bench(row, us, rest="cold", **more):
            return {"name": "gemm_s8/%s/cuda/M:8192/N:8192/K:8192/%s" % (row, rest),
                    "real_time": us, "time_unit": "us", "roofline_share": 0.5, **more}
        run = {"context": {"date": "2026-01-02T03:04:05"}, "benchmarks": [
            bench("a", 700.0), bench("a", 680.0), bench("a", 720.0), bench("b", 800.0),
            bench("a", 733.0, "warm"), bench("b", 90.0, "warm"), bench("cublaslt", 733.0),
            bench("a", 1.0, run_type="aggregate"), bench("b", 1.0, error_occurred=True)]}
        (self.dir / "gemm_s8_cuda.json").write_text(json.dumps(run))
        rows = gpu_table.gemm_table(run["benchmarks"])
        self.assertEqual(rows[1], ["8192 x 8192 x 8192", "1,571", "a", "50 %", "1,500", "1,500",
                                   "1,499", "1,292", "1.05", "≥ 1,550: met"])
        self.assertEqual(rows[2][-2:], ["1.05", "≥ 1.15: missed"])
        self.assertIn("| 8192 x 8192 x 8192 | 1,571 |", "\n".join(readme_tables.gpu_gemm(self.dir)))

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "NumPy is not installed")
    def test_gguf(self):
        import make_gguf
        import numpy as np
        x = np.random.default_rng(1).standard_normal((8, 32), dtype=np.float32)
        for encode, levels in (make_gguf.q8_0, 127), (make_gguf.q4_0, 8):
            data = encode(x)
            d = data[:, :2].copy().view("<f2").astype("f4")
            codes = data[:, 2:].view("i1")
            if levels == 8:
                codes = np.concatenate([data[:, 2:] & 15, data[:, 2:] >> 4], axis=1) - 8.0
            step = np.abs(x).max(axis=1, keepdims=True) / levels
            # Half a step; one where the largest of the other sign has no code; d has 11 bits.
            bound = step * (0.51 if levels == 127 else 1.01)
            self.assertTrue((np.abs(d * codes - x) <= bound).all())
        for kind in "F16", "Q8_0", "Q4_0":
            path = self.dir / kind
            make_gguf.write(str(path), "gpt2-60m", kind, 1)
            self.check_gguf(path.read_bytes(), kind)

    def check_gguf(self, data, kind):
        """A reader of its own: tensors lie one after the other and fill the file."""
        def take(form):
            nonlocal at
            at += struct.calcsize("<" + form)
            return struct.unpack("<" + form, data[at - struct.calcsize("<" + form):at])

        def text():
            nonlocal at
            n, = take("Q")
            at += n
            return data[at - n:at].decode()
        at = 0
        magic, version, n_tensors, n_pairs = take("4sIQQ")
        self.assertEqual((magic, version), (b"GGUF", 3))
        pairs = {}
        for _ in range(n_pairs):
            key, value_type = text(), take("I")[0]
            pairs[key] = text() if value_type == 8 else take({4: "I", 6: "f"}[value_type])[0]
        self.assertEqual(pairs["gpt2.block_count"], 8)
        table = []
        for _ in range(n_tensors):
            name, n_dims = text(), take("I")[0]
            table.append((name, take("Q" * n_dims), *take("IQ")))
        bytes_a_number = {0: 4, 1: 2, 2: 18 / 32, 8: 34 / 32, 14: 210 / 256}
        end = 0
        for name, shape, number, offset in table:
            self.assertEqual(offset, -(-end // 32) * 32, name)
            end = offset + round(math.prod(shape) * bytes_a_number[number])
        self.assertEqual(len(data), -(-at // 32) * 32 + -(-end // 32) * 32)
        self.assertEqual({number for _, _, number, _ in table},
                         {"F16": {0, 1}, "Q8_0": {0, 8}, "Q4_0": {0, 2, 14}}[kind])


if __name__ == "__main__":
    unittest.main()
