"""Tables of docs/reproduction.md and of README.md from the runs of results/paper: rows for
tools/readme_tables.py. Standard library only."""
import json
import pathlib
import subprocess

import pair_report
from pair_report import number, signed, times
from paper_figure import RUNS, read

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLES = (1, 2, 3, 4, 5, 6, 9)
VANILLA, BOTH = RUNS[0], RUNS[-1]


# ---- what `qbench table` says ----

def ask(qbench, table, form):
    return subprocess.run([qbench, "table", str(table), form, "-"], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE).stdout


def printed(qbench, table):
    return ask(qbench, table, "--md").rstrip("\n").splitlines()


def asked(qbench, table):
    return json.loads(ask(qbench, table, "--json"))


def values(made, run, who):
    return next(line["values"] for line in made["lines"] if (line["id"], line["who"]) == (run, who))


def axes(made):
    """Our models of Table 1: perplexity under 4-bit weights in that of full precision, and what it costs."""
    places = [i for i, name in enumerate(made["columns"]) if name.startswith("4-bit ")]  # not "4-bit, paper's"
    rows = [["", *(made["columns"][i].removeprefix("4-bit ") for i in places)]]
    for line in made["lines"]:
        if line["who"] == "ours":
            full = line["values"][0]
            rows.append([line["row"], *(f"{line['values'][i] / full:,.2f}× "
                                        f"({signed(line['values'][i] - full)})" for i in places)])
    return rows


def share(x):
    return f"{x:.3f}" if x > 0.9 else f"{x:#.2g}"


def directions(made):
    """Table 2 of the 60M runs in shares of vanilla's, the paper's and ours; bold where one is above 1 and
    the other below."""
    rows = [["of vanilla's", *(f"{read(run, 'run.json')['about']}: {who}" for run in RUNS[1:]
                               for who in ("paper", "ours"))]]
    names = ["perplexity", "kurtosis, first token", "kurtosis, others", "max, first token", "max, others",
             "%first"]
    for i, name in enumerate(names):
        row = [name]
        for run in RUNS[1:]:
            paper, ours = (values(made, run, who)[i] / values(made, VANILLA, who)[i]
                           for who in ("paper", "ours"))
            mark = "**" if (paper - 1) * (ours - 1) < 0 else ""
            row += [share(paper), mark + share(ours) + mark]
        rows.append(row)
    return rows


def ratios(made):
    """How many times less a scheme costs with both, the paper's and ours as tokens grow."""
    names = ("coarse", "moderate", "fine", "zeropoint4", "zeropoint4-in", "zeropoint4-tensor")
    rows = [["vanilla's penalty in that of both", *names]]
    paper = [times(a / b) for a, b in zip(values(made, VANILLA, "paper")[2::2], values(made, BOTH, "paper")[2::2])]
    rows.append(["paper, 21 billion tokens; its 4-bit scheme", *paper[:3], paper[3], "–", "–"])
    for a, b in zip(*(read(run, "run.json")["growth"] for run in (VANILLA, BOTH))):
        rows.append([f"ours, {a['tokens'] / 1e9:.2f} billion",
                     *(ratio_of(a["schemes"][name], b["schemes"][name]) for name in names)])
    return rows


def ratio_of(a, b):
    """– where an interval holds 0: a ratio would be of noise."""
    if a["penalty_ci95"][0] <= 0 or b["penalty_ci95"][0] <= 0:
        return "–"
    return times(a["penalty"] / b["penalty"])


# ---- why OrthoAdam alone costs most ----

def largest(metric):
    """Over blocks: the value, and in which block."""
    return lambda run: of_block(max(read(run, "analysis.json")["layers"], key=lambda x: x[metric]), metric)


def least(metric):
    return lambda run: of_block(min(read(run, "analysis.json")["layers"], key=lambda x: x[metric]), metric)


def of_block(layer, metric):
    value = layer[metric]
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{shown} ({layer['layer']})"


def penalty(scheme):
    def of(run):
        results = read(run, "results.json")["results"]
        return signed(next(r["quality"]["penalty"] for r in results if r["scheme"]["name"] == scheme))
    return of


