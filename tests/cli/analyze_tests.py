"""qbench analyze on tiny models and the pair in share/models: the schema, the same figures at any
batch and number of threads, what options add, errors."""
import csv
import importlib.util
import json
import math
import re
import signal
import statistics
import struct
import sys
import time

import schema_check
import support
import tiny_models
from support import expect, models, qbench

SCHEMA = support.ROOT / "docs" / "analysis.schema.json"
PAIR = support.ROOT / "share" / "models"


def analyze(own, *args):
    path = own / "a.json"
    expect(qbench("analyze", "--quiet", "--json", path, *args))
    errors = schema_check.check(SCHEMA, path)
    assert not errors, errors
    found = json.loads(path.read_text())
    path.unlink()
    return found


def figures(found):
    """All that does not say where, when and how it was measured."""
    texts = [{**text, "protocol": {**text["protocol"], "batch": 0}} for text in found["texts"]]
    return {**{key: value for key, value in found.items()
               if key not in ("environment", "time_utc", "command")}, "texts": texts}


def test_analyze_every_format_and_the_screen(own):
    for name, path in models(own).items():
        if name.startswith("llm.c"):
            assert b"--tokens" in expect(qbench("analyze", path), 3).err
            continue
        found = analyze(own, "--max-tokens", 400, "--maps", path)
        n = found["model"]["n_layers"]
        assert [layer["layer"] for layer in found["layers"]] == list(range(1, n + 1))
        assert found["maps"]["layers"][0]["layer"] is None
        done = expect(qbench("analyze", "--quiet", "--max-tokens", 400, path))
        assert len(re.findall(rb"^(?:\d+|mean) .*%", done.out, re.M)) == n + 1, done


def test_analyze_figures_do_not_depend_on_batch_or_threads(own):
    path = models(own)["gguf"]
    one = analyze(own, "--max-tokens", 900, "--batch", 1, "--threads", 1, path)
    many = analyze(own, "--max-tokens", 900, "--batch", 7, "--threads", 3, path)
    assert figures(one) == figures(many)


def test_analyze_mean_is_that_of_the_layers(own):
    found = analyze(own, "--max-tokens", 600, models(own)["gguf"])
    for key, mean in found["mean"].items():
        values = [layer[key] for layer in found["layers"] if layer[key] is not None]
        assert abs(mean - sum(values) / len(values)) <= 1e-12 * max(1, abs(mean)), key


def test_analyze_tells_texts_apart(own):
    path = models(own)["model.bin"]
    for name, text in (("a", "Once upon a time. " * 90), ("b", "x = [1, 2, 3]; " * 90)):
        (own / name).write_text(text)
    both = analyze(own, "--text", f"{own / 'a'},{own / 'b'}", path)
    again = analyze(own, "--text", own / "a", "--text", own / "b", path)
    assert [text["name"] for text in both["texts"]] == ["a", "b"]
    assert both["heads"] == again["heads"]
    for i, name in enumerate("ab"):
        alone = analyze(own, "--text", own / name, path)
        for head, single in zip(both["heads"], alone["heads"]):
            assert head["dormant_share_by_text"][i] == single["dormant_share"]
    shares = [head["dormant_share_by_text"] for head in both["heads"]]
    apart, at = max((abs(a - b), i) for i, (a, b) in enumerate(shares))
    assert apart > 0
    screen = expect(qbench("analyze", "--quiet", "--text", f"{own / 'a'},{own / 'b'}", "--md",
                           own / "a.md", path)).out.decode()
    found = re.search(r"^heads +layer (\d+) head (\d+): ([\d.]+) % dormant queries on (\w), "
                      r"([\d.]+) % on (\w)$", screen, re.M)
    assert (int(found[1]), int(found[2])) == (both["heads"][at]["layer"], both["heads"][at]["head"])
    for share, name in ((found[3], found[4]), (found[5], found[6])):
        assert abs(float(share) - 100 * shares[at]["ab".index(name)]) < 0.06, screen
    assert "| dormant queries: layer |" in (own / "a.md").read_text()


