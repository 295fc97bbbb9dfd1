"""The tables of the GPU comparison: their rows, the goals, and what a record says of them.

A record is a line of results/peers_gpu.jsonl, written by gpu.py; its figures are dicts of who,
what, model, work, batch, context, logits, tok_per_s. Used by gpu.py and tools/readme_tables.py.
"""
import math
import statistics

# What a goal is about, by qbench's schemes.
CLASSES = {"bf16": ["full"], "int8": ["fine", "moderate", "coarse"], "4-bit": ["zeropoint4"],
           "any": ["full", "fine", "moderate", "coarse", "zeropoint4"]}
COLUMNS = [  # heading, [(who, what)]
    ("full", [("qbench", "full")]), ("fine", [("qbench", "fine")]),
    ("moderate", [("qbench", "moderate")]), ("coarse", [("qbench", "coarse")]),
    ("zeropoint4", [("qbench", "zeropoint4")]), ("torch bf16", [("torch", "bf16")]),
    ("torchao int8", [("torch", "int8")]), ("torchao int4", [("torch", "int4")]),
    ("llama.cpp F16 / Q8_0 / Q4_0", [("llama.cpp", t) for t in ("F16", "Q8_0", "Q4_0")]),
]
# model, work, batch, context, {class: tok/s at least}. GPT2 1.4B's prefill of many sequences has
# two goals more, RATIOS.
ROWS = [
    ("gpt2-1.4b", "prefill", 64, 256, {"bf16": 235000, "int8": 380000}),
    ("gpt2-1.4b", "prefill", 16, 1024, {"int8": 360000}),
    ("gpt2-1.4b", "prefill", 1, 512, {"int8": 200000}),
    ("gpt2-1.4b", "decode", 1, 256, {"bf16": 950, "int8": 1600, "4-bit": 2400}),
    ("gpt2-1.4b", "decode", 16, 256, {"int8": 20000, "4-bit": 25000}),
    ("gpt2-130m", "prefill", 64, 256, {"int8": 2600000}),
    ("gpt2-130m", "decode", 1, 256, {"any": 5000}),
    ("gpt2-130m", "decode", 16, 256, {"any": 60000}),
]
RATIOS = [("torch", "bf16", 1.7), ("qbench", "full", 1.6)]  # of int8, over that side
ALL_SCHEMES_GOAL_S = 20


def find(record, row, who, what, logits="last"):
    """tok/s of a figure, or None where it was not measured."""
    for f in record["figures"]:
        if (f["who"], f["what"], f["logits"]) == (who, what, logits) and \
                (f["model"], f["work"], f["batch"], f["context"]) == row[:4]:
            return f["tok_per_s"]
    return None


def row_name(row):
    model, work, batch, context, _ = row
    how = {"prefill": "%d x %d" % (batch, context), "decode": "batch %d" % batch}[work]
    return "%s %s, %s" % (model[len("gpt2-"):].upper(), work, how)


def number(value):
    if value is None:
        return "–"
    return "{:,.0f}".format(float("%.4g" % value))


def cell(record, row, sources):
    """Figures of a column; torch's prefill with the logits of all tokens in brackets."""
    values = [find(record, row, *source) for source in sources]
    if all(v is None for v in values):
        return "–"
    words = " / ".join(map(number, values))
    every = find(record, row, *sources[0], logits="all")
    return words + (" (%s)" % number(every) if every else "")


def judge(values, target):
    """values: {scheme: tok/s or None}. "met", with the schemes that meet it where not all do."""
    known = {s: v for s, v in values.items() if v is not None}
    if not known:
        return "not measured"
    met = [s for s, v in known.items() if v >= target]
    if not met:
        return "missed (%.0f %%)" % (100 * max(known.values()) / target)
    return "met" if len(met) == len(known) else "met (%s)" % ", ".join(met)


def goals(record, row):
    """[(goal, verdict)] of a row."""
    out = []
    for name, target in row[4].items():
        values = {s: find(record, row, "qbench", s) for s in CLASSES[name]}
        out.append(("%s ≥ %s" % (name, number(target)), judge(values, target)))
    if row[:2] == ("gpt2-1.4b", "prefill") and row[2] > 1:
        values = {s: find(record, row, "qbench", s) for s in CLASSES["int8"]}
        for who, what, factor in RATIOS:
            base = find(record, row, who, what)
            side = "full" if who == "qbench" else "%s %s" % (who, what)
            out.append(("int8 ≥ %g × %s" % (factor, side),
                        judge(values, factor * base) if base else "not measured"))
    return out


