#!/usr/bin/env python3
"""Runs qbench, torch and llama.cpp in turn on one GPU, prints one table, appends one JSON line.

Called by gpu.sh, which makes the models and names the programs. A side that is missing or fails is
left out with a message; a figure that was not measured is null in the record, never 0.
"""
import argparse
import json
import os
import re
import shlex
import statistics
import sys
import time

import gpu_sides
import gpu_table
import peers
from gpu_sides import attempt, leave_out
from peers import INCONCLUSIVE

QBENCH_CALLS = [(1, 512), (16, 1024), (64, 256)]  # batch, context; each prefills and decodes
MOST_DECODED = 16                                 # sequences at once that the table asks for


def say(message):
    peers.say("gpu: " + message)


# ---- qbench ------------------------------------------------------------------------------------

def qbench_figures(results, model, batch, context):
    """Figures of one call; its decode is of that batch, too."""
    for r in results:
        speeds = {r["scheme"]["name"]: r["speed"]}
        energy = (r.get("energy") or {}).get("j_per_token")
        if r is results[0] and r["speed"].get("full"):
            speeds["full"] = r["speed"]["full"]
        for scheme, speed in speeds.items():
            for work in "prefill", "decode":
                t = speed.get(work)
                if not t or (work == "decode" and batch > MOST_DECODED):
                    continue
                low, high = t.get("tok_per_s_ci95") or (None, None)
                yield {"who": "qbench", "what": scheme, "model": model, "work": work,
                       "batch": batch, "context": context if work == "prefill" else 256,
                       "logits": "last", "tok_per_s": t["tok_per_s"], "min": low, "max": high,
                       "samples": t["samples"],
                       "j_per_token": energy if work == "decode" and scheme != "full" else None}


def note_qbench(record, result):
    """The program knows its commit; it need not be this tree's."""
    commit = result.get("git_commit")
    record["versions"]["qbench"] = "%s (%s)" % (result.get("qbench_version"), commit)
    record["git_commit"] = commit


def run_qbench(args, record):
    program = peers.find_program(args.qbench, "qbench", "make it, or set QBENCH=")
    if not program:
        return
    for model, path in args.model.items():
        for batch, context in QBENCH_CALLS:
            command = [program, "--device", args.device, "--scheme", args.schemes, "--no-quality",
                       "--speed-batch", batch, "--speed-context", context, "--json", "-", path]
            began = time.monotonic()
            out, why = attempt(command, ok=(0, INCONCLUSIVE))
            if why:
                leave_out(record, why, who="qbench", model=model, batch=batch)
                continue
            results = json.loads(out)["results"]
            note_qbench(record, results[0])
            record["figures"] += qbench_figures(results, model, batch, context)
            say("qbench, %s, batch %d: %.1f s" % (model, batch, time.monotonic() - began))


def run_all_schemes(args, record):
    """The wall time of everything qbench can say of one model on one text."""
    program = peers.find_program(args.qbench, "qbench", "make it, or set QBENCH=")
    path = args.model.get(args.all_schemes_model)
    if not program or not path or not args.text:
        return
    command = [program, "--device", args.device, "--scheme", "all", "--text", args.text,
               "--max-tokens", args.max_tokens, "--json", "-", path]
    began = time.monotonic()
    out, why = attempt(command, ok=(0, INCONCLUSIVE))
    wall_s = time.monotonic() - began
    if why:
        leave_out(record, why, who="qbench --scheme all")
        return
    results = json.loads(out)["results"]
    note_qbench(record, results[0])
    record["all_schemes"] = {
        "model": args.all_schemes_model, "wall_s": round(wall_s, 2), "schemes": len(results),
        "tokens": results[0]["text"]["tokens"],
        "scored_tokens": results[0]["protocol"]["scored_tokens"],
        "command": peers.shown(map(str, command))}


# ---- torch -------------------------------------------------------------------------------------

def note_torch(record, f):
    record["figures"].append({"who": "torch", "what": f.pop("scheme"), **f})


def run_torch(args, record):
    command = [args.python, gpu_sides.beside("torch_gpu.py"), "--models", ",".join(args.model),
               *args.torch_option]
    gpu_sides.run_torch(command, record, note_torch)


# ---- llama.cpp ---------------------------------------------------------------------------------

def llama_bench_figures(text, model, kind):
    """Of prefill and decode, each asked for with and without a context before it."""
    for line in text.splitlines():
        t = json.loads(line)
        work = "prefill" if t["n_prompt"] else "decode"
        if (work == "decode") != (t["n_depth"] > 0):
            continue
        yield {"who": "llama.cpp", "what": kind, "model": model, "work": work, "batch": 1,
               "context": t["n_prompt"] or t["n_depth"], "logits": "last",
               "tok_per_s": statistics.median(t["samples_ts"]), "min": min(t["samples_ts"]),
               "max": max(t["samples_ts"]), "samples": len(t["samples_ts"])}