def test_analyze_bos_begins_each_window(own):
    path, text = models(own)["gguf"], own / "t"
    text.write_text("Once upon a time there was a king. " * 30)
    ids = json.loads(expect(qbench("tokenize", path, text)).out)
    found = analyze(own, "--text", text, "--context", 16, "--bos", path)
    windows = found["texts"][0]["protocol"]["windows"]
    bos = tiny_models.VOCAB - 1  # a window of the protocol `paper` spans one token more
    rows = [[bos, *ids[17 * i + 1:17 * i + 16]] for i in range(windows)]
    tokens = own / "in.safetensors"
    tokens.write_bytes(tiny_models.safetensors({"tokens": (
        "I32", [windows, 16], b"".join(struct.pack("<16i", *row) for row in rows))}))
    same = analyze(own, "--tokens", tokens, path)
    assert found["layers"] == same["layers"] and found["heads"] == same["heads"]
    assert found["texts"][0]["bos"] and not same["texts"][0]["bos"]
    without = analyze(own, "--text", text, "--context", 16, path)
    assert without["layers"][0]["kurt_token_first"] != found["layers"][0]["kurt_token_first"]
    expect(qbench("analyze", "--bos", "--tokens", tokens, path), 2)


def test_analyze_rows_of_tokens_are_windows(own):
    path = models(own)["model.bin"]
    tokens = own / "in.safetensors"
    tokens.write_bytes(tiny_models.tokens_file())
    found = analyze(own, "--tokens", tokens, path)
    protocol = found["texts"][0]["protocol"]
    assert protocol["windows"] * protocol["context"] == found["texts"][0]["tokens"]
    expect(qbench("analyze", "--tokens", tokens, "--text", own / "t", path), 2)
    other = own / "other.safetensors"  # a domain is a file here, too
    other.write_bytes(tiny_models.tokens_file(3, 12))
    both = analyze(own, "--tokens", f"{tokens},{other}", path)
    assert [text["name"] for text in both["texts"]] == [tokens.name, other.name]
    alone = [found, analyze(own, "--tokens", other, path)]
    for head, *single in zip(both["heads"], *(one["heads"] for one in alone)):
        assert head["dormant_share_by_text"] == [one["dormant_share"] for one in single]


def test_analyze_interventions(own):
    path = models(own)["gguf"]
    flags = ["--zero-massive", "--mean-massive", "--zero-first-value", "--drop-first-key"]
    found = analyze(own, "--max-tokens", 600, *flags, "--remove", "mlp:1,head:1.2", path)
    done = {one["name"]: one for one in found["interventions"]}
    assert list(done) == [flag[2:] for flag in flags] + ["mlp:1", "head:1.2"]
    untouched = found["texts"][0]["ppl"]
    assert all(abs(one["ppl_untouched"] / untouched - 1) < 1e-12 for one in done.values())
    assert done["zero-massive"]["values_set"] == 0  # a small random model holds none
    assert done["zero-massive"]["ppl"] == done["zero-massive"]["ppl_untouched"]
    assert done["mlp:1"]["ppl"] != untouched and done["head:1.2"]["ppl"] != untouched
    screen = expect(qbench("analyze", "--quiet", "--max-tokens", 300, "--remove", "attn:1", path))
    assert b"\nattn:1 " in screen.out, screen
    for wrong in ("mlp:2", "head:1.3", "head:1", "tail:1", "mlp:1,"):
        expect(qbench("analyze", "--remove", wrong, path), 2)


def test_analyze_memory_does_not_grow_with_the_text(own):
    path, text = models(own)["gguf"], own / "t"
    text.write_text("Once upon a time there was a king. " * 3000)
    peaks = [expect(qbench("analyze", "--quiet", "--threads", 2, "--text", text, "--max-tokens", n,
                           path)).peak_bytes for n in (4000, 60000)]
    assert peaks[1] < peaks[0] + 2e6, peaks  # the tokens themselves: four bytes each


