#!/usr/bin/env python3
"""Writes the measured tables of README.md and of pages in docs/ from results/ and share/models, between
marker lines, so that no number is typed by hand.

    tools/readme_tables.py [--check] [--qbench build/qbench]

--check changes nothing and fails where a page differs. The paper's tables are what `qbench table` prints:
without a program docs/reproduction.md is left alone, which is said. Standard library."""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench/peers"), str(ROOT / "tools")]
import demo  # noqa: E402
import gpu_table  # noqa: E402
import pair_report  # noqa: E402
import paper_figure  # noqa: E402
import paper_tables  # noqa: E402
import profile_tables  # noqa: E402
import scheme_tables  # noqa: E402
import train_table  # noqa: E402


def number(x):
    return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}" if x >= 100 else f"{x:.2f}"


def quality_and_speed():
    results = json.loads((ROOT / "results/smollm2_all.json").read_text())["results"]
    first = results[0]
    env, protocol = first["environment"], first["protocol"]
    lines = [
        f"`{first['command']}`, {first['time_utc'][:10]}, commit {first['git_commit']}; {env['cpu']},",
        f"{env['threads']} threads, {env['features']}; {env['compiler']}. Built-in text, protocol "
        f"`{protocol['name']}`,",
        f"context {protocol['context']:,}, {protocol['scored_tokens']:,} tokens scored; prefill of "
        f"{first['speed']['context']} tokens, decode after 256.",
        "",
        "| scheme | perplexity | penalty [95 %] | fake twin | prefill tok/s | decode tok/s | weights MB |",
        "|---|---|---|---|---|---|---|",
    ]
    full = first["speed"]["full"]
    rows = [("full", first["quality"]["ppl_full"], None, None, full["prefill"], full["decode"],
             first["memory"]["full_weights_bytes"])]
    for r in results:
        if r["scheme"]["name"] == "full":
            continue
        q = r["quality"]
        rows.append((r["scheme"]["name"], q["ppl"], (q["penalty"], q["penalty_ci95"]), q["ppl_fake"],
                     r["speed"]["prefill"], r["speed"]["decode"], r["memory"]["weights_bytes"]))
    for name, ppl, penalty, fake, prefill, decode, weights in rows:
        cost = ("–" if penalty is None else
                f"+{number(penalty[0])} [{number(penalty[1][0])}, {number(penalty[1][1])}]")
        lines.append(f"| {name} | {number(ppl)} | {cost} | {'–' if fake is None else number(fake)} | "
                     f"{prefill['tok_per_s']:,.0f} | {decode['tok_per_s']:,.0f} | {weights / 1e6:,.0f} |")
    return lines


def beside_llama_cpp():
    record = json.loads((ROOT / "results/peers_llama_cpp.jsonl").read_text().splitlines()[-1])
    threads = record["settings"]["threads"]
    lines = [
        "", f"Beside llama.cpp ({record['versions']['llama-cpp-python']} of llama-cpp-python), "
        f"{threads} threads of the same machine in turn,",
        f"{len(record['rounds'])} rounds, head quantised, tokens a second (`bench/peers/llama_cpp.sh`, "
        f"{record['time_utc'][:10]}):",
        "", "| program | prefill 512 | decode after 256 |", "|---|---|---|",
    ]
    for s in record["summary"]:
        lines.append(f"| {s['who']} {s['what']} | {s['prefill']['median']:,.0f} | "
                     f"{s['decode']['median']:,.0f} |")
    for r in record["ratios"]:
        lines.append(f"| {r['qbench']} / {r['llama.cpp']} | {r['prefill']['median']:.2f} | "
                     f"{r['decode']['median']:.2f} |")
    return lines


def markdown(rows):
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return lines[:1] + ["|" + "---|" * len(rows[0])] + lines[1:]


def gpu_line(record):
    """Where and when: GPU, driver, clocks, command."""
    gpu = record["machine"].get("gpu") or {}
    clocks = record["machine"].get("clocks_under_load")
    words = [gpu.get("name") or "unknown GPU", f"driver {gpu.get('driver')}"]
    if clocks:
        words.append(f"SM clock {clocks['sm_mhz']['median']:,.0f} MHz under load")
    versions = ", ".join(v if v.startswith(name) else f"{name} {v}"
                         for name, v in record["versions"].items() if v)
    return [f"{', '.join(words)}; `{record['command']}`, {record['time_utc'][:10]}, commit",
            f"{(record['git_commit'] or 'unknown')[:12]}; {versions}."]


def gpu_inference(results=ROOT / "results"):
    path = results / "peers_gpu.jsonl"
    if not path.exists():
        return []
    record = json.loads(path.read_text().splitlines()[-1])
    rows = gpu_table.table(record)
    lines = ["", "GPT2 shapes, random weights, one GPU, beside torch (compiled, CUDA graphs), torchao",
             "and llama.cpp (flash attention). Prefill: logits of the last token; in brackets torch",
             "with those of all. Decode: after 256 tokens.", *gpu_line(record), "",
             *markdown(rows)]
    everything = gpu_table.all_schemes_line(record)
    return lines + (["", everything] if everything else [])


