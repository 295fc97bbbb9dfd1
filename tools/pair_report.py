"""What a pair of models shows that were trained alike but for softmax-1 and OrthoAdam: read from
`qbench run --json` and from the models' training records. The one home of what tools/demo.py prints,
tools/model_card.py writes and bench/pair.py judges. Standard library only."""
import json
import math
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "share" / "models"
PAIR = ("vanilla", "ours")
TABLE3 = ("coarse", "moderate", "fine", "zeropoint4")  # the columns of arXiv:2410.17174, Table 3
SHORT = {"softmax": "softmax", "softmax1": "softmax-1", "adam": "Adam", "orthoadam": "OrthoAdam"}


def file_of(which):
    return f"gpt2-8m-{which}.bin"


def split_models(results):
    """Records of `qbench run` as [{scheme: R}], one a model, in the order of the run."""
    models = []
    for r in results["results"]:
        if not models or r["model"]["path"] != models[-1][0]:
            models.append((r["model"]["path"], {}))
        models[-1][1][r["scheme"]["name"]] = r
    return [schemes for _, schemes in models]


def read_results(path):
    return split_models(json.loads(pathlib.Path(path).read_text()))


# ---- figures ----

def first(schemes):
    return next(iter(schemes.values()))


def full(schemes):
    return first(schemes)["quality"]["ppl_full"]


def penalty(schemes, name):
    return schemes[name]["quality"]["penalty"]


def ratio(a, b):
    """a / b, or None where that says nothing: a cost of zero or less is noise."""
    return a / b if a > 0 and b > 0 else None


def penalty_ratio(pair, name):
    return ratio(penalty(pair[0], name), penalty(pair[1], name))


def apart(a, b):
    """How far two perplexities are apart, as a share of the smaller."""
    return abs(a - b) / min(a, b)


# ---- as text ----

def number(x):
    """Perplexities: four digits or a little more."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:,.0f}" if x >= 10000 else f"{x:,.1f}" if x >= 1000 else f"{x:.2f}"


def signed(x):
    if x is None or not math.isfinite(x):
        return "–"
    sign = "+" if x >= 0 else "−"
    x = abs(x)
    return sign + (f"{x:,.0f}" if x >= 1000 else f"{x:.1f}" if x >= 100 else
                   f"{x:.2f}" if x >= 1 else f"{x:.3f}")


def times(x):
    return "–" if x is None or not math.isfinite(x) else f"{x:,.0f}×" if x >= 100 else f"{x:.1f}×"


def trained_with(training):
    return ", ".join(SHORT.get(training[key], training[key]) for key in ("softmax", "optimizer"))


def conclusion(pair, name="coarse"):
    """One sentence from the figures of the two models, whatever they are."""
    vanilla, ours = penalty(pair[0], name), penalty(pair[1], name)
    less = penalty_ratio(pair, name)
    costs = f"{signed(vanilla)} of perplexity for vanilla and {signed(ours)} for ours"
    if less is None:
        judged = f"{name} costs {costs}: too little to compare"
    elif less >= 1:
        judged = f"{name} costs {costs}: {times(less)} less"
    else:
        judged = f"{name} costs {costs}: no less"
    return (f"{judged}; in full precision they are {100 * apart(full(pair[0]), full(pair[1])):.1f} % "
            "apart.")


# ---- what the shipped pair must show ----

LIMIT_BYTES, LEAST_TOKENS, LEAST_RATIO, MOST_APART, MOST_KURTOSIS = \
    16_000_000, 1_500_000_000, 4, 0.01, 3.2
# Keys of the configuration that may differ: what is compared, and what has no say in the result.
DIFFERENT = {"name", "softmax", "optimizer", "data", "valid", "minutes", "device", "threads", "peak_tflops",
             "log_every", "eval_every", "save_every", "keep", "tensorboard"}


def other_settings(a, b):
    """Keys of two configurations that differ and should not."""
    return sorted(key for key in {*a, *b} - DIFFERENT if a.get(key) != b.get(key))


def judge(record, valid):
    """[(met, key, what)] of the record (record.json) and the results on the held-out text."""
    models = [record["models"][which] for which in PAIR]
    trainings = [m["training"] for m in models]
    largest, tokens = max(m["bytes"] for m in models), min(t["tokens"] for t in trainings)
    kurtosis = [trainings[1]["evaluation"].get(key) or math.inf
                for key in ("kurt_token_first", "kurt_token_rest")]
    ppl = [full(schemes) for schemes in valid]
    names = set.intersection(*({text["name"] for text in t["data"]["decontaminate"]}
                               for t in trainings))
    different = other_settings(*(t["config"] for t in trainings))
    if trainings[0]["data_sha256"] != trainings[1]["data_sha256"]:
        different.append("the data")
    costs = [signed(penalty(schemes, "coarse")) for schemes in valid]
    less = penalty_ratio(valid, "coarse")
    return [
        (largest <= LIMIT_BYTES, "size",
         f"each file has at most {largest:,} bytes (limit {LIMIT_BYTES:,})"),
        (tokens >= LEAST_TOKENS, "tokens",
         f"each was trained on {tokens:,} tokens (at least {LEAST_TOKENS:,})"),
        (not different, "settings",
         "the same data, order, seed and settings but softmax and optimiser" if not different else
         "they differ in " + ", ".join(different)),
        ("eval.txt" in names and any(name.startswith("valid") for name in names), "decontamination",
         "decontaminated against " + (", ".join(sorted(names)) or "nothing")),
        (apart(*ppl) <= MOST_APART, "perplexity",
         f"perplexity of the held-out text {number(ppl[0])} for vanilla and {number(ppl[1])} for ours, "
         f"{100 * apart(*ppl):.1f} % apart (at most {100 * MOST_APART:.0f} %)"
         + (", ours the better" if apart(*ppl) > MOST_APART and ppl[1] < ppl[0] else "")),
        (less is not None and less >= LEAST_RATIO, "coarse",
         f"coarse costs vanilla {costs[0]} and ours {costs[1]}, {times(less)} less (at least "
         f"{LEAST_RATIO}×)"),
        (max(kurtosis) <= MOST_KURTOSIS, "kurtosis",
         f"kurtosis of ours is {kurtosis[0]:.2f} for first tokens and {kurtosis[1]:.2f} for all others "
         f"(at most {MOST_KURTOSIS})"),
    ]
