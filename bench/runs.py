"""What the scripts that train models and record them share (pair.py, paper_runs.py, bb_runs.py and, of
the machine, peers/gpu_sides.py): calling the program, texts to shards, a training that goes on where it
stopped, and who ran it; several at the same time are lanes.py's. Standard library only."""
import contextlib
import copy
import csv
import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from script import INTERRUPTED, Failed, run_main, say, split_more, stop, tell  # noqa: E402, F401

TEXTS = ROOT / "share" / "text"
UNFINISHED = 3  # exit code: the same command goes on


# ---- files ----

def write_text(path, text):
    temporary = path.with_name(path.name + f".tmp.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path):
    return json.loads(path.read_text())


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the machine ----

def smi(query, units=False, gpu=None):
    """Rows of fields as nvidia-smi gives them, a row a GPU; none where there is no GPU."""
    command = ["nvidia-smi", *(["-i", str(gpu)] if gpu is not None else []), "--query-gpu=" + query,
               "--format=csv,noheader" + ("" if units else ",nounits")]
    try:
        done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False, timeout=30)  # a lost GPU may hang it
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    return [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines() if line]


def gpu(which=None):
    """Names and driver of the GPUs, or of that one; '' without one."""
    return "; ".join(sorted({", ".join(row) for row in smi("name,driver_version", gpu=which)}))


def machine():
    """The GPU's name, else the processor's architecture."""
    found = smi("name")
    return found[0][0] if found else platform.machine()


def processor():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, {len(os.sched_getaffinity(0))} processors"


# ---- the program ----

def ended_well(code):
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise Failed(code)