def test_analyze_page(own):
    """--html: the report's page of this one analysis, with what only interventions bring."""
    path, page = models(own)["gguf"], own / "a.html"
    for name, text in (("a", "Once upon a time. " * 60), ("b", "x = [1, 2, 3]; " * 60)):
        (own / name).write_text(text)
    expect(qbench("analyze", "--quiet", "--text", f"{own / 'a'},{own / 'b'}", "--remove", "mlp:1",
                  "--html", page, path))
    html = page.read_text()
    for words in ("What an intervention costs", "<td>mlp:1</td>", "Norm of values by position",
                  "Root mean square of weights by layer", "Attention of", "Hidden state of",
                  "Heads by their mean weight on the first key", "maximum over norm"):
        assert words in html, words
    tables = re.findall(r"<table.*?</table>", html, re.S)
    for table in tables:
        head, *rows = (len(re.findall("<t[hd]", row)) for row in re.findall("<tr>.*?</tr>", table))
        assert set(rows) <= {head}, table[:300]
    assert len(tables) > 10
    done = expect(qbench("analyze", "--quiet", "--max-tokens", 300, "--html", "-", path))
    assert done.out.startswith(b"<!DOCTYPE html>") and b"script" not in done.out.lower()
    expect(qbench("analyze", "--html", "-", "--json", "-", path), 2)


def numbers_of(path, name):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensor = json.loads(data[8:8 + size])[name]
    begin, end = (8 + size + offset for offset in tensor["data_offsets"])
    return struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])


def test_analyze_tables(own):
    """--csv has every metric of every layer, --md what the screen shows."""
    path, table = models(own)["gguf"], own / "a.csv"
    found = analyze(own, "--max-tokens", 400, "--csv", table, "--md", own / "a.md", "--remove",
                    "mlp:1", "--sensitivity", path)
    head, *rows = csv.reader(table.read_text().splitlines())
    assert head == ["layer", *found["mean"]]
    for name, values in (("embedding", found["embedding"]), ("1", found["layers"][0]),
                         ("mean", found["mean"])):
        [row] = [row for row in rows if row[0] == name]
        assert [float(x) if x else None for x in row[1:]] == [values[key] for key in head[1:]]
    page = (own / "a.md").read_text()
    for words in ("| layer | kurt_token_first |", "| mean |", "| mlp:1 |", "| h.0.mlp.down |"):
        assert words in page, words
    done = expect(qbench("analyze", "--quiet", "--max-tokens", 300, "--csv", "-", path))
    assert done.out.startswith(b"layer,kurt_token_first,") and done.out.count(b"\r\n") == 4
    expect(qbench("analyze", "--csv", "-", "--md", "-", path), 2)


def test_analyze_weights(own):
    made = models(own)
    found = analyze(own, "--max-tokens", 300, made["hf"])
    listed = {weight["name"]: weight for weight in found["weights"]}
    assert len(listed) == len(found["weights"]) and listed["tok_embd"]["layer"] is None
    x = numbers_of(made["safetensors"], "transformer.h.0.mlp.c_proj.weight")
    down, mean = listed["h.0.mlp.down"], statistics.fmean(x)
    second, fourth = (sum((v - mean) ** k for v in x) / len(x) for k in (2, 4))
    for key, value in {"norm": math.hypot(*x), "rms": math.hypot(*x) / math.sqrt(len(x)),
                       "max_abs": max(map(abs, x)), "kurt": fourth / second ** 2}.items():
        assert abs(down[key] / value - 1) < 1e-9, (key, down[key], value)


