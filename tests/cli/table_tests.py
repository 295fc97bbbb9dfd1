"""qbench table: the paper's tables beside records; bench/paper_runs.py makes such records, from texts to
a table (tiny models), two at the same time, too; hostile records; the tables of the documentation."""
import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from unittest import mock

import support
from pair_tests import interrupt, no_folder_of_this_machine, script, write_corpus
from support import expect, qbench

sys.path.append(str(support.ROOT / "tools"))
sys.path.append(str(support.ROOT / "bench"))
import lanes  # noqa: E402
import paper_variants  # noqa: E402
import runs  # noqa: E402

TINY = ["--n-layers", "2", "--d-model", "16", "--n-heads", "2", "--head-dim", "8", "--d-ff", "32",
        "--context", "16", "--batch", "4", "--warmup", "4", "--log-every", "1", "--device", "cpu", "--threads", "1"]
TABLES = (1, 2, 3, 4, 5, 6, 9)


def table(number, *args, code=0):
    """As JSON."""
    return json.loads(expect(qbench("table", number, *args, "--json", "-"), code).out)


def lines_of(made, row_id, who):
    return [line for line in made["lines"] if (line["id"], line["who"]) == (row_id, who)]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# ---- from texts to tables ----

def test_paper_runs_from_texts_to_tables(folder):
    corpus, results = write_corpus(folder / "corpus"), folder / "results" / "paper"

    def paper_runs(*args, code=0):
        return script("bench/paper_runs.py", "--program", support.QBENCH, "--corpus", corpus, "--work",
                      folder / "work", "--results", results, "--vocab", "300", "--tokens", "1280",
                      "--first-mark", "640", "--eval-tokens", "300", "--schemes",
                      "fine,moderate,coarse,zeropoint4", *args, "--", *TINY, code=code)

    paper_runs("--only", "speed-gpt2-1.4b")  # needs no text
    some = ("--only", "gpt2-60m-both,speed-gpt2-1.4b")
    for more in (["--budget", "1"], ["--budget", "71", "--tokens", "100000000", "--whole"]):
        done = paper_runs(*some, *more, code=3)  # no time for any
        assert "left: gpt2-60m-both;" in done.stderr and len(list(results.glob("*/"))) == 1
    paper_runs(*some)
    runs = {path.parent.name: json.loads(path.read_text()) for path in results.glob("*/run.json")}
    assert sorted(runs) == ["gpt2-60m-both", "speed-gpt2-1.4b"]
    both = runs["gpt2-60m-both"]
    assert [mark["step"] for mark in both["growth"]] == [10, 20], both["growth"]
    last = json.loads((results / "gpt2-60m-both" / "results.json").read_text())["results"]
    assert both["growth"][-1]["ppl_full"] == last[0]["quality"]["ppl_full"]
    assert both["growth"][0]["tokens"] == 640 and "kurt_token_first" in both["growth"][0]
    assert "coarse" in both["growth"][0]["schemes"] and len(last) == len(both["growth"][0]["schemes"])
    assert both["training"]["config"]["softmax"] == "softmax1" and both["training"]["seed"] == 42
    assert re.match(r"qbench train --preset gpt2-60m .*--optimizer orthoadam", both["sessions"][0]["command"])
    assert not list((folder / "work").rglob("*.ckpt")) and not list(results.rglob("*.bin"))
    for path in results.glob("*/"):
        no_folder_of_this_machine(path, folder)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.json")}
    paper_runs(*some)  # what is recorded is not repeated
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*.json")
            if path.name != "data.json"}.items() <= before.items()
    listed = paper_runs(*some, "--list").stdout
    assert len(re.findall("recorded: ", listed)) == 2 and "0 s to go" in listed, listed
    check_tables(results, both, last)


def without_time(path):
    """What a record says of the model and not of the run's time, place and command."""
    if path.suffix == ".jsonl":
        return [{k: v for k, v in json.loads(line).items() if k not in ("tok_per_s", "mfu", "seconds", "memory_bytes")}
                for line in path.read_text().splitlines()]
    value = json.loads(path.read_text())
    for gone in ("sessions", "time_utc", "command", "environment", "memory", "evaluated_in_s"):
        for record in [value, *value.get("results", [])]:
            record.pop(gone, None)
    return value


