"""The verbs on models: tiny ones in every format, SmolLM2 where it was fetched."""
import gzip
import json
import lzma
import os
import re
import shutil
import struct
import subprocess

import data_tests
import gate_tests
import support
import tiny_models
from support import VERBS, expect, models, no_leftovers, qbench, smollm2


def small_run(*args):
    return qbench("--no-speed", "--max-tokens", "256", *args)


def test_inspect_every_format(folder):
    for name, path in models(folder).items():
        done = expect(qbench("inspect", path))
        assert b"tok_embd" in done.out or b"wte" in done.out or b"token_embd" in done.out, done


def test_inspect_json(folder):
    path = models(folder)["model.bin"]
    done = expect(qbench("inspect", "--json", "-", path))
    start = done.out.index(b"{")
    json.loads(done.out[start:])


def test_verify_every_format(folder):
    made = models(folder)
    expect(qbench("verify", *made.values()))


def test_convert_keeps_the_logits(folder):
    """Every format and its model.bin give the same logits; hf, safetensors and llm.c hold
    different weights from gguf."""
    tokens = folder / "tokens.safetensors"
    tokens.write_bytes(tiny_models.tokens_file())
    for name, path in models(folder).items():
        results = []
        converted = folder / f"{name}-converted.bin"
        expect(qbench("convert", path, converted))
        for model in (path, converted):
            out = folder / "out.safetensors"
            expect(qbench("logits", "--quiet", "--tokens", tokens, "--out", out, model))
            results.append(out.read_bytes())
        assert results[0] == results[1], name
    no_leftovers(folder)


def test_convert_compressed_and_back_to_hf(folder):
    path = models(folder)["hf"]
    tokens = folder / "tokens.safetensors"
    tokens.write_bytes(tiny_models.tokens_file())
    expect(qbench("convert", "--zlib", "6", path, folder / "small.bin"))
    expect(qbench("verify", folder / "small.bin"))
    expect(qbench("convert", folder / "small.bin", str(folder / "back") + "/"))
    results = []
    for model in (path, folder / "small.bin", folder / "back"):
        expect(qbench("logits", "--quiet", "--tokens", tokens, "--out", folder / "o", model))
        results.append((folder / "o").read_bytes())
    assert results[0] == results[1] == results[2]


def test_convert_quantized_runs_like_quantizing_at_once(folder):
    path = models(folder)["gguf"]
    tokens = folder / "tokens.safetensors"
    tokens.write_bytes(tiny_models.tokens_file())
    for scheme in ("fine", "moderate", "zeropoint4"):
        expect(qbench("convert", "--quantize", scheme, path, folder / f"{scheme}.bin"))
        results = []
        for model in (path, folder / f"{scheme}.bin"):
            expect(qbench("logits", "--quiet", "--scheme", scheme, "--tokens", tokens, "--out",
                          folder / "o", model))
            results.append((folder / "o").read_bytes())
        assert results[0] == results[1], scheme


def test_tokenize_and_back(folder):
    path = models(folder)["model.bin"]
    for text in ("hello", "  two  spaces\n", "caf\u00e9 \U0001f600", ""):
        ids = expect(qbench("tokenize", path, "-", stdin=text.encode())).out
        assert isinstance(json.loads(ids), list)
        back = expect(qbench("tokenize", "--decode", path, stdin=ids)).out
        assert back == text.encode() or back == text.encode() + b"\n", (text, ids, back)
    assert json.loads(expect(qbench("tokenize", path, stdin=b"hel")).out) == [
        tiny_models.TOKENS.index("hel")]


def test_logits_shapes(folder):
    path = models(folder)["model.bin"]
    tokens, out = folder / "in.safetensors", folder / "out.safetensors"
    tokens.write_bytes(tiny_models.tokens_file(2, 8))
    expect(qbench("logits", "--tokens", tokens, "--out", out, path))
    data = out.read_bytes()
    n, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    assert header["logits"]["shape"] == [2, 8, tiny_models.VOCAB]
    assert header["nll"]["shape"] == [2, 7] and header["nll"]["dtype"] == "F32"
    expect(qbench("logits", "--tokens", tokens, path), 2)


def test_logits_of_four_bits_round_no_inputs(folder):
    """The row for speed holds inputs in 16 bits; logits are those of the values of the weights."""
    path, tokens = models(folder)["model.bin"], folder / "in.safetensors"
    tokens.write_bytes(tiny_models.tokens_file(2, 8))

    def logits(*options):
        out = folder / "out.safetensors"
        expect(qbench("logits", "--scheme", "zeropoint4", *options, "--tokens", tokens, "--out", out,
                      path))
        data = out.read_bytes()
        n = 2 * 8 * tiny_models.VOCAB
        return struct.unpack_from(f"<{n}f", data, 8 + struct.unpack_from("<Q", data)[0])

    exact = logits("--kernel", "gemm_u4/ref")
    for options in ([], ["--kernel", "attention/ref"], ["--fake"]):
        off = max(abs(a - b) for a, b in zip(exact, logits(*options)))
        assert off < 3e-5 * max(map(abs, exact)), (options, off)