def test_analyze_a_run_with_its_checkpoint_and_bases(own):
    """Moments of the optimiser's states, and the bases that OrthoAdam stepped in."""
    for optimizer in ("orthoadam", "rmsprop"):
        expect(qbench("train", "--quiet", "--preset", "bb-1l", "--context", 16, "--batch", 2,
                      "--steps", 2, "--warmup", 1, "--d-model", 32, "--d-ff", 64, "--head-dim", 32,
                      "--eval-windows", 4, "--optimizer", optimizer, "--out",
                      own / optimizer))
    tokens = own / "in.safetensors"
    ids = struct.pack("<48i", *(i * 7 % 67 for i in range(48)))
    tokens.write_bytes(tiny_models.safetensors({"tokens": ("I32", [3, 16], ids)}))
    run = own / "orthoadam"
    ckpt = "step-00000002.ckpt"
    found = analyze(own, "--tokens", tokens, "--rotate-output-basis", "--checkpoint", run / ckpt,
                    "--html", own / "a.html", run / "model.bin")
    page = (own / "a.html").read_text()
    assert "Kurtosis of what the MLP adds, by basis" in page and "X Q^T" in page
    assert "Second moment of gradients by layer" in page
    assert found["checkpoint"]["optimizer"] == "orthoadam" and found["checkpoint"]["step"] == 2
    assert all(w["first_moment_rms"] > 0 and w["second_moment_mean"] > 0 for w in found["weights"])
    parts = [(one["layer"], one["part"]) for one in found["output_basis"]]
    assert parts == [(1, "attn"), (1, "mlp")]
    for one in found["output_basis"]:
        assert 1 < one["q"]["rest"] < 12 and one["v"]["rest"] > one["own"]["rest"]
    done = expect(qbench("analyze", "--tokens", tokens, "--rotate-output-basis", run / "model.bin"))
    assert re.search(rb"^bases +kurtosis of what attn adds: X [\d.]+, X Q [\d.]+", done.out, re.M)
    other = own / "rmsprop"
    found = analyze(own, "--tokens", tokens, "--checkpoint", other / ckpt, other / "model.bin")
    assert found["weights"][0]["first_moment_rms"] is None
    assert found["weights"][0]["second_moment_mean"] > 0
    for wrong in (["--checkpoint", other / "model.bin", other / "model.bin"],
                  ["--checkpoint", other / ckpt, models(own)["gguf"]],
                  ["--rotate-output-basis", other / "model.bin"],
                  ["--rotate-output-basis", own / "tiny-gguf"]):
        expect(qbench("analyze", "--tokens", tokens, *wrong), 3)


def check_figures(own, folder, tokens, *options, tolerance=1e-6):
    """Every figure against float64: tools/check_analysis.py."""
    if not importlib.util.find_spec("numpy"):
        raise support.Skip("NumPy is not here")
    found = own / "a.json"
    expect(qbench("analyze", "--quiet", "--json", found, "--tokens", tokens, *options, folder))
    done = support.run(sys.executable, support.ROOT / "tools" / "check_analysis.py", folder, tokens,
                       found, "--tolerance", tolerance, env={"OPENBLAS_NUM_THREADS": "1"})
    assert done.code == 0, f"{folder.name}:\n{done.out.decode()}{done.err.decode()}"


def test_analyze_equals_an_independent_computation(own):
    """On the models that Hugging Face wrote."""
    for name in ("a-gpt2", "a-llama-mha", "a-llama-gqa-tied", "a-llama3-scaled"):
        folder = support.golden(name)
        check_figures(own, folder, folder / "golden.safetensors", "--zero-first-value",
                      "--drop-first-key")


SHARES = re.compile("attn_|sink_alpha|dormant")  # from 0 to 1: differences as they are
SINGLE = re.compile("kurt_channel|act_median")  # one channel's fourth powers, one f32 value


def test_analyze_equals_figures_recorded_in_float64(own):
    """tests/golden/make_analysis.py: what the tests below compute anew, where there is NumPy."""
    recorded = json.loads((support.ROOT / "tests/golden/analysis.json").read_text())
    assert list(recorded) == list(tiny_models.KINDS)
    tokens = own / "in.safetensors"
    tokens.write_bytes(tiny_models.tokens_file(*tiny_models.KIND_TOKENS))
    for name, config in tiny_models.KINDS.items():
        found = analyze(own, "--tokens", tokens, tiny_models.write_kind_folder(own / name, config))
        pairs = [(recorded[name]["mean"], found["mean"])]
        for expected, said in pairs + list(zip(recorded[name]["layers"], found["layers"])):
            for key, value in expected.items():
                unit = 1 if SHARES.match(key) else max(abs(value), 1e-9)
                limit = 1e-6 * (5 if SINGLE.match(key) else 1)
                assert abs(said[key] - value) <= limit * unit, (name, key, said, value)
            assert all(said[key] is None for key in set(said) - set(expected) - {"layer"}), name


