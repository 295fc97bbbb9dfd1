#!/usr/bin/env python3
"""Writes the measured tables of README.md from results/ and share/models, between marker lines, so that no
number is typed by hand. --check changes nothing and fails where README.md differs. Standard library."""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench/peers"), str(ROOT / "tools")]
import gpu_table  # noqa: E402
import pair_report  # noqa: E402
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
    versions = ", ".join(f"{name} {v}" for name, v in record["versions"].items() if v)
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


def pair():
    """The shipped models, as the paper's Table 3 has its own."""
    schemes = pair_report.read_results(pair_report.SHIPPED / "results-valid.json")
    models = json.loads((pair_report.SHIPPED / "record.json").read_text())["models"]
    names = pair_report.TABLE3
    rows = [["share/models", "kurtosis, first / other tokens", "full", *names]]
    for which, own in zip(pair_report.PAIR, schemes):
        seen = models[which]["training"]["evaluation"]
        rows.append([f"{which} ({pair_report.trained_with(models[which]['training'])})",
                     f"{seen['kurt_token_first']:.2f} / {seen['kurt_token_rest']:.2f}",
                     pair_report.number(pair_report.full(own)),
                     *(pair_report.signed(pair_report.penalty(own, name)) for name in names)])
    rows.append(["vanilla / ours", "", "",
                 *(pair_report.times(pair_report.penalty_ratio(schemes, name)) for name in names)])
    return markdown(rows)


def measured():
    return quality_and_speed() + beside_llama_cpp() + gpu_inference() + gpu_gemm() + gpu_training()


def fill(text, name, lines):
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, rest = text.split(begin, 1)
    return head + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]


def main():
    readme = ROOT / "README.md"
    text = readme.read_text()
    fresh = fill(fill(text, "pair", pair()), "measured", measured())
    if "--check" in sys.argv[1:]:
        if fresh != text:
            sys.exit("README.md: the measured tables differ from the records: run tools/readme_tables.py")
        print("1 passed, 0 failed, 0 skipped")
        return
    readme.write_text(fresh)


if __name__ == "__main__":
    main()