def test_logits_refuses_tokens_by_their_file(folder):
    path, tokens, out = models(folder)["hf"], folder / "in.safetensors", folder / "out.safetensors"
    for ids, shape, dtype, message in (
            ([1, -2], [1, 2], "I32", b"tokens: found id -2, expected 0 to 258"),
            ([1, 2, 3, tiny_models.VOCAB], [2, 2], "I32", b"found id 259"),
            ([1] * 65, [1, 65], "I32", b"tokens: found rows of 65, expected at most 64"),
            ([1, 2], [1, 2], "F32", b"dtype: found F32, expected I32"),
            ([1, 2], [2], "I32", b"expected shape (B, T)")):
        data = struct.pack(f"<{len(ids)}i", *ids)
        tokens.write_bytes(tiny_models.safetensors({"tokens": (dtype, shape, data)}))
        for verb in (["logits", "--out", out], ["analyze", "--quiet"]):
            done = expect(qbench(*verb, "--tokens", tokens, path), 3)
            assert message in done.err and b"in.safetensors: " in done.err, (verb, done)
    tokens.write_bytes(tiny_models.tokens_file())
    for to in ("-", tokens, path / "config.json" / "x"):
        done = qbench("logits", "--tokens", tokens, "--out", to, path)
        assert done.code in (2, 3) and done.err.count(b"\n") == 1, done
    assert tokens.read_bytes() == tiny_models.tokens_file() and not out.exists()


def test_generate_is_reproducible(folder):
    path = models(folder)["model.bin"]

    def generate(*args):
        return expect(qbench("generate", path, "--prompt", "hello", "--max-tokens", "20", *args))
    first = generate("--seed", "7")
    assert first.out == generate("--seed", "7", "--threads", "1").out
    assert first.out != generate("--seed", "8").out
    assert generate("--temp", "0").out == generate("--temp", "0", "--seed", "9").out
    assert b"tok/s" in first.err and b"peak memory" in first.err
    assert not generate("--quiet").err
    assert first.out.endswith(b"\n")


def test_generate_stays_in_the_context(folder):
    path = models(folder)["model.bin"]
    done = expect(qbench("generate", path, "--prompt", "a", "--max-tokens", "1000"))
    assert b"leaves room for" in done.err
    expect(qbench("generate", path, "--prompt", "a" * 100), 2)
    expect(qbench("generate", path), 2)
    expect(qbench("generate", path, "--prompt", "-", stdin=b"from standard input"))
    expect(qbench("generate", path, "--prompt", ""))
    expect(qbench("generate", path, "--prompt", "a", "--context", "65"), 2)


def test_generate_under_every_scheme(folder):
    path = models(folder)["model.bin"]
    for scheme in ("full", "fine", "fine-channel", "moderate", "coarse", "zeropoint4",
                   "zeropoint4-in", "zeropoint4-tensor", "zeropoint4-g128", "llm-int8",
                   "smoothquant"):
        expect(qbench("generate", path, "--scheme", scheme, "--prompt", "a", "--max-tokens", "4"))
    done = expect(qbench("generate", path, "--scheme", "fin", "--prompt", "a"), 2)
    assert b"fine" in done.err


def test_generate_without_tokenizer(folder):
    path = models(folder)["llm.c"]
    done = expect(qbench("generate", path, "--prompt", "a"), 3)
    assert b"tokenizer" in done.err


def test_run_writes_every_kind_of_result(folder):
    path = models(folder)["model.bin"]
    files = {kind: folder / f"r.{kind}" for kind in ("json", "csv", "md", "junit")}
    options = [word for kind, file in files.items() for word in (f"--{kind}", file)]
    done = expect(small_run("--scheme", "fine,coarse,zeropoint4", *options, "--nll", folder / "nll",
                            path))
    assert b"coarse" in done.out and b"built-in" in done.out + done.err
    results = json.loads(files["json"].read_text())
    assert results["schema"] == "qbench.results/1" and len(results["results"]) >= 3
    for result in results["results"]:
        assert result["quality"]["ppl_full"] > 1, result
        assert result["speed"]["prefill"]["tok_per_s"] is None, "not measured is null"
    assert all(file.stat().st_size for file in files.values())
    assert list((folder / "nll").iterdir())
    no_leftovers(folder)


def test_run_same_figures_at_any_thread_count(folder):
    path = models(folder)["model.bin"]
    figures = []
    for threads in ("1", "2", "4"):
        file = folder / f"{threads}.json"
        expect(small_run("--scheme", "fine,coarse,zeropoint4", "--threads", threads, "--json", file,
                         path))
        figures.append([r["quality"] for r in json.loads(file.read_text())["results"]])
    assert figures[0] == figures[1] == figures[2]


def test_run_reads_standard_input_and_writes_standard_output(folder):
    path = models(folder)["model.bin"]
    done = expect(qbench("--no-speed", "--text", "-", "--json", "-", "--quiet", path,
                         stdin=b"enough text to fill a window of the tiny model " * 9))
    assert json.loads(done.out)["results"]