def test_paper_runs_two_at_a_time(folder):
    """The records are those of one run at a time, also when they were broken off; one that fails leaves
    the others alone; speeds are measured when nothing else runs."""
    corpus = write_corpus(folder / "corpus")
    names = ["gpt2-60m", "gpt2-60m-both"]

    def words(where, *args):
        return ["bench/paper_runs.py", "--program", support.QBENCH, "--corpus", corpus, "--work",
                folder / where / "work", "--results", folder / where / "paper", "--vocab", "300", "--tokens",
                "102400", "--first-mark", "51200", "--eval-tokens", "300", "--schemes", "fine", *args, "--",
                *TINY]

    script(*words("one", "--only", ",".join(names)))
    (folder / "two" / "work").mkdir(parents=True)
    for name in ("shards", "valid", "data.json", "valid.json"):
        os.symlink(folder / "one" / "work" / name, folder / "two" / "work" / name)
    some = ["--gpus", "0,1", "--only", ",".join([*names, "gpt2-60m-softmax1", "speed-gpt2-1.4b"])]
    interrupt(words("two", *some), folder / "two" / "work" / names[0])
    recorded = {path.parent.name for path in (folder / "two").rglob("run.json")}
    assert "speed-gpt2-1.4b" not in recorded, recorded  # on a busy machine others may be through before
    shutil.rmtree(folder / "two" / "work" / "gpt2-60m-softmax1", ignore_errors=True)
    (folder / "two" / "work" / "gpt2-60m-softmax1").write_text("in the way")
    done = script(*words("two", *some), code=1)
    assert "left: gpt2-60m-softmax1;" in done.stderr, done.stderr
    words_of = ["gpt2-60m-softmax1: qbench", *(name for name in names if name not in recorded)]
    assert all(f"\n{begin}: " in done.stderr for begin in words_of), (recorded, done.stderr)
    for name in names:
        kept = folder / "two" / "paper" / name
        for path in sorted(kept.iterdir()):
            assert without_time(path) == without_time(folder / "one" / "paper" / name / path.name), path
        sessions = json.loads((kept / "run.json").read_text())["sessions"]
        assert {s["runs_at_a_time"] for s in sessions} == {2}, sessions
    speed = json.loads((folder / "two" / "paper" / "speed-gpt2-1.4b" / "run.json").read_text())
    assert speed["sessions"][0]["runs_at_a_time"] == 1
    assert done.stderr.index("paper_runs: speed-gpt2-1.4b: ") > done.stderr.rindex("evaluated at"), done.stderr


HURRIED = """
import sys
sys.path.insert(0, sys.argv[1])
import paper_runs
paper_runs.EVALUATE_SECONDS, paper_runs.LEAST_SECONDS = 0, 0.5
del sys.argv[1]
sys.exit(paper_runs.main())
"""


def test_paper_runs_cut_off_by_the_budget(folder):
    """The training stays where it is, how far is said, and the same command goes on."""
    corpus, work = write_corpus(folder / "corpus"), folder / "work"
    for _ in range(2):
        done = support.run(sys.executable, "-c", HURRIED, support.ROOT / "bench", "--program", support.QBENCH, "--corpus",
                           corpus, "--work", work, "--results", folder / "paper", "--vocab", "300", "--tokens", "10000000",
                           "--first-mark", "6400", "--only", "gpt2-60m", "--budget", "2", "--", *TINY)
        assert done.code == runs.UNFINISHED, done
        assert re.search(r"left: gpt2-60m \(\d+ % trained, kept in \S+/work/gpt2-60m\); the same", done.err.decode()), done
    sessions = runs.sessions_of(work / "gpt2-60m")
    assert len(sessions) == 2 and "--resume" in sessions[1]["command"], sessions


def test_a_program_that_hangs_or_is_killed(folder):
    """Neither keeps the runs waiting: it is killed after its time, and its run has failed."""
    for text, limit in (("exec sleep 60", 0.3), ("kill -KILL $$", 30)):
        path = folder / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        program = runs.Program(path, time.monotonic())
        program.GRACE = limit
        for lane in (lanes.Lane(None, None, 1), lanes.Lane(None, None, 2)):
            start = time.monotonic()
            code = program.on(lane, "label").call("train")
            assert code == -9 and time.monotonic() - start < 20, (code, text)
    try:
        runs.ended_well(code)
    except runs.Failed:
        return
    raise AssertionError("expected a failed run")


