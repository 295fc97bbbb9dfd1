"""What convert may change on the way, and what it refuses; inspect's figures."""
import json
import os
import stat
import struct

import gguf_blocks
import tiny_models
from support import expect, models, no_leftovers, qbench


def inspect(path, *args):
    return json.loads(expect(qbench("inspect", "--json", "-", *args, path)).out)


def logits(folder, model, *args):
    tokens, out = folder / "tokens.safetensors", folder / "logits.safetensors"
    tokens.write_bytes(tiny_models.tokens_file())
    expect(qbench("logits", "--quiet", *args, "--tokens", tokens, "--out", out, model))
    return out.read_bytes()


def floats(safetensors, name):
    """The numbers of an f32 tensor."""
    header = struct.unpack_from("<Q", safetensors)[0]
    tensor = json.loads(safetensors[8:8 + header])[name]
    begin, end = tensor["data_offsets"]
    assert tensor["dtype"] == "F32", tensor
    return struct.unpack_from(f"<{(end - begin) // 4}f", safetensors, 8 + header + begin)


def test_convert_says_what_it_wrote(folder):
    source, out = models(folder)["gguf"], folder / "out.bin"
    done = expect(qbench("convert", source, out))
    assert done.out.count(b"\n") == 1 and str(out).encode() in done.out, done
    assert b"tensors" in done.out and b"gguf" in done.out, done
    assert not expect(qbench("convert", "--quiet", source, out)).out
    report = inspect(out)
    assert report["format"] == "model.bin" and report["bytes"] == out.stat().st_size
    assert report["tokenizer"]["vocab"] == tiny_models.VOCAB


def test_convert_twice_gives_the_same_bytes(folder):
    source = models(folder)["gguf"]
    for options in ([], ["--zlib", "6"], ["--quantize", "fine"]):
        for name, threads in (("a.bin", 1), ("b.bin", 3)):
            expect(qbench("convert", "--threads", threads, *options, source, folder / name))
        assert (folder / "a.bin").read_bytes() == (folder / "b.bin").read_bytes(), options
    expect(qbench("convert", "--quantize", "fine", folder / "a.bin", folder / "c.bin"))
    assert (folder / "a.bin").read_bytes() == (folder / "c.bin").read_bytes()


def test_convert_never_writes_over_its_input(folder):
    expect(qbench("convert", models(folder)["gguf"], folder / "in.bin"))
    before = (folder / "in.bin").read_bytes()
    os.symlink(folder / "in.bin", folder / "soft.bin")
    os.link(folder / "in.bin", folder / "hard.bin")
    for out in ("in.bin", "soft.bin", "hard.bin"):
        done = expect(qbench("convert", "--zlib", "1", folder / "in.bin", folder / out), 2)
        assert b"input" in done.err, done
    assert (folder / "in.bin").read_bytes() == before
    hf = models(folder)["hf"]
    expect(qbench("convert", hf, hf), 2)
    expect(qbench("convert", hf, hf / "model.safetensors"), 2)
    expect(qbench("verify", hf))
    no_leftovers(folder)


def test_convert_never_replaces_a_device_or_folder(folder):
    source = models(folder)["gguf"]
    assert b"a device" in expect(qbench("convert", source, "/dev/null"), 3).err
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    expect(qbench("inspect", "--json", "/dev/null", source))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    expect(qbench("convert", source, folder / "no" / "such" / "folder.bin"), 3)


def test_convert_dtype(folder):
    source = models(folder)["gguf"]
    for dtype in ("f32", "f16", "bf16"):
        out = folder / f"{dtype}.bin"
        expect(qbench("convert", "--dtype", dtype, source, out))
        for tensor in inspect(out)["tensors"]:
            vector = tensor["shape"][0] == 1
            assert tensor["dtype"] == ("f32" if vector else dtype), tensor
    assert logits(folder, folder / "f32.bin") == logits(folder, source)
    kept = {t["dtype"] for t in inspect(source)["tensors"]}
    assert kept == {"f32", "q8_0"}, kept


