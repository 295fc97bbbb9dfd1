"""qbench run on small random models: every output against the schema, every protocol, the
same bits on all integer rows, errors, Ctrl-C."""
import csv
import json
import math
import os
import signal
import statistics
import subprocess
import time
import xml.etree.ElementTree

import schema_check
import support
import tiny_models
from support import expect, qbench

SCHEMA = support.ROOT / "docs" / "result.schema.json"
PROTOCOLS = ["paper", "hf-disjoint", "hf-stride", "llama.cpp", "lm-eval"]
FLOATS_ON_REFERENCE = ["--kernel", "gemm_f32/ref,attention/ref,pointwise/ref"]


def run_json(own, *args, env=None):
    """Runs with --json, checks the file against the schema, gives the list of results."""
    path = own / "r.json"
    expect(qbench("run", "--quiet", "--json", path, *args, env=env))
    errors = schema_check.check(SCHEMA, path)
    assert not errors, errors
    results = json.loads(path.read_text())["results"]
    path.unlink()
    return results


def test_run_writes_every_output(own):
    model = tiny_models.write_hf_folder(own / "m")
    outputs = ["--csv", own / "r.csv", "--md", own / "r.md", "--junit", own / "r.xml",
               "--nll", own / "nll"]
    results = run_json(own, "--scheme", "all", "--max-tokens", 600, *outputs, model)
    names = [r["scheme"]["name"] for r in results]
    assert names[:4] == ["fine", "fine-channel", "moderate", "coarse"], names
    assert names[8:] == ["llm-int8", "smoothquant"], names
    for r in results:
        q, s = r["quality"], r["speed"]
        assert math.isclose(q["penalty"], q["ppl"] - q["ppl_full"], abs_tol=1e-9)
        assert q["penalty_ci95"][0] <= q["penalty"] <= q["penalty_ci95"][1]
        assert q["kl_mean"] >= 0 and q["ppl_fake"] > 1
        w = q["windows"]
        assert sum(w["n"]) == 576 and len(w["n"]) == 9
        assert math.isclose(math.exp(sum(w["nll"]) / 576), q["ppl"], rel_tol=1e-12)
        assert math.isclose(math.exp(sum(w["nll_full"]) / 576), q["ppl_full"], rel_tol=1e-12)
        assert math.isclose(sum(w["kl"]) / 576, q["kl_mean"], rel_tol=1e-12)
        assert math.isclose(sum(w["agree"]) / 576, q["top1_agreement"], rel_tol=1e-12)
        assert r["protocol"] == {"name": "paper", "context": 64, "stride": 65, "batch": 9,
                                 "windows": 9, "scored_tokens": 576}
        for timing in (s["prefill"], s["decode"], s["full"]["prefill"], s["full"]["decode"]):
            assert timing["samples"] >= 10
            assert timing["tok_per_s_ci95"][0] <= timing["tok_per_s"] <= timing["tok_per_s_ci95"][1]
            assert len(timing["samples_ms"]) == timing["samples"]
            assert math.isclose(statistics.median(timing["samples_ms"]), timing["p50_ms"], abs_tol=1e-4)
            assert timing["p50_ms"] <= timing["p90_ms"] <= timing["p99_ms"]
        assert r["coverage"]["linears"] == 5 and r["coverage"]["linears_quantised"] == 4
    with open(own / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scheme.name"] for row in rows] == names
    assert float(rows[0]["quality.ppl"]) == results[0]["quality"]["ppl"]
    assert (own / "r.md").read_text().count("\n| m ") == 10
    assert len(xml.etree.ElementTree.parse(own / "r.xml").findall(".//testcase")) == 10
    assert sorted(p.name for p in (own / "nll").iterdir()) == sorted(
        f"m-{name}.safetensors" for name in names)
    assert not [p for p in own.iterdir() if ".tmp." in p.name]


def test_run_measures_only_what_is_asked_for(own):
    model = tiny_models.write_hf_folder(own / "m")
    [r] = run_json(own, "--no-speed", "--no-fake", "--max-tokens", 300, model)
    assert r["scheme"]["name"] == "coarse"
    assert r["quality"]["ppl_fake"] is None and r["speed"]["prefill"]["tok_per_s"] is None
    assert r["speed"]["prefill"]["samples"] is None and r["memory"]["kv_bytes"] is None
    [r] = run_json(own, "--no-quality", "--scheme", "fine", model)
    assert r["quality"]["ppl"] is None and r["protocol"]["name"] is None
    assert r["speed"]["prefill"]["samples"] >= 10
    [r] = run_json(own, "--no-speed", "--scheme", "full", "--max-tokens", 300, model)
    assert r["quality"]["ppl"] == r["quality"]["ppl_full"] and r["quality"]["penalty"] is None
    assert r["scheme"]["weight_bits"] is None and r["coverage"]["linears_quantised"] == 0


def test_run_of_every_protocol(own):
    model, text = tiny_models.write_hf_folder(own / "m"), own / "t.txt"
    text.write_text("The sea was calm.\n<|endoftext|>\n" + "one two six four five " * 20)
    scored = {}
    for protocol in PROTOCOLS:
        [r] = run_json(own, "--no-speed", "--no-fake", "--scheme", "full", "--text", text,
                       "--protocol", protocol, "--context", 32, model)
        scored[protocol] = r["protocol"]["scored_tokens"]
        assert r["quality"]["ppl_full"] > 1 and r["quality"]["bits_per_byte"] > 0
        words = r["quality"]["word_ppl"]
        assert (words is not None) == (protocol == "lm-eval"), words
    # 17 or 18 bytes, of which "he" is one token, then 440, and one <|endoftext|> between them
    n = scored["lm-eval"]
    assert 450 <= n <= 460, scored
    assert scored["hf-stride"] in (n, n - 1), scored
    assert scored["paper"] % 32 == 0 and scored["hf-disjoint"] % 31 == 0, scored
    assert scored["llama.cpp"] % 15 == 0, scored


def test_run_of_gates_sinks_and_a_free_prefix(own):
    """60 of 64 targets a window; what no scheme quantises is named; a model.bin keeps it all."""
    model, out = tiny_models.write_flags_folder(own / "m"), own / "m.bin"
    expect(qbench("convert", model, out))
    [a], [b] = (run_json(own, "--no-speed", "--max-tokens", 600, m)
                for m in (model, out))
    assert a["quality"] == b["quality"] and a["quality"]["ppl"] > 1
    assert a["model"]["softmax"] == "sink"
    assert a["protocol"]["windows"] == 9 and a["protocol"]["scored_tokens"] == 9 * 60
    kept = a["coverage"]["kept_float"]
    assert "sink logits" in kept and "attention gates" in kept, kept
    assert b"first 4 targets" in expect(qbench("run", "--no-speed", "--max-tokens", 300, out)).err
    text = own / "t.txt"
    text.write_text("one two six " * 50)
    done = expect(qbench("run", "--no-speed", "--protocol", "lm-eval", "--text", text, out), 3)
    assert b"free_prefix" in done.err, done
    expect(qbench("generate", "--prompt", "he", "--max-tokens", 6, out))


def quality_of(own, *args, env=None):
    return [r["quality"] for r in run_json(own, "--no-speed", "--max-tokens", 1000, *args, env=env)]


def test_run_gives_the_same_bits_on_any_integer_rows(own):
    model = tiny_models.write_hf_folder(own / "m")
    args = ["--scheme", "fine,moderate,coarse", *FLOATS_ON_REFERENCE, model]
    best = quality_of(own, *args)
    for disabled in ("avx512", "avx2"):
        assert quality_of(own, *args, env={"QB_DISABLE": disabled}) == best, disabled


def test_run_to_standard_output(own):
    model = tiny_models.write_hf_folder(own / "m")
    base = ["run", "--no-speed", "--max-tokens", 300, model]
    done = expect(qbench(*base))
    screen = done.out.decode()
    assert "penalty" in screen and "coarse" in screen and "\033" not in screen
    assert max(map(len, screen.splitlines())) <= 80, screen
    assert b"built-in text" in done.err
    done = expect(qbench(*base, "--quiet", "--json", "-"))
    assert done.err == b"" and json.loads(done.out)["schema"] == "qbench.results/1"
    other = tiny_models.write_hf_folder(own / "other")
    done = expect(qbench(*base, other, "--quiet"))
    assert done.out.count(b"penalty [95 %]") == 2


def test_run_shrinks_windows_for_a_short_text(own):
    model, text = tiny_models.write_hf_folder(own / "m"), own / "t.txt"
    text.write_text("A short text of some words.")
    base = ["run", "--no-speed", "--device", "cpu", "--text", text, model]
    assert b"windows of" in expect(qbench(*base)).err
    done = expect(qbench(*base, "--context", 64), 3)
    assert b"t.txt: text too short: found 27 tokens, expected at least 65" in done.err, done
    assert done.err.startswith(f"qbench: {text}: ".encode()), done
    expect(qbench(*base, "--context", 64, "--protocol", "hf-stride"))
    expect(qbench(*base, "--context", 65), 2)  # no positions for them


def test_run_of_a_text_of_one_token(own):
    (own / "one.txt").write_text("a")
    model = tiny_models.write_hf_folder(own / "hf")
    done = expect(qbench("run", "--no-speed", "--text", own / "one.txt", model), 3)
    assert b"found 1 tokens, expected at least 3" in done.err, done


def test_run_of_losses_that_are_no_numbers(own):
    """NaN in a row of the embedding: no perplexity, and no trust in what is left."""
    model = tiny_models.write_hf_folder(own / "hf")
    tensors = tiny_models.gpt2_tensors()
    dtype, shape, data = tensors["transformer.wte.weight"]
    row = 4 * tiny_models.D * ord("e")
    data = data[:row] + b"\xff" * (4 * tiny_models.D) + data[row + 4 * tiny_models.D:]
    tensors["transformer.wte.weight"] = (dtype, shape, data)
    (model / "model.safetensors").write_bytes(tiny_models.safetensors(tensors))
    result, = run_json(own, "--no-speed", "--max-tokens", "2000", model)
    assert result["quality"]["ppl"] is None and result["quality"]["penalty"] is None
    assert result["trust"]["level"] == "low" and "NaN" in " ".join(result["trust"]["reasons"])
    done = expect(qbench("run", "--quiet", "--no-speed", "--quantize-head", model), 3)
    assert b"hf: head: weights: found NaN" in done.err, done


def inputs_as_outputs(own, model):
    """Files that options name, or that lie in a model's folder, with commands that would write them."""
    text, tokens, link = own / "t.txt", own / "t.safetensors", own / "link.txt"
    text.write_text("all work and no play " * 20)
    tokens.write_bytes(tiny_models.tokens_file())
    link.symlink_to(text)
    config, tokenizer = own / "hf" / "config.json", own / "hf" / "tokenizer.json"
    quick = ["run", "--quiet", "--no-speed", "--text", text]
    return [
        (text, [*quick, "--json", text, model]), (text, [*quick, "--md", link, model]),
        (config, [*quick, "--json", config, own / "hf"]),
        (model, ["inspect", "--json", model, model]),
        (tokens, ["logits", "--tokens", tokens, "--out", tokens, model]),
        (tokens, ["analyze", "--tokens", tokens, "--csv", tokens, model]),
        (tokenizer, ["convert", "--tokenizer", tokenizer, own / "hf", tokenizer]),
        (text, ["data", "--tokenizer", tokenizer, "--decontaminate", f"{own / 'none'},{text}",
                "--json", text, "-o", own / "d", "/dev/null"]),
        (text, ["train", "--replay", text, "--out", text]),
        (text, ["gate", "--baseline", text, "--json", text, model]),
    ]


def test_outputs_do_not_meet(own):
    """Neither another output nor an input is written over."""
    model = own / "m.bin"
    expect(qbench("convert", "--quiet", tiny_models.write_hf_folder(own / "hf"), model))
    before, same = model.read_bytes(), own / "same"
    quick = ["--quiet", "--no-speed", "--max-tokens", "200"]
    expect(qbench("run", *quick, "--json", same, "--csv", same, model), 2)
    expect(qbench("run", *quick, "--json", model, model), 2)
    assert model.read_bytes() == before and not same.exists()
    for given, command in inputs_as_outputs(own, model):
        before = given.read_bytes()
        done = expect(qbench(*command), 2)
        assert b"found an input as output" in done.err, done
        assert given.read_bytes() == before, command
    limited = support.run("sh", "-c", 'ulimit -f 1; exec "$0" "$@"', support.QBENCH, "run", *quick,
                          "--json", own / "r.json", model)
    assert b"r.json: cannot be written: found" in expect(limited, 3).err, limited
    assert not (own / "r.json").exists()
    support.no_leftovers(own)


def test_streams_in_folders_that_nobody_may_write_to(_):
    """/dev/null is no file beside which another is made; what is refused here is the model."""
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    command = [support.QBENCH, "run", "--quiet", "--json", "/dev/null", "no-such-model"]
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, **user)
    except PermissionError:
        raise support.Skip("another user cannot run the program where it lies") from None
    assert done.returncode == 3 and done.stderr.startswith(b"qbench: no-such-model: "), done


