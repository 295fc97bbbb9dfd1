#!/usr/bin/env python3
"""The Python package: its wheel is built without a network, installed, and says what the program
says. Usage: test_python.py [BUILD]. Standard library only; with numpy its arrays are tested too, with
safetensors what both write. $QB_TEST_SITE: a folder that they are installed in, beside the system's."""
import array
import importlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build"
MODEL = ROOT / "share" / "models" / "gpt2-8m-ours.bin"
TEXT = (ROOT / "share" / "text" / "eval.txt").read_text()[:6000]
OFFLINE = ["--quiet", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
sys.path[:0] = filter(None, [os.environ.get("QB_TEST_SITE")])
try:
    import numpy
    import safetensors.numpy
except ImportError as error:
    numpy, MISSING = None, f"{error.name} is not installed"


def setUpModule():
    global qbench
    library = BUILD / "lib" / "libqbench.so"
    pip = [sys.executable, "-m", "pip"]
    if not library.exists():
        raise unittest.SkipTest(f"{BUILD} has no libqbench.so (QB_LIBRARY=OFF?)")
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        raise unittest.SkipTest("pip is not installed")
    holder = tempfile.TemporaryDirectory(prefix="qbench-python-")
    unittest.addModuleCleanup(holder.cleanup)
    env = {**os.environ, "QBENCH_LIBRARY": str(library)}
    subprocess.run([*pip, "wheel", *OFFLINE, "-w", holder.name, ROOT / "python"], env=env, check=True,
                   cwd=holder.name)
    wheel, = pathlib.Path(holder.name).glob("qbench-*.whl")
    subprocess.run([*pip, "install", *OFFLINE, "--target", f"{holder.name}/site", wheel], check=True,
                   cwd=holder.name)
    sys.path.insert(0, f"{holder.name}/site")
    qbench = importlib.import_module("qbench")


def program(*arguments):
    return subprocess.run([str(BUILD / "qbench"), *map(str, arguments)], check=True,
                          stdout=subprocess.PIPE).stdout


def write_tokens(path, rows):
    """A safetensors file with `tokens` (B, T)."""
    data = array.array("i", [token for row in rows for token in row]).tobytes()
    header = json.dumps({"tokens": {"dtype": "I32", "shape": [len(rows), len(rows[0])],
                                    "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_floats(path, name):
    data = path.read_bytes()
    n = struct.unpack_from("<Q", data)[0]
    begin, end = json.loads(data[8:8 + n])[name]["data_offsets"]
    return array.array("f", data[8 + n + begin:8 + n + end])


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = qbench.Model(MODEL)
        cls.addClassCleanup(cls.model.close)
        holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(holder.cleanup)
        cls.folder = pathlib.Path(holder.name)
        cls.text = cls.folder / "text.txt"
        cls.text.write_text(TEXT)

    def test_model(self):
        self.assertEqual((self.model.vocab, self.model.context), (8192, 256))
        self.assertEqual(self.model.name, "gpt2-8m-ours")
        self.assertIn(f'version = "{qbench.__version__}"', (ROOT / "python/pyproject.toml").read_text())
        ids = json.loads(program("tokenize", MODEL, self.text))
        self.assertEqual(self.model.tokenize(TEXT), ids)
        self.assertTrue({"full", "coarse", "zeropoint4"} <= set(qbench.schemes()))

    def test_evaluate_says_what_the_program_says(self):
        wanted = json.loads(program("--quiet", "--no-speed", "--device", "cpu", "--scheme", "fine,coarse",
                                    "--json", "-", "--text", self.text, MODEL))["results"]
        got = qbench.evaluate(self.model, ["fine", "coarse"], text=TEXT, device="cpu")
        self.assertEqual([r["quality"] for r in got], [r["quality"] for r in wanted])
        one = qbench.evaluate(self.model, "coarse", text=TEXT, device="cpu", no_fake=True)
        self.assertEqual(one["quality"]["penalty"], wanted[1]["quality"]["penalty"])
        self.assertIsNone(one["quality"]["ppl_fake"])

    def test_evaluate_tokens(self):
        text = TEXT.replace("<|endoftext|>", "")  # one document
        ids = self.model.tokenize(text)
        got = qbench.evaluate(self.model, "coarse", tokens=ids, device="cpu")
        wanted = qbench.evaluate(self.model, "coarse", text=text, device="cpu")
        self.assertEqual(got["quality"]["ppl"], wanted["quality"]["ppl"])
        self.assertEqual((got["text"]["name"], got["text"]["tokens"]), ("tokens", len(ids)))

    def test_logits_are_those_of_the_program(self):
        ids = self.model.tokenize(TEXT)
        rows = [ids[:7], ids[7:14]]
        files = self.folder / "in.safetensors", self.folder / "out.safetensors"
        write_tokens(files[0], rows)
        program("logits", "--quiet", "--device", "cpu", "--scheme", "coarse", "--tokens", files[0], "--out",
                files[1], MODEL)
        got = qbench.logits(self.model, rows, scheme="coarse", device="cpu")
        self.assertEqual(tuple(got.shape), (2, 7, 8192))
        self.assertEqual(got.tobytes(), read_floats(files[1], "logits").tobytes())
        self.assertEqual(tuple(qbench.logits(self.model, ids[:3], device="cpu").shape), (1, 3, 8192))

    def test_logits_with_numpy(self):
        if numpy is None:
            self.skipTest(MISSING)
        ids = numpy.array(self.model.tokenize(TEXT)[:10]).reshape(2, 5)
        got = qbench.logits(self.model, ids, device="cpu")
        self.assertIsInstance(got, numpy.ndarray)
        same = qbench.logits(self.model, ids.tolist(), device="cpu")
        self.assertTrue((got == same).all() and numpy.isfinite(got).all())

    def test_logits_through_safetensors(self):
        """Tokens that the reference library wrote, logits of the program that it reads."""
        if numpy is None:
            self.skipTest(MISSING)
        ids = numpy.array(self.model.tokenize(TEXT)[:12], dtype=numpy.int32).reshape(2, 6)
        files = self.folder / "ids.safetensors", self.folder / "logits.safetensors"
        safetensors.numpy.save_file({"tokens": ids}, files[0])
        program("logits", "--quiet", "--device", "cpu", "--scheme", "fine", "--tokens", files[0], "--out", files[1],
                MODEL)
        read = safetensors.numpy.load_file(files[1])["logits"]
        got = qbench.logits(self.model, ids, scheme="fine", device="cpu")
        self.assertEqual((read.dtype, read.shape), (numpy.float32, (2, 6, 8192)))
        self.assertTrue((read == got).all())

    def test_errors(self):
        with self.assertRaisesRegex(qbench.Error, "found nosuch|found 'nosuch'") as raised:
            qbench.evaluate(self.model, "nosuch", text=TEXT)
        self.assertEqual(raised.exception.status, 2)
        with self.assertRaisesRegex(qbench.Error, "token 1: found 8192, expected 0 to 8191") as raised:
            qbench.logits(self.model, [1, 8192])
        self.assertEqual(raised.exception.status, 3)
        with self.assertRaises(qbench.Error) as raised:
            qbench.Model(self.text)
        self.assertEqual(raised.exception.status, 3)
        with self.assertRaises(qbench.Error):
            qbench.evaluate(self.model, "coarse", tokens=[], device="cpu")

    def test_ctrl_c_ends_a_call(self):
        script = ("import qbench, signal, threading, os, time\n"
                  "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                  f"model = qbench.Model({str(MODEL)!r})\n"
                  "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
                  "start = time.monotonic()\n"
                  "try:\n    qbench.evaluate(model, 'all', device='cpu', batch=1)\n"
                  "except KeyboardInterrupt:\n    print('stopped')\n"
                  "print(len(model.tokenize('after all')) > 0)\n"
                  "print('at once' if time.monotonic() - start < 8 else 'late')\n")
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=20,
                              env={**os.environ, "PYTHONPATH": sys.path[0]})
        self.assertEqual(done.stdout.split(), [b"stopped", b"True", b"at", b"once"])


if __name__ == "__main__":
    if len(sys.argv) > 1 and pathlib.Path(sys.argv[1]).is_dir():
        BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
