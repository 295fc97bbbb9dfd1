"""qbench compare and gate: exit codes, every output, models run by the gate itself, and regressions
put in on purpose: a perturbed weight, another rounding, a slower kernel, slower samples, a worse window."""
import array
import hashlib
import json
import math
import os
import re
import struct
import subprocess
import textwrap
import xml.etree.ElementTree

import support
import tiny_models
from support import expect, no_leftovers, qbench

QUALITY = ["--no-speed", "--no-fake", "--max-tokens", 2000]


def words(text):
    """Without the places where lines end."""
    return " ".join(text.split())


def record(model, path, *args):
    expect(qbench("run", "--quiet", "--json", path, *args, model))
    return path


def edit(path, out, change):
    """A copy of a result file whose records were changed."""
    results = json.loads(path.read_text())
    for r in results["results"]:
        change(r)
    out.write_text(json.dumps(results))
    return out


def change_tensors(path, choose, change):
    """Values (f32) of the tensors of a safetensors file whose name and entry are chosen."""
    data = bytearray(path.read_bytes())
    n, = struct.unpack_from("<Q", data)
    for name, entry in json.loads(data[8:8 + n]).items():
        if name == "__metadata__" or not choose(name, entry):
            continue
        begin, end = (8 + n + at for at in entry["data_offsets"])
        data[begin:end] = array.array("f", change(array.array("f", bytes(data[begin:end])))).tobytes()
    path.write_bytes(data)


def scale_tensor(path, which, factor):
    change_tensors(path, lambda name, _: name == which, lambda values: [factor * x for x in values])


def round_down(values):
    """To 8-bit codes of one scale, down in place of to the nearest: those that moderate rounds to again."""
    scale = max(max(values), -min(values)) / 127
    return [math.floor(x / scale) * scale for x in values]


def slower(factor):
    def change(r):
        for timing in (r["speed"]["prefill"], r["speed"]["decode"]):
            # steady samples, since those of a busy machine may hide 5 %
            timing["samples_ms"] = [factor * (10 + 0.01 * (i % 7)) for i in range(40)]
            timing["tok_per_s"] = 100 / factor
    return change


def test_compare_of_a_result_with_itself(own):
    model = tiny_models.write_hf_folder(own / "m")
    a = record(model, own / "a.json", "--scheme", "fine,coarse", *QUALITY)
    screen = expect(qbench("compare", a, a)).out.decode()
    assert screen.count("SAME") == 10 and "WORSE" not in screen and "\033" not in screen, screen
    assert max(map(len, screen.splitlines())) <= 100
    done = expect(qbench("compare", a, a, "--json", "-", "--md", own / "c.md"))
    comparison = json.loads(done.out)
    assert comparison["schema"] == "qbench.comparison/1"
    assert [p["scheme"] for p in comparison["pairs"]] == ["fine", "coarse"]
    ppl = comparison["pairs"][0]["figures"]["ppl"]
    assert ppl["change"] == 0 and ppl["change_ci95"] == [0, 0] and ppl["verdict"] == "SAME"
    assert (own / "c.md").read_text().count("| SAME |") == 10


def test_compare_refuses_what_differs(own):
    model = tiny_models.write_hf_folder(own / "m")
    a = record(model, own / "a.json", "--scheme", "fine", *QUALITY)

    def other_text(r):
        r["text"]["sha256"] = "00"

    done = expect(qbench("compare", a, edit(a, own / "b.json", other_text)), 3)
    assert b"text.sha256: found 00, expected" in done.err, done
    broken = own / "broken.json"
    broken.write_text(a.read_text().replace('"ppl": ', '"ppl": "x", "y": '))
    done = expect(qbench("compare", a, broken), 3)
    assert b"broken.json: results[0].quality.ppl: found a text, expected a number" in done.err
    expect(qbench("compare", a, own / "absent.json"), 3)
    expect(qbench("compare", a, model / "model.safetensors"), 3)
    expect(qbench("compare", a), 2)
    expect(qbench("compare", a, a, "--margin-ppl", "1"), 2)
    expect(qbench("compare", a, a, "--json", "-", "--md", "-"), 2)


def test_compare_across_models(own):
    a = record(tiny_models.write_hf_folder(own / "m"), own / "a.json", "--scheme", "fine", *QUALITY)
    b = record(tiny_models.write_hf_folder(own / "n"), own / "b.json", "--scheme", "fine", *QUALITY)
    done = expect(qbench("compare", a, b), 3)
    assert b"model.name: found n, expected m" in done.err
    assert b"m -> n, fine" in expect(qbench("compare", "--across", a, b)).out


