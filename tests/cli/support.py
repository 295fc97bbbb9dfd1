"""What the CLI tests share: running the program and judging what it left behind."""
import os
import pathlib
import resource
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GOLDEN = pathlib.Path(os.environ.get("QB_GOLDEN", ROOT.parent / "shared" / "golden"))
SMOLLM2 = ROOT / "models" / "smollm2.bin"
QBENCH = ""  # set by run.py

VERBS = ["run", "generate", "convert", "inspect", "verify", "tokenize", "logits", "kernels", "help",
         "version"]


class Skip(Exception):
    """The test cannot be made here; the text says why."""


class Done:
    """What a run of the program gave."""

    def __init__(self, code, out, err, peak_bytes):
        self.code, self.out, self.err, self.peak_bytes = code, out, err, peak_bytes

    def __repr__(self):
        return f"exit {self.code}, stdout {self.out[-600:]!r}, stderr {self.err[-600:]!r}"


def qbench(*args, stdin=b"", env=None, timeout=120, cwd=None, limit_bytes=None):
    """Runs qbench; output as bytes. limit_bytes bounds the address space."""
    def limit():
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    process = subprocess.Popen([QBENCH, *map(str, args)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
                               env={**os.environ, **(env or {})},
                               preexec_fn=limit if limit_bytes else None)
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError(f"{args}: no end after {timeout} s") from None
    return Done(process.returncode, out, err, 0)


def one_line(done):
    lines = done.err.decode("utf-8", "replace").splitlines()
    return len(lines) == 1 and lines[0].startswith("qbench: ")


def expect(done, code=0):
    """The exit code; and exactly one line on standard error where it is an error."""
    assert done.code == code, f"expected exit {code}: {done}"
    if code:
        assert one_line(done), f"expected one line on standard error: {done}"
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


def no_leftovers(folder):
    """No temporary file of an unfinished write."""
    left = [path.name for path in pathlib.Path(folder).rglob("*.tmp.*")]
    assert not left, f"left behind: {left}"
