#!/usr/bin/env python3
"""Runs qbench train and torch.compile in turn on one GPU, prints one table, appends one JSON line.

Called by train.sh, which names the programs. Both train on random tokens in steps of as many
tokens; a figure of qbench's is the median over its timed steps of what its metrics say, and comes
from the whole program as it is used. Columns of a row take turns, `rounds` times each, since a warm
chip is slower than a cold one; those of OrthoAdam, whose bases take seconds to make, have one turn.
torch compiles its rows side by side before the first is timed. A side that is missing or fails is
left out with a message; a figure that was not measured is null in the record, never 0.
"""
import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile

import gpu_sides
import peers
import train_table
from gpu_sides import attempt, leave_out

PRESETS = {"gpt2-124m": ["gpt2-130m"], "d512-v50304": ["gpt2-60m"],
           "d512-v8192": ["gpt2-60m", "--vocab", 8192]}
WARM_UP = 5  # steps that are not timed


def columns_of(args, who):
    """[(softmax, optimizer)]"""
    columns = [train_table.COLUMNS[i] for i in args.columns]
    return [column[1:] for column in columns if column[0] == who]


def timed(path):
    """tok/s of every step but the first ones, and the device memory."""
    with open(path, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    lines = [line for line in lines if line["kind"] == "train"][WARM_UP:]
    return [line["tok_per_s"] for line in lines], lines[-1]["memory_bytes"] if lines else None


def train_once(program, args, row, softmax, optimizer):
    """((tok/s of every timed step, windows of a pass, memory), None) or (None, why not)"""
    shape, context, windows = row[:3]
    windows = args.windows or windows
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        out, why = attempt([
            program, "train", "--preset", *PRESETS[shape], "--out", folder, "--task", "random",
            "--device", args.device, "--context", context, "--softmax", softmax, "--optimizer",
            optimizer, "--batch", train_table.row_batch(row, args.batch), "--micro-batch",
            windows, "--steps",
            WARM_UP + args.steps, "--warmup", 0, "--log-every", 1, "--eval-every", 0,
            "--checkpoints=off", "--quiet"])
        del out
        if why:
            return None, why
        samples, memory = timed(os.path.join(folder, "metrics.jsonl"))
    return (samples, windows, memory), None


def train_in_turns(program, args, row, record):
    """The columns of a row, whose figures go to the record."""
    samples, turns, found, failed = {}, {}, {}, set()
    for turn in range(args.rounds):
        for column in columns_of(args, "qbench"):
            if column in failed or (turn and column[1] == "orthoadam"):
                continue
            once, why = train_once(program, args, row, *column)
            if why:
                failed.add(column)
                leave_out(record, why, who="qbench", shape=row[0], context=row[1],
                          softmax=column[0], optimizer=column[1])
                continue
            samples.setdefault(column, []).extend(once[0])
            turns.setdefault(column, []).append(statistics.median(once[0]))
            found[column] = once[1:]
    for column, values in samples.items():
        figure = {"who": "qbench", "shape": row[0], "context": row[1], "softmax": column[0],
                  "optimizer": column[1], "windows": found[column][0],
                  "tok_per_s": statistics.median(values), "min": min(values), "max": max(values),
                  "samples": len(values), "turns": turns[column], "peak_bytes": found[column][1]}
        record["figures"].append(figure)
        peers.say("train: %s T %d %s %s: %.0f tok/s" % (*row[:2], *column, figure["tok_per_s"]))


def run_qbench(args, record):
    program = peers.find_program(args.qbench, "qbench", "make it, or set QBENCH=")
    if not program:
        return
    out, _ = attempt([program, "--version"])
    record["versions"]["qbench"] = (out or "").strip().splitlines()[0] if out else None
    for i in args.rows:
        train_in_turns(program, args, train_table.ROWS[i], record)


def note_torch(record, figure):
    record["figures"].append({"who": "torch", "softmax": "softmax", **figure})


def torch_command(args, rows, *more):
    optimizers = ",".join(optimizer for _, optimizer in columns_of(args, "torch"))
    batch = ["--batch", str(args.batch)] if args.batch else []
    return [args.python, gpu_sides.beside("torch_train.py"), "--rows", ",".join(map(str, rows)),
            "--optimizers", optimizers, *batch, *more, *args.torch_option]


def compile_rows(args, rows):
    """What torch compiles stays in its cache; why one fails is said when it is timed."""
    running = [subprocess.Popen(torch_command(args, [row], "--compile-only"),
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL) for row in rows]
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.kill()


def run_torch(args, record):
    rows = args.rows if args.torch_rows is None else args.torch_rows
    if not columns_of(args, "torch") or not rows:
        return
    cache = os.path.join(args.dir or tempfile.gettempdir(), "inductor")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
    if len(rows) > 1 and peers.find_program(args.python, "python", "set PYTHON="):
        compile_rows(args, rows)
    gpu_sides.run_torch(torch_command(args, rows, "--steps", str(args.steps)), record, note_torch)


SIDES = {"qbench": run_qbench, "torch": run_torch}


def numbers(text):
    return [int(word) for word in text.split(",")]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--command", required=True, help="what the record calls the command")
    parser.add_argument("--out", required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", default=",".join(SIDES), metavar="SIDE,...")
    parser.add_argument("--rows", default=list(range(len(train_table.ROWS))), metavar="N,...",
                        type=numbers)
    parser.add_argument("--columns", default=list(range(len(train_table.COLUMNS))),
                        metavar="N,...", type=numbers)
    parser.add_argument("--torch-rows", metavar="N,...", type=numbers,
                        help="fewer rows for torch, which compiles for long")
    parser.add_argument("--rounds", type=peers.positive, default=1, help="turns of a column")
    parser.add_argument("--batch", type=peers.positive,
                        help="windows a step (default: %d tokens)" % train_table.STEP_TOKENS)
    parser.add_argument("--windows", type=peers.positive, help="of one pass (default: by row)")
    parser.add_argument("--steps", type=peers.positive, default=20, help="timed, after 5 others")
    parser.add_argument("--dir", help="folder for the runs, which are removed")
    parser.add_argument("--qbench", default="qbench")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--torch-option", type=shlex.split, default=[], metavar="'OPTION ...'")
    args = parser.parse_args()
    gpu_sides.check_sides(parser, args.only, SIDES)
    for name, most in (("rows", len(train_table.ROWS)), ("torch_rows", len(train_table.ROWS)),
                       ("columns", len(train_table.COLUMNS))):
        if not all(0 <= i < most for i in getattr(args, name) or []):
            parser.error("--%s: expected numbers from 0 to %d" % (name.replace("_", "-"), most - 1))
    return args


def main():
    args = parse_args()
    record = {"settings": {"step_tokens": None if args.batch else train_table.STEP_TOKENS,
                           "batch": args.batch, "steps": args.steps, "rounds": args.rounds},
              "versions": {},
              "figures": [], "refused": []}
    here = gpu_sides.run_sides(args, record, SIDES)
    if not any(f["tok_per_s"] for f in record["figures"]):
        peers.die("nothing was measured, nothing recorded")
    peers.write_record(args.out, "train", args, {"machine": here, **record})
    rows = train_table.table(record)
    peers.print_table([row[:-1] for row in rows])  # goals go below, not into a column
    print()
    for row in rows[1:]:
        print("%s: %s" % (row[0], row[-1]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        peers.say("train: interrupted, nothing recorded")
        sys.exit(130)