def block_type_matrices():
    """(type, name in a Hugging Face folder, values) of tiny_models.block_types_gguf."""
    types = {number: name for name, (number, *_) in gguf_blocks.TYPES.items()}
    parts = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    for name, (cols, *_), number, data in tiny_models.block_types_tensors():
        if number in types:
            values = gguf_blocks.values(types[number], data)
            _, layer, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):  # the file has neighbouring rows where pairs rotate
                rows = [values[at:at + cols] for at in range(0, len(values), cols)]
                values = sum(rows[0::2] + rows[1::2], ())
            yield types[number], f"model.layers.{layer}.{parts[part]}.weight", values


def test_convert_block_types(folder):
    """GGUF's block formats are kept, and have the values of their definitions."""
    source, kept = folder / "blocks.gguf", folder / "kept.bin"
    source.write_bytes(tiny_models.block_types_gguf())
    expect(qbench("convert", source, kept))
    types = [t["dtype"] for t in inspect(source)["tensors"]]
    assert set(types) == {"f32", *gguf_blocks.TYPES}, types
    assert types == [t["dtype"] for t in inspect(kept)["tensors"]]
    assert kept.stat().st_size < 1.2 * source.stat().st_size
    for model, wide in (source, folder / "wide"), (kept, folder / "again"):
        expect(qbench("convert", model, f"{wide}/"))
        data, seen = (wide / "model.safetensors").read_bytes(), set()
        for kind, name, values in block_type_matrices():
            assert floats(data, name) == values, (kind, name)
            seen.add(kind)
        assert seen == set(gguf_blocks.TYPES)


def test_convert_there_and_back_of_what_no_family_has(folder):
    """Positions, norms and activations of the other family: under names of our own."""
    tokens = folder / "in.safetensors"
    tokens.write_bytes(tiny_models.tokens_file(2, 8, 61))
    crossed = (tiny_models.LLAMA_KIND | {"pos": "learned", "norm": "layernorm", "norm_bias": True},
               tiny_models.KIND | {"act": "swiglu", "pos": "none"})
    for i, config in enumerate(crossed):
        paths = [tiny_models.write_kind_folder(folder / f"m{i}", config), folder / f"m{i}.bin",
                 folder / f"back{i}"]
        expect(qbench("convert", paths[0], paths[1]))
        expect(qbench("convert", paths[1], paths[2]))
        found = []
        for path in paths:
            expect(qbench("logits", "--tokens", tokens, "--out", folder / "out", path))
            found.append((folder / "out").read_bytes())
        assert found[0] == found[1] == found[2], config


def test_convert_folder_takes_no_bin_options(folder):
    source = models(folder)["gguf"]
    for options in (["--zlib", "3"], ["--dtype", "f16"], ["--quantize", "fine"],
                    ["--record", source]):
        done = expect(qbench("convert", *options, source, str(folder / "hf_out") + "/"), 2)
        assert options[0].encode() in done.err, done
    assert not (folder / "hf_out").exists()


def test_convert_name_softmax_and_tokenizer(folder):
    made = models(folder)
    out = folder / "changed.bin"
    expect(qbench("convert", "--name", "My model", "--softmax", "softmax1", made["gguf"], out))
    report = inspect(out)
    assert report["name"] == "My model" and report["architecture"]["softmax"] == "softmax1"
    assert report["training"]["softmax_override"] == "softmax1, trained with softmax"
    assert logits(folder, out) != logits(folder, made["gguf"])
    assert inspect(made["llm.c"])["tokenizer"] is None
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(json.dumps(tiny_models.tokenizer_json()))
    expect(qbench("convert", "--tokenizer", tokenizer, made["llm.c"], out))
    assert inspect(out)["tokenizer"]["vocab"] == tiny_models.VOCAB
    assert expect(qbench("tokenize", out, "-", stdin=b"hello")).out
    expect(qbench("convert", "--softmax", "hardmax", made["gguf"], out), 2)
    done = expect(qbench("convert", "--softmax", "sink", made["gguf"], out), 3)
    assert b"sink logits are learned" in done.err, done
    expect(qbench("convert", "--tokenizer", folder / "none.json", made["gguf"], out), 3)


