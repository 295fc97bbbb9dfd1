#!/usr/bin/env python3
"""Makes the pair of models in share/models: from the texts to the files, their records and their card.

    bench/pair.py --corpus DIR                      everything, on a machine with a GPU
    bench/pair.py --corpus DIR --minutes 9          the same in pieces: repeat until it is through
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

Flags behind -- go to both trainings. Exit code: 0 done, 1 judged and missed something, 3 a training
is not through yet, 130 Ctrl-C: the same command goes on. Standard library only."""
import argparse
import csv
import datetime
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import model_card  # noqa: E402
import pair_report as report  # noqa: E402

FLAGS = {"vanilla": [], "ours": ["--softmax", "softmax1", "--optimizer", "orthoadam"]}
TEXTS = ROOT / "share" / "text"
UNFINISHED = 3


def say(text):
    print(f"pair: {text}", file=sys.stderr, flush=True)


def stop(text, code=2):
    say(text)
    sys.exit(code)


def write_json(path, value):
    temporary = path.with_name(path.name + f".tmp.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def read_json(path):
    return json.loads(path.read_text())


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Pair:
    """Where things are, and how the program is called."""

    def __init__(self, args, more):
        self.program, self.work, self.corpus = args.program.resolve(), args.work.resolve(), args.corpus
        self.only = [w for w in report.PAIR if not args.only or w in args.only.split(",")]
        self.preset, self.vocab, self.tokens = args.preset, args.vocab, args.eval_tokens
        self.builtin_tokens = args.builtin_tokens
        self.deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
        self.ship_to, self.more = args.ship_to, more
        self.shards, self.valid, self.models = (self.work / n for n in ("shards", "valid", "models"))

    def text(self, stem):
        """The corpus file of that stem, packed or not."""
        if not self.corpus:
            stop("--corpus DIR is needed for this: train-*.txt and valid.txt (or .xz, .gz)")
        found = sorted(p for p in self.corpus.resolve().glob(stem + ".txt*"))
        if not found:
            stop(f"{self.corpus}: no {stem}.txt, .txt.xz or .txt.gz")
        return found

    def call(self, *args, cwd=None):
        """The exit code; output goes where ours goes. Ctrl-C is the program's: it saves, we wait."""
        process = subprocess.Popen([self.program, *map(str, args)], cwd=cwd, stdin=subprocess.DEVNULL)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                pass

    def must(self, *args, cwd=None):
        code = self.call(*args, cwd=cwd)
        if code:
            sys.exit(code)

    def answer(self, *args):
        return json.loads(subprocess.run([self.program, *map(str, args)], check=True,
                                         stdout=subprocess.PIPE).stdout)


# ---- data ----

def data(p):
    """Records are written last, so that what is broken off is made again."""
    record, valid = p.work / "data.json", p.work / "valid.json"
    if not record.exists():
        judges = [*p.text("valid"), TEXTS / "eval.txt", TEXTS / "calibration.txt"]
        p.must("data", *p.text("train*"), "--train-bpe", p.vocab, "--decontaminate",
               ",".join(map(str, judges)), "--out", p.shards, "--json", record)
    if not valid.exists():
        p.must("data", *p.text("valid"), "--tokenizer", p.shards / "tokenizer.json", "--out", p.valid,
               "--json", valid)


def mixture(p):
    """Shares of the corpus by kind of text, and its licences, from its MANIFEST.tsv if it has one."""
    path = p.corpus / "MANIFEST.tsv" if p.corpus else None
    if not path or not path.exists():
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    kinds, total = {}, sum(int(r["bytes"]) for r in rows)
    for r in rows:
        kinds[r["kind"]] = kinds.get(r["kind"], 0) + int(r["bytes"])
    closed = [r for r in rows if "NC" in r["licence"]]
    return {"sources": len(rows), "bytes": total,
            "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
            "noncommercial": {"sources": len(closed), "bytes": sum(int(r["bytes"]) for r in closed),
                              "licences": sorted({r["licence"] for r in closed})}}


def data_record(p):
    """What `qbench data` said, without the folders of this machine."""
    made = read_json(p.work / "data.json")
    texts = [{**s["text"], **{k: s[k] for k in ("documents", "dropped", "tokens")}}
             for s in made["shards"]]
    return {"tokenizer": {k: made["tokenizer"][k] for k in ("sha256", "vocab")},
            "decontaminate": made["decontaminate"], "texts": texts,
            **{k: made[k] for k in ("documents", "dropped", "tokens", "text_bytes")},
            "mixture": mixture(p)}


# ---- train ----

def steps_of(config):
    if config["steps"]:
        return config["steps"]
    window_tokens = config["batch"] * config["context"]
    return -(-config["tokens"] // window_tokens)


def state_of(p, run):
    """(steps done, steps of the run) of its model; (0, None) where there is none yet."""
    model = run / "model.bin"
    if not model.exists():
        return 0, None
    training = p.answer("inspect", "--json", "-", model)["training"]
    return training["steps"], steps_of(training["config"])


def gpu():
    """Names and driver of the GPUs, '' without one."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return ""
    return "; ".join(sorted(set(done.stdout.split("\n")) - {""})) if done.returncode == 0 else ""


def processor():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, {len(os.sched_getaffinity(0))} processors"


def train_one(p, which):
    run = p.work / which
    done, wanted = state_of(p, run)
    if wanted and done >= wanted:
        return say(f"{which}: {done:,} steps, through")
    resumable = run.exists() and (any(run.glob("step-*.ckpt")) or (run / "config.json").exists())
    if resumable:
        flags = ["--resume", run]
    else:
        flags = ["--preset", p.preset, "--name", f"{p.preset}-{which}", "--data", p.shards, "--valid",
                 p.valid, "--out", run, *FLAGS[which], *p.more]
    if p.deadline:
        left = (p.deadline - time.monotonic()) / 60
        if left < 0.01:
            return None
        flags += ["--minutes", f"{left:.3f}"]
    elif resumable:
        flags += ["--minutes", "0"]  # else those of the last call hold
    now, start = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    code = p.call("train", *flags)
    version = subprocess.run([p.program, "version"], text=True, stdout=subprocess.PIPE, check=True).stdout
    session = {"command": " ".join(["qbench train", *(f.name if isinstance(f, pathlib.Path) else f
                                                      for f in flags)]),
               "time_utc": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
               "seconds": round(time.monotonic() - start, 1), "exit": code,
               "version": version.splitlines()[0], "gpu": gpu(), "processor": processor()}
    if run.exists():
        with (run / "sessions.jsonl").open("a") as file:
            file.write(json.dumps(session) + "\n")
    if code:
        sys.exit(code)
    return None


def train(p):
    for which in p.only:
        train_one(p, which)
    behind = []
    for which in report.PAIR:
        done, wanted = state_of(p, p.work / which)
        if not wanted or done < wanted:
            behind.append(f"{which} {done:,} of {wanted or '?'} steps")
    if behind:
        stop(f"not through yet: {', '.join(behind)}; the same command goes on", UNFINISHED)


# ---- convert ----

def training_record(p, which):
    """What goes into the model's own record beside what qbench train wrote there."""
    run, made = p.work / which, data_record(p)
    sessions = run / "sessions.jsonl"
    evaluations = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "eval"]
    return {"evaluation": {k: v for k, v in evaluations[-1].items() if k != "kind"} if evaluations else {},
            "data": {k: made[k] for k in ("documents", "dropped", "tokens", "decontaminate")},
            "sessions": read_lines(sessions) if sessions.exists() else []}


def keep_metrics(source, target):
    """Every evaluation, and of the steps one line in ten."""
    lines = read_lines(source)
    steps = [line for line in lines if line["kind"] == "train"]
    kept = {id(line) for line in steps[9::10]} | {id(line) for line in steps[-1:]}
    target.write_text("".join(json.dumps(line) + "\n" for line in lines
                              if line["kind"] != "train" or id(line) in kept))


def convert(p):
    p.models.mkdir(exist_ok=True)
    record = {"schema": "qbench.pair/1", "data": data_record(p), "models": {}}
    for which in report.PAIR:
        model, extra = p.models / report.file_of(which), p.work / f"{which}-record.json"
        write_json(extra, training_record(p, which))
        p.must("convert", "--dtype", "bf16", "--zlib", "9", "--name", f"gpt2-8m-{which}", "--record",
               extra, p.work / which / "model.bin", model)
        keep_metrics(p.work / which / "metrics.jsonl", p.models / f"gpt2-8m-{which}.metrics.jsonl")
        seen = p.answer("inspect", "--json", "-", model)
        record["models"][which] = {"file": model.name, "bytes": model.stat().st_size,
                                   "sha256": sha256(model), "parameters": seen["parameters"],
                                   "architecture": seen["architecture"], "training": seen["training"]}
    write_json(p.models / "record.json", record)


# ---- evaluate ----

def evaluate_on(p, name, *flags):
    """Both models in one run, by the names that they are shipped under."""
    out = p.models / f"results-{name}.json"
    files = [report.file_of(which) for which in report.PAIR]
    if out.exists() and [report.first(s)["model"]["sha256"] for s in report.read_results(out)] == \
            [sha256(p.models / f) for f in files]:
        return
    p.must("--scheme", "all", "--no-speed", *flags, "--json", out.name, *files, cwd=p.models)


def evaluate(p):
    (text,) = p.text("valid")
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
    parser.add_argument("--only", help="vanilla or ours: train that one")
    parser.add_argument("--minutes", type=float, help="of training in this call")
    parser.add_argument("--preset", default="gpt2-8m")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=262144, help="of the held-out text")
    parser.add_argument("--builtin-tokens", type=int, help="of the built-in text; default: all")
    parser.add_argument("--ship-to", type=pathlib.Path, default=report.SHIPPED)
    words, more = sys.argv[1:], []
    if "--" in words:
        words, more = words[:words.index("--")], words[words.index("--") + 1:]
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
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