def test_lanes(_):
    """What fits first, by value unless lanes end earlier otherwise; a lane that fails gets no more."""
    seconds = {"a": 10, "b": 30, "c": 20, "d": 25, "e": 40}
    assert lanes.order(seconds, seconds, 1, 50) == lanes.order(seconds, seconds, 2, 5) == list(seconds)
    assert lanes.order(seconds, seconds, 2) == ["e", "b", "d", "c", "a"]
    assert lanes.order(seconds, seconds, 2, 45) == ["b", "d", "c", "a", "e"]
    pairs = {"a": 10, "b": 10, "c": 30, "d": 30}
    assert lanes.order(pairs, pairs, 2) == list(pairs)
    assert lanes.ends([40, 30, 25, 20, 10], 2) == [40, 30, 55, 60, 65]
    assert lanes.ends([40, 30, 25, 20, 10], 2, 50) == [40, 30, math.inf, 50, 50]
    mine = sorted(os.sched_getaffinity(0))
    with mock.patch.object(lanes, "visible", lambda: ["3", "5", "7"]):
        found = lanes.choose("3,5", 2)
        assert [lane.gpu for lane in lanes.choose("all")] == ["3", "5", "7"]
    assert [lane.gpu for lane in found] == ["3", "3", "5", "5"] and {lane.beside for lane in found} == {4}
    assert sorted(c for lane in found for c in lane.cpus or []) == mine or len(mine) < 4
    assert lanes.choose(None) == [lanes.Lane(None, None, 1)] and lanes.alone(found) == [lanes.Lane("3", None, 1)]

    said, seen, failed = [], [], threading.Semaphore(0)
    errors = [ValueError("a broken record"), RuntimeError("no such GPU")]

    def do(lane, name):
        if lane.gpu == "bad":
            failed.release()
            raise errors.pop()
        for _ in range(0 if seen else lanes.MOST_FAILED):
            assert failed.acquire(timeout=60)
        seen.append((name, os.sched_getaffinity(0)))
        return name != seen[0][0]

    with mock.patch.object(lanes, "say", said.append), mock.patch.object(lanes.traceback, "print_exc"):
        both = [lanes.Lane("bad", None, 2), lanes.Lane("good", mine[:1], 2)]
        ended = lanes.share(both, "abcdefgh", do)
    assert sorted(map(str, ended.values())) == ["False", *["None"] * 2, *["True"] * 5], ended
    assert len(said) == 3 and "it gets no more" in said[-1], said
    assert all(cpus == set(mine[:1]) for _, cpus in seen) and set(os.sched_getaffinity(0)) == set(mine)


def check_tables(results, both, last):
    made = table(3, results)
    (ours,), (paper,) = (lines_of(made, "gpt2-60m-both", who) for who in ("ours", "paper"))
    by_scheme = {r["scheme"]["name"]: r["quality"] for r in last}
    assert paper["values"] == [31.83, 32.3, 0.47, 32.18, 0.35, 31.89, 0.06, 33.9, 2.1]
    assert ours["values"] == [last[0]["quality"]["ppl_full"], *(
        by_scheme[name][key] for name in ("coarse", "moderate", "fine", "zeropoint4")
        for key in ("ppl", "penalty"))]
    assert len(lines_of(made, "gpt2-130m", "not run")) == 1 and not lines_of(made, "gpt2-130m", "ours")
    record = made["records"][ours["record"]]
    assert (record["train_tokens"], record["vocab"], record["text"]) == (1280, 300, "valid.txt"), record
    (ours,) = lines_of(table(2, results), "gpt2-60m-both", "ours")
    assert ours["values"][1:] == [both["evaluation"][key] for key in (
        "kurt_token_first", "kurt_token_rest", "max_abs_first", "max_abs_rest", "attn_first_argmax")]
    made = table(4, results)
    assert lines_of(made, "gpt2-1.4b", "ours")[0]["values"][0] > 0
    assert abs(lines_of(made, "gpt2-60m-both", "paper")[0]["values"][2] - 14 / 12) < 1e-12
    assert len(lines_of(made, "gpt2-1.4b-both", "not run")) == 1  # its other run has no speed


def test_paper_runs_are_rows_of_tables(folder):
    """Every run that is trained stands for a row; every group can be asked for."""
    rows = {line["id"] for n in TABLES for line in table(n, support.ROOT / "share/models")["lines"]}
    for name in paper_variants.RUNS:
        assert name.removeprefix("speed-") in rows, name
    done = script("bench/paper_runs.py", "--list")
    assert all(name in done.stdout for name in paper_variants.RUNS) and "s to go on one H100" in done.stdout
    done = script("bench/paper_runs.py", "--list", "--only", "60m", "--gpus", "0,1", "--budget", "300", "--whole",
                  "--results", folder)
    done_without = script("bench/paper_runs.py", "--list", "--gpus", "all", code=2)
    assert "--gpus all: found no GPU" in done_without.stderr, done_without.stderr
    assert "s to go on 2 H100" in done.stdout and done.stdout.count(" fits: ") == 2, done.stdout
    assert "expected 60m, speed" in script("bench/paper_runs.py", "--only", "7m", "--list", code=2).stderr


