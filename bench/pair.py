#!/usr/bin/env python3
"""Makes the pair of models in share/models: from the texts to the files, their records and their card.

    bench/pair.py --corpus DIR                      everything, on a machine with a GPU
    bench/pair.py --corpus DIR --minutes 9          the same in pieces: repeat until it is through
    bench/pair.py --corpus DIR --gpus 0,1           both trainings at the same time
    bench/pair.py --corpus DIR train --only ours    one stage, one of the two models
    bench/pair.py --corpus DIR --work /tmp/try data train convert -- --device cpu --steps 50

Stages, in order (default: all). What a stage finds done it leaves alone, so the same command goes on
where the last one stopped:

    data      corpus texts -> shards, vocabulary, decontaminated against the texts that judge
    train     vanilla (softmax, Adam) and ours (softmax-1, OrthoAdam): the same seed, data and order
    convert   checkpoints -> bf16, zlib, with tokenizer and training record inside
    evaluate  all schemes on the held-out text and on the built-in text
    judge     prints what the pair must show, and whether it does
    ship      copies models, records and card to share/models; of all stages only if nothing is missed

A pair that was trained by hand is taken up at `convert`: WORK/data.json (of qbench data --json), and in
WORK/vanilla and WORK/ours model.bin, metrics.jsonl and, if there is one, sessions.jsonl (its commands).

Flags behind -- go to both trainings. Exit code: 0 done, 1 a training failed, or judged and missed
something, 3 a training is not through yet, 130 Ctrl-C: the same command goes on. Standard library
only."""
import argparse
import pathlib
import shutil
import sys
import time

import lanes
import runs
from runs import ROOT, UNFINISHED, read_json, say, stop, write_json

sys.path.insert(0, str(ROOT / "tools"))
import model_card  # noqa: E402
import pair_report as report  # noqa: E402

FLAGS = {"vanilla": [], "ours": ["--softmax", "softmax1", "--optimizer", "orthoadam"]}


class Pair:
    """Where things are, and how the program is called."""

    def __init__(self, args, more):
        self.program, self.work, self.corpus = runs.Program(args.program), args.work.resolve(), args.corpus
        self.only = [w for w in report.PAIR if not args.only or w in args.only.split(",")]
        self.preset, self.vocab, self.tokens = args.preset, args.vocab, args.eval_tokens
        self.builtin_tokens = args.builtin_tokens
        self.deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
        self.ship_to, self.more, self.lanes = args.ship_to, more, lanes.choose(args.gpus)
        self.shards, self.valid, self.models = (self.work / n for n in ("shards", "valid", "models"))


# ---- data ----

def data(p):
    runs.make_shards(p.program, p.corpus, p.work, p.vocab)


# ---- train ----

def train_one(p, lane, which):
    run = p.work / which
    if runs.is_through(p.program, run):
        say(f"{which}: {runs.state_of(p.program, run)[0]:,} steps, through")
        return True
    flags = ["--preset", p.preset, "--name", f"{p.preset}-{which}", "--data", p.shards, "--valid", p.valid,
             *FLAGS[which], *p.more]
    runs.ended_well(runs.train(p.program.on(lane, which), run, flags, p.deadline))
    return True


def train(p):
    if None in lanes.share(p.lanes, p.only, lambda lane, which: train_one(p, lane, which)).values():
        sys.exit(1)
    behind = []
    for which in report.PAIR:
        done, wanted = runs.state_of(p.program, p.work / which)
        if not wanted or done < wanted:
            behind.append(f"{which} {done:,} of {wanted or '?'} steps")
    if behind:
        stop(f"not through yet: {', '.join(behind)}; the same command goes on", UNFINISHED)


# ---- convert ----

def training_record(p, which):
    """What goes into the model's own record beside what qbench train wrote there."""
    run, made = p.work / which, runs.data_record(p.work, p.corpus)
    evaluations = runs.evaluations_of(run)
    return {"evaluation": evaluations[-1] if evaluations else {},
            "data": {k: made[k] for k in ("documents", "dropped", "tokens", "decontaminate")},
            "sessions": runs.sessions_of(run)}


