#!/usr/bin/env python3
"""make demo: what training did to two models, on one screen.

    tools/demo.py [--qbench build/qbench] [--page FILE] [--no-speed] [VANILLA OURS] [-- more flags for quality]

Runs `qbench --scheme all` on a pair of models that were trained alike but for softmax-1 and
OrthoAdam (default: those in share/models), over the built-in text, and prints what Table 3 of
arXiv:2410.17174 has: full precision, and what each scheme adds to the perplexity, side by side. The figures
and the curves of the training stand on a page, too (`qbench report`; default: demo.html beside the program).
Needs no network. Exit code: that of qbench. Standard library only."""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import pair_report as report  # noqa: E402
from script import Failed, run_main, say, split_more, stop  # noqa: E402

QUALITY = ["--scheme", "all", "--no-fake", "--no-speed"]
SPEED = ["--scheme", ",".join(report.TABLE3), "--no-quality", "--speed-context", "256"]  # of one model


def called(path):
    """As one would type it."""
    try:
        return str(pathlib.Path(path).relative_to(pathlib.Path.cwd()))
    except ValueError:
        return str(path)


def check(program, models):
    if not program.exists():
        stop(f"{called(program)} is not here: run make first (make demo does both)")
    missing = [called(m) for m in models if not m.exists()]
    if missing and models[0].parent == report.SHIPPED:
        stop(f"{' and '.join(missing)} not found. They are files of the repository: git checkout -- "
             "share/models brings them back, bench/pair.py trains them anew. On any other model:\n"
             f"    {called(program)} --scheme all MODEL")
    if missing:
        stop(f"{' and '.join(missing)} not found")