def test_analyze_equals_an_independent_computation_of_every_kind(own):
    tokens = own / "in.safetensors"
    tokens.write_bytes(tiny_models.tokens_file(*tiny_models.KIND_TOKENS))
    for name, config in tiny_models.KINDS.items():
        options = ["--zero-first-value", "--remove", "head:1.2,mlp:2,attn:3"]
        if name not in ("relu", "clipped", "free-prefix"):  # weights that sum to one
            options.append("--drop-first-key")
        check_figures(own, tiny_models.write_kind_folder(own / name, config), tokens, *options)


def fill_first_row(path, name, value):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensor = json.loads(data[8:8 + size])[name]
    at, n = 8 + size + tensor["data_offsets"][0], tensor["shape"][1]
    path.write_bytes(data[:at] + struct.pack("<f", value) * n + data[at + 4 * n:])


def test_analyze_what_is_no_number_is_null(own):
    """From the second block on; its mean is not that of the first."""
    model, tokens = tiny_models.write_kind_folder(own / "m", tiny_models.KIND), own / "in.safetensors"
    fill_first_row(model / "model.safetensors", "transformer.h.1.mlp.c_fc.weight", math.nan)
    tokens.write_bytes(tiny_models.tokens_file(2, 9, 61))
    found = analyze(own, "--tokens", tokens, model)
    of_stream = [key for key in found["mean"] if key.startswith(
        ("kurt_", "max_abs", "norm_ratio", "inf_norm", "act_", "massive", "residual"))]
    assert all(found["mean"][key] is None for key in found["mean"])
    for key in of_stream:
        assert found["layers"][0][key] is not None, key
        apart = key.endswith(("attn_out", "norm1", "norm2"))  # before the MLP that spoils
        assert (found["layers"][1][key] is None) != apart, key
    assert [layer["attn_first_argmax"] is None for layer in found["layers"]] == [False, False, True]


def test_analyze_equals_an_independent_computation_at_the_edges(own):
    """Few tokens, no spread at all, values that are massive; and what schemes do to products."""
    tokens = own / "in.safetensors"
    plain = tiny_models.write_kind_folder(own / "plain", tiny_models.KINDS["gqa"])
    for batch, n in ((1, 1), (2, 1), (1, 2), (1, 64), (2, 65)):
        tokens.write_bytes(tiny_models.tokens_file(batch, n, 61))
        check_figures(own, plain, tokens)
    blank = tiny_models.write_kind_folder(own / "blank", tiny_models.KIND | {"pos": "none"})
    fill_first_row(blank / "model.safetensors", "transformer.wte.weight", 0.0)
    ids = struct.pack("<40i", *range(20), *range(20, 30), 0, *range(30, 39))
    tokens.write_bytes(tiny_models.safetensors({"tokens": ("I32", [2, 20], ids)}))
    check_figures(own, blank, tokens)  # token 0 has neither a kurtosis nor a norm
    tokens.write_bytes(tiny_models.tokens_file(3, 20, 8))
    massive = tiny_models.write_kind_folder(own / "massive", tiny_models.KINDS["gqa"], spike=4000.0)
    check_figures(own, massive, tokens, "--zero-massive", "--mean-massive", tolerance=1e-4)
    zeroed = json.loads((own / "a.json").read_text())["interventions"][0]
    assert zeroed["values_set"] == 60, zeroed  # where they begin; later blocks then hold none
    for scheme in ("moderate", "coarse", "zeropoint4"):
        check_figures(own, plain, tokens, "--sensitivity", "--scheme", scheme)


def test_analyze_page_names_every_metric(own):
    page = (support.ROOT / "docs" / "analyze.md").read_text()
    found = analyze(own, "--max-tokens", 300, models(own)["gguf"])
    said = set(re.findall(r"`…(_\w+)`", page))
    for key in found["mean"]:
        whole = re.search(rf"`{key}`", page)
        assert whole or any(key.endswith(end) for end in said), f"docs/analyze.md lacks {key}"
    for key in found:
        assert re.search(rf"`{key}\b", page) or f'"{key}"' in page, f"docs/analyze.md lacks {key}"