def test_recorded_runs_can_be_repeated(_):
    """What results/paper keeps of a run names all that another laboratory needs, in options that there are."""
    folder, digests = support.ROOT / "results" / "paper", set()
    known = {verb: expect(qbench("help", verb)).out.decode() for verb in ("train", "analyze", "run")}
    for path in sorted(folder.glob("*/run.json")):
        record = json.loads(path.read_text())
        train = record["sessions"][-1]["command"].split()
        assert all(flag in train for flag in paper_variants.RUNS[record["name"]].flags), path
        assert record["git_commit"] and all(s["gpu"] and s["processor"] and s["version"] and s["exit"] == 0
                                            for s in record["sessions"]), path
        commands = [train]
        if record["group"] != "speed":
            config = record["training"]["config"]
            assert config["seed"] == record["training"]["seed"] and config["steps"] == record["training"]["steps"]
            digests.add((config["context"], config["seed"], record["training"]["data_sha256"]))
            commands.append(json.loads((path.parent / "analysis.json").read_text())["command"].split())
            commands.append(json.loads((path.parent / "results.json").read_text())["results"][0]["command"].split())
        for command in commands:
            verb = command[1] if command[1] in known else "run"
            options = [word for word in command if word.startswith("--")]
            missing = [word for word in options if not re.search(rf"{re.escape(word.split('=')[0])}\b", known[verb])]
            assert command[0] == "qbench" and options and not missing, (path, missing)
    assert len({digest[:2] for digest in digests}) == len(digests), digests  # runs of a kind saw the same windows
    data = json.loads((folder / "data.json").read_text())
    assert data["tokenizer"]["sha256"] and all(len(text["sha256"]) == 64 for text in data["texts"])


# ---- tables ----

def test_tables_of_what_is_recorded(folder):
    """The shipped pair and SmolLM2 stand below the paper's rows, the same in every form. What is above and
    below a table fits a terminal, and what records share is said once."""
    paths = [support.ROOT / "results", support.ROOT / "share" / "models"]
    results = json.loads((paths[1] / "results-valid.json").read_text())["results"]
    made = table(1, *paths)
    vanilla = next(line for line in made["lines"] if line["row"] == "gpt2-8m-vanilla")
    want = {r["scheme"]["name"]: r["quality"]["ppl"] for r in results
            if r["model"]["name"] == "gpt2-8m-vanilla"}
    assert vanilla["values"] == [results[0]["quality"]["ppl_full"], None, *(
        want["zeropoint4" + axis] for axis in ("", "-in", "-g128", "-tensor"))]
    assert any(line["row"].startswith("Smollm2") for line in made["lines"])
    for number in TABLES:
        forms = [folder / f"{number}.{form}" for form in ("json", "csv", "md")]
        screen = expect(qbench("table", number, *paths, *(word for path in forms for word in (
            f"--{path.suffix[1:]}", path)))).out.decode()
        made, rows = json.loads(forms[0].read_text()), list(csv.reader(io.StringIO(forms[1].read_text())))
        assert [len(row) for row in rows] == [5 + len(made["columns"])] * (1 + len(made["lines"]))
        for row, line in zip(rows[1:], made["lines"]):
            assert row[3] == line["who"] and row[5:] == ["" if v is None else row[5 + i]
                                                         for i, v in enumerate(line["values"])]
            assert [float(v) for v in row[5:] if v] == [v for v in line["values"] if v is not None]
            if line["who"] == "not run":
                assert not any(row[5:]), row  # never a number
        mark = forms[2].read_text()
        cells = [line.count("|") for line in mark.splitlines() if line.startswith("|")]
        assert len(set(cells)) == 1 and len(cells) == 2 + len(made["lines"]), cells
        assert screen.startswith(f"Table {number} of arXiv:2410.17174") and "Ours: " in screen
        about = [line for part in screen.split("\n\n")[::2] for line in part.splitlines()]
        assert max(map(len, about)) <= 80 and screen.count("seed") <= 1, screen
        if number == 2:  # of four runs that differ in their names
            assert mark.count("; the rest as [1]; ") == 3 and mark.count("; 261,120 tokens scored") == 1, mark
            assert "56,798.3" in mark and "; seed 42; " in mark, mark


