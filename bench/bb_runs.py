#!/usr/bin/env python3
"""Trains the Bigram-Backcopy models (Guo et al. 2024, arXiv:2410.13835) and judges what they show.

    bench/bb_runs.py build/qbench OUT [--only NAME[,NAME...]] [--jobs N] [--gpus 0,1] [-- more flags of train]

Each variant of bb_variants.py is a run in OUT/NAME. What is kept of it is OUT/NAME.json, and of all
OUT/runs.jsonl, a line a run: its flags, seconds, machine, every evaluation, and the last one's
figures with parts of the model left out. A variant whose record is there is not trained again.
bench/bb_record.py makes tables and figures of runs.jsonl. More flags (--steps 300 --device cpu) are
for trying the script: the bounds are for the preset's 10,000 steps. Exit code 1: a published value
was missed. Standard library only."""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

import lanes
import runs
from bb_variants import VARIANTS, judge

EVALUATIONS = ["--eval-every", "1000", "--eval-log", "--eval-windows", "512", "--observe-windows",
               "128", "--save-every", "0"]


def read_log(path):
    """Evaluations, and those that leave parts out."""
    kinds = {"eval": [], "skip": []}
    for line in path.read_text().splitlines() if path.exists() else []:
        line = json.loads(line)
        kind = line.pop("kind")
        if kind in kinds:
            kinds[kind].append({k: v for k, v in line.items() if v is not None})
    return kinds["eval"], kinds["skip"]


def train(program, out, name, more, about):
    """The run's record; evaluations are empty where it failed."""
    kept = out / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    command = ["train", *VARIANTS[name][0], *EVALUATIONS, *more]
    start = time.monotonic()
    shutil.rmtree(out / name, ignore_errors=True)  # of one that was broken off
    with program.start(*command, "--quiet", "--out", out / name, text=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.PIPE) as process:
        said = process.stderr.read()
    if process.returncode == runs.INTERRUPTED:
        raise KeyboardInterrupt
    if process.returncode:
        runs.say(f"{name}: {said.strip()}")
    evaluations, parts = read_log(out / name / "metrics.jsonl")
    record = {"name": name, "command": " ".join(["qbench", *command]), "exit": process.returncode,
              "seconds": round(time.monotonic() - start, 1), "evaluations": evaluations,
              "without": parts, **about}
    if not process.returncode:
        kept.write_text(json.dumps(record) + "\n")
    return record


def print_judgement(record):
    rows = judge(record)
    missed = [row for row in rows if not row[5]]
    last = record["evaluations"][-1] if record["evaluations"] else {"step": 0}
    print(f"{record['name']}: {last['step']} steps, {record['seconds']:.0f} s: " +
          (f"missed {len(missed)} of {len(rows)}" if missed else
           "as published" if rows else "nothing published"))
    for name, value, least, most, published, _ in missed:
        print(f"    {name} {value:.4g} not in [{least:g}, {most:g}]; published: {published}")
    return bool(missed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="names of variants, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on each GPU")
    parser.add_argument("--gpus", help=lanes.HELP)
    words, more = runs.split_more(sys.argv[1:])
    args = parser.parse_args(words)
    wanted = [n for n in VARIANTS if not args.only or n in args.only.split(",")]
    program, places = runs.Program(args.program), lanes.choose(args.gpus, args.jobs)
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"version": program.version(), "machine": runs.machine(), "runs_at_a_time": len(places),
             "date": time.strftime("%Y-%m-%d", time.gmtime())}
    made = lanes.share(places, wanted,
                       lambda lane, name: train(program.on(lane, name), args.out, name, more, about))
    records = [made[name] for name in wanted if made.get(name)]
    with (args.out / "runs.jsonl").open("w") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
    missed = sum([print_judgement(record) for record in records])
    return 1 if missed or len(records) < len(wanted) else 0


if __name__ == "__main__":
    runs.run_main(main)