def call(program, *words):
    """What the program writes on standard output."""
    done = subprocess.run([program.resolve(), *words], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise Failed(done.returncode)
    return done.stdout


def introduce(pair):
    steps, tokens = (pair[0]["training"].get(key) or 0 for key in ("steps", "tokens"))
    say(f"two models of {pair[0]['parameters'] / 1e6:.1f} million parameters, trained on the same "
        f"{tokens / 1e6:,.1f} million tokens in the same order ({steps:,} steps):")
    for which, model in zip(report.PAIR, pair):
        say(f"    {which:8} {report.trained_with(model['training'])}")


def measure(program, models, flags, keep):
    """[{scheme: R}], one a model; the record stays in the file `keep`."""
    command = [*flags, *map(called, models)]
    say(textwrap.fill(" ".join([called(program), *command]), 78, initial_indent="demo: ",
                      subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)[6:])
    said = call(program, *command, "--json", "-")
    keep.write_bytes(said)
    return report.split_models(json.loads(said))


def write_page(program, page, records, models):
    """With the curves of the trainings that lie beside the models."""
    curves = [path for path in (model.with_suffix(".metrics.jsonl") for model in models) if path.exists()]
    call(program, "report", "--quiet", *records, *curves, "-o", page, "--title",
         "What training does to quantisation")
    say(f"the page of it, for a browser: {called(page.resolve())}")


# ---- the screen ----

def table_lines(rows):
    """The first column to the left, figures to the right, as wide as they need be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [f"{c:{'>' if i else '<'}{w}}" for i, (c, w) in enumerate(zip(row, widths))]
        yield "  ".join(cells).rstrip()


def print_table(rows):
    print(*table_lines(rows), "", sep="\n")


def heading(one):
    return (f"Perplexity of the {one['text']['name']} text ({one['protocol']['scored_tokens']:,} tokens), "
            "and what each scheme adds to it")


def kurtosis_of(model):
    evaluation = model["training"].get("evaluation") or {}
    return [evaluation.get("kurt_token_first"), evaluation.get("kurt_token_rest")]


def quality_rows(pair, models):
    """A line a scheme, those of the paper's table first; the last column says how many times less."""
    kurtosis = [kurtosis_of(m) for m in models]
    names = [*report.TABLE3, *(n for n in pair[0] if n not in report.TABLE3 and n != "full")]
    rows = [["", *report.PAIR, " / ".join(report.PAIR)],
            ["trained with", *(report.trained_with(m["training"]) for m in models), ""]]
    if all(k for ks in kurtosis for k in ks):
        rows += [[f"kurtosis, {of} tokens", *(f"{ks[i]:.2f}" for ks in kurtosis), ""]
                 for i, of in enumerate(("first", "other"))]
    rows.append(["full precision", *(report.number(report.full(schemes)) for schemes in pair), ""])
    return rows + [[name, *(report.signed(report.penalty(schemes, name)) for schemes in pair),
                    report.times(report.penalty_ratio(pair, name))] for name in names]


def speed_rows(schemes):
    rows = [["tokens/s", "prefill", "", "decode", "", "weights"]]
    speeds = report.first(schemes)["speed"]["full"]
    rows.append(["full", f"{speeds['prefill']['tok_per_s']:,.0f}", "",
                 f"{speeds['decode']['tok_per_s']:,.0f}", "",
                 f"{report.first(schemes)['memory']['full_weights_bytes'] / 1e6:.0f} MB"])
    for name, r in schemes.items():
        if name == "full":
            continue
        cells = [name]
        for kind in ("prefill", "decode"):
            own = r["speed"][kind]["tok_per_s"]
            cells += [f"{own:,.0f}", report.times(own / r["speed"]["full"][kind]["tok_per_s"])]
        rows.append([*cells, f"{r['memory']['weights_bytes'] / 1e6:.0f} MB"])
    return rows


def main():
    parser = argparse.ArgumentParser(description="compares the shipped pair of models")
    parser.add_argument("--qbench", type=pathlib.Path, default=report.ROOT / "build" / "qbench")
    parser.add_argument("--page", type=pathlib.Path, metavar="FILE", help="where the page goes")
    parser.add_argument("--no-speed", action="store_true", help="measure quality only")
    parser.add_argument("models", nargs="*", type=pathlib.Path, metavar="VANILLA OURS")
    words, flags = split_more(sys.argv[1:])
    args = parser.parse_args(words)
    paths = args.models or [report.SHIPPED / report.file_of(which) for which in report.PAIR]
    if len(paths) != 2:
        parser.error(f"found {len(paths)} models, expected two: VANILLA OURS")
    check(args.qbench, paths)
    with tempfile.TemporaryDirectory(prefix="qbench-demo-") as folder:
        show(args, paths, flags, pathlib.Path(folder))


def show(args, paths, flags, folder):
    start = time.monotonic()
    models = [json.loads(call(args.qbench, "inspect", "--json", "-", path)) for path in paths]
    introduce(models)
    records = [folder / "quality.json"]
    pair = measure(args.qbench, paths, [*QUALITY, *flags], records[0])
    one = report.first(pair[0])
    print(f"\n{heading(one)}\n")
    print_table(quality_rows(pair, models))
    if all(kurtosis_of(m)[0] for m in models):
        print("Kurtosis over channels, as training recorded it on held-out text: 3 for a\n"
              "Gaussian, large where few channels hold outliers.\n")
    sys.stdout.flush()
    if not args.no_speed:
        records.append(folder / "speed.json")
        (ours,) = measure(args.qbench, paths[1:], SPEED, records[1])
        one = report.first(ours)
        print(f"Speed of ours ({one['environment']['device']}; prefill of {one['speed']['context']} tokens, "
              f"decode after {one['speed']['decode_after']}; × full precision)\n")
        print_table(speed_rows(ours))
    print(textwrap.fill(report.conclusion(pair), 80))
    write_page(args.qbench, args.page or args.qbench.resolve().parent / "demo.html", records, paths)
    say(f"{time.monotonic() - start:.0f} s. One model, every detail:\n"
        f"    {called(args.qbench)} --scheme all {called(paths[1])}")


if __name__ == "__main__":
    run_main(main)
