#!/usr/bin/env python3
"""Runs qbench and a peer in turn (A, B, A, B), prints one table, appends one JSON line.

Called by llama_cpp.sh and onednn.sh, which build the peer and name the programs. A ratio is taken
within a round, between runs that are neighbours in time, so that a drifting clock moves both
sides alike, and the median of the rounds is reported. A side that is missing is left out with a
message, and its values in the record are null, never 0.
"""
import argparse
import datetime
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time

INCONCLUSIVE = 5  # qbench's exit code for "noise too large to decide": the figures are still there
BUSY_CPUS = 0.1   # others' use of the machine from which on a warning goes with the figures


def say(message):
    try:
        print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:
        pass  # whoever read the messages was ended first; the record is still to be written


def die(message):
    say("peers: " + message)
    sys.exit(1)


def run(command, ok=(0,), env=None):
    """The standard output of a command; ends the program where its exit status is not in `ok`."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    if done.returncode not in ok:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        die("%s: exit status %d: %s" % (os.path.basename(command[0]), done.returncode, last))
    return done.stdout


def parse_json(text, program):
    try:
        return json.loads(text)
    except ValueError as error:
        die("%s: its output is not JSON: %s" % (program, error))


def shown(command):
    """A command as the record shows it: programs and files by name, without their folders."""
    return " ".join(os.path.basename(word) if word.startswith("/") else word for word in command)


def find_program(path, what, how):
    """The program's absolute path, or None with a message."""
    found = shutil.which(path)
    if not found:
        say("%s: skipped, there is no %s (%s)" % (what, path, how))
        return None
    return os.path.abspath(found)


def git_commit():
    def git(*words):
        done = subprocess.run(("git",) + words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, cwd=os.path.dirname(os.path.abspath(__file__)))
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/",
                  ":(exclude,top)results")
    return commit + "-dirty" if commit and changed else commit


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
        found = re.search(r"^model name\s*:\s*(.*)$", f.read(), re.M)
    return found.group(1) if found else None


class OtherWork:
    """How many CPUs everything but our own child processes used, from creation to average_cpus().
    Programs whose threads spin at barriers slow down manyfold when they share a CPU, and unequally
    so: then no ratio means anything."""

    def __init__(self):
        self.start_s, self.start_cpu_s = time.monotonic(), self.cpu_s()

    @staticmethod
    def cpu_s():
        with open("/proc/stat", encoding="ascii") as f:
            user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy - children.ru_utime - children.ru_stime

    def average_cpus(self):
        used = (self.cpu_s() - self.start_cpu_s) / (time.monotonic() - self.start_s)
        return round(max(used, 0.0), 3)


def measure_rounds(n_rounds, measure):
    """[measure(), ...], each a dict, to which the others' use of the machine is added."""
    rounds = []
    for i in range(n_rounds):
        other = OtherWork()
        rounds.append(measure())
        rounds[-1]["other_cpus"] = other.average_cpus()
        say("round %d of %d: other programs used %.2f CPUs"
            % (i + 1, n_rounds, rounds[-1]["other_cpus"]))
    return rounds


def print_trust(rounds):
    worst = max(r["other_cpus"] for r in rounds)
    if worst > BUSY_CPUS:
        print("\nNot to be trusted: other programs used up to %.2f CPUs during a round; repeat it "
              "on an idle machine." % worst)


def median_and_range(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(rounds, ours, theirs):
    """Median and range over the rounds of ours / theirs; None where a side was not measured."""
    pairs = [(ours(r), theirs(r)) for r in rounds]
    return None if any(a is None or b is None for a, b in pairs) \
        else median_and_range([a / b for a, b in pairs])


def cell(stat, digits):
    if stat is None:
        return "-"
    return "%.*f (%.*f-%.*f)" % (digits, stat["median"], digits, stat["min"], digits, stat["max"])


def print_table(rows):
    """Left-aligned columns; a row of one cell is a line of its own."""
    grid = [row for row in rows if len(row) > 1]
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    for row in rows:
        line = "  ".join(c.ljust(w) for c, w in zip(row, widths)) if len(row) > 1 else row[0]
        print(line.rstrip())


def write_record(path, peer, args, fields):
    record = {
        "schema": "qbench.peers/1",
        "peer": peer,
        "time_utc": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "git_commit": git_commit(),
        "command": shown(args.command.split()),
        "machine": {"cpu": cpu_model(), "n_cpus": os.cpu_count()},
        **fields,
    }
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(record, separators=(",", ":")) + "\n")  # one write: a line is whole
    say("appended to " + path)


