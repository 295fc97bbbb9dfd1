"""qbench profile: figures that add up, files by their schema, a trace, kept peaks, sweeps, ends."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import schema_check
import support
import tiny_models
from support import expect, qbench

QUICK = ["--budget", "0.02", "--threads", "1", "--quiet"]
SHIPPED = support.ROOT / "share" / "models" / "gpt2-8m-vanilla.bin"


def profile(own, model, *args):
    """The JSON of a profile, checked against the schema."""
    env = cache(own)
    done = expect(qbench("profile", model, "--json", own / "p.json", *QUICK, *args, env=env))
    faults = schema_check.check(support.ROOT / "docs" / "profile.schema.json", own / "p.json")
    assert not faults, faults
    return json.loads((own / "p.json").read_text()), done.out.decode()


def cache(own):
    """The tests share their peaks, which take a second, but for those that made their own."""
    at = own / "cache" if (own / "cache").exists() else own.parent / "cache"
    return {"XDG_CACHE_HOME": str(at)}


def known_peaks(own):
    """Peaks of a machine that is not busy, in a cache of the test's own."""
    expect(qbench("profile", "--peaks", "--threads", "1", "--quiet",
                  env={"XDG_CACHE_HOME": str(own / "cache")}))
    kept, = (own / "cache" / "qbench").iterdir()
    peaks = json.loads(kept.read_text())
    peaks.update(copy_gb_per_s=20, read_gb_per_s=20, cache_gb_per_s=80, f32_gops_per_s=100,
                 s8_gops_per_s=400)
    kept.write_text(json.dumps(peaks))


def runs(p):
    for operation in p["operations"]:
        for run in (operation["full"], operation["scheme"]):
            if run:
                yield operation, run


def test_profile_adds_up(own):
    p, screen = profile(own, tiny_models.write_hf_folder(own / "m"), "--scheme", "coarse",
                        "--batch", "2", "--context", "16", "--samples")
    assert [o["operation"] for o in p["operations"]] == ["prefill", "decode"]
    assert p["operations"][0]["rows"] == 32 and p["operations"][1]["rows"] == 2
    for operation, run in runs(p):
        phases = {x["phase"]: x for x in run["phases"]}
        assert "gemm" in phases and "head" in phases
        assert ("requantise" in phases) == (run["scheme"] == "coarse"), run["scheme"]
        covered = sum(x["ms"] for x in run["phases"])
        assert abs(covered - run["covered_ms"]) < 1e-9 + 1e-6 * covered
        assert abs(run["ms"] - covered - run["gaps_ms"]) < 1e-9 + 1e-6 * run["ms"]
        assert abs(covered - sum(x["ms"] for x in run["kernels"])) < 1e-9 + 1e-6 * covered
        in_layers = sum(x["ms"] for x in run["layers"])
        assert 0 < in_layers < covered
        assert [x["layer"] for x in run["layers"]] == [*range(1, int(p["model"]["n_layers"]) + 1)]
        assert len(run["samples_ms"]) == run["samples"] == sum(x["n"] for x in run["histogram"])
        assert abs(run["tok_per_s"] * run["ms"] / 1e3 - operation["tokens"]) < 1e-6
        for kernel in run["kernels"]:
            assert kernel["p50_us"] <= kernel["p90_us"] <= kernel["p99_us"], kernel
    for operation in p["operations"]:
        sums = sum(x["difference_ms"] for x in operation["difference"])
        assert abs(sums - (operation["scheme"]["ms"] - operation["full"]["ms"])) < 1e-6
        assert operation["difference"][-1]["phase"] == "gaps"
    assert max(map(len, screen.splitlines())) <= 80, screen
    assert re.search(r"(slowest|p99) [0-9.]+ of \d+\s+passes", screen), screen
    for _, run in runs(p):  # the processor's clock is read for nothing, and a sample is a pass
        assert run["stamp_us"] == 0 and run["passes_a_sample"] == 1
    assert "prefill, 2 x 16 tokens" in screen and "requantise" in screen and "peaks" in screen


