#!/usr/bin/env python3
"""Trains the Bigram-Backcopy models (Guo et al. 2024, arXiv:2410.13835) and judges what they show.

    bench/bb_runs.py build/qbench OUT [--only NAME[,NAME...]] [--jobs N] [-- more flags of train]

Each variant is a run in OUT/NAME. What is kept of all is OUT/bb.jsonl: one line a run with its
flags, seconds, machine and every evaluation; `results/bb/` has such files. The table says, of the
last evaluation, whether the paper's values are reproduced; a variant that nobody published has no
bounds. More flags (--steps 300 --device cpu) are for trying the script: the bounds are for the
preset's 10,000 steps. Exit code 1: a bound was missed. Standard library only."""
import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time

# name, flags, {metric of the last evaluation: (least, most)}
SOFTMAX1, ORTHOADAM, SGD = ["--softmax", "softmax1"], ["--optimizer", "orthoadam"], \
    ["--optimizer", "sgd_momentum", "--lr", "0.03", "--momentum", "0.9"]
DECAY = ["--weight-decay", "1e-4", "--decay-all"]  # OrthoAdam as AdamW has it here
RISKS = {"backcopy_risk": (0, 1e-3), "bigram_risk": (2.227, 2.233)}
VARIANTS = [
    ("l1-adamw", ["--preset", "bb-1l"], {**RISKS, "attn_bos_1": (0.9, 1)}),
    ("l1-relu", ["--preset", "bb-1l", "--softmax", "relu", "--lr", "3e-3"],
     {**RISKS, "attn_bos_1": (0, 0.05)}),
    ("l1-softmax1", ["--preset", "bb-1l", *SOFTMAX1], {}),
    ("l1-orthoadam", ["--preset", "bb-1l", *ORTHOADAM, *DECAY], {}),
    ("l1-both", ["--preset", "bb-1l", *SOFTMAX1, *ORTHOADAM, *DECAY], {}),
    ("l3-adamw", ["--preset", "bb-3l"], {"backcopy_risk": (0, 1e-3), "stream_bos_1": (80, 300)}),
    ("l3-sgd", ["--preset", "bb-3l", *SGD], {"stream_bos_1": (0, 45)}),
    ("l3-relu", ["--preset", "bb-3l", "--softmax", "relu"], {"stream_bos_1": (0, 45)}),
    ("l3-softmax1", ["--preset", "bb-3l", *SOFTMAX1], {}),
    ("l3-orthoadam", ["--preset", "bb-3l", *ORTHOADAM, *DECAY], {}),
    ("l3-both", ["--preset", "bb-3l", *SOFTMAX1, *ORTHOADAM, *DECAY], {}),
]
COLUMNS = ["backcopy_risk", "bigram_risk", "bigram_excess", "attn_bos_1", "score_gap_1",
           "value_bos_1", "value_rest_1", "stream_bos_1", "stream_rest_1"]


def train(program, out, name, flags, more):
    """The run's record; evaluations are empty where it failed."""
    command = ["train", *flags, "--eval-every", "500", "--eval-windows", "512", "--observe-windows",
               "512", "--save-every", "0", *more]
    start = time.monotonic()
    done = subprocess.run([program, *command, "--quiet", "--out", out / name], text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    record = {"name": name, "command": " ".join(["qbench", *command]), "exit": done.returncode,
              "seconds": round(time.monotonic() - start, 1), "evaluations": []}
    if done.returncode:
        print(f"bb_runs: {name}: {done.stderr.strip()}", file=sys.stderr)
    log = out / name / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else []:
        line = json.loads(line)
        if line.pop("kind") == "eval":
            record["evaluations"].append({k: v for k, v in line.items() if v is not None})
    return record


def judge(record, bounds):
    """Names of the metrics that miss their bounds."""
    if not record["evaluations"]:
        return ["no evaluation"]
    last = record["evaluations"][-1]
    return [f"{key} {last.get(key, float('nan')):.4g} not in [{least:g}, {most:g}]"
            for key, (least, most) in bounds.items()
            if not least <= last.get(key, float("nan")) <= most]


def print_table(records):
    print("| run | steps | " + " | ".join(COLUMNS) + " | s |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for record in records:
        last = record["evaluations"][-1] if record["evaluations"] else {}
        cells = [f"{last[key]:.4g}" if key in last else "–" for key in COLUMNS]
        print(f"| {record['name']} | {last.get('step', '–')} | {' | '.join(cells)} | "
              f"{record['seconds']:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="names of variants, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    words, more = sys.argv[1:], []
    if "--" in words:
        words, more = words[:words.index("--")], words[words.index("--") + 1:]
    args = parser.parse_args(words)
    wanted = [v for v in VARIANTS if not args.only or v[0] in args.only.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([args.program, "version"], text=True, stdout=subprocess.PIPE,
                             check=True).stdout.strip()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(train, args.program, args.out, name, flags, more)
                for name, flags, _ in wanted]
        records = [job.result() for job in jobs]
    with (args.out / "bb.jsonl").open("w") as file:
        for record in records:
            file.write(json.dumps({**record, "version": version.splitlines()}) + "\n")
    print_table(records)
    missed = 0
    for record, (name, _, bounds) in zip(records, wanted):
        faults = judge(record, bounds)
        missed += bool(faults)
        print(f"{name}: " + ("missed: " + "; ".join(faults) if faults else
                             "as published" if bounds else "no published values"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