def test_run_refuses(own):
    model = tiny_models.write_hf_folder(own / "m")
    mute = tiny_models.write_hf_folder(own / "mute")
    (mute / "tokenizer.json").unlink()
    expect(qbench("run", "--no-speed", "--no-quality", model), 2)
    expect(qbench("run", "--json", "-", "--csv", "-", model), 2)
    expect(qbench("run", "--quiet", "--stride", 3, model), 2)
    expect(qbench("run", "--scheme", "coarser", model), 2)
    for verb in ("run", "analyze"):
        done = expect(qbench(verb, "--quiet", "--context", 999, model), 2)
        assert done.err.startswith(b"qbench: --context: found 999, expected at most 64 "), done
    expect(qbench("run", "--json", own / "none" / "r.json", model), 3)
    expect(qbench("run", "--quiet", mute), 3)
    expect(qbench("run", "--quiet", model, own / "absent.bin"), 3)
    expect(qbench("run", "--quiet", "--text", own / "absent.txt", model), 3)
    expect(qbench("run", "--device", "cuda", model), 4)
    expect(qbench("run", "--quiet", "--no-quality", "--scheme", "fine", mute))


def test_run_interrupted_leaves_nothing(own):
    model = tiny_models.write_hf_folder(own / "m")
    text = own / "t.txt"
    text.write_text("All work and no play makes a long text. " * 50000)
    process = subprocess.Popen(
        [support.QBENCH, "run", "--quiet", "--scheme", "all", "--json", own / "r.json",
         "--nll", own / "nll", "--text", text, model], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    assert process.poll() is None, "the run ended before the signal"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, (process.returncode, err)
    assert out == b"" and err == b"qbench: interrupted\n", (out, err)
    assert sorted(p.name for p in own.iterdir()) == ["m", "t.txt"]