def test_table_joins_what_belongs_together(folder):
    """A run's files by their folder, others by the model; most tokens win; a head of its own is said."""
    results = json.loads((support.ROOT / "share/models/results-builtin.json").read_text())
    more = json.loads(json.dumps(results))
    for r in more["results"]:
        r["quality"]["ppl"] += 1000
    write(folder / "a.json", results)
    write(folder / "b.json", more)  # as many tokens: the first counts
    first = table(3, folder)
    assert len(first["records"]) == 2 and all(line["values"][1] < 1000 for line in first["lines"]
                                              if line["who"] == "ours")
    for r in more["results"]:
        r["protocol"]["scored_tokens"] += 1
        r["coverage"]["kept_float"].remove("output projection")
    write(folder / "b.json", more)
    assert [line["row"] for line in table(1, folder)["lines"]][-1] == "gpt2-8m-ours, head quantised"
    assert [line["row"] for line in table(3, folder)["lines"]][-1] == "gpt2-8m-ours"  # the paper keeps heads
    for r in more["results"]:
        r["coverage"]["kept_float"].append("output projection")
    write(folder / "b.json", more)
    assert all(line["values"][1] > 1000 for line in table(3, folder)["lines"] if line["who"] == "ours")
    sha256 = results["results"][0]["model"]["sha256"]
    write(folder / "c.json", {"schema": "qbench.analysis/1", "model": {"sha256": sha256},
                              "kurt_norm_ratio_correlation": {"first": 0.5, "rest": 0.25}})
    (ours,) = (line for line in table(9, folder)["lines"] if line["who"] == "ours")
    assert ours["row"] == "gpt2-8m-vanilla" and ours["values"] == [0.5, 0.25]
    write(folder / "run" / "analysis.json", {"schema": "qbench.analysis/1", "model": {"sha256": "1"},
                                             "kurt_norm_ratio_correlation": {"first": -1}})
    write(folder / "run" / "run.json", {"schema": "qbench.run/1", "name": "x|y\n", "row": "gpt2-350m"})
    made = table(9, folder)
    assert lines_of(made, "gpt2-350m", "ours")[0]["values"] == [-1, None]
    assert "x|y " in expect(qbench("table", 9, folder)).out.decode()


def is_run(value):
    return isinstance(value, dict) and value.get("schema") == "qbench.run/1"


def test_table_where_nothing_is_recorded(folder):
    """Away from a checkout: what to give, not what could not be opened."""
    done = subprocess.run([support.QBENCH, "table", "3"], cwd=folder, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"no RESULTS: found no folder results here" in done.stderr, done


def test_table_refusals(folder):
    def refused(value, code=3, name="a.json"):
        write(folder / "r" / name, value)
        text = expect(qbench("table", 2, folder / "r"), code).err.decode()
        (folder / "r" / name).unlink()
        return text

    run = {"schema": "qbench.run/1", "row": "gpt2-60m"}
    for broken in ("{", '{"schema": "qbench.run/1"} x', "", "\0"):  # other files may lie there
        assert "left out: " in refused(broken, 0) and "a.json" in refused(broken, 0)
        write(folder / "alone.json", broken)
        expect(qbench("table", 2, folder / "alone.json"), 3)
    assert "training" not in refused({**run, "training": {"tokens": "many"}})
    assert "expected a number" in refused({**run, "evaluation": {"kurt_token_first": "a"}})
    assert "expected a string" in refused({**run, "name": 5})
    assert "expected a string" in refused({**run, "sessions": [{"gpu": {}}]})
    assert "1e+300" in refused({**run, "speed": {"step_per_s": 1e300}})
    assert "results" in refused({"schema": "qbench.results/1"})
    for value in ([], {"schema": 5}, {"schema": "other"}, {}, {**run, "sessions": 5, "training": [],
                  "evaluation": "x"}, {"schema": "qbench.pair/1", "models": [1]}):
        write(folder / "r" / "a.json", value)
        done = expect(qbench("table", 2, folder / "r"))
        assert b"Missing: 16 rows of ours; docs/reproduction.md" in done.out or is_run(value), done
        is_record = isinstance(value, dict) and str(value.get("schema")).startswith("qbench.")
        done = expect(qbench("table", 2, folder / "r" / "a.json"), 0 if is_record else 3)
        assert is_record or b"expected qbench.results/1" in done.err, done
    deep = folder / "deep"
    for i in range(12):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert "inside one another" in expect(qbench("table", 2, folder / "deep"), 3).err.decode()
    os.symlink(folder / "r", folder / "r" / "again")
    assert "inside one another" in expect(qbench("table", 2, folder / "r"), 3).err.decode()
    for word in ("7", "0", "two", "3x", "99999999999999999999"):
        assert "expected 1, 2, 3" in expect(qbench("table", word, folder), 2).err.decode()
    assert "none" in expect(qbench("table", "2", folder / "none"), 3).err.decode()
