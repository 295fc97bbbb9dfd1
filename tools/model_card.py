#!/usr/bin/env python3
"""Writes the card (README.md) of a folder of shipped models from the records beside them, so that no
number is typed by hand.

    tools/model_card.py [--check] [FOLDER]      default: share/models

Reads record.json, results-*.json and *.metrics.jsonl, as bench/pair.py leaves them. --check changes
nothing and fails where the card differs. Standard library only."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import pair_report as report  # noqa: E402

SETTINGS = ("n_layers", "d_model", "n_heads", "d_ff", "vocab", "context", "norm", "act", "pos", "tied_head",
            "lr", "schedule", "warmup", "beta1", "beta2", "eps", "weight_decay", "clip", "batch",
            "precision", "seed", "rotation")
SHOWN = ("full", "fine", "moderate", "coarse", "zeropoint4")  # the rest follow


def table(rows):
    lines = ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def plain(value):
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else \
        f"{value:,}" if isinstance(value, int) else value


def intro(record):
    one = record["models"]["vanilla"]
    training = one["training"]
    return [
        "# A pair of small models", "",
        f"Two GPT2 models of {one['parameters'] / 1e6:.1f} million parameters, trained on the same "
        f"{training['tokens'] / 1e9:.2f} billion tokens in",
        "the same order from the same seed, to show what training does to quantisation "
        "(arXiv:2410.17174):", "",
        *(f"- `{record['models'][w]['file']}`: {report.trained_with(record['models'][w]['training'])}"
          for w in report.PAIR), "",
        "`make demo` compares them; `qbench inspect` prints what each is and how it was trained.", ""]


def files(record):
    rows = [["file", "bytes", "SHA-256"]]
    rows += [[m["file"], f"{m['bytes']:,}", f"`{m['sha256']}`"]
             for m in (record["models"][w] for w in report.PAIR)]
    return ["## Files", "", *table(rows),
            "Matrices bf16, packed with zlib; the tokenizer "
            f"({record['data']['tokenizer']['vocab']:,} entries, byte-level BPE) is inside.", ""]


# ---- measured ----

def environment(schemes):
    r = report.first(schemes)
    env = r["environment"]
    device = env["gpu"]["name"] if env["gpu"] else f"{env['cpu']}, {env['threads']} threads"
    return (f"{r['time_utc'][:10]}, commit {r['git_commit'][:12]}, {device}; protocol "
            f"`{r['protocol']['name']}`, context {r['protocol']['context']:,}, "
            f"{r['protocol']['scored_tokens']:,} tokens scored.")


def interval(r):
    q = r["quality"]
    low, high = (report.signed(x) for x in q["penalty_ci95"])
    return f"{report.signed(q['penalty'])} [{low}, {high}]"


def measured(title, pair):
    names = [n for n in SHOWN if n in pair[0]] + [n for n in pair[0] if n not in SHOWN]
    rows = [["scheme", "vanilla", "penalty [95 %]", "ours", "penalty [95 %]", "vanilla / ours"],
            ["full", report.number(report.full(pair[0])), "", report.number(report.full(pair[1])), "", ""]]
    for name in names:
        if name == "full":
            continue
        cells = [name]
        for schemes in pair:
            cells += [report.number(schemes[name]["quality"]["ppl"]), interval(schemes[name])]
        rows.append([*cells, report.times(report.penalty_ratio(pair, name))])
    return [f"Perplexity of {title}; {environment(pair[0])}", "", *table(rows),
            f"`{report.first(pair[0])['command']}`", "", report.conclusion(pair), ""]


def outliers(record):
    rows = [["", "kurtosis, first token", "others", "largest activation, first token", "others",
             "first key wins", "its mean weight"]]
    for which in report.PAIR:
        e = record["models"][which]["training"]["evaluation"]
        rows.append([which, *(f"{e[k]:.2f}" for k in ("kurt_token_first", "kurt_token_rest",
                                                      "max_abs_first", "max_abs_rest")),
                     *(f"{100 * e[k]:.1f} %" for k in ("attn_first_argmax", "attn_first_share"))])
    return ["Outliers at the end of training (means over layers and tokens of the residual stream after "
            "each block, Pearson's kurtosis, 3 for a Gaussian; of attention, over (query, head) pairs), on "
            "the first windows of the held-out text:", "", *table(rows)]


def verdicts(record, valid):
    lines = ["What the pair has to show, and whether it does:", ""]
    return lines + [f"- {'met' if met else '**missed**'}: {text}"
                    for met, _, text in report.judge(record, valid)] + [""]


# ---- training ----

def curves(folder):
    """Both models' evaluations at about eight points of the training."""
    logs = [{e["step"]: e for e in map(json.loads, path.read_text().splitlines()) if e["kind"] == "eval"}
            for path in (folder / f"gpt2-8m-{w}.metrics.jsonl" for w in report.PAIR)]
    steps = sorted(set(logs[0]) & set(logs[1]))
    steps = sorted({*steps[::max(1, len(steps) // 8)], *steps[-1:]})
    rows = [["step", *(f"{w}: {what}" for w in report.PAIR
                       for what in ("perplexity", "kurtosis 1st", "others", "first key wins"))]]
    for step in steps:
        cells = [f"{step:,}"]
        for log in logs:
            e = log[step]
            cells += [report.number(e["ppl"]), f"{e['kurt_token_first']:.2f}",
                      f"{e['kurt_token_rest']:.2f}", f"{100 * e['attn_first_argmax']:.1f} %"]
        rows.append(cells)
    return ["On the way (the first windows of the held-out text):", "", *table(rows)]


def sessions(record):
    lines = []
    for which in report.PAIR:
        for s in record["models"][which]["training"]["sessions"]:
            where = s.get("gpu") or s.get("processor")
            lines.append(f"- {which}: `{s['command']}`, {s['time_utc'][:10]}, {s['version']}, {where}, "
                         f"{s['seconds']:,.0f} s")
    return ["Trained by", "", *lines, ""]


def training(record, folder):
    config = record["models"]["vanilla"]["training"]["config"]
    settings = ", ".join(f"`{key}` {plain(config[key])}" for key in SETTINGS)
    steps = record["models"]["vanilla"]["training"]["steps"]
    return ["## Training", "",
            f"{steps:,} steps. {settings}; all others in the files. Both models have the same settings "
            "but softmax and optimiser.", "", *sessions(record), *curves(folder)]


# ---- data, limits ----

def data(record):
    d = record["data"]
    lines = [
        "## Data", "",
        f"{d['documents']:,} documents, {d['text_bytes'] / 1e6:,.0f} MB of English, {d['tokens']:,} tokens. "
        f"{d['dropped']:,} more were dropped because they",
        "share 13 words in a row with a text that judges: "
        + ", ".join(f"`{t['name']}`" for t in d["decontaminate"]) + ".", ""]
    mix = d["mixture"]
    if mix:
        shares = ", ".join(f"{kind} {100 * n / mix['bytes']:.0f} %" for kind, n in mix["kinds"].items())
        closed = mix["noncommercial"]
        lines += [f"A mixture of {mix['sources']} sources: {shares}. {closed['sources']} of them, "
                  f"{100 * closed['bytes'] / mix['bytes']:.0f} % of the text, are under "
                  f"non-commercial licences ({', '.join(closed['licences'])}). The texts are not part of "
                  "this project.", ""]
    return lines


def limits():
    return ["## What they are for", "",
            "Tests and research: the training text includes sources under CC BY-NC licences. They are far "
            "too small to be of use as language models, were not tuned to follow instructions, and repeat "
            "what their texts contain, true or not.", "",
            "## Made by", "",
            "`bench/pair.py --corpus DIR` makes the whole folder: shards, both trainings, files, results, this "
            "card (`tools/model_card.py`, which a test compares with the records)."]


def render(folder):
    folder = pathlib.Path(folder)
    record = json.loads((folder / "record.json").read_text())
    valid, builtin = (report.read_results(folder / f"results-{n}.json") for n in ("valid", "builtin"))
    lines = [*intro(record), *files(record), "## Measured", "",
             *measured("held-out text (`valid`, the first tokens)", valid), *outliers(record),
             *verdicts(record, valid), *measured("the built-in text", builtin), *training(record, folder),
             *data(record), *limits()]
    return "\n".join(lines) + "\n"


def write(folder):
    (pathlib.Path(folder) / "README.md").write_text(render(folder))


def main():
    words = [w for w in sys.argv[1:] if w != "--check"]
    folder = pathlib.Path(words[0]) if words else report.SHIPPED
    if "--check" not in sys.argv[1:]:
        return write(folder)
    if (folder / "README.md").read_text() != render(folder):
        sys.exit(f"{folder}/README.md differs from the records: run tools/model_card.py")
    return print("1 passed, 0 failed, 0 skipped")


if __name__ == "__main__":
    main()