def test_run_speed_only(folder):
    path = models(folder)["model.bin"]
    file = folder / "r.json"
    expect(qbench("--no-quality", "--speed-context", "32", "--json", file, path))
    result = json.loads(file.read_text())["results"][0]
    assert result["quality"]["ppl"] is None and result["speed"]["prefill"]["tok_per_s"] > 0


def test_run_usage_errors(folder):
    path = models(folder)["model.bin"]
    for args in (["--scheme", "nosuch"], ["--protocol", "nosuch"], ["--no-speed", "--no-quality"],
                 ["--act-axis", "nosuch"], ["--kernel", "gemm_s8/nosuch"]):
        expect(qbench(*args, path), 2)
    expect(qbench("--device", "cuda", path), 4)


def test_every_verb_reads_what_its_neighbours_write(folder):
    assert set(VERBS) == {"run", "generate", "data", "convert", "inspect", "verify", "tokenize",
                          "logits", "analyze", "train", "presets", "compare", "gate", "watch",
                          "profile", "report", "table", "kernels", "doctor", "help", "version"}, "a verb without tests here"
    path = models(folder)["gguf"]
    expect(qbench("convert", "--dtype", "bf16", path, folder / "b.bin"))
    expect(qbench("verify", folder / "b.bin"))
    expect(qbench("generate", folder / "b.bin", "--prompt", "a", "--max-tokens", "2"))


def documented_examples():
    """The command lines of --help, of README.md and of what is said of results."""
    for verb in VERBS:
        yield from expect(qbench("help", verb)).out.decode().split("\nexamples:\n")[1].splitlines()
    for page in ("README.md", "docs/compare.md", "docs/ci.md", "docs/watch.md", "docs/report.md",
                 "docs/reproduction.md", "docs/profile.md"):
        text = re.sub(r"\\\n +", "", (support.ROOT / page).read_text())  # lines that go on
        yield from (line.replace("build/qbench", "qbench")
                    for line in re.findall(r"^    ((?:build/)?qbench .*)$", text, re.M))


FEW = ["--max-tokens", "2000"]  # of the built-in text: what is shown is that the examples run


def test_documented_examples_run(folder):
    """On tiny models that have the names of the examples."""
    made = models(folder)
    for name, source in {"model.bin": made["model.bin"], "model.gguf": made["gguf"],
                         "tokenizer.json": made["hf"] / "tokenizer.json"}.items():
        shutil.copy(source, folder / name)
    (folder / "in.safetensors").write_bytes(tiny_models.tokens_file())
    (folder / "results").symlink_to(support.ROOT / "results")  # of qbench table
    (folder / "my.txt.gz").write_bytes(gzip.compress(b"A text of my own. " * 200))
    (folder / "train-0.txt.xz").write_bytes(lzma.compress(data_tests.document(1, 1500).encode()))
    (folder / "valid.txt").write_text(data_tests.document(2, 500))
    expect(qbench("run", "--quiet", "--speed-context", "32", *FEW, "--json", folder / "fresh.json",
                  folder / "model.bin"))
    gate_tests.edit(folder / "fresh.json", folder / "before.json", gate_tests.slower(1))
    for run in ("vanilla", "ours"):
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "metrics.jsonl").write_text(
            '{"kind": "train", "step": 1, "loss": 3.5, "tokens": 512}\n')
    for side in ("docs", "before", "after"):
        (folder / side).mkdir()
    shutil.copy(folder / "fresh.json", folder / "after" / "r.json")
    if (support.ROOT / "share" / "models").exists():
        (folder / "share").symlink_to(support.ROOT / "share")
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "qbench").symlink_to(support.QBENCH)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    examples = list(documented_examples())
    assert len(examples) > 2 * len(VERBS)
    for line in examples:
        if "man -l" in line and not shutil.which("man"):
            continue
        if "share/models" in line and not (folder / "share").exists():
            continue
        if "--baseline share/baselines" in line:
            continue  # test_gate_of_a_shipped_model runs it
        if re.search(r"qbench (run )?--scheme|qbench model", line):
            line += " --no-speed"  # the rest of the tests measure speed
            line += "" if FEW[0] in line else " " + " ".join(FEW)
        if "qbench profile" in line:
            line += " --budget 0 --threads 1"  # two threads that others stop often wait long
        if "qbench train" in line:
            line += " --batch 2 --micro-batch 2 --steps 2"
        for name in ("after", "vanilla", "ours", "base", "result"):  # some examples write them
            shutil.copy(folder / "before.json", folder / f"{name}.json")
        shutil.copy(made["model.bin"], folder / "model.bin")
        done = subprocess.run(["sh", "-c", line.strip()], cwd=folder, env=env, timeout=120,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        assert done.returncode == 0, (line, done)


def test_smollm2_knows_some_words(_):
    done = expect(qbench("generate", smollm2(), "--temp", "0", "--max-tokens", "24", "--prompt",
                         "The capital of France is"))
    assert b"Paris" in done.out, done