def test_profile_of_a_shipped_model_knows_why(own):
    """Multiplying holds a prefill, reading a step; each weight is read once."""
    if not SHIPPED.exists():
        raise support.Skip("share/models is not here")
    known_peaks(own)
    p, _ = profile(own, SHIPPED, "--scheme", "fine", "--context", "64")
    for operation, run in runs(p):
        phases = {x["phase"]: x for x in run["phases"]}
        if operation["operation"] == "prefill":
            assert phases["gemm"]["limit"] == "compute" and operation["sampling_us"] is None
        else:
            assert phases["gemm"]["limit"] == "memory" and operation["sampling_us"] > 0
        assert phases["gemm"]["calls"] == 4 * p["model"]["n_layers"]
        assert phases["head"]["calls"] == 1 and ("quantise" in phases) == (run["scheme"] == "fine")
        weights = phases["gemm"]["bytes"] + phases["head"]["bytes"]
        assert weights > 0.9 * p["model"]["n_params"] * (4 if run["scheme"] == "full" else 1)
    rows = [f for f in p["verdict"] if f["rule"] == "too few rows"]
    assert all(f["operation"] == "decode" and f["engine"] == "scheme" for f in rows), p["verdict"]


def test_profile_of_a_tiny_model_is_launch_bound(own):
    """Four steps of a microsecond each are no work: what it says must be that."""
    known_peaks(own)
    p, screen = profile(own, tiny_models.write_hf_folder(own / "m"), "--scheme", "fine",
                        "--context", "4")
    found = {(f["operation"], f["rule"]) for f in p["verdict"]}
    assert ("decode", "launch-bound") in found, p["verdict"]
    assert "decode, full: launch-bound" in screen, screen


def test_profile_trace(own):
    profile(own, tiny_models.write_hf_folder(own / "m"), "--scheme", "fine", "--trace",
            own / "t.json", "--context", "16", "--batch", "4", "--threads", "2")
    events = json.loads((own / "t.json").read_text())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["ph"] == "M"}
    assert {"prefill, full", "prefill, fine", "decode, full", "decode, fine", "phases",
            "thread 0", "thread 1"} <= names, names
    assert {e["args"]["layer"] for e in events if "layer" in e.get("args", {})} == {1}  # it has one
    for process in range(4):
        at = 0
        for e in events:
            if e["ph"] == "X" and e["pid"] == process and e["tid"] == 0:
                assert e["ts"] >= at - 1e-6 and e["dur"] >= 0 and e["args"]["kernel"], e
                at = e["ts"] + e["dur"]
        assert at > 0


def test_profile_keeps_peaks(own):
    env = {"XDG_CACHE_HOME": str(own / "not" / "yet")}
    done = expect(qbench("profile", "--peaks", "--threads", "1", env=env))
    assert b"copying" in done.out and b"s8   product" in done.out, done
    folder = own / "not" / "yet" / "qbench"
    kept, = folder.iterdir()
    peaks = json.loads(kept.read_text())
    assert peaks["schema"] == "qbench.peaks/1" and peaks["read_gb_per_s"] > 0
    peaks["s8_gops_per_s"] = 98765  # is taken from there, until it is spoilt
    kept.write_text(json.dumps(peaks))
    model = tiny_models.write_hf_folder(own / "m")
    args = ["profile", model, "--budget", "0", "--threads", "1", "--context", "4", "--quiet"]
    assert b"s8 98,765 Gop/s" in expect(qbench(*args, env=env)).out
    assert b"s8   product            98765 Gop/s" in expect(  # the higher one stays
        qbench("profile", "--peaks", "--threads", "1", env=env)).out
    for spoilt in (kept.read_bytes()[:-9], kept.read_bytes().replace(b"peaks/1", b"peaks/9")):
        kept.write_bytes(spoilt)
        done = expect(qbench(*args, env=env))
        assert b"98,765" not in done.out and json.loads(kept.read_text())["key"] == peaks["key"]
    support.no_leftovers(own)
    kept.unlink()
    folder.rmdir()
    folder.write_text("no folder")
    done = expect(qbench(*args[:-1], env=env))
    assert b"note: the peaks are not kept: " in done.err, done


def test_profile_sweep(own):
    model = tiny_models.write_hf_folder(own / "m")
    p, screen = profile(own, model, "--scheme", "fine", "--context", "8",
                        "--sweep", "batch=1..3", "context=4..1000000")
    rows = p["sweep"]["rows"]
    assert [r["batch"] for r in rows[:4]] == [1, 2, 3, 1]
    assert rows[0]["context"] == 4 and rows[-1]["context"] == 1000000
    assert rows[-1]["skipped"] and rows[-1]["decode_tok_per_s"] is None
    assert rows[0]["skipped"] is None and rows[0]["full_decode_tok_per_s"] > 0
    assert len(p["sweep"]["crossover"]) == 2 * len({r["context"] for r in rows})
    assert "sweep, tokens a second" in screen