# ---- llama.cpp ---------------------------------------------------------------------------------

def llama_bench_once(args, gguf):
    """tok/s of every repetition of prefill and decode. Two calls: the context before decoding
    would otherwise stand before the prefill too."""
    samples = {}
    for phase, words in (("prefill", ["-p", args.prefill, "-n", 0]),
                         ("decode", ["-p", 0, "-n", args.decode, "-d", args.depth])):
        command = [args.llama_bench, "-m", gguf, "-t", args.threads, *words,
                   "-r", args.repetitions, "-o", "jsonl"]
        line = parse_json(run([str(word) for word in command]), "llama-bench")
        samples[phase] = line["samples_ts"]
    return samples


def qbench_speed_once(command, versions):
    """The `speed` object of every scheme, by its name, and that of full precision as `full`.
    Notes the program's version in `versions`."""
    results = parse_json(run(command, ok=(0, INCONCLUSIVE)), "qbench")["results"]
    speed = {r["scheme"]["name"]: r["speed"] for r in results}
    if results[0]["speed"].get("full"):
        speed["full"] = results[0]["speed"]["full"]
    versions["qbench"] = "%s (%s)" % (results[0].get("qbench_version"),
                                      results[0].get("git_commit"))
    return speed


PHASES = ("prefill", "decode")


def llama_rate(name, phase):  # tokens a second of a round
    return lambda r: statistics.median(r["llama.cpp"][name][phase])


def qbench_rate(scheme, phase):  # likewise; None where it was not measured
    return lambda r: r["qbench"] and (r["qbench"][scheme][phase] or {}).get("tok_per_s")


def summarize_speed(rounds, variants, schemes):
    """Median and range of each side's tokens a second."""
    summary = [{"who": "llama.cpp", "what": name,
                **{p: median_and_range([llama_rate(name, p)(r) for r in rounds]) for p in PHASES}}
               for name in variants]
    for scheme in schemes:
        values = {p: [qbench_rate(scheme, p)(r) for r in rounds] for p in PHASES}
        summary.append({"who": "qbench", "what": scheme,
                        **{p: None if None in v else median_and_range(v)
                           for p, v in values.items()}})
    return summary


def print_speed(args, contexts, summary, ratio):
    rows = [["%s, %d threads; %d rounds in turn; tok/s: median of the rounds (lowest-highest)"
             % (cpu_model(), args.threads, args.rounds)],
            ["llama.cpp: prefill %d tokens, decode %d tokens after %d%s"
             % (args.prefill, args.decode, args.depth,
                "; qbench: context %s" % ", ".join(map(str, contexts)) if contexts else "")],
            [""], ["", "prefill", "decode"]]
    rows += [["%s %s" % (s["who"], s["what"]), *(cell(s[p], 1) for p in PHASES)] for s in summary]
    rows += [["%s / %s" % (r["qbench"], r["llama.cpp"]), *(cell(r[p], 2) for p in PHASES)]
             for r in ratio]
    print_table(rows)