def convert(p):
    p.models.mkdir(exist_ok=True)
    record = {"schema": "qbench.pair/1", "data": runs.data_record(p.work, p.corpus), "models": {}}
    for which in report.PAIR:
        model, extra = p.models / report.file_of(which), p.work / f"{which}-record.json"
        write_json(extra, training_record(p, which))
        p.program.must("convert", "--dtype", "bf16", "--zlib", "9", "--name", f"gpt2-8m-{which}", "--record",
               extra, p.work / which / "model.bin", model)
        runs.keep_metrics(p.work / which / "metrics.jsonl", p.models / f"gpt2-8m-{which}.metrics.jsonl")
        seen = p.program.inspect(model)
        record["models"][which] = {"file": model.name, "bytes": model.stat().st_size,
                                   "sha256": runs.sha256(model), "parameters": seen["parameters"],
                                   "architecture": seen["architecture"], "training": seen["training"]}
    write_json(p.models / "record.json", record)


# ---- evaluate ----

def evaluate_on(p, name, *flags):
    """Both models in one run, by the names that they are shipped under."""
    out = p.models / f"results-{name}.json"
    files = [report.file_of(which) for which in report.PAIR]
    if out.exists() and [report.first(s)["model"]["sha256"] for s in report.read_results(out)] == \
            [runs.sha256(p.models / f) for f in files]:
        return
    p.program.must("--scheme", "all", "--no-speed", *flags, "--json", out.name, *files, cwd=p.models)


def evaluate(p):
    (text,) = runs.corpus_texts(p.corpus, "valid")
    link = p.models / text.name  # so that the record of the run names no folder
    if not link.exists():
        link.symlink_to(text)
    evaluate_on(p, "valid", "--no-fake", "--text", text.name, "--max-tokens", p.tokens)
    some = ["--max-tokens", p.builtin_tokens] if p.builtin_tokens else []
    evaluate_on(p, "builtin", "--device", "cpu", *some)
    link.unlink()


# ---- judge, ship ----

def judge(p):
    """True: everything is met. What is missed is kept in the record."""
    record = read_json(p.models / "record.json")
    verdicts = report.judge(record, report.read_results(p.models / "results-valid.json"))
    for met, key, text in verdicts:
        print(f"{'met   ' if met else 'MISSED'}  {text}")
    record["missed"] = [key for met, key, _ in verdicts if not met]
    write_json(p.models / "record.json", record)
    model_card.write(p.models)
    return not record["missed"]


def ship(p):
    p.ship_to.mkdir(parents=True, exist_ok=True)
    for path in sorted(p.models.iterdir()):
        if path.is_file() and not path.is_symlink():
            shutil.copyfile(path, p.ship_to / path.name)
            say(f"{p.ship_to / path.name}: {path.stat().st_size:,} bytes")


STAGES = {"data": data, "train": train, "convert": convert, "evaluate": evaluate, "judge": judge,
          "ship": ship}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: all")
    parser.add_argument("--corpus", type=pathlib.Path, help="folder of train-*.txt.xz and valid.txt.xz")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("pair"), help="default: pair")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build" / "qbench")
    parser.add_argument("--gpus", help=lanes.HELP)
    parser.add_argument("--only", help="vanilla or ours: train that one")
    parser.add_argument("--minutes", type=float, help="of training in this call")
    parser.add_argument("--preset", default="gpt2-8m")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=262144, help="of the held-out text")
    parser.add_argument("--builtin-tokens", type=int, help="of the built-in text; default: all")
    parser.add_argument("--ship-to", type=pathlib.Path, default=report.SHIPPED)
    words, more = runs.split_more(sys.argv[1:])
    args = parser.parse_args(words)
    unknown = [s for s in args.stages if s not in STAGES]
    if unknown:
        parser.error(f"no stage {unknown[0]}: expected {', '.join(STAGES)}")
    p = Pair(args, more)
    p.work.mkdir(parents=True, exist_ok=True)
    good = True
    for name, stage in STAGES.items():
        if not args.stages or name in args.stages:
            if name == "ship" and not good and "ship" not in args.stages:
                say("not shipped; `ship` as a stage does it all the same")
                break
            say(name)
            good = stage(p) is not False and good
    return 0 if good else 1


if __name__ == "__main__":
    runs.run_main(main)
