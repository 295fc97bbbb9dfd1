#!/usr/bin/env python3
"""Repeats the training runs of arXiv:2410.17174 (bench/paper_variants.py) as far as time allows, and
records each for `qbench table`.

    bench/paper_runs.py --list                               runs, tokens, seconds to expect, state
    bench/paper_runs.py --corpus DIR --only 60m              the runs of a group, or of some names
    bench/paper_runs.py --corpus DIR --budget 540            what fits into 540 s; repeat: it goes on
    bench/paper_runs.py --corpus DIR --gpus all              a run at a time on each GPU

Texts become shards in WORK (as bench/pair.py makes them), each run trains in WORK/NAME, is evaluated
under all schemes on the held-out text on the same machine right after it, and leaves in RESULTS/NAME

    run.json        configuration, seed, data, commands, machine, outliers, and how the gaps grew:
                    evaluations after 0.1, 0.2, 0.4, 0.8 ... billion tokens
    results.json    the last evaluation, as `qbench run --json` writes it
    analysis.json   `qbench analyze --json`
    sensitivity.json  the same of a few windows with --sensitivity: which linear layers `coarse` costs it
    metrics.jsonl   the training's log, one step in ten

and no model. A run whose run.json is there is not repeated; one that the budget cut off goes on
where it stopped, on the same machine and in the same WORK. With --gpus 0,1 each of these GPUs has a run
at a time, and of the processors an equal part; what fits into the budget goes first, the longest before
others if that ends earlier. With --whole no run is begun that the budget would cut off: for a machine that
is gone then. Speeds (group speed) are measured when nothing else runs: after the others, on the first of
the GPUs. Flags behind -- go to every training. Exit code: 0 done, 1 a run failed, 3 something is left to
do. Standard library only."""
import argparse
import concurrent.futures
import copy
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import lanes
import runs
from paper_variants import GROUPS, RATES, RUNS, SPEED_SECONDS, warmup
from runs import ROOT, read_json, say, write_json

EVALUATE_SECONDS = 40  # all marks of a run, for planning and as what a training leaves of a budget
LEAST_SECONDS = 30     # a training is not begun with less beside that, nor evaluations with less


class Paper:
    def __init__(self, args, more):
        self.deadline = time.monotonic() + args.budget if args.budget else None
        self.program = runs.Program(args.program, self.deadline)
        self.work, self.results, self.corpus = args.work.resolve(), args.results.resolve(), args.corpus
        self.vocab, self.tokenizer = args.vocab, args.tokenizer
        self.tokens, self.eval_tokens = args.tokens, args.eval_tokens
        self.schemes = args.schemes
        self.first_mark, self.seed, self.more = args.first_mark, args.seed, more
        self.whole, self.lanes = args.whole, lanes.choose(args.gpus)
        self.shards = self.work / "shards"
        at = more.index("--device") if "--device" in more else len(more)
        self.device = more[at:at + 2]  # that of the trainings is that of the evaluations

    def on(self, lane, name):
        it = copy.copy(self)
        it.program = self.program.on(lane, name)
        return it

    def left(self):
        return self.deadline - time.monotonic() if self.deadline else float("inf")

    def tokens_of(self, name):
        return self.tokens or RUNS[name].tokens

    def is_recorded(self, name):
        return (self.results / name / "run.json").exists()


def is_speed(name):
    return RUNS[name].group == "speed"


# ---- training ----

def number_after(flags, name, default):
    return int(flags[len(flags) - 1 - flags[::-1].index(name) + 1]) if name in flags else default


def step_tokens(flags):
    """Of batch and context, the presets' where no flag says otherwise."""
    return number_after(flags, "--batch", 512) * number_after(flags, "--context", 256)