def compare_llama_cpp(args):
    variants = dict(word.split("=", 1) for word in args.gguf)
    versions = {"qbench": None, **dict(word.split("=", 1) for word in args.version)}
    qbench = find_program(args.qbench, "qbench", "run make, or set QBENCH=")
    if qbench and not os.path.exists(args.model):
        die("%s: no such model; tools/fetch_smollm2.sh makes it" % args.model)
    qbench_command = [qbench or "qbench", "--scheme", args.schemes, "--quantize-head",
                      "--no-quality", "--threads", str(args.threads), "--json", "-", args.model]

    rounds = measure_rounds(args.rounds, lambda: {
        "llama.cpp": {name: llama_bench_once(args, gguf) for name, gguf in variants.items()},
        "qbench": qbench_speed_once(qbench_command, versions) if qbench else None})

    schemes = list(rounds[0]["qbench"] or [])
    summary = summarize_speed(rounds, variants, schemes)
    pairs = [(s, v) for s, v in (pair.split("/") for pair in args.pairs.split(","))
             if s in schemes and v in variants]
    ratio = [{"qbench": s, "llama.cpp": v,
              **{p: ratios(rounds, qbench_rate(s, p), llama_rate(v, p)) for p in PHASES}}
             for s, v in pairs]
    contexts = sorted({rounds[0]["qbench"][s]["context"] for s in schemes if s != "full"})
    print_speed(args, contexts, summary, ratio)
    print_trust(rounds)
    write_record(args.out, "llama.cpp", args, {
        "versions": versions,
        "settings": {"threads": args.threads, "prefill_tokens": args.prefill,
                     "decode_tokens": args.decode, "decode_depth": args.depth,
                     "repetitions": args.repetitions,
                     "qbench_command": shown(qbench_command) if qbench else None},
        "summary": summary, "ratios": ratio, "rounds": rounds})


# ---- oneDNN ------------------------------------------------------------------------------------

def bench_name_fields(name):
    """gemm_s8/avx512vnni/M:512/N:1536/K:576 as ("avx512vnni", {"M": 512, "N": 1536, "K": 576})."""
    words = name.split("/")
    fields = dict(word.split(":", 1) for word in words if re.fullmatch(r"\w+:\d+", word))
    return words[1] if len(words) > 1 else "", {key: int(value) for key, value in fields.items()}


def qbench_bench_cases(bench, shapes):
    """{benchmark name: (kernel row, threads, shape)}, of the wanted shapes, without plain C."""
    cases = {}
    listed = run([bench, "--benchmark_filter=^gemm_s8/", "--benchmark_list_tests=true"])
    for name in listed.split():
        row, fields = bench_name_fields(name)
        shape = tuple(fields.get(key) for key in "MNK")
        if row != "ref" and shape in shapes:
            cases[name] = (row, fields.get("threads", fields.get("T", 1)), shape)
    if not cases:
        say("qbench: skipped, its benchmark has no gemm_s8 case of these shapes")
    return cases


def qbench_bench_once(bench, cases, args):
    """GOP/s, one list a case, from the wall time of a call: 2 M N K operations."""
    out = run([bench, "--benchmark_format=json", "--benchmark_min_time=%g" % args.seconds,
               "--benchmark_repetitions=%d" % args.repetitions,
               "--benchmark_filter=^(%s)$" % "|".join(map(re.escape, cases))])
    unit_s = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    samples = {}
    for b in parse_json(out, "qbench_bench")["benchmarks"]:
        name = b.get("run_name", b["name"])
        if b.get("run_type", "iteration") != "iteration" or name not in cases:
            continue
        m, n, k = cases[name][2]
        gop_per_s = 2e-9 * m * n * k / (b["real_time"] * unit_s[b["time_unit"]])
        samples.setdefault(name, []).append(gop_per_s)
    return samples


def onednn_once(args, shapes, threads):
    """onednn_matmul's records, one a shape, for one number of threads."""
    numbers = [args.repetitions, args.seconds] + [size for shape in shapes for size in shape]
    out = run([args.onednn, *map(str, numbers)], env={"OMP_NUM_THREADS": str(threads)})
    return [{"threads": threads, **parse_json(line, "onednn_matmul")} for line in out.splitlines()]


def onednn_row(rounds, cases, threads, shape):
    """One row of the table: oneDNN, and the fastest of qbench's rows, if any."""
    def peer_line(r):
        return next(line for line in r["oneDNN"]
                    if (line["threads"], line["m"], line["n"], line["k"]) == (threads, *shape))

    def theirs(r):
        return statistics.median(peer_line(r)["gop_per_s"])

    def ours(name):
        return lambda r: statistics.median(r["qbench"][name])

    names = [name for name, case in cases.items()
             if case[1:] == (threads, shape) and all(name in r["qbench"] for r in rounds)]
    best = max(names, key=lambda n: statistics.median(map(ours(n), rounds)), default=None)
    return {
        "threads": threads, "m": shape[0], "n": shape[1], "k": shape[2],
        "onednn_kernel": peer_line(rounds[0])["kernel"],
        "qbench_kernel": cases[best][0] if best else None,
        "onednn_gop_per_s": median_and_range(list(map(theirs, rounds))),
        "qbench_gop_per_s": median_and_range(list(map(ours(best), rounds))) if best else None,
        "ratio": ratios(rounds, ours(best), theirs) if best else None,
    }