def table(record):
    """Heading and rows of cells; rows that nobody measured are left out."""
    out = [["tokens a second"] + [heading for heading, _ in COLUMNS] + ["goals"]]
    for row in ROWS:
        cells = [cell(record, row, sources) for _, sources in COLUMNS]
        if any(c != "–" for c in cells):
            verdicts = ["%s: %s" % pair for pair in goals(record, row)]
            out.append([row_name(row)] + cells + ["; ".join(verdicts) or "–"])
    return out


def all_schemes_line(record):
    run = record.get("all_schemes")
    if not run or run.get("wall_s") is None:
        return None
    return ("All %d schemes on %s, quality and speed, %s tokens of text: %.1f s with loading "
            "(goal: %d s, %s)." % (run["schemes"], run["model"], number(run["tokens"]), run["wall_s"],
                            ALL_SCHEMES_GOAL_S,
                            "met" if run["wall_s"] <= ALL_SCHEMES_GOAL_S else "missed"))


# ---- the int8 product --------------------------------------------------------------------------

# M, N, K; recorded apart on an H100, TOP/s: cuBLASLt's best heuristic with sums as they are (s32
# out, no scales) and CUTLASS's best tile with scales fused; our goal
GEMM_ROWS = [
    (8192, 8192, 8192, 1499, 1292, 1550), (16384, 8192, 2048, 1307, 1417, 1500),
    (16384, 2048, 8192, 1496, 1410, 1550), (16384, 6144, 2048, 1346, 1372, 1500),
    (16384, 2048, 2048, 979, 1207, 1350), (16384, 3072, 768, 748, 905, 1100),
    (16384, 768, 3072, 1013, 1196, 1350), (16384, 2304, 768, 733, 913, 1100),
    (16384, 2048, 512, 498, 677, 900), (16384, 512, 2048, 785, 965, 1150),
    (16384, 1536, 512, 457, 612, 850), (1024, 8192, 2048, 856, 965, 1100),
    (1024, 2048, 8192, 783, 972, 1100), (64, 8192, 2048, 169, 168, 250),
]
GEMM_GOAL = 1.15  # geometric mean, over the best of cuBLASLt and CUTLASS
PEER_ROW = "cublaslt"
UNIT_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def gemm_samples(benchmarks):
    """{((M, N, K), kernel row, cold?): ([TOP/s, ...], [share of the roofline, ...])} of the cases
    of bench/cuda/bench_gemm_s8_cuda.c: gemm_s8/sm90/cuda/M:1/N:2/K:3/warm."""
    found = {}
    for b in benchmarks:
        words = b.get("run_name", b["name"]).split("/")
        fields = dict(w.split(":", 1) for w in words if ":" in w)
        if words[0] != "gemm_s8" or "cuda" not in words or b.get("error_occurred") or \
                b.get("run_type", "iteration") != "iteration":
            continue
        m, n, k = shape = tuple(int(fields[key]) for key in "MNK")
        tops, shares = found.setdefault((shape, words[1], "cold" in words), ([], []))
        tops.append(2e-12 * m * n * k / (b["real_time"] * UNIT_S[b["time_unit"]]))
        shares.append(b.get("roofline_share", math.nan))
    return found


def gemm_table(benchmarks):
    """Heading and rows of cells for the shapes of GEMM_ROWS that were measured: our fastest row
    beside the peers'. Cold figures are compared, as the peers' were taken: the pass that empties
    the cache lets the chip cool, while a warm call follows another at the clock its power leaves."""
    found = gemm_samples(benchmarks)
    out = [["M x N x K", "qbench", "row", "of the roofline", "warm, back to back", "cuBLASLt + scales",
            "cuBLASLt s32", "CUTLASS", "qbench / best", "goal"]]
    ratios = []
    for *shape, sums, cutlass, goal in GEMM_ROWS:
        rows = {name: (statistics.median(tops), statistics.median(shares))
                for (s, name, cold), (tops, shares) in found.items()
                if s == tuple(shape) and cold}
        theirs = rows.pop(PEER_ROW, (0, 0))[0]
        if not rows:
            continue
        best = max(rows, key=lambda name: rows[name][0])
        ours, share = rows[best]
        warm = found.get((tuple(shape), best, False))
        ratios.append(ours / max(sums, cutlass, theirs))
        out.append(["%d x %d x %d" % tuple(shape), number(ours), best, "%.0f %%" % (100 * share),
                    number(warm and statistics.median(warm[0])), number(theirs or None),
                    number(sums), number(cutlass), "%.2f" % ratios[-1],
                    "≥ %s: %s" % (number(goal), "met" if ours >= goal else "missed")])
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        out.append(["geometric mean", *[""] * 7, "%.2f" % mean,
                    "≥ %g: %s" % (GEMM_GOAL, "met" if mean >= GEMM_GOAL else "missed")])
    return out
