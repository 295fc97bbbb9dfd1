#!/usr/bin/env python3
"""Runs qbench train and torch.compile in turn on one GPU, prints one table, appends one JSON line.

Called by train.sh, which names the programs. Both train on random tokens in steps of as many
windows; a figure of qbench's is the median over its timed steps of what its metrics say, and comes
from the whole program as it is used. A side that is missing or fails is left out with a message; a
figure that was not measured is null in the record, never 0.
"""
import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile

import gpu_sides
import peers
import train_table
from gpu_sides import attempt, leave_out

PRESETS = {"gpt2-124m": ["gpt2-130m"], "d512-v50304": ["gpt2-60m"],
           "d512-v8192": ["gpt2-60m", "--vocab", 8192]}
WARM_UP = 5  # steps that are not timed


def rows_of(args):
    return [train_table.ROWS[i] for i in args.rows]


def timed(path):
    """tok/s of every step but the first ones, and the device memory."""
    with open(path, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    lines = [line for line in lines if line["kind"] == "train"][WARM_UP:]
    return [line["tok_per_s"] for line in lines], lines[-1]["memory_bytes"] if lines else None


def train_once(program, args, row, softmax, optimizer):
    """(figure, None) or (None, why not)"""
    shape, context, windows = row[:3]
    windows = args.windows or windows
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        out, why = attempt([
            program, "train", "--preset", *PRESETS[shape], "--out", folder, "--task", "random",
            "--device", args.device, "--context", context, "--softmax", softmax, "--optimizer",
            optimizer, "--batch", args.batch, "--micro-batch", windows, "--steps",
            WARM_UP + args.steps, "--warmup", 0, "--log-every", 1, "--eval-every", 0,
            "--save-every", 0, "--quiet"])
        del out
        if why:
            return None, why
        samples, memory = timed(os.path.join(folder, "metrics.jsonl"))
    return {"windows": windows, "tok_per_s": statistics.median(samples), "min": min(samples),
            "max": max(samples), "samples": len(samples), "peak_bytes": memory}, None


def run_qbench(args, record):
    program = peers.find_program(args.qbench, "qbench", "make it, or set QBENCH=")
    if not program:
        return
    out, _ = attempt([program, "--version"])
    record["versions"]["qbench"] = (out or "").strip().splitlines()[0] if out else None
    for row in rows_of(args):
        for softmax in args.softmaxes.split(","):
            for optimizer in args.optimizers.split(","):
                what = {"who": "qbench", "shape": row[0], "context": row[1], "softmax": softmax,
                        "optimizer": optimizer}
                found, why = train_once(program, args, row, softmax, optimizer)
                if why:
                    leave_out(record, why, **what)
                    continue
                record["figures"].append({**what, **found})
                peers.say("train: %s: %.0f tok/s" % (" ".join(map(str, what.values())),
                                                    found["tok_per_s"]))


def note_torch(record, figure):
    record["figures"].append({"who": "torch", "softmax": "softmax", **figure})


def run_torch(args, record):
    command = [args.python, gpu_sides.beside("torch_train.py"), "--rows",
               ",".join(map(str, args.rows)), "--optimizers", args.optimizers, "--batch",
               str(args.batch), "--steps", str(args.steps), *args.torch_option]
    gpu_sides.run_torch(command, record, note_torch)


SIDES = {"qbench": run_qbench, "torch": run_torch}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--command", required=True, help="what the record calls the command")
    parser.add_argument("--out", required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", default=",".join(SIDES), metavar="SIDE,...")
    parser.add_argument("--rows", default=list(range(len(train_table.ROWS))), metavar="N,...",
                        type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--optimizers", default="adam,orthoadam")
    parser.add_argument("--softmaxes", default="softmax,softmax1")
    parser.add_argument("--batch", type=peers.positive, default=512, help="windows a step")
    parser.add_argument("--windows", type=peers.positive, help="of one pass (default: by row)")
    parser.add_argument("--steps", type=peers.positive, default=20, help="timed, after 5 others")
    parser.add_argument("--dir", help="folder for the runs, which are removed")
    parser.add_argument("--qbench", default="qbench")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--torch-option", type=shlex.split, default=[], metavar="'OPTION ...'")
    args = parser.parse_args()
    gpu_sides.check_sides(parser, args.only, SIDES)
    if not all(0 <= i < len(train_table.ROWS) for i in args.rows):
        parser.error("--rows: expected numbers from 0 to %d" % (len(train_table.ROWS) - 1))
    return args


def main():
    args = parse_args()
    record = {"settings": {"batch": args.batch, "steps": args.steps}, "versions": {},
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
