#!/usr/bin/env python3
"""Tables and figures of recorded Bigram-Backcopy runs.

    bench/bb_record.py results/bb

Reads runs.jsonl of that folder (bench/bb_runs.py), torch.jsonl if there is one (lines of
bench/peers/bb_torch.py), and writes README.md, one-block.svg and three-blocks.svg beside them. Standard library only."""
import math
import pathlib
import json
import sys

import svg_panels
from bb_variants import SHORT_STEPS, TRUTH, VARIANTS, figure, is_seed, judge, of_evaluation

# ---- tables ----

COLUMNS = ["backcopy_risk", "bigram_risk", "expected_bigram_risk", "most attn_bos", "attn_triggers_1", "score_gap_1",
           "score_gap_2", "value_bos_1", "value_rest_1", "value_bos_2", "value_rest_2",
           "stream_bos_1", "stream_rest_1"]
PARTS = ["attention", "mlp", "both"]


def number(value):
    return "–" if math.isnan(value) else f"{value:.4g}"


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def run_of(record):
    return record["name"] + (" (cut off)" if record["exit"] else "")


def last_figures(records):
    return table(["run", "", "steps", *(f"`{c}`" for c in COLUMNS)],
                 [[run_of(r), VARIANTS[r["name"]][2], str(r["evaluations"][-1]["step"]),
                   *(number(figure(r, c)) for c in COLUMNS)] for r in records])


def judgements(records):
    rows = []
    for r in records:
        rows += [[run_of(r), f"`{name}`", number(value), f"{least:g} … {most:g}", published,
                  "yes" if inside else "not measured" if math.isnan(value) else "**no**"]
                 for name, value, least, most, published, inside in judge(r)]
    return table(["run", "figure", "here", "expected", "published", "reproduced"], rows)


def left_out(records):
    rows = []
    keys = ["backcopy_risk", "expected_bigram_risk", "score_gap_2", "value_bos_2", "stream_gap_1"]
    for r in records:
        rows.append([r["name"], "nothing", *(number(figure(r, k)) for k in keys)])
        for line in r["without"]:
            part = "both" if line["no_attention"] and line["no_mlp"] else \
                "attention" if line["no_attention"] else "MLP"
            rows.append(["", f"{part} of block {line['layer']}",
                         *(number(of_evaluation(line, k)) for k in keys)])
    return table(["run", "left out", *(f"`{k}`" for k in keys)], rows)


TREATED = ["l1-adamw", "l1-softmax1", "l1-orthoadam", "l1-both", "l3-minimal",
           "l3-minimal-softmax1", "l3-minimal-orthoadam", "l3-minimal-both"]
TREATED_COLUMNS = ["backcopy_risk", "attn_bos_1", "value_bos_1", "attn_bos_2", "value_bos_2",
                   "stream_gap_1", "max_abs_first", "kurt_token_first", "kurt_token_rest"]


def treated(records):
    rows = []
    for r in records:
        values = [figure(r, f"step {SHORT_STEPS} {c}") for c in TREATED_COLUMNS]
        if r["name"] in TREATED and not math.isnan(values[0]):
            rows.append([r["name"], VARIANTS[r["name"]][2], *map(number, values)])
    return table(["run", "", *(f"`{c}`" for c in TREATED_COLUMNS)], rows)


SEED_STEPS = [250, 1000]
SEED_COLUMNS = ["attn_bos_1", "attn_triggers_1", "value_bos_1", "value_triggers_1", "value_rest_1"]


def seeds(records, peers):
    shown = [(VARIANTS[r["name"]][2], r) for r in records if r["name"] == "l1-adamw" or is_seed(r)]
    shown += [(f"PyTorch, {r['name']} of bench/peers/bb_torch.py", r) for r in peers]
    rows = [[what, str(step), *(number(figure(r, f"step {step} {c}")) for c in SEED_COLUMNS)]
            for what, r in shown for step in SEED_STEPS]
    return table(["", "step", *(f"`{c}`" for c in SEED_COLUMNS)], rows)


def distinct(values):
    return " and ".join(str(v) for v in sorted(set(values)))


