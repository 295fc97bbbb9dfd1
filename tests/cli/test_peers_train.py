#!/usr/bin/env python3
"""Tests bench/peers/train.sh, train.py and train_table.py on stand-ins that write what the real
programs write: which figure lands in which row, what a missing side looks like, when a goal counts
as met."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "bench/peers"
sys.path.insert(0, str(PEERS))
sys.path.insert(0, str(ROOT / "tools"))
import readme_tables  # noqa: E402
import train_table  # noqa: E402

# tok/s by shape, a little less for OrthoAdam and softmax-1; the first five steps are far slower.
QBENCH = """#!{python}
import json, os, sys
if sys.argv[1] == "--version": print("qbench 1 (abc)"); sys.exit()
def after(word): return sys.argv[sys.argv.index(word) + 1]
batch = {{"256": "512", "1024": "128"}}[after("--context")]
assert after("--task") == "random" and after("--batch") == batch, sys.argv
rate = {{"gpt2-130m": 710e3, "gpt2-60m": 1500e3}}[after("--preset")]
if "--vocab" in sys.argv: rate = 1900e3
if after("--context") == "1024": sys.exit("no memory")
if after("--optimizer") == "orthoadam": rate *= 0.97
if after("--softmax") == "softmax1": rate *= 0.998
with open(os.path.join(after("--out"), "metrics.jsonl"), "w") as f:
    for step in range(int(after("--steps"))):
        f.write(json.dumps({{"kind": "train", "step": step + 1, "memory_bytes": 7,
                            "tok_per_s": 1.0 if step < 5 else rate + step}}) + "\\n")
    f.write(json.dumps({{"kind": "eval", "step": step}}) + "\\n")
"""
# In place of a Python with torch: called as `python torch_train.py --rows ...`.
TORCH = """#!{python}
import json, sys
if sys.argv[1].endswith("train.py") and not sys.argv[1].endswith("torch_train.py"):
    import os
    os.execv("{python}", ["{python}"] + sys.argv[1:])
if "--compile-only" in sys.argv: sys.exit()
assert sys.argv[sys.argv.index("--rows") + 1] == "0,1"
print(json.dumps({{"versions": {{"torch": "2.x"}}}}))
print(json.dumps({{"shape": "gpt2-124m", "context": 256, "windows": 128, "optimizer": "adam",
                  "tok_per_s": 530e3}}))
print(json.dumps({{"shape": "gpt2-124m", "context": 256, "windows": 128, "optimizer": "orthoadam",
                  "tok_per_s": None, "refused": "no memory"}}))
"""


class TrainTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = pathlib.Path(scratch.name)

    def program(self, name, text):
        path = self.dir / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
        return str(path)

    def run_train(self, *words, qbench=None, python=sys.executable):
        """(the process, the record or None)"""
        out = self.dir / "out.jsonl"
        done = subprocess.run(
            [str(PEERS / "train.sh"), *words, "--out", str(out), "--dir", str(self.dir / "runs")],
            env={**os.environ, "QBENCH": qbench or str(self.dir / "missing"), "PYTHON": python},
            text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done, json.loads(out.read_text()) if out.exists() else None

    def test_both_sides(self):
        done, record = self.run_train("--steps", "4", "--torch-rows", "0,1", "--rounds", "2", qbench=self.program("qbench", QBENCH),
                                      python=self.program("python", TORCH))
        self.assertEqual(done.returncode, 0, done.stderr)
        small, long, wide, narrow = train_table.ROWS

        def find(*words):
            return train_table.find(record, *words)
        self.assertEqual(find(small, "qbench", "softmax", "adam"), 710006.5)  # of steps 6 to 9
        self.assertEqual([len(f["turns"]) for f in record["figures"][:3]], [2, 1, 2])
        self.assertAlmostEqual(find(narrow, "qbench", "softmax1", "orthoadam"),
                               1900e3 * 0.97 * 0.998 + 6.5)
        self.assertEqual(find(small, "torch", "softmax", "adam"), 530e3)
        self.assertIsNone(find(small, "torch", "softmax", "orthoadam"))
        self.assertIsNone(find(long, "qbench", "softmax", "adam"))
        self.assertEqual(sum(r.get("context") == 1024 for r in record["refused"]), 4)
        verdicts = dict(train_table.goals(record, small))
        self.assertEqual(verdicts["≥ 700"], "met")
        self.assertEqual(verdicts["≥ 1.3 × torch"], "met")
        self.assertEqual(verdicts["orthoadam ≤ 2 % slower"], "missed (3.0 %)")
        self.assertEqual(verdicts["softmax-1 ≤ 0.5 % slower"], "met (0.2 %)")
        self.assertEqual(dict(train_table.goals(record, wide))["≥ 1,600"], "missed (94 %)")
        self.assertEqual(dict(train_table.goals(record, long))["≥ 700"], "not measured")
        self.assertEqual(record["versions"], {"qbench": "qbench 1 (abc)", "torch": "2.x"})
        self.assertEqual(record["peer"], "train")
        self.assertIn("gpt2-124m T 256: ≥ 700: met; ≥ 1.3 × torch: met", done.stdout)
        self.assertEqual(list((self.dir / "runs").iterdir()), [])
        self.assertEqual(readme_tables.gpu_training(self.dir), [])
        (self.dir / "out.jsonl").rename(self.dir / "peers_train.jsonl")
        lines = "\n".join(readme_tables.gpu_training(self.dir))
        self.assertIn("| gpt2-124m T 256 | 710 | 689 | 709 | 687 | 530 | ≥ 700: met;", lines)
        self.assertNotIn("torch softmax orthoadam", lines)  # nobody measured it

    def test_a_missing_side_is_left_out(self):
        done, record = self.run_train("--rows", "3", "--columns", "0,4", "--torch", "--windows x",
                                      qbench=self.program("qbench", QBENCH))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([f["shape"] for f in record["figures"]], ["d512-v8192"])
        self.assertEqual([r["who"] for r in record["refused"]], ["torch"])

    def test_nothing_measured_records_nothing(self):
        done, record = self.run_train("--only", "qbench")
        self.assertEqual(done.returncode, 1)
        self.assertIsNone(record)

    def test_usage(self):
        for words in (["--rows"], ["--rows", "x y"], ["--rows", "9"], ["--columns", "6"],
                      ["--torch-rows", "4"], ["--only", "jax"], ["--what"]):
            done, record = self.run_train(*words)
            self.assertEqual(done.returncode, 2, words)
            self.assertIsNone(record)


if __name__ == "__main__":
    unittest.main()