def causes():
    """Columns: the runs. Rows: what schemes cost, and what could make it so."""
    wanted = [(f"`{name}`", penalty(name)) for name in
              ("coarse", "moderate", "smoothquant", "llm-int8", "fine", "zeropoint4-tensor")]
    wanted += [(text, largest(metric)) for text, metric in (
        ("first token's kurtosis", "kurt_token_first"),
        ("its largest value", "max_abs_first"),
        ("its norm", "norm_hidden_first"),
        ("its norm in that of the others", "residual_peak"),
        ("kurtosis of a whole window", "kurt_sample"),
        ("the same of what the MLP adds", "kurt_sample_mlp_out"),
        ("largest value of that", "inf_norm_mlp_out"),
        ("largest input of `qkv`", "inf_norm_norm1"),
        ("largest input of `up`", "inf_norm_norm2"))]
    wanted.append(("first token's values in the others', least", least("value_drain")))
    rows = [["", *(read(run, "run.json")["about"] for run in RUNS)]]
    return rows + [[text, *(of(run) for run in RUNS)] for text, of in wanted]


def goals():
    """What the project set out to show at 60M, and what the runs have."""
    vanilla, both = (read(run, "run.json") for run in (VANILLA, BOTH))
    a, b, seen = vanilla["growth"][-1], both["growth"][-1], both["evaluation"]
    kurtosis = max(seen["kurt_token_first"], seen["kurt_token_rest"])
    judged = [("penalty of `coarse`, vanilla's in that of both", "10 times or more",
               ratio := a["schemes"]["coarse"]["penalty"] / b["schemes"]["coarse"]["penalty"], times, ratio >= 10),
              ("kurtosis of both, first tokens and others", "at most 3.2", kurtosis, number, kurtosis <= 3.2),
              ("%first of both", "at most 3.5 %", first := 100 * seen["attn_first_argmax"],
               lambda x: f"{x:.1f} %", first <= 3.5),
              ("perplexity of both against vanilla's", "within 1 %",
               apart := 100 * (b["ppl_full"] / a["ppl_full"] - 1), lambda x: f"{signed(x)} %", abs(apart) <= 1)]
    return [["", "goal", "recorded", ""], *([what, goal, show(value), "met" if met else "missed"]
                                            for what, goal, value, show, met in judged)]


def headline():
    """The four runs in one line each."""
    names = ("coarse", "moderate", "fine", "zeropoint4-tensor")
    rows = [["trained with", "perplexity", *names, "kurtosis first / others", "%first"]]
    for run in RUNS:
        record = read(run, "run.json")
        last, seen = record["growth"][-1], record["evaluation"]
        rows.append([record["about"], number(last["ppl_full"]),
                     *(signed(last["schemes"][name]["penalty"]) for name in names),
                     f"{seen['kurt_token_first']:.1f} / {seen['kurt_token_rest']:.1f}",
                     f"{100 * seen['attn_first_argmax']:.1f}"])
    return rows


# ---- growth ----

def pair_marks():
    """{tokens: {(model, scheme): penalty}} of results/pair_growth.txt; (model, "full"): perplexity."""
    marks = {}
    for line in (ROOT / "results/pair_growth.txt").read_text().splitlines():
        if not line.startswith("hist/"):
            continue
        path, tokens, scheme, full, cost = line.split()
        which = "ours" if "ours" in path else "vanilla"
        mark = marks.setdefault(int(tokens), {})
        mark[which, "full"], mark[which, scheme] = float(full), float(cost)
    return marks


def growth_of_pair():
    names = ("full", "coarse", "zeropoint4", "fine")
    rows = [["billion tokens", *(f"{which}: {name}" for which in pair_report.PAIR for name in names)]]
    for tokens, figures in sorted(pair_marks().items()):
        cells = [number(value) if name == "full" else signed(value)
                 for which in pair_report.PAIR for name in names
                 for value in [figures.get((which, name))]]
        rows.append([f"{tokens / 1e9:.2f}", *cells])
    return rows


def growth_of_runs(results=ROOT / "results/paper"):
    """What the gap does with the tokens, of each recorded training."""
    names = ("coarse", "moderate", "fine", "zeropoint4", "zeropoint4-in", "zeropoint4-tensor")
    rows = [["run", "billion tokens", "full", *names, "kurtosis first / others", "%first"]]
    for path in sorted(results.glob("*/run.json")):
        record = json.loads(path.read_text())
        for i, mark in enumerate(record.get("growth", [])):
            cost = {name: signed(s["penalty"]) for name, s in mark["schemes"].items()}
            rows.append([record["name"] if not i else "", f"{mark['tokens'] / 1e9:.2f}",
                         number(mark["ppl_full"]), *(cost.get(name, "–") for name in names),
                         f"{mark['kurt_token_first']:.2f} / {mark['kurt_token_rest']:.2f}",
                         f"{100 * mark['attn_first_argmax']:.1f}"])
    return rows
