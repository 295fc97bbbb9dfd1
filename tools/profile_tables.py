"""Tables of docs/profile.md from results/profile_cuda.jsonl. Standard library."""
import json

SHOWN = ("gpt2-1.4b", "fine", 16)  # the one whose phases are shown


def read(results):
    """The records; two of one model, scheme and batch: the last counts."""
    records = {}
    for line in (results / "profile_cuda.jsonl").read_text().splitlines():
        record = json.loads(line)
        records[record["model"]["name"], record["scheme"], record["batch"]] = record
    return records


def operations(record):
    return {o["operation"]: o for o in record["operations"]}


def runs(record):
    for operation in record["operations"]:
        yield operation["full"]
        yield operation["scheme"]


def percent(share):
    return f"{100 * share:.1f} %"


def speeds(records):
    """Tokens a second, full precision and the scheme, and the shares of the roofline."""
    rows = [["model", "scheme", "batch", "prefill: full", "scheme", "×", "of the roof", "decode: full", "scheme",
             "×", "of the roof"]]
    for (model, scheme, batch), record in records.items():
        row = [model, scheme, str(batch)]
        for name in ("prefill", "decode"):
            full, other = (operations(record)[name][which] for which in ("full", "scheme"))
            row += [f"{full['tok_per_s']:,.0f}", f"{other['tok_per_s']:,.0f}",
                    f"{other['tok_per_s'] / full['tok_per_s']:.2f}",
                    f"{100 * full['roof_ms'] / full['ms']:.0f}, {100 * other['roof_ms'] / other['ms']:.0f} %"]
        rows.append(row)
    return rows


def stamp_ms(run):
    """What an instant added to each span: nothing where the program has taken it off."""
    if "stamp_us" in run:
        return 0
    return max(run["overhead"], 0) * run["ms"] * run["slices"] / sum(p["calls"] for p in run["phases"])


def phases(run):
    """{phase: (ms, share of the roofline or None)}, without the stamps; gaps last."""
    stamp, found = stamp_ms(run), {}
    for p in run["phases"]:
        ms = p["ms"] - stamp * p["calls"]
        found[p["phase"]] = ms, p["roofline_share"] * p["ms"] / ms if p["limit"] else None
    found["gaps"] = run["ms"] - sum(ms for ms, _ in found.values()), None
    return found


def time_goes(records):
    """Milliseconds and shares of the roofline by phase, of both operations of one record."""
    rows = [["phase"]]
    columns = []
    for name, operation in operations(records[SHOWN]).items():
        for which in ("full", "scheme"):
            rows[0] += [f"{name}, {operation[which]['scheme']}: ms", "roof"]
            columns.append((phases(operation[which]), operation[which]))
    names = list(dict.fromkeys(name for found, _ in columns for name in found if name != "gaps")) + ["gaps"]
    for name in names:
        row = [name]
        for found, _ in columns:
            ms, roof = found.get(name, (None, None))
            row += ["–" if ms is None else f"{ms:.3f}", "–" if roof is None else f"{100 * roof:.0f} %"]
        rows.append(row)
    rows.append(["total"] + [cell for _, run in columns
                             for cell in (f"{run['ms']:.3f}", f"{100 * run['roof_ms'] / run['ms']:.0f} %")])
    return rows


def summary(records):
    every = [run for record in records.values() for run in runs(record)]
    added = [run["overhead"] for run in every]
    gaps = [phases(run)["gaps"][0] / run["ms"] for run in every]
    before = [run["gaps_ms"] / run["ms"] for run in every if "stamp_us" not in run]
    first = next(iter(records.values()))
    lines = [f"{len(records)} profiles of `results/profile_cuda.jsonl` ({first['time_utc'][:10]}, commit "
             f"{first['git_commit'][:7]}; machine and commands: `results/profile_cuda.txt`),",
             f"contexts of {first['context']} tokens, {len(every)} passes of an engine. The timeline adds "
             f"{percent(min(added))} to {percent(max(added))} to a pass, in the median {percent(sorted(added)[len(added) // 2])}",
             f"(goal: 3 %). The phases leave {percent(min(gaps))} to {percent(max(gaps))} of the undisturbed pass as gaps"]
    lines[-1] += (f"; with\nwhat the timeline itself adds to every span it was {percent(min(before))} to "
                  f"{percent(max(before))}." if before else ".")
    return "\n".join(lines).split("\n")