def compared(x, y, code=0):
    """The pair that `compare` finds, or its message where it fails."""
    done = expect(qbench("compare", x, y, "--json", "-"), code)
    return json.loads(done.out)["pairs"][0] if not code else done.err.decode()


def records_with_losses(own):
    """Of a model and of the same model a little changed: FOLDER/r.json beside FOLDER/nll."""
    model = tiny_models.write_hf_folder(own / "m")
    options = ["--scheme", "fine", *QUALITY]

    def recorded(name):
        (own / name).mkdir()
        return record(model, own / name / "r.json", *options, "--nll", own / name / "nll")

    a = recorded("a")
    scale_tensor(model / "model.safetensors", "transformer.wte.weight", 1.02)
    return a, recorded("b")


def test_compare_reads_the_losses_of_tokens(own):
    """Files of --nll that both records name are used where they are those; said in every output."""
    a, b = records_with_losses(own)

    def plain(path):  # as of a run without --nll
        return edit(path, path.with_name("plain.json"), lambda r: r["quality"].update(nll_file=None))

    by_tokens, by_windows = compared(a, b), compared(plain(a), plain(b))
    assert by_tokens["quality_from"] == "tokens" and by_windows["quality_from"] == "windows"
    assert by_tokens["figures"] == by_windows["figures"]  # below 2,048 windows they are the same sums
    assert not [note for note in by_tokens["notes"] if "losses" in note]
    said = f"quality from the losses of each token, {by_tokens['windows']} windows in pairs"
    done = expect(qbench("compare", a, b, "--md", own / "c.md")).out.decode()
    assert said in words(done) and said in (own / "c.md").read_text(), done
    done = expect(qbench("gate", "--quiet", "--baseline", a, "--max-ppl-delta", "50%", b))
    assert said in words(done.out.decode())
    assert max(map(len, done.out.decode().splitlines())) <= 80, done.out.decode()
    assert "quality from the records' sums" in expect(qbench("compare", plain(a), b)).out.decode()

    # One record moved with its folder finds its file beside it; records older than the key are read.
    (own / "a").rename(own / "moved")
    a = own / "moved" / "r.json"
    assert compared(a, b)["quality_from"] == "tokens"
    old = edit(a, own / "old.json", lambda r: r["quality"].pop("nll_file"))
    assert compared(old, b)["quality_from"] == "windows"

    # Another file than the recorded one is none; that is said, with the field.
    nll = next((own / "moved" / "nll").iterdir())
    whole = nll.read_bytes()
    for data, field in ((whole + b" ", "bytes"), (whole[:-1] + bytes([whole[-1] ^ 1]), "sha256")):
        nll.write_bytes(data)
        pair = compared(a, b)
        assert pair["quality_from"] == "windows" and f"quality.nll_file.{field}: found" in pair[
            "notes"][0], pair
    nll.unlink()
    assert "not found" in compared(a, b)["notes"][0]


def put(name, at, value):
    """A change of {name: (dtype, shape, data)}: one value."""
    def change(tensors):
        dtype, shape, data = tensors[name]
        form, width = {"I32": ("<i", 4), "F64": ("<d", 8), "U8": ("B", 1)}[dtype]
        at_byte = at % shape[0] * width
        tensors[name] = (dtype, shape, data[:at_byte] + struct.pack(form, value) +
                         data[at_byte + width:])
    return change


def retype(name, dtype, shape=None):
    return lambda tensors: tensors.update({name: (dtype, shape or tensors[name][1], tensors[name][2])})