def test_convert_extends_the_training_record(folder):
    source, record, out = models(folder)["gguf"], folder / "record.json", folder / "out.bin"
    again = folder / "again.bin"
    record.write_text('{"machine": "one", "data": {"name": "text"}}')
    expect(qbench("convert", "--record", record, source, out))
    assert inspect(out)["training"] == {"machine": "one", "data": {"name": "text"}}
    assert b"  machine          one" in expect(qbench("inspect", out)).out
    record.write_text('{"machine": "two"}')
    expect(qbench("convert", "--record", record, out, again))
    assert inspect(again)["training"] == {"machine": "two", "data": {"name": "text"}}
    for text in ("[]", "{", '{"a": 1, "a": 2}'):
        record.write_text(text)
        assert b"record.json" in expect(qbench("convert", "--record", record, out, again), 3).err


def test_convert_keeps_another_weight_axis(folder):
    """A file made with --weight-axis runs with that axis, without being told."""
    source, out = models(folder)["gguf"], folder / "in_axis.bin"
    for axis in ("in", "tensor", "group:16"):
        expect(qbench("convert", "--quantize", "zeropoint4", "--weight-axis", axis, source, out))
        report = inspect(out)
        assert report["scheme"] == "zeropoint4"
        axes = {t["quant"]["axis"] for t in report["tensors"] if t["quant"]}
        assert axes == {axis.split(":")[0]}
        assert logits(folder, out) == logits(folder, source, "--scheme", "zeropoint4",
                                             "--weight-axis", axis), axis
    expect(qbench("convert", "--quantize", "full", source, out), 2)
    expect(qbench("convert", "--quantize", "nosuch", source, out), 2)


def test_convert_stores_calibration(folder):
    source, out = models(folder)["gguf"], folder / "calibrated.bin"
    done = expect(qbench("convert", "--quantize", "fine-channel", source, out))
    assert b"static scales" in done.err, done
    report = inspect(out)
    assert report["calibration"]["tokens"] > 0
    assert logits(folder, out) == logits(folder, out, "--scheme", "fine-channel")
    again = folder / "again.bin"
    done = expect(qbench("convert", "--quantize", "fine-channel", out, again))
    assert b"static scales" not in done.err and again.read_bytes() == out.read_bytes(), done


def test_convert_the_baselines(folder):
    """A file made for a baseline runs as the baseline, keeps its factors and its float meaning."""
    source = models(folder)["gguf"]
    for scheme, axis in (("llm-int8", "out"), ("smoothquant", "tensor")):
        out = folder / f"{scheme}.bin"
        expect(qbench("convert", "--quantize", scheme, source, out))
        expect(qbench("verify", out))
        report = inspect(out)
        quants = {t["name"]: t["quant"] for t in report["tensors"] if t["quant"]}
        assert report["scheme"] == scheme and {q["axis"] for q in quants.values()} == {axis}
        assert logits(folder, out) == logits(folder, source, "--scheme", scheme), scheme
        again = folder / "again.bin"
        expect(qbench("convert", "--quantize", scheme, out, again))
        assert again.read_bytes() == out.read_bytes(), "codes are taken as they are"
    smoothed = logits(folder, folder / "smoothquant.bin", "--scheme", "moderate")
    assert smoothed != logits(folder, folder / "smoothquant.bin"), "moderate is not smoothed"
    for scheme, axis in (("smoothquant", "channel"), ("llm-int8", "tensor")):
        done = expect(qbench("run", "--quiet", "--no-speed", "--scheme", scheme, "--act-axis", axis,
                             source), 2)
        assert b"expected token" in done.err, done