class Program:
    """deadline (of time.monotonic): what has not ended GRACE seconds after it is killed, so that one that
    hangs keeps nothing else waiting."""
    GRACE = 120

    def __init__(self, path, deadline=None):
        self.path, self.deadline = path.resolve(), deadline
        self.gpu, self.beside, self.label = None, 1, None

    def on(self, lane, label):
        """The same on a lane (lanes.py), saying what it says behind a label where there are several."""
        it = copy.copy(self)
        it.gpu, it.beside, it.label = lane.gpu, lane.beside, label if lane.beside > 1 else None
        return it

    def start(self, *args, **more):
        env = None
        if self.gpu is not None:  # counted as nvidia-smi counts them
            env = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": self.gpu}
        return subprocess.Popen([self.path, *map(str, args)], stdin=subprocess.DEVNULL, env=env, **more)

    def call(self, *args, cwd=None, stdout=None):
        """The exit code; output goes where ours goes. Ctrl-C is the program's: it saves, we wait."""
        if self.label:
            return self.call_labelled(args, cwd, stdout)
        process = self.start(*args, cwd=cwd, stdout=stdout)
        with self.watched(process):
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    pass

    @contextlib.contextmanager
    def watched(self, process):
        watch = None
        if self.deadline:
            watch = threading.Timer(max(0, self.deadline - time.monotonic()) + self.GRACE, process.kill)
            watch.daemon = True
            watch.start()
        try:
            yield
        finally:
            if watch:
                watch.cancel()

    def call_labelled(self, args, cwd, stdout):
        """In a thread, which Ctrl-C does not reach."""
        to = {"stdout": stdout, "stderr": subprocess.PIPE} if stdout else \
            {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with self.start(*args, cwd=cwd, text=True, errors="replace", **to) as process, self.watched(process):
            for line in process.stderr or process.stdout:
                tell(self.label, line.rstrip())
        return process.returncode

    def must(self, *args, cwd=None, stdout=None):
        ended_well(self.call(*args, cwd=cwd, stdout=stdout))

    def output(self, *args):
        return subprocess.run([self.path, *map(str, args)], check=True, text=True,
                              stdout=subprocess.PIPE).stdout

    def answer(self, *args):
        return json.loads(self.output(*args))

    def inspect(self, model):
        return self.answer("inspect", "--json", "-", model)

    def version(self):
        return self.output("version").strip().splitlines()

    def commit(self):
        """Of which it was built; None where it does not know."""
        found = re.search(r"\(commit ([^)]+)\)", self.version()[0])
        return found[1] if found else None


# ---- texts ----

def corpus_texts(corpus, stem):
    """The corpus files of that stem, packed or not."""
    if not corpus:
        stop("--corpus DIR is needed for this: train-*.txt and valid.txt (or .xz, .gz)")
    found = sorted(corpus.resolve().glob(stem + ".txt*"))
    if not found:
        stop(f"{corpus}: no {stem}.txt, .txt.xz or .txt.gz")
    return found


def make_shards(program, corpus, work, vocab, tokenizer=None):
    """WORK/shards and WORK/valid, each with its record WORK/data.json and valid.json: written last, so
    that what is broken off is made again. Documents that a judging text shares are dropped. The
    vocabulary is trained on the texts, or that of a file."""
    shards, record, valid = work / "shards", work / "data.json", work / "valid.json"
    if not record.exists():
        judges = [*corpus_texts(corpus, "valid"), TEXTS / "eval.txt", TEXTS / "calibration.txt"]
        words = ["--tokenizer", tokenizer] if tokenizer else ["--train-bpe", vocab]
        program.must("data", *corpus_texts(corpus, "train*"), *words, "--decontaminate",
                     ",".join(map(str, judges)), "--out", shards, "--json", record)
    if not valid.exists():
        program.must("data", *corpus_texts(corpus, "valid"), "--tokenizer", shards / "tokenizer.json",
                     "--out", work / "valid", "--json", valid)


def mixture(corpus):
    """Shares of the corpus by kind of text, and its licences, from its MANIFEST.tsv if it has one."""
    path = corpus / "MANIFEST.tsv" if corpus else None
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


def data_record(work, corpus):
    """What `qbench data` said, without the folders of this machine."""
    made = read_json(work / "data.json")
    texts = [{**s["text"], **{k: s[k] for k in ("documents", "dropped", "tokens")}}
             for s in made["shards"]]
    return {"tokenizer": {k: made["tokenizer"][k] for k in ("sha256", "vocab")},
            "decontaminate": made["decontaminate"], "texts": texts,
            **{k: made[k] for k in ("documents", "dropped", "tokens", "text_bytes")},
            "mixture": mixture(corpus)}


# ---- training ----

def steps_of(config):
    if config["steps"]:
        return config["steps"]
    window_tokens = config["batch"] * config["context"]
    return -(-config["tokens"] // window_tokens)


def state_of(program, run):
    """(steps done, steps of the run) of its model; (0, None) where there is none yet."""
    model = run / "model.bin"
    if not model.exists():
        return 0, None
    training = program.inspect(model)["training"]
    return training["steps"], steps_of(training["config"])


def is_through(program, run):
    done, wanted = state_of(program, run)
    return wanted is not None and done >= wanted


def session(program, words, now, seconds, code):
    return {"command": " ".join(["qbench", *(w.name if isinstance(w, pathlib.Path) else str(w)
                                              for w in words)]),
            "time_utc": now.strftime("%Y-%m-%dT%H:%M:%SZ"), "seconds": round(seconds, 1), "exit": code,
            "version": program.version()[0], "gpu": gpu(program.gpu), "processor": processor(),
            "runs_at_a_time": program.beside}


def train(program, run, flags, deadline=None):
    """Begins the training in the folder `run`, or goes on with it, until it is through or the deadline
    (of time.monotonic) is there. Each call is a line of run/sessions.jsonl. The exit code; None:
    nothing was left to do, or no time."""
    if is_through(program, run):
        return None
    resumable = run.exists() and (any(run.glob("step-*.ckpt")) or (run / "config.json").exists())
    words = ["train", "--resume", run] if resumable else ["train", *flags, "--out", run]
    if deadline:
        left = (deadline - time.monotonic()) / 60
        if left < 0.01:
            return None
        words += ["--minutes", f"{left:.3f}"]
    elif resumable:
        words += ["--minutes", "0"]  # else those of the last call hold
    now, start = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    code = program.call(*words)
    if run.exists():
        line = session(program, words, now, time.monotonic() - start, code)
        with (run / "sessions.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return code


def sessions_of(run):
    path = run / "sessions.jsonl"
    return read_lines(path) if path.exists() else []


def evaluations_of(run):
    return [{k: v for k, v in line.items() if k != "kind"} for line in read_lines(run / "metrics.jsonl")
            if line["kind"] == "eval"]


def keep_metrics(source, target):
    """Every evaluation, and of the steps one line in ten."""
    lines = read_lines(source)
    steps = [line for line in lines if line["kind"] == "train"]
    kept = {id(line) for line in steps[9::10]} | {id(line) for line in steps[-1:]}
    write_text(target, "".join(json.dumps(line) + "\n" for line in lines
                               if line["kind"] != "train" or id(line) in kept))