def test_analyze_bad_input(own):
    path = models(own)["model.bin"]
    expect(qbench("analyze", "--text", own / "absent", path), 3)
    expect(qbench("analyze", "--tokens", path, path), 3)
    expect(qbench("analyze", "--json", own / "no" / "a.json", path), 3)
    expect(qbench("analyze", "--device", "cuda", path), 4)
    expect(qbench("analyze", "--max-tokens", 1, path), 2)
    (own / "empty").write_text("")
    expect(qbench("analyze", "--text", own / "empty", path), 3)
    for ids, words in (([5, tiny_models.VOCAB], b"in: tokens: found id 259, expected 0 to 258"),
                       ([-1, 5], b"found id -1"), ([0] * 99, b"found rows of 99, expected at most")):
        data = struct.pack(f"<{len(ids)}i", *ids)
        (own / "in").write_bytes(tiny_models.safetensors({"tokens": ("I32", [1, len(ids)], data)}))
        done = qbench("analyze", "--tokens", own / "in", models(own)["hf"])
        assert words in expect(done, 3).err, words


def test_analyze_ends_at_once_when_interrupted(own):
    if not PAIR.exists():
        raise support.Skip("share/models is not here")
    text = own / "long.txt"
    text.write_text((support.ROOT / "README.md").read_text() * 40)
    process = support.start("analyze", "--quiet", "--text", text, "--json", own / "a.json",
                            PAIR / "gpt2-8m-vanilla.bin")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert process.wait(20) == 130, process.stderr.read()
    assert time.monotonic() - start < 3
    assert not (own / "a.json").exists()
    support.no_leftovers(own)


def test_analyze_sensitivity(own):
    model = PAIR / "gpt2-8m-vanilla.bin"
    options = ("--sensitivity", "--max-tokens", 200, "--context", 64, "--device", "cpu", model)
    found = analyze(own, "--scheme", "moderate", *options)["sensitivity"]
    parts, kept = found["parts"], found["kept"]
    assert len(parts) == 32 and found["scheme"]["name"] == "moderate" and found["by"] == "linear"
    assert parts[0]["name"] == "h.3.mlp.down" and parts[0]["cumulative_share"] > 0.5, parts[0]
    assert parts[0]["amax_ratio"] == max(p["amax_ratio"] for p in parts)
    assert parts[0]["sqnr_db"] == min(p["sqnr_db"] for p in parts)
    assert abs(parts[-1]["cumulative_share"] - 1) < 1e-9
    assert kept[0]["n"] == 1 and kept[0]["ppl"] == parts[0]["ppl_without"]
    run = own / "run.json"
    expect(qbench("run", "--quiet", "--no-speed", "--no-fake", "--json", run, "--scheme", "moderate",
                  "--batch", found["windows"], *options[1:]))
    [result] = json.loads(run.read_text())["results"]
    for key, figure in (("ppl", "ppl"), ("ppl_full", "ppl_full")):
        assert abs(result["quality"][key] - found[figure]) < 1e-9 * found[figure], key


def test_analyze_sensitivity_by_block_and_role(own):
    model = models(own)["gguf"]
    n_layers = analyze(own, "--max-tokens", 99, model)["model"]["n_layers"]
    for by, n_parts in (("layer", n_layers), ("role", 4)):
        found = analyze(own, "--sensitivity", "--by", by, "--scheme", "smoothquant", "--max-tokens",
                        300, model)["sensitivity"]
        assert len(found["parts"]) == n_parts, found["parts"]
        assert {p["layer"] is None for p in found["parts"]} == {by == "role"}
        names = {p["name"] for p in found["parts"]}
        assert by == "role" or names == {f"layer {i + 1}" for i in range(n_layers)}, names
    done = expect(qbench("analyze", "--quiet", "--sensitivity", "--by", "role", "--max-tokens", 300,
                         model))
    assert b"alone " in done.out and b"mlp.down" in done.out, done
    assert max(len(line) for line in done.out.decode().splitlines()) <= 80, done
    expect(qbench("analyze", "--quiet", "--sensitivity", "--scheme", "full", model), 2)
    expect(qbench("analyze", "--sensitivity", "--by", "head", model), 2)
