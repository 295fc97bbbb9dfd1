"""The table of the training comparison: its rows, the goals, and what a record says of them.

A record is a line of results/peers_train.jsonl, written by train.py; its figures are dicts of who,
shape, context, softmax, optimizer, tok_per_s. Used by train.py and torch_train.py.
"""
SHAPES = {  # layers, d, heads, vocabulary
    "gpt2-124m": (12, 768, 12, 50304),
    "d512-v50304": (8, 512, 8, 50304),
    "d512-v8192": (8, 512, 8, 8192),
}
STEP_TOKENS = 131072
# shape, context, windows of one pass, tok/s at least (softmax, Adam), and how many times torch's
ROWS = [
    ("gpt2-124m", 256, 128, 700e3, 1.3),
    ("gpt2-124m", 1024, 32, 700e3, 1.3),
    ("d512-v50304", 256, 256, 1600e3, None),
    ("d512-v8192", 256, 256, 1850e3, None),
]
COLUMNS = [  # who, softmax, optimizer
    ("qbench", "softmax", "adam"), ("qbench", "softmax", "orthoadam"),
    ("qbench", "softmax1", "adam"), ("qbench", "softmax1", "orthoadam"),
    ("torch", "softmax", "adam"), ("torch", "softmax", "orthoadam"),
]
MOST_LOST = [("orthoadam", ("softmax", "orthoadam"), 2.0), ("softmax-1", ("softmax1", "adam"), 0.5)]


def row_batch(row, batch=None):
    """Windows a step."""
    return batch or STEP_TOKENS // row[1]


def row_name(row):
    return "%s T %d" % row[:2]


def find(record, row, who, softmax, optimizer):
    """tok/s of a figure, or None where it was not measured."""
    for f in record["figures"]:
        if (f["who"], f["shape"], f["context"], f["softmax"], f["optimizer"]) == \
                (who, *row[:2], softmax, optimizer):
            return f["tok_per_s"]
    return None


def thousands(value):
    return "–" if value is None else "{:,.0f}".format(value / 1e3)


def goals(record, row):
    """[(goal, verdict)] of a row; without a figure there is no verdict."""
    base = find(record, row, "qbench", "softmax", "adam")
    torch = find(record, row, "torch", "softmax", "adam")
    out = []

    def at_least(name, target):
        if not base or not target:
            verdict = "not measured"
        else:
            verdict = "met" if base >= target else "missed (%.0f %%)" % (100 * base / target)
        out.append((name, verdict))

    at_least("≥ %s" % thousands(row[3]), row[3])
    if row[4]:
        at_least("≥ %g × torch" % row[4], torch and row[4] * torch)
    for name, what, most in MOST_LOST:
        value = find(record, row, "qbench", *what)
        if not base or not value:
            verdict = "not measured"
        else:
            lost = 100 * (1 - value / base)
            verdict = "%s (%.1f %%)" % ("met" if lost <= most else "missed", lost)
        out.append(("%s ≤ %g %% slower" % (name, most), verdict))
    return out


def table(record):
    """Heading and rows of cells, thousand tokens a second; the last cell is the goals."""
    out = [["ktok/s", *(" ".join(c) for c in COLUMNS), "goals"]]
    for row in ROWS:
        values = [find(record, row, *c) for c in COLUMNS]
        if any(v is not None for v in values):
            out.append([row_name(row), *map(thousands, values),
                        "; ".join("%s: %s" % g for g in goals(record, row))])
    return out