def compare_onednn(args):
    shapes = [tuple(int(size) for size in word.split("x")) for word in args.shape]
    bench = find_program(args.qbench_bench, "qbench", "run make, or set QBENCH_BENCH=")
    cases = qbench_bench_cases(bench, shapes) if bench else {}

    rounds = measure_rounds(args.rounds, lambda: {
        "oneDNN": [line for threads in args.threads for line in onednn_once(args, shapes, threads)],
        "qbench": qbench_bench_once(bench, cases, args) if cases else None})
    table = [onednn_row(rounds, cases, threads, shape)
             for threads in args.threads for shape in shapes]
    version = rounds[0]["oneDNN"][0]["onednn"]

    rows = [["%s; %d rounds in turn; GOP/s: median of the rounds (lowest-highest)"
             % (cpu_model(), args.rounds)],
            ["oneDNN %s: u8 x s8 to s32; qbench: s8 x s8 to its own result type; packed weights"
             % version],
            [""], ["threads", "M x N x K", "oneDNN", "qbench", "qbench / oneDNN", "qbench's row"]]
    rows += [[str(t["threads"]), "%d x %d x %d" % (t["m"], t["n"], t["k"]),
              cell(t["onednn_gop_per_s"], 0), cell(t["qbench_gop_per_s"], 0), cell(t["ratio"], 2),
              t["qbench_kernel"] or "-"] for t in table]
    print_table(rows)
    print_trust(rounds)
    write_record(args.out, "oneDNN", args, {
        "versions": {"oneDNN": version, "compiler": args.compiler},
        "settings": {"repetitions": args.repetitions, "seconds": args.seconds},
        "summary": table, "rounds": rounds})


# ---- command line ------------------------------------------------------------------------------

def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="peer", required=True)
    for name, compare in (("llama.cpp", compare_llama_cpp), ("onednn", compare_onednn)):
        p = commands.add_parser(name)
        p.set_defaults(compare=compare)
        p.add_argument("--command", required=True, help="what the record calls the command")
        p.add_argument("--out", required=True, help="file of JSON lines to append to")
        p.add_argument("--rounds", type=positive, default=5)
        p.add_argument("--repetitions", type=positive, default=3, help="a round and side")
        if name == "llama.cpp":
            p.add_argument("--llama-bench", required=True)
            p.add_argument("--gguf", action="append", required=True, metavar="NAME=FILE")
            p.add_argument("--version", action="append", default=[], metavar="NAME=VALUE")
            p.add_argument("--qbench", required=True)
            p.add_argument("--model", required=True, help="the model file that qbench reads")
            p.add_argument("--schemes", default="fine,zeropoint4")
            p.add_argument("--pairs", default="fine/Q8_0,zeropoint4/Q4_0,zeropoint4/Q4_1,full/F16")
            p.add_argument("--threads", type=positive, default=2)
            p.add_argument("--prefill", type=positive, default=512)
            p.add_argument("--decode", type=positive, default=64)
            p.add_argument("--depth", type=int, default=256, help="tokens before those decoded")
        else:
            p.add_argument("--onednn", required=True, help="the built onednn_matmul")
            p.add_argument("--compiler")
            p.add_argument("--qbench-bench", required=True)
            p.add_argument("--threads", type=positive, action="append", required=True)
            p.add_argument("--shape", action="append", required=True, metavar="MxNxK")
            p.add_argument("--seconds", type=float, default=0.3, help="a repetition")
    args = parser.parse_args()
    try:
        args.compare(args)
    except KeyboardInterrupt:
        say("peers: interrupted, nothing recorded")
        sys.exit(130)


if __name__ == "__main__":
    main()