def test_compare_refuses_losses_that_contradict(own):
    """The recorded file that contradicts its record, or the other side, is refused."""
    a, b = records_with_losses(own)
    nll = next((own / "a" / "nll").iterdir())
    whole = nll.read_bytes()
    size, = struct.unpack_from("<Q", whole)
    header = json.loads(whole[8:8 + size])

    def forged(change, expected):
        tensors = {k: (t["dtype"], t["shape"], whole[8 + size + t["data_offsets"][0]:
                                                   8 + size + t["data_offsets"][1]])
                   for k, t in header.items() if k != "__metadata__"}
        change(tensors)
        data = tiny_models.safetensors(tensors)
        nll.write_bytes(data)
        named = {"path": "nll/" + nll.name, "bytes": len(data),
                 "sha256": hashlib.sha256(data).hexdigest()}
        c = edit(a, own / "a" / "forged.json", lambda r: r["quality"].update(nll_file=named))
        found = compared(b, c, code=3)
        assert nll.name in found and expected in found, found

    n = header["nll"]["shape"][0]
    forged(put("target", 3, 1 << 20), "target[3]: found 1048576, expected")
    forged(put("window", 0, 1), "window[0]: found 1")
    forged(put("window", -1, 0), f"window[{n - 1}]: found 0")
    forged(put("agree", 1, 2), "agree[1]: found 2, expected 0 or 1")
    forged(put("nll", 0, 1e6), "nll: perplexity: found")
    forged(put("nll_full", 0, float("nan")), "nll_full: perplexity: found nan")
    forged(retype("nll", "I64"), "nll: found I64, expected f64")
    forged(retype("kl", "F64", [1, n]), "kl: found rank 2, expected 1")
    forged(lambda t: t.pop("window"), "window: found nothing")
    forged(lambda t: t.update(agree=("U8", [1], b"\0")), "agree: found 1 elements, expected")


def test_gate_exit_codes_and_outputs(own):
    model = tiny_models.write_hf_folder(own / "m")
    a = record(model, own / "a.json", "--scheme", "fine", "--max-tokens", 2000, "--no-fake")
    a = edit(a, own / "steady.json", slower(1))
    gate = ["gate", "--quiet", "--baseline", a]  # --quiet: notes would be lines of their own
    limits = ["--max-ppl-delta", "0.5%", "--max-slowdown", "3%", "--max-memory-growth", "2%"]
    kept = expect(qbench(*gate, *limits, a)).out.decode()
    assert kept.count("kept ") == 4 and "limits: 4 kept, 0 broken, 0 undecided" in kept, kept

    slow = edit(a, own / "slow.json", slower(1.05))
    done = expect(qbench(*gate, *limits, "--junit", own / "g.xml", "--md", own / "g.md", "--json",
                         own / "g.json", slow), 1)
    assert done.out.count(b"broken ") == 2 and b"max-slowdown 3%" in done.out, done
    assert b"slow.json: found 2 of 4 limits broken, expected none" in done.err
    suite = xml.etree.ElementTree.parse(own / "g.xml").getroot()
    assert suite.get("failures") == "2" and len(suite.findall(".//failure")) == 2
    assert "## qbench gate: broken" in (own / "g.md").read_text()
    outcomes = [x["outcome"] for x in json.loads((own / "g.json").read_text())["limits"]]
    assert outcomes.count("broken") == 2
    expect(qbench(*gate, "--max-slowdown", "10%", slow))

    def other_machine(r):
        r["environment"]["cpu"] = "another"

    other = edit(a, own / "other.json", other_machine)
    done = expect(qbench(*gate, *limits, other), 5)
    assert done.out.count(b"undecided ") == 2 and b"environment.cpu was" in done.out, done
    expect(qbench(*gate, *limits, "--strict", other), 1)

    def worse_window(r):  # 1 % in perplexity
        w = r["quality"]["windows"]
        w["nll"] = [x + 0.01 * n for x, n in zip(w["nll"], w["n"])]

    done = expect(qbench(*gate, edit(a, own / "worse.json", worse_window)), 1)
    assert b"perplexity" in done.out and b"max-ppl-delta 0.5%" in done.out, done

    def other_scheme(r):
        r["scheme"]["name"] = "gone"

    two = json.loads(a.read_text())
    two["results"] += json.loads(edit(a, own / "x.json", other_scheme).read_text())["results"]
    (own / "two.json").write_text(json.dumps(two))
    done = expect(qbench("gate", "--quiet", "--baseline", own / "two.json", a), 3)
    assert b"found no record of m, gone" in done.err, done


def test_gate_limits_of_files_and_usage(own):
    model = tiny_models.write_hf_folder(own / "m")
    a = record(model, own / "a.json", "--scheme", "fine,coarse", *QUALITY)
    limits = own / "limits.json"
    limits.write_text('{"limits": {"max-ppl-delta": "1%"}, "schemes": {"coarse": {"max-penalty": 0}}}')
    gate = ["gate", "--baseline", a, a]
    done = qbench(*gate, "--limits", limits)
    assert done.code in (1, 5) and b"coarse: penalty" in done.out and b"fine: penalty" not in done.out
    assert b"no limit is given" in expect(qbench(*gate)).err
    limits.write_text('{"limits": {"max-pl-delta": "1%"}}')
    done = expect(qbench(*gate, "--limits", limits), 3)
    assert b"did you mean max-ppl-delta" in done.err, done
    expect(qbench(*gate, "--max-kl", "1%"), 2)
    expect(qbench(*gate, "--max-slowdown", "fast"), 2)
    expect(qbench(*gate, a, "--quiet"), 2)
    expect(qbench("gate", a), 2)
    expect(qbench("gate", "--quiet", "--baseline", own / "absent.json", a), 3)
    expect(qbench("gate", "--quiet", "--baseline", a, own / "absent.bin"), 3)


