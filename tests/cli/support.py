"""What the CLI tests share: running the program and judging what it left behind."""
import os
import pathlib
import subprocess
import tempfile
import threading

import tiny_models

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GOLDEN = pathlib.Path(os.environ.get("QB_GOLDEN", ROOT.parent / "shared" / "golden"))
SMOLLM2 = ROOT / "models" / "smollm2.bin"
QBENCH = ""  # set by run.py
SPENT = threading.local()  # .cpu_s: seconds of processors of what this thread ran to its end

VERBS = ["run", "generate", "data", "convert", "inspect", "verify", "tokenize", "logits",
         "analyze", "train",
         "presets", "compare", "gate", "watch", "profile", "report", "table", "kernels", "doctor", "help", "version"]

# The processor is what these tests test, also where there is a GPU: that has its own suite.
BASE_ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
NO_GPU = "qbench: note: no GPU is used: "  # of a build with CUDA, before anything else


class Skip(Exception):
    """The test cannot be made here; the text says why."""


class Done:
    """What a run of the program gave and took."""

    def __init__(self, code, out, err, usage):
        self.code, self.out, self.err = code, out, err
        self.peak_bytes = usage.ru_maxrss * 1024
        self.cpu_s = usage.ru_utime + usage.ru_stime

    def __repr__(self):
        return (f"exit {self.code}, stdout {self.out[-600:]!r}, stderr {self.err[-600:]!r}, "
                f"{self.cpu_s:.2f} s, {self.peak_bytes / 1e6:.0f} MB")


def start(*args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=None):
    """The program in the background, for tests that send signals."""
    return subprocess.Popen([QBENCH, *map(str, args)], stdin=stdin, stdout=stdout,
                            stderr=subprocess.PIPE, env={**BASE_ENV, **(env or {})})


def qbench(*args, **more):
    """Runs qbench to its end; output as bytes."""
    return run(QBENCH, *args, **more)


def run(*command, stdin=b"", env=None, timeout=120):
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, \
            tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(list(map(str, command)), stdin=given, stdout=out, stderr=err,
                                   env={**BASE_ENV, **(env or {})})
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        SPENT.cpu_s = getattr(SPENT, "cpu_s", 0) + usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Done(process.returncode, out.read(), err.read(), usage)


def expect(done, code=0):
    """The exit code; and exactly one line on standard error where it is an error, which for a bad
    input file says what was found and what was expected."""
    assert done.code == code, f"expected exit {code}: {done}"
    if code:
        lines = [line for line in done.err.decode("utf-8", "replace").splitlines()
                 if not line.startswith(NO_GPU)]
        assert len(lines) == 1 and lines[0].startswith("qbench: "), f"expected one line: {done}"
        said = "found" in lines[0] and "expected" in lines[0]
        assert said or code != 3, f"expected the found and the expected: {done}"
    return done


def golden(name):
    path = GOLDEN / name
    if not path.exists():
        raise Skip(f"the golden case {name} is not here")
    return path


def smollm2():
    if not SMOLLM2.exists():
        raise Skip("models/smollm2.bin is not here (make fetch-smollm2)")
    return SMOLLM2


def models(folder):
    """{format: path} of a tiny model in every format, made in `folder`."""
    made = {"hf": tiny_models.write_hf_folder(folder / "hf")}
    made["safetensors"] = made["hf"] / "model.safetensors"
    for name, data in (("gguf", tiny_models.llama_gguf()), ("llm.c", tiny_models.llm_c(3)),
                       ("llm.c-bf16", tiny_models.llm_c(5))):
        made[name] = folder / f"tiny-{name}"
        made[name].write_bytes(data)
    made["model.bin"] = folder / "tiny.bin"
    expect(qbench("convert", "--quiet", made["gguf"], made["model.bin"]))
    return made


def no_leftovers(folder):
    """No temporary file of an unfinished write."""
    left = [path.name for path in pathlib.Path(folder).rglob("*.tmp.*")]
    assert not left, f"left behind: {left}"