def test_profile_markdown_and_full_alone(own):
    model = tiny_models.write_hf_folder(own / "m")
    done = expect(qbench("profile", model, *QUICK, "--scheme", "full", "--context", "4", "--md", "-",
                         env=cache(own)))
    text = done.out.decode()
    assert text.startswith("# Profile of ") and "| phase | full ms |" in text, text
    assert "more ms" not in text


def test_profile_stages_without_gates_are_codes(own):
    """Attention has one kernel where no gates follow it: staging its output is quantising alone."""
    p, _ = profile(own, tiny_models.write_hf_folder(own / "m"), "--scheme", "fine", "--context", "8")
    for _, run in runs(p):
        rows = [k["kernel"] for k in run["kernels"] if k["phase"] == "attention"]
        assert len(rows) == 1 and rows[0].startswith("attention/"), rows


def test_profile_refuses(own):
    model = tiny_models.write_hf_folder(own / "m")
    env = cache(own)
    for args, says in ((["profile"], b"found no MODEL"),
                       (["profile", model, "more"], b"found 'more' behind MODEL"),
                       (["profile", model, "--sweep", "batch=0..4"], b"found 'batch=0..4'"),
                       (["profile", model, "--sweep", "batch=4..1"], b"found 'batch=4..1'"),
                       (["profile", model, "--sweep", "width=1"], b"found 'width=1'"),
                       (["profile", model, "--scheme", "nosuch"], b"nosuch"),
                       (["profile", model, "--json", "-", "--md", "-"], b"standard output")):
        done = expect(qbench(*args, env=env), 2)
        assert says in done.err, done
    expect(qbench("profile", own / "absent.bin", env=env), 3)
    expect(qbench("profile", model, "--json", own / "no" / "x.json", env=env), 3)
    expect(qbench("profile", model, "--device", "cuda", env=env), 4)


# What a tool of NVIDIA's does: NVTX loads it, and it takes the place of the two functions.
TOOL = r"""
#include <stddef.h>
#include <stdio.h>
typedef struct callbacks {
    size_t bytes;
    int (*table)(int module, void ****functions, unsigned *n);
} callbacks;
static int depth;
static int push(const char *name) { return fprintf(stderr, "range %d %s\n", depth++, name); }
static int pop(void) { return --depth; }
int InitializeInjectionNvtx2(const void *(*get_table)(unsigned id))
{
    const callbacks *c = get_table(1);
    void ***functions;
    unsigned n;
    if (!c || !c->table(1, &functions, &n) || n < 12) return 0;
    *functions[9] = (void *)push;
    *functions[11] = (void *)pop;
    return 1;
}
"""


def test_profile_ranges_of_nvtx(own):
    """Every prefill and run of steps is a range of its own where a tool looks."""
    if b"NVTX_INJECTION64_PATH" not in pathlib.Path(support.QBENCH).read_bytes():
        raise support.Skip("this build has no NVTX (CUDA=OFF)")
    if not shutil.which("cc"):
        raise support.Skip("there is no cc here")
    (own / "tool.c").write_text(TOOL)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", own / "tool.so", own / "tool.c"], check=True)
    env = {**cache(own), "NVTX_INJECTION64_PATH": str(own / "tool.so")}
    done = expect(qbench("profile", tiny_models.write_hf_folder(own / "m"), "--scheme", "fine", "--context", "4",
                         "--device", "cpu", *QUICK, env=env))
    ranges = re.findall(rb"^range (\d+) (\w+)$", done.err, re.M)
    assert {name for _, name in ranges} == {b"prefill", b"decode"}, done
    assert {depth for depth, _ in ranges} == {b"0"}, done  # each was closed before the next


def test_profile_stops(own):
    """A model that would keep it busy for half a minute."""
    if not SHIPPED.exists():
        raise support.Skip("share/models is not here")
    process = support.start("profile", SHIPPED, "--device", "cpu", "--budget", "60", "--json",
                            own / "p.json", env=cache(own))
    first = process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, (process.returncode, first + err)
    assert not os.path.exists(own / "p.json")
    support.no_leftovers(own)