def write_readme(folder, everything, peers):
    records = [r for r in everything if not is_seed(r)]
    timed = [r["seconds"] for r in everything if r["seconds"] is not None]  # one cut off has none
    of_all = f"{len(everything)} runs"
    if len(timed) < len(everything):
        of_all = f"{len(timed)} of {of_all}"
    (folder / "README.md").write_text(f"""# Bigram-Backcopy: extreme tokens, and what removes them

Made by `bench/bb_record.py results/bb` from `runs.jsonl`, which `bench/bb_runs.py` recorded
({distinct(r["date"] for r in everything)}; {distinct(r["machine"] for r in everything)};
{distinct(r["version"][0] for r in everything)}). Do not edit. Figures are those of
docs/training.md, on 512 windows that no model was trained on, blocks counted from 1; task and models
are those of arXiv:2410.13835, but for softmax-1 and OrthoAdam, whose curves are in no publication that
we know of. {of_all} took {sum(timed):,.0f} s together, {distinct(r["runs_at_a_time"] for r in everything)} at a time; commands and commits are in `runs.jsonl`.

![one block](one-block.svg)

![three blocks](three-blocks.svg)

## After the last step

{last_figures(records)}
## Against what is published

The sequences are not the publication's, and many of its values are read from figures:
hence the ranges (bench/bb_variants.py). `expected_bigram_risk` is the excess above the truth's own risk, plus
the expectation of that, {TRUTH} nats: 512 windows' own differs by 0.005 from one batch to the next.

{judgements(records)}
## Softmax-1 and OrthoAdam after {SHORT_STEPS:,} steps

{treated(records)}
## Seeds

Nothing needs the values of the triggers either, whose next token is a copy of the one before: which of
them and `<s>` become the place for attention that has nothing to do is decided by the initial weights, for
each kind of token apart (first_key.txt). Seed 42 is the publication's, and `init` pytorch draws PyTorch's
own numbers.

{seeds(everything, peers)}
## With parts left out

The trained model, and a block's attention or MLP or both adding nothing.

{left_out(records)}""")


# ---- figures ----

def curve(record, key):
    points = [(e["step"], of_evaluation(e, key)) for e in record["evaluations"]]
    return [(s, v) for s, v in points if s >= 10 and not math.isnan(v)]


def write_figure(path, records, wanted):
    """wanted: (title, figure, whether its axis is logarithmic), over the logarithm of the step."""
    colours = {r["name"]: svg_panels.COLOURS[i % len(svg_panels.COLOURS)] for i, r in enumerate(records)}
    panels = []
    for i, (title, key, is_log) in enumerate(wanted):
        curves = [(colours[r["name"]], curve(r, key)) for r in records]
        curves = [c for c in curves if c[1]]
        steps = svg_panels.Axis([10, *(s for _, points in curves for s, _ in points)], True, exact=True)
        values = svg_panels.Axis([v for _, points in curves for _, v in points], is_log)
        panels.append(svg_panels.Panel(svg_panels.place_of(i), title, curves, steps, values, "training steps"))
    path.write_text(svg_panels.svg(panels, [(colours[r["name"]], VARIANTS[r["name"]][2]) for r in records]))


ONE_BLOCK = [("attention to <s> at non-triggers", "attn_bos_1", False),
             ("score of <s> above the others'", "score_gap_1", False),
             ("norm of W_O v at <s>", "value_bos_1", True),
             ("norm of the stream at <s>", "stream_bos_1", True),
             ("backcopy risk, nats", "backcopy_risk", True),
             ("bigram risk above the truth's, nats", "bigram_excess", True)]
THREE_BLOCKS = [("norm of the stream at <s> after block 1", "stream_bos_1", False),
                ("attention to <s> in block 2", "attn_bos_2", False),
                ("score of <s> above the others' in block 2", "score_gap_2", False),
                ("norm of W_O v at <s> in block 2", "value_bos_2", False),
                ("backcopy risk, nats", "backcopy_risk", True),
                ("bigram risk above the truth's, nats", "bigram_excess", True)]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: bench/bb_record.py FOLDER")
    folder = pathlib.Path(sys.argv[1])
    records, peers = read(folder / "runs.jsonl"), read(folder / "torch.jsonl")
    order = list(VARIANTS)
    records.sort(key=lambda r: (r["name"][:3], order.index(r["name"])))
    write_readme(folder, records, peers)
    for name, start, panels in (("one-block", "l1-", ONE_BLOCK), ("three-blocks", "l3-", THREE_BLOCKS)):
        these = [r for r in records if r["name"].startswith(start) and not is_seed(r)]
        if these:
            write_figure(folder / f"{name}.svg", these, panels)


if __name__ == "__main__":
    main()