def test_convert_full_precision_of_codes(folder):
    """Full precision of a stored scheme is that of the values which its codes stand for."""
    source, out = models(folder)["gguf"], folder / "codes.bin"
    want = floats(logits(folder, source, "--scheme", "full"), "logits")
    largest = max(map(abs, want))
    for scheme in ("fine", "smoothquant"):
        for options in ([], ["--quantize-head"]):
            expect(qbench("convert", "--quiet", "--quantize", scheme, *options, source, out))
            got = floats(logits(folder, out, "--scheme", "full"), "logits")
            off = max(abs(a - b) for a, b in zip(want, got))
            assert 0 < off < 0.3 * largest, (scheme, options, off, largest)
    plain = folder / "plain.bin"
    expect(qbench("convert", "--quiet", "--quantize", "zeropoint4", source, plain))
    assert logits(folder, plain, "--scheme", "full") == \
        logits(folder, source, "--scheme", "zeropoint4", "--fake"), "the twin multiplies the same"


def test_convert_codes_to_their_values(folder):
    """A folder for transformers has no codes: it gets the values that they stand for."""
    source, out = models(folder)["gguf"], folder / "codes.bin"
    for i, options in enumerate((["fine", "--quantize-head"], ["smoothquant"], ["zeropoint4-g128"])):
        hf = folder / f"hf{i}"
        expect(qbench("convert", "--quiet", "--quantize", *options, source, out))
        expect(qbench("convert", "--quiet", out, hf))
        assert logits(folder, hf) == logits(folder, out, "--scheme", "full"), options
        assert b'"quantization' not in (hf / "config.json").read_bytes()


def test_convert_groups_wider_than_a_row(folder):
    source, out = models(folder)["gguf"], folder / "groups.bin"  # rows of 32 and 64
    for options in (["zeropoint4-g128"], ["zeropoint4", "--weight-axis", "group:48"]):
        expect(qbench("convert", "--quantize", *options, source, out))
        expect(qbench("verify", out))
        assert logits(folder, out) == logits(folder, source, "--scheme", *options), options


def test_convert_quantized_head(folder):
    source, out = models(folder)["gguf"], folder / "head.bin"
    expect(qbench("convert", "--quantize", "fine", "--quantize-head", source, out))
    head = [t for t in inspect(out)["tensors"] if t["name"] == "head"][0]
    assert head["dtype"] == "s8" and head["quant"]["axis"] == "out"
    expect(qbench("verify", out))


def test_convert_arguments(folder):
    expect(qbench("convert", "--random", "gpt2-60m", "a.bin", "b.bin"), 2)
    expect(qbench("convert", "a.bin"), 2)
    done = expect(qbench("convert", "--random", "gpt9", folder / "r.bin"), 2)
    assert b"gpt2-60m" in done.err, done


def test_inspect_stats(folder):
    report = inspect(models(folder)["gguf"], "--stats")
    for tensor in report["tensors"]:
        assert tensor["absmax"] == max(abs(tensor["min"]), abs(tensor["max"])), tensor
        assert tensor["not_finite"] == 0
    text = expect(qbench("inspect", "--stats", models(folder)["gguf"])).out.decode()
    assert "absmax" in text and f"{len(report['tensors'])} tensors" in text
    out = folder / "report.json"
    done = expect(qbench("inspect", "--json", out, models(folder)["gguf"]))
    assert b"tok_embd" in done.out and json.loads(out.read_text())["schema"] == "qbench.inspect/1"


def test_verify_says_what_is_wrong(folder):
    path = models(folder)["model.bin"]
    done = expect(qbench("verify", path))
    assert done.out.startswith(f"{path}: ok, ".encode()) and done.out.count(b"\n") == 1, done
    data = bytearray(path.read_bytes())
    for at, rule in ((0, b"format"), (9, b"version"), (70, b"JSON"), (-2000, b"tensor"),
                     (-1, b"SHA-256")):
        broken = bytearray(data)
        broken[at] ^= 4
        (folder / "broken.bin").write_bytes(broken)
        done = expect(qbench("verify", folder / "broken.bin"), 3)
        assert rule in done.err and not done.out, (at, done)
