"""The figure of docs/reproduction.md: what the runs of Tables 2 and 3 become, of results/paper. Written and
compared by tools/readme_tables.py. Standard library."""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "bench"))
import svg_panels  # noqa: E402

RUNS = ("gpt2-60m", "gpt2-60m-softmax1", "gpt2-60m-orthoadam", "gpt2-60m-both")


def read(name, file, results=ROOT / "results/paper"):
    return json.loads((results / name / file).read_text())


def over_tokens(name, value):
    return [(mark["tokens"] / 1e9, value(mark)) for mark in read(name, "run.json")["growth"]]


def over_layers(name, metric):
    return [(layer["layer"], layer[metric]) for layer in read(name, "analysis.json")["layers"]]


def panels(colours):
    tokens, layers = "billion tokens of training", "block"
    wanted = (
        ("What coarse costs, perplexity", tokens, True,
         lambda name: over_tokens(name, lambda mark: mark["schemes"]["coarse"]["penalty"])),
        ("Queries that attend to the first token most, %", tokens, False,
         lambda name: over_tokens(name, lambda mark: 100 * mark["attn_first_argmax"])),
        ("Kurtosis of first tokens (Gaussian: 3)", layers, True,
         lambda name: over_layers(name, "kurt_token_first")),
        ("Norm of first tokens", layers, True, lambda name: over_layers(name, "norm_hidden_first")))
    for i, (title, across, is_log, points_of) in enumerate(wanted):
        curves = [(colour, points_of(name)) for name, colour in colours.items()]
        x = svg_panels.Axis([x for _, points in curves for x, _ in points],
                            low=1 if across is layers else 0, exact=True)
        y = svg_panels.Axis([y for _, points in curves for _, y in points], is_log)
        yield svg_panels.Panel(svg_panels.place_of(i), title, curves, x, y, across, dots=True)


def draw():
    """As SVG; None without records."""
    if not all((ROOT / "results/paper" / name / "run.json").exists() for name in RUNS):
        return None
    colours = dict(zip(RUNS, (svg_panels.COLOURS[i] for i in (1, 0, 3, 2))))
    return svg_panels.svg(list(panels(colours)),
                          [(colour, read(name, "run.json")["about"]) for name, colour in colours.items()])