def batched_bench_figures(text, model, kind):
    """llama-batched-bench does not repeat: it is asked for the same batch several times, of which
    the first warms up."""
    lines = [json.loads(re.sub(r"-?\b(nan|inf)\b", "null", line)) for line in text.splitlines()
             if line.startswith("{")]
    for work, key in ("prefill", "speed_pp"), ("decode", "speed_tg"):
        samples = [t[key] for t in lines[1:] if work == "prefill" or t["tg"]]
        if samples:
            yield {"who": "llama.cpp", "what": kind, "model": model, "work": work,
                   "batch": lines[0]["pl"], "context": lines[0]["pp"], "logits": "last",
                   "tok_per_s": statistics.median(samples), "min": min(samples),
                   "max": max(samples), "samples": len(samples)}


def llama_commands(args, gguf):
    """(command, reader of its output): one sequence by llama-bench, several by the batched one."""
    single = [os.path.join(args.llama, "llama-bench"), "-m", gguf, "-ngl", 99, "-fa", 1, "-r",
              args.llama_repetitions, "-o", "jsonl"]
    yield [*single, "-p", 512, "-n", 64, "-d", "0,256"], llama_bench_figures
    batched = os.path.join(args.llama, "llama-batched-bench")
    if not os.path.exists(batched):
        return
    for batch, context, n_decoded in args.llama_batches:
        yield [batched, "-m", gguf, "-ngl", 99, "-fa", "on", "-c", batch * (context + n_decoded),
               "-b", 2048, "-ub", 2048, "-npp", context, "-ntg", n_decoded,
               "-npl", ",".join([str(batch)] * 4), "--output-format", "jsonl"], \
            batched_bench_figures


def run_llama(args, record):
    if not args.llama or not os.path.exists(os.path.join(args.llama, "llama-bench")):
        leave_out(record, "no llama-bench in '%s' (llama_cpp.sh --cuda builds it)"
                  % (args.llama or ""), who="llama.cpp")
        return
    out, _ = attempt([os.path.join(args.llama, "llama-bench"), "--version"])
    record["versions"]["llama.cpp"] = args.llama_version or (out or "").strip() or None
    for (model, kind), gguf in args.gguf.items():
        for command, figures in llama_commands(args, gguf):
            out, why = attempt(command)
            if why:
                leave_out(record, why, who="llama.cpp", what=kind, model=model)
                continue
            # A prefill that comes before a batch's decoding is measured by a call of its own.
            record["figures"] += [f for f in figures(out, model, kind)
                                  if not (f["work"] == "prefill" and (f["batch"], f["context"])
                                          == (16, 256))]
        say("llama.cpp, %s %s: done" % (model, kind))


# ---- the run -----------------------------------------------------------------------------------

SIDES = {"qbench": run_qbench, "all": run_all_schemes, "torch": run_torch, "llama.cpp": run_llama}


def print_record(record):
    rows = gpu_table.table(record)
    if len(rows) > 1:
        # Seen on a terminal: goals go below, not into a column.
        peers.print_table([row[:-1] for row in rows])
        print()
        for row in rows[1:]:
            print("%s: %s" % (row[0], row[-1]))
    line = gpu_table.all_schemes_line(record)
    if line:
        print(line)


def pair(text):
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError("expected NAME=FILE, found '%s'" % text)
    return name, path


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--command", required=True, help="what the record calls the command")
    parser.add_argument("--out", required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", default=",".join(SIDES), metavar="SIDE,...")
    parser.add_argument("--model", type=pair, action="append", default=[], metavar="PRESET=FILE")
    parser.add_argument("--gguf", type=pair, action="append", default=[],
                        metavar="PRESET:TYPE=FILE")
    parser.add_argument("--qbench", default="qbench")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--schemes", default="full,fine,moderate,coarse,zeropoint4")
    parser.add_argument("--text", help="for qbench --scheme all")
    parser.add_argument("--max-tokens", default="100000")
    parser.add_argument("--all-schemes-model", default="gpt2-130m")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--torch-option", type=shlex.split, default=[], metavar="'OPTION ...'")
    parser.add_argument("--llama", help="folder of llama-bench and llama-batched-bench")
    parser.add_argument("--llama-version")
    parser.add_argument("--llama-repetitions", default="20")
    parser.add_argument("--llama-batches", default="16x256x64,64x256x0,16x1024x0",
                        type=lambda s: [tuple(map(int, w.split("x"))) for w in s.split(",") if w],
                        metavar="BATCHxPREFILLxDECODE,...")
    args = parser.parse_args()
    gpu_sides.check_sides(parser, args.only, SIDES)
    args.model = dict(args.model)
    args.gguf = {tuple(name.split(":", 1)): path for name, path in args.gguf}
    return args


def main():
    args = parse_args()
    record = {"versions": {}, "figures": [], "all_schemes": None, "refused": []}
    here = gpu_sides.run_sides(args, record, SIDES)
    if not record["figures"] and not record["all_schemes"]:
        peers.die("nothing was measured, nothing recorded")
    peers.write_record(args.out, "gpu", args, {"machine": here, **record})
    print_record(record)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted, nothing recorded")
        sys.exit(130)