def test_gate_on_github(own):
    model = tiny_models.write_hf_folder(own / "m")
    a = record(model, own / "a.json", "--scheme", "fine", *QUALITY)
    (own / "summary.md").write_text("before\n")
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(own / "summary.md")}
    done = qbench("gate", "--quiet", "--baseline", a, "--min-top1", "99.99%", a, env=env)
    assert done.code in (1, 5), done
    assert f"file={a},title=qbench min-top1::m, fine: top-1".encode() in done.out, done
    summary = (own / "summary.md").read_text()
    assert summary.startswith("before\n## qbench gate: ") and "| fine |" in summary
    done = qbench("gate", "--quiet", "--baseline", a, "--min-top1", "99.99%", a)
    assert b"::" not in done.out


def test_gate_updates_the_baseline(own):
    model = tiny_models.write_hf_folder(own / "m")
    a = record(model, own / "a.json", "--scheme", "fine", *QUALITY)
    base = own / "base.json"
    done = expect(qbench("gate", "--baseline", base, "--update-baseline", a))
    assert b"base.json: made" in done.err and base.read_bytes() == a.read_bytes()

    def heavier(r):
        r["memory"]["weights_bytes"] *= 2

    b = edit(a, own / "b.json", heavier)
    expect(qbench("gate", "--quiet", "--baseline", base, "--max-memory-growth", "2%", b), 1)
    assert base.read_bytes() == a.read_bytes()
    done = expect(qbench("gate", "--baseline", base, "--max-memory-growth", "2%",
                         "--update-baseline", b))
    assert b"although limits are broken" in done.err and b"broken " in done.out
    assert json.loads(base.read_text()) == json.loads(b.read_text())
    no_leftovers(own)


def test_gate_runs_the_model(own):
    """As the baseline was run: the same bits where nothing changed, exit 1 where a weight did."""
    model = tiny_models.write_hf_folder(own / "m")
    base = record(model, own / "base.json", "--scheme", "fine,coarse", "--no-speed", "--batch", 3,
                  "--protocol", "hf-disjoint", "--context", 48, "--max-tokens", 1500)
    gate = ["gate", "--quiet", "--baseline", base, "--max-memory-growth", "0%", "--max-ppl-delta"]
    kept = expect(qbench(*gate, "0%", model)).out
    assert kept.count(b"perplexity equal") == 2, kept
    worse = tiny_models.write_hf_folder(own / "new" / "m")
    scale_tensor(worse / "model.safetensors", "transformer.wte.weight", 1.05)
    done = expect(qbench(*gate, "0.5%", worse), 1)
    assert done.out.count(b"broken ") == 2 and done.out.count(b": perplexity +") == 2, done
    text = own / "t.txt"
    text.write_text("Another text altogether. " * 100)
    done = expect(qbench(*gate, "1%", "--text", text, model), 3)
    assert b"text.sha256" in done.err, done
    expect(qbench(*gate, "1%", own / "new"), 3)


def shipped():
    model, base = (support.ROOT / "share" / path for path in
                   ("models/gpt2-8m-ours.bin", "baselines/gpt2-8m.json"))
    if not model.exists():
        raise support.Skip("share/models/gpt2-8m-ours.bin is not here")
    return model, base


def test_gate_catches_a_slower_kernel(own):
    """On a model so large that the reference takes many times as long, with a limit that noise of
    other programs does not reach."""
    model, _ = shipped()
    if b"gemm_s8/avx" not in expect(qbench("kernels")).out:
        raise support.Skip("this processor has no row that is faster than the reference")
    alone = ["--threads", 1]  # two that others stop wait for each other
    base = record(model, own / "base.json", "--scheme", "fine", "--no-quality", "--speed-context", 8, *alone)
    done = qbench("gate", "--quiet", "--baseline", base, "--max-slowdown", "30%", "--kernel", "gemm_s8/ref",
                  *alone, model)
    assert done.code == 1 and b"broken     gpt2-8m-ours, fine: prefill" in done.out, done