def gpu_gemm(results=ROOT / "results"):
    path = results / "gemm_s8_cuda.json"
    if not path.exists():
        return []
    run = json.loads(path.read_text())
    rows = gpu_table.gemm_table(run["benchmarks"])
    if len(rows) < 2:
        return []
    lines = ["", "Int8 product on an H100, bf16 out, scales a row and a column, L2 emptied before each call, TOP/s,",
             f"{run['context']['date'][:10]} (`bench/cuda/bench_gemm_s8_cuda.c`; the last two peers: recorded apart):",
             ""]
    return lines + markdown(rows)


def gpu_training(results=ROOT / "results"):
    path = results / "peers_train.jsonl"
    if not path.exists():
        return []
    record = json.loads(path.read_text().splitlines()[-1])
    rows = train_table.table(record)
    # a column that nobody measured is no column
    shown = [i for i in range(len(rows[0])) if any(row[i] != "–" for row in rows[1:])]
    return ["", "Training steps of GPT2 shapes (T: tokens a window), bf16, one GPU, thousand tokens a",
            "second, beside torch.compile.", *gpu_line(record), "",
            *markdown([[row[i] for i in shown] for row in rows])]


def shipped_pair():
    """What `make demo` prints of the shipped models, of what was recorded."""
    results = pair_report.SHIPPED / "results-builtin.json"
    schemes = pair_report.read_results(results)
    models = json.loads((pair_report.SHIPPED / "record.json").read_text())["models"]
    one = pair_report.first(schemes[0])
    env = one["environment"]
    rows = demo.quality_rows(schemes, [models[which] for which in pair_report.PAIR])
    return ["```text", demo.heading(one), "", *demo.table_lines(rows), "```", "",
            f"{one['time_utc'][:10]}, commit {one['git_commit']}, {env['cpu']}, {env['threads']} threads: "
            f"`{one['command']}`."]


def measured():
    return beside_llama_cpp()[1:] + gpu_inference() + gpu_gemm() + gpu_training()


# ---- docs/reproduction.md ----

def reproduction(text, qbench):
    tables = {n: paper_tables.asked(qbench, n) for n in (1, 2, 3)}
    for number in paper_tables.TABLES:
        text = fill(text, f"table {number}", paper_tables.printed(qbench, number))
    for name, rows in (("goals", paper_tables.goals()), ("directions", paper_tables.directions(tables[2])),
                       ("ratios", paper_tables.ratios(tables[3])),
                       ("causes", paper_tables.causes()),
                       ("axes", paper_tables.axes(tables[1])),
                       ("growth of the pair", paper_tables.growth_of_pair()),
                       ("growth of the runs", paper_tables.growth_of_runs())):
        text = fill(text, name, markdown(rows))
    return text


# ---- docs/analyze.md ----

def interventions(results=ROOT / "results"):
    """Perplexity of the untouched models, and under each intervention."""
    names = ("zero-massive", "mean-massive", "zero-first-value", "drop-first-key")
    rows = [["", "massive activations", "untouched", *names]]
    for path in sorted(results.glob("interventions_*.json")):
        record = json.loads(path.read_text())
        done = {one["name"]: one for one in record["interventions"]}
        largest = next(iter(record["massive"]), None)
        what = "none" if not largest else (
            f"{record['massive_places']} places; layer {largest['layer']}, channel {largest['channel']}: "
            f"{largest['mean']:,.0f} ± {largest['std']:,.0f}, {100 * largest['first_share']:.0f} % on first "
            "tokens")
        rows.append([record["model"]["name"], what, number(done[names[0]]["ppl_untouched"]),
                     *(number(done[name]["ppl"]) for name in names)])
    return markdown(rows)


# ---- pages ----

def analysis(text, _):
    parts = markdown(scheme_tables.sensitivities(ROOT / "results"))
    return fill(fill(text, "interventions", interventions()), "sensitivity", parts)


def readme(text, _):
    for name, lines in (("demo", shipped_pair()), ("60m", markdown(paper_tables.headline())),
                        ("smollm2", quality_and_speed()), ("measured", measured())):
        text = fill(text, name, lines)
    return text


def fill(text, name, lines):
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, rest = text.split(begin, 1)
    return head + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]


def schemes(text, _):
    return fill(text, "baselines", markdown(scheme_tables.baselines(ROOT / "results")))


def profile(text, _):
    records = profile_tables.read(ROOT / "results")
    text = fill(text, "summary", profile_tables.summary(records))
    text = fill(text, "speeds", markdown(profile_tables.speeds(records)))
    return fill(text, "time", markdown(profile_tables.time_goes(records)))


PAGES = {"README.md": readme, "docs/reproduction.md": reproduction, "docs/schemes.md": schemes,
         "docs/analyze.md": analysis, "docs/profile.md": profile,
         "docs/paper-60m.svg": lambda _, __: paper_figure.draw()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--qbench", type=pathlib.Path, default=ROOT / "build" / "qbench")
    args = parser.parse_args()
    qbench = args.qbench.resolve()
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for name, make in PAGES.items():
        if make is reproduction and not qbench.exists():
            print(f"skipped: {name}: {args.qbench} is not there")
            counts["skipped"] += 1
            continue
        text = (ROOT / name).read_text()
        fresh = make(text, qbench)
        if not args.check:
            (ROOT / name).write_text(fresh)
        elif fresh != text:
            print(f"{name}: its tables differ from the records: run tools/readme_tables.py")
        counts["failed" if args.check and fresh != text else "passed"] += 1
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    sys.exit(1 if counts["failed"] else 0)


if __name__ == "__main__":
    main()
