#!/usr/bin/env python3
"""Tables of what schemes cost and where: rows for tools/readme_tables.py, from records in results/.

    scheme_tables.py RECORD.json...

adds records of `analyze --sensitivity` to results/sensitivity.jsonl (what belongs to it), those of `run` to
results/baselines.jsonl."""
import json
import pathlib
import sys

KEPT = ("schema", "sensitivity", "texts", "model", "environment", "time_utc", "qbench_version",
        "git_commit", "command")

MODELS = {"gpt2-8m-vanilla": "vanilla", "gpt2-8m-ours": "ours"}


def number(x):
    return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}" if x >= 100 else f"{x:.2f}"


def signed(x):
    return ("+" if x >= 0 else "-") + number(abs(x))


def interval(value, ci95):
    return signed(value) + (f" [{signed(ci95[0])}, {signed(ci95[1])}]" if ci95 else "")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def name_of(model):
    return MODELS.get(model["name"], model["name"])


def baselines(results):
    rows = [["model", "scheme", "perplexity", "penalty [95 %]", "tokens", "commit"]]
    for r in lines_of(results / "baselines.jsonl"):
        q, s = r["quality"], r["scheme"]
        rows.append([name_of(r["model"]), f"{s['name']} (a8/{s['act_axis']}, {s['act_scale']})",
                     number(q["ppl"]), interval(q["penalty"], q["penalty_ci95"]),
                     f"{r['protocol']['scored_tokens']:,}", r["git_commit"]])
    return rows


def most_of_it(kept):
    """The fewest parts in full precision that take away 80 % of the penalty."""
    for k in kept:
        if k["removed"] >= 0.8:
            return f"{k['n']} ({100 * k['removed']:.0f} %)"
    return "–"


def sensitivities(results):
    rows = [["model", "scheme", "by", "penalty [95 %]", "first part: share", "its SQNR, dB",
             "its input: kurtosis, amax / p99.9", "enough for 80 %", "tokens", "commit"]]
    for record in lines_of(results / "sensitivity.jsonl"):
        s = record["sensitivity"]
        first = s["parts"][0]
        rows.append([name_of(record["model"]), s["scheme"]["name"], s["by"],
                     interval(s["penalty"], s["penalty_ci95"]),
                     f"`{first['name']}`: {100 * first['share']:.0f} %", number(first["sqnr_db"]),
                     f"{number(first['input_kurtosis'])}, {number(first['amax_ratio'])}",
                     f"{most_of_it(s['kept'])} of {len(s['parts'])}", f"{s['scored_tokens']:,}",
                     record["git_commit"]])
    return rows


def main():
    results = pathlib.Path(__file__).resolve().parent.parent / "results"
    for path in sys.argv[1:]:
        record = json.loads(pathlib.Path(path).read_text())
        is_run = "results" in record
        rows = record["results"] if is_run else [{key: record[key] for key in KEPT}]
        with (results / ("baselines.jsonl" if is_run else "sensitivity.jsonl")).open("a") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
