#!/usr/bin/env python3
"""Writes tests/golden/analysis.json: the metrics of each layer, and their means, of the tiny models
of every kind (tests/cli/tiny_models.py) in float64, from tools/check_analysis.py and nothing of
qbench's.

    make_analysis.py [OUT]

Where NumPy is not at hand, tests/cli/analyze_tests.py compares with these. Needs NumPy."""
import json
import math
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "cli")]
import check_analysis  # noqa: E402
import tiny_models  # noqa: E402
from float64_model import Model, read_safetensors  # noqa: E402


def rounded(figures):
    return {key: float(f"{value:.12g}") for key, value in figures.items()
            if math.isfinite(value)}


def expected(folder, name):
    model = Model(tiny_models.write_kind_folder(folder / name, tiny_models.KINDS[name]))
    (folder / "tokens").write_bytes(tiny_models.tokens_file(*tiny_models.KIND_TOKENS))
    views = model.forward(read_safetensors(folder / "tokens")["tokens"])
    layers = [check_analysis.layer_figures(views, i, model.c) for i in range(model.c["n_layers"])]
    return {"layers": [rounded(layer) for layer in layers],
            "mean": rounded(check_analysis.mean_figures(layers))}


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "tests/golden/analysis.json")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: expected(pathlib.Path(folder), name) for name in tiny_models.KINDS}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items())
    out.write_text("{" + lines + "}\n")


if __name__ == "__main__":
    main()