def train_flags(p, name):
    run = RUNS[name]
    common = ["--preset", run.preset, "--name", name, "--seed", p.seed]
    if run.group == "speed":
        return [*common, *run.flags, *p.more]
    flags = [*run.flags, *p.more]
    steps = -(-p.tokens_of(name) // step_tokens(flags))
    mark = max(1, round(p.first_mark / step_tokens(flags)))
    return [*common, "--vocab", p.vocab, "--data", p.shards, "--valid", p.work / "valid",
            "--steps", steps, "--warmup", warmup(run.preset, steps), "--eval-every", mark,
            "--save-every", mark, "--keep", "1", "--keep-models", "--observe-windows", "64",
            "--log-every", "10", *flags]


def train(p, name):
    """True: through. False: the budget is spent, or it failed with a message of the program."""
    folder = p.work / name
    if runs.is_through(p.program, folder):
        return True
    needed = seconds_to_expect(p, name) if p.whole else EVALUATE_SECONDS + LEAST_SECONDS
    if p.left() < needed:
        return False
    announce(p, name)
    deadline = p.deadline - EVALUATE_SECONDS if p.deadline else None
    runs.ended_well(runs.train(p.program, folder, train_flags(p, name), deadline))
    return runs.is_through(p.program, folder)


def announce(p, name):
    say(f"{name}: {RUNS[name].about}; about {seconds_to_expect(p, name):.0f} s")


# ---- evaluation ----

def marks(p, folder):
    """[(step, model)]: after the first mark, twice it, four times ... and the end."""
    found = {int(path.stem.split("-")[1]): path for path in folder.glob("model-*.bin")}
    every = read_json(folder / "config.json")["save_every"]
    wanted = {every * 2 ** i for i in range(40)} & set(found)
    return [(step, found[step]) for step in sorted(wanted | {max(found)})]


def evaluate(p, folder, model, text, n_threads):
    """All schemes on the first tokens of the held-out text; what is there is not done again."""
    out = folder / f"{model.stem}.json"
    if not out.exists():
        p.program.must("--scheme", p.schemes, "--no-speed", "--no-fake", "--quiet", *p.device, "--threads",
                       n_threads, "--text", text, "--max-tokens", p.eval_tokens, "--json", out.name,
                       model.name, cwd=folder, stdout=subprocess.DEVNULL)


# Of `qbench analyze`: the record, most tokens, more flags.
ANALYSES = (("analysis.json", 65536, []),
            ("sensitivity.json", 4096, ["--sensitivity", "--scheme", "coarse"]))


def analyze(p, folder, model, text, n_threads, analysis):
    """A run is recorded without it, too."""
    name, most, flags = analysis
    if (folder / name).exists():
        return
    code = p.program.call("analyze", "--quiet", model.name, *p.device, "--threads", n_threads, "--text", text,
                          "--max-tokens", min(p.eval_tokens, most), *flags, "--json", name, cwd=folder,
                          stdout=subprocess.DEVNULL)
    if code == runs.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        say(f"{folder.name}: no {name}: exit code {code}")


def evaluate_all(p, folder):
    """Every mark and the analyses of the last one at the same time: each leaves a GPU idle most of its
    time, and nothing of it is a timing. The large analysis, most of whose work is the host's, has half of
    the processors."""
    start, (text,) = time.monotonic(), runs.corpus_texts(p.corpus, "valid")
    link = folder / text.name  # so that the record of the run names no folder
    if not link.exists():
        link.symlink_to(text)
    models = [model for _, model in marks(p, folder)]
    half = len(os.sched_getaffinity(0)) // 2 or 1
    each = half // (len(models) + 1) or 1
    with concurrent.futures.ThreadPoolExecutor(len(ANALYSES) + len(models)) as pool:
        jobs = [pool.submit(analyze, p, folder, models[-1], text.name, n_threads, analysis)
                for analysis, n_threads in zip(ANALYSES, (half, each))]
        jobs += [pool.submit(evaluate, p, folder, model, text.name, each) for model in models]
    for job in jobs:
        job.result()
    seconds = round(time.monotonic() - start, 1)
    say(f"{folder.name}: evaluated at {len(models)} marks in {seconds} s")
    return seconds


def growth(p, folder):
    """What the schemes cost, and how large outliers are, at each mark."""
    lines = {line["step"]: line for line in runs.evaluations_of(folder)}
    tokens = step_tokens_of(read_json(folder / "config.json"))
    record = []
    for step, model in marks(p, folder):
        results = read_json(folder / f"{model.stem}.json")["results"]
        record.append({**lines.get(step, {}), "step": step, "tokens": step * tokens,
                       "ppl_full": results[0]["quality"]["ppl_full"],
                       "schemes": {r["scheme"]["name"]: {k: r["quality"][k] for k in
                                                         ("ppl", "penalty", "penalty_ci95")}
                                   for r in results}})
    return record


def step_tokens_of(config):
    return config["batch"] * config["context"]


# ---- records ----

def check_data(p):
    """All runs of a folder of records learn from the same data."""
    made, kept = runs.data_record(p.work, p.corpus), p.results / "data.json"
    if kept.exists() and read_json(kept)["tokenizer"] != made["tokenizer"]:
        runs.stop(f"{kept}: its runs have another tokenizer: choose another --results")
    p.results.mkdir(parents=True, exist_ok=True)
    write_json(kept, made)


def head(p, name, folder):
    return {"schema": "qbench.run/1", "name": name, "row": name.removeprefix("speed-"),
            "group": RUNS[name].group, "about": RUNS[name].about, "git_commit": p.program.commit(),
            "sessions": runs.sessions_of(folder)}


def record_training(p, name):
    folder, kept = p.work / name, p.results / name
    seconds = evaluate_all(p, folder)
    grown = growth(p, folder)
    last = marks(p, folder)[-1][1]
    kept.mkdir(parents=True, exist_ok=True)
    seen = p.program.inspect(last)
    write_json(kept / "results.json", read_json(folder / f"{last.stem}.json"))
    for file, _, _ in ANALYSES:
        if (folder / file).exists():
            write_json(kept / file, read_json(folder / file))
    runs.keep_metrics(folder / "metrics.jsonl", kept / "metrics.jsonl")
    write_json(kept / "run.json", {
        **head(p, name, folder), "parameters": seen["parameters"], "architecture": seen["architecture"],
        "training": seen["training"], "evaluation": runs.evaluations_of(folder)[-1], "growth": grown,
        "evaluated_in_s": seconds})
    for path in [*folder.glob("model-*.bin"), *folder.glob("*.ckpt")]:
        path.unlink()


def record_speed(p, name):
    """Medians of all steps but the first three, which allocate and capture graphs."""
    folder, kept = p.work / name, p.results / name
    lines = [line for line in runs.read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    config = read_json(folder / "config.json")
    rates = [line["tok_per_s"] for line in lines[3:]] or [lines[-1]["tok_per_s"]]
    rate = statistics.median(rates)
    kept.mkdir(parents=True, exist_ok=True)
    write_json(kept / "run.json", {
        **head(p, name, folder), "config": config, "speed": {
            "tok_per_s": rate, "min": min(rates), "max": max(rates), "steps": len(rates),
            "step_per_s": rate / step_tokens_of(config), "memory_bytes": lines[-1]["memory_bytes"]}})


def record(p, name):
    """True: recorded. False: no time, or cut off."""
    if is_speed(name):
        if p.left() < SPEED_SECONDS[RUNS[name].preset]:
            return False
        announce(p, name)
        shutil.rmtree(p.work / name, ignore_errors=True)  # a run that was cut off has no use
        runs.ended_well(runs.train(p.program, p.work / name, train_flags(p, name)))
        record_speed(p, name)
        return True
    if not train(p, name) or p.left() < LEAST_SECONDS:
        return False
    record_training(p, name)
    return True


# ---- which, and when ----

def recorded(p, preset):
    """Of trainings of that shape: tokens a second, evaluations in between included, and seconds of those
    after it."""
    for name, run in RUNS.items():
        if run.preset == preset and not is_speed(name) and p.is_recorded(name):
            kept = read_json(p.results / name / "run.json")
            seconds = sum(s["seconds"] for s in kept["sessions"])
            yield kept["training"]["tokens"] / seconds, kept["evaluated_in_s"]


def share_left(p, name):
    """Of a training that was begun."""
    done, wanted = runs.state_of(p.program, p.work / name)
    return 1 - done / wanted if wanted else 1


def how_far(p, name):
    share = 0 if is_speed(name) else 1 - share_left(p, name)
    return f"{name} ({100 * share:.0f} % trained, kept in {p.work / name})" if share else name


def seconds_to_expect(p, name):
    run = RUNS[name]
    if is_speed(name):
        return SPEED_SECONDS[run.preset]
    rates, after = zip(*(list(recorded(p, run.preset)) or [(RATES[run.preset], EVALUATE_SECONDS)]))
    return share_left(p, name) * p.tokens_of(name) / statistics.median(rates) + max(after)


def in_order(p, wanted):
    """[(lanes, [(name, seconds)])]: what is not recorded, as it will be taken."""
    todo = {name: seconds_to_expect(p, name) for name in wanted if not p.is_recorded(name)}
    is_single = len(p.lanes) == 1
    shared = [name for name in todo if is_single or not is_speed(name)]
    alone = [name for name in todo if name not in shared]
    shared = lanes.order(shared, todo, len(p.lanes), p.left())
    return [(on, [(name, todo[name]) for name in names])
            for on, names in ((p.lanes, shared), (lanes.alone(p.lanes), alone)) if names]


def choose(only):
    if not only:
        return list(RUNS)
    words = only.split(",")
    unknown = [w for w in words if w not in RUNS and w not in GROUPS]
    if unknown:
        runs.stop(f"--only: no run or group {unknown[0]}: expected {', '.join(GROUPS)} or a name of --list")
    return [name for name in RUNS if name in words or RUNS[name].group in words]


def show(p, wanted):
    """What there is, and what fits into the budget."""
    plan, ends = in_order(p, wanted), {}
    spent = whole = 0.0
    for on, todo in plan:
        seconds = [s for _, s in todo]
        found = lanes.ends(seconds, len(on), p.left() - spent if p.whole else float("inf"))
        ends |= {name: (s, spent + end) for (name, s), end in zip(todo, found)}
        spent = max((end for _, end in ends.values() if end < float("inf")), default=0)
        whole += max(lanes.ends(seconds, len(on)))
    print(f"{'run':30} {'group':9} {'tokens':>14} {'seconds':>8}  state")
    for name in [*ends, *(name for name in wanted if name not in ends)]:
        seconds, end = ends.get(name, (0, 0))
        state = "recorded" if not end else "fits" if end <= p.left() else "does not fit"
        tokens = "random" if is_speed(name) else f"{p.tokens_of(name):,}"
        print(f"{name:30} {RUNS[name].group:9} {tokens:>14} {seconds:8.0f}  {state}: {RUNS[name].about}")
    gpus = "one H100" if len(p.lanes) == 1 else f"{len(p.lanes)} H100"
    print(f"{whole:,.0f} s to go on {gpus}, {whole / 60:.0f} minutes")


def run_all(p, wanted):
    p.work.mkdir(parents=True, exist_ok=True)
    if not all(is_speed(name) or p.is_recorded(name) for name in wanted):
        runs.make_shards(p.program, p.corpus, p.work, p.vocab, p.tokenizer)
        check_data(p)
    ended = {}
    for on, todo in in_order(p, wanted):
        ended |= lanes.share(on, dict(todo), lambda lane, name: record(p.on(lane, name), name))
    left = [name for name in wanted if not p.is_recorded(name)]
    if left:
        say(f"left: {', '.join(how_far(p, name) for name in left)}; the same command goes on")
    return 1 if None in ended.values() else runs.UNFINISHED if left else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", type=pathlib.Path, help="folder of train-*.txt.xz and valid.txt.xz")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("paper"), help="default: paper")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "results" / "paper")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build" / "qbench")
    parser.add_argument("--gpus", help=lanes.HELP)
    parser.add_argument("--only", help="groups and names, with commas: " + ", ".join(GROUPS))
    parser.add_argument("--list", action="store_true", help="show runs and what fits, and do nothing")
    parser.add_argument("--budget", type=float, help="seconds of this call")
    parser.add_argument("--whole", action="store_true", help="begin no run that the budget would cut off")
    parser.add_argument("--tokens", type=int, help="of every training; default: each run's own")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--tokenizer", type=pathlib.Path,
                        help="a tokenizer.json, or a model with one, of --vocab entries; default: train one")
    parser.add_argument("--schemes", default="all")
    parser.add_argument("--first-mark", type=int, default=100_000_000, help="tokens to the first evaluation")
    parser.add_argument("--eval-tokens", type=int, default=262144, help="of the held-out text")
    words, more = runs.split_more(sys.argv[1:])
    args = parser.parse_args(words)
    p = Paper(args, more)
    wanted = choose(args.only)
    return show(p, wanted) if args.list else run_all(p, wanted)


if __name__ == "__main__":
    runs.run_main(main)