def test_gate_of_a_shipped_model(own):
    """Kept as it is; broken with one tensor of 33 by half larger, and with another softmax."""
    model, base = shipped()
    results = json.loads(base.read_text())
    results["results"] = [r for r in results["results"] if r["scheme"]["name"] == "fine"]
    (own / "base.json").write_text(json.dumps(results))
    gate = ["gate", "--quiet", "--baseline", own / "base.json", "--max-ppl-delta", "0.5%"]
    kept = expect(qbench(*gate, model))
    assert kept.out.startswith(b"kept       gpt2-8m-ours, fine: perplexity"), kept
    gate[gate.index(own / "base.json")] = record(model, own / "few.json", "--scheme", "fine", *QUALITY)
    folder = own / "gpt2-8m-ours"
    expect(qbench("convert", "--quiet", "--dtype", "f32", model, own / "f32.bin"))
    expect(qbench("convert", "--quiet", own / "f32.bin", f"{folder}/"))
    scale_tensor(folder / "model.safetensors", "transformer.h.2.mlp.c_proj.weight", 1.5)
    done = expect(qbench(*gate, folder), 1)
    assert b"broken     " in done.out, done
    other = own / "other.bin"
    expect(qbench("convert", "--quiet", "--softmax", "softmax", "--name", "gpt2-8m-ours", model, other))
    assert b"broken     gpt2-8m-ours" in expect(qbench(*gate, other), 1).out


def test_gate_catches_another_rounding(own):
    """Codes of all blocks rounded down: 2 % of perplexity here, which a limit of 0.5 % must not let through."""
    model, _ = shipped()
    base = record(model, own / "base.json", "--scheme", "moderate", "--max-tokens", 4096, "--no-speed", "--no-fake")
    folder = own / "gpt2-8m-ours"
    expect(qbench("convert", "--quiet", "--dtype", "f32", model, own / "f32.bin"))
    expect(qbench("convert", "--quiet", own / "f32.bin", f"{folder}/"))
    gate = ["gate", "--quiet", "--baseline", base, "--max-ppl-delta", "0.5%"]
    expect(qbench(*gate, folder))
    change_tensors(folder / "model.safetensors", lambda name, entry: ".h." in name and len(entry["shape"]) == 2,
                   round_down)
    assert b"broken     gpt2-8m-ours, moderate: perplexity +" in expect(qbench(*gate, folder), 1).out


def test_gate_step_of_the_action(own):
    """The script of action.yml as the runner would run it."""
    model = tiny_models.write_hf_folder(own / "m")
    base = record(model, own / "base.json", "--scheme", "fine", *QUALITY)
    action = (support.ROOT / "action.yml").read_text()
    script = textwrap.dedent(action.split("      run: |\n")[1])
    inputs = dict(re.findall(r"^        (\w+): \$\{\{ inputs\.(\w+) \}\}", action, re.M))
    assert sorted(inputs.values()) == ["baseline", "junit", "limits", "target"]
    for limit, code in (("1%", 0), ("99.999%", 1)):
        env = {**support.BASE_ENV, "QBENCH": support.QBENCH, "BASELINE": str(base),
               "TARGET": str(model), "LIMITS": f"--max-ppl-delta 1% --min-top1 {limit}",
               "JUNIT": "gate.xml"}
        done = subprocess.run(["sh", "-e", "-c", script], cwd=own, env=env, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == code, done
        assert (b"::error file=" in done.stdout) == bool(code), done
        assert (own / "gate.xml").exists()
    assert os.path.exists(support.ROOT / "Makefile") and "make PRESET=cpu" in action


def test_tutorial_from_a_model_to_a_gate(own):
    """The commands of docs/tutorial.md in their order, with the exit codes it promises."""
    shipped()
    page = (support.ROOT / "docs" / "tutorial.md").read_text()
    commands = re.findall(r"^    build/(qbench .*?)(?:  # exit code (\d))?$", page, re.M)
    assert len(commands) == 7, commands
    (own / "share").symlink_to(support.ROOT / "share")
    (own / "qbench").symlink_to(support.QBENCH)
    env = {**support.BASE_ENV, "PATH": f"{own}:{os.environ['PATH']}"}
    for command, code in commands:
        done = subprocess.run(["sh", "-c", command], cwd=own, env=env, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == int(code or 0), (command, done)
    assert (own / "history.jsonl").read_text().count("\n") == 2
