#!/usr/bin/env python3
"""Trains the same on 1 and on several GPUs: whether they learn the same, and how much faster it is.

    bench/ranks.py build/qbench OUT [--ranks 1,2,4] [--mpirun "mpirun --bind-to none"] [-- flags]

First a small model in f32, 20 steps of each optimiser: losses must agree within 2e-4 relative, two
runs of as many ranks in every bit. Then tokens a second of the 124M shape on random tokens, the
median of the logged intervals after the first. OUT/ranks.jsonl has a line a measurement. More flags
(--device cpu --d-model 32) replace those of the models. Exit code 1: something differs, or fails.
Standard library only."""
import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys

SMALL = ["--preset", "bb-3l", "--precision", "f32", "--batch", "32", "--context", "64", "--d-model",
         "256", "--n-heads", "4", "--head-dim", "64", "--d-ff", "1024", "--steps", "20",
         "--eval-every", "0", "--log-every", "1"]
CHECKS = [("adam", []), ("orthoadam", ["--optimizer", "orthoadam"]),
          ("both axes", ["--optimizer", "orthoadam", "--rotate-both"]),
          ("order free", ["--deterministic=off"])]
LARGE = ["--preset", "gpt2-130m", "--task", "random", "--vocab", "50304", "--steps", "12",
         "--log-every", "2", "--eval-every", "0"]
SHAPES = [("T=256, adam", []), ("T=256, order free", ["--deterministic=off"]),
          ("T=256, orthoadam, softmax1", ["--optimizer", "orthoadam", "--softmax", "softmax1"]),
          ("T=1024, adam", ["--context", "1024", "--batch", "128"])]
LIMIT = 2e-4


class Runs:
    def __init__(self, options):
        self.options = options
        self.out = pathlib.Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = open(self.out / "ranks.jsonl", "a", encoding="utf-8")
        self.n_runs = self.n_failed = 0

    def train(self, n_ranks, flags):
        """(folder, lines of kind train), or (None, []) with a message."""
        self.n_runs += 1
        folder = self.out / f"run-{self.n_runs}"
        command = [self.options.program, "train", "--quiet", "--save-every", "0", *flags,
                   *self.options.more, "--out", str(folder)]
        if n_ranks > 1:
            command = [*shlex.split(self.options.mpirun), "-n", str(n_ranks), *command]
        done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("qbench: ")]
            print(f"  {n_ranks} ranks: exit {done.returncode}: {' | '.join(said)}")
            self.n_failed += 1
            return None, []
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return folder, [line for line in lines if line["kind"] == "train"]

    def keep(self, **record):
        self.log.write(json.dumps(record) + "\n")
        self.log.flush()

    def judge(self, good, text):
        print(f"  {'same' if good else 'DIFFERENT'}: {text}")
        self.n_failed += not good


def check(runs, name, flags):
    print(name)
    _, alone = runs.train(1, [*SMALL, *flags])
    for n in [n for n in runs.options.ranks if n > 1]:
        folder, lines = runs.train(n, [*SMALL, *flags])
        if not alone or not lines:
            continue
        worst = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(alone, lines))
        runs.judge(worst < LIMIT and len(alone) == len(lines),
                   f"{n} ranks, losses of {len(lines)} steps within {worst:.1e}")
        runs.keep(check=name, ranks=n, worst=worst)
        if "--deterministic=off" in flags:
            continue
        again, _ = runs.train(n, [*SMALL, *flags])
        if again:
            runs.judge((folder / "model.bin").read_bytes() == (again / "model.bin").read_bytes(),
                       f"{n} ranks twice, weights bit for bit")


def measure(runs, name, flags):
    print(name)
    first = None
    for n in runs.options.ranks:
        _, lines = runs.train(n, [*LARGE, *flags])
        if not lines:
            continue
        rate = statistics.median(line["tok_per_s"] for line in lines[1:] or lines)
        first = first or (n, rate)
        memory = lines[-1]["memory_bytes"]
        print(f"  {n} ranks: {rate / 1e3:.1f} ktok/s, {rate / first[1]:.3f} x {first[0]} rank's, "
              f"{memory / 1e9:.2f} GB each")
        runs.keep(shape=name, ranks=n, tok_per_s=rate, memory_bytes=memory)


def main():
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[:own.index("--")], own[own.index("--") + 1:]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("out")
    parser.add_argument("--ranks", default="1,2", type=lambda t: [int(n) for n in t.split(",")])
    parser.add_argument("--mpirun", default="mpirun --bind-to none")
    runs = Runs(parser.parse_args(own, argparse.Namespace(more=more)))
    for name, flags in CHECKS:
        check(runs, name, flags)
    for name, flags in SHAPES:
        measure(runs, name, flags)
    return 1 if runs.n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
