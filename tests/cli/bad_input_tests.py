"""Hostile files: exit 3, one line, no hang, little memory; and what signals leave behind."""
import os
import random
import signal
import struct
import time

import tiny_models
from support import Skip, expect, models, no_leftovers, qbench, start

FLIPS = int(os.environ.get("QB_FLIPS", "200"))
MAX_SECONDS, MAX_BYTES = 1.0, 100_000_000
SANITIZED = os.environ.get("QB_SANITIZED")  # sanitisers cost memory and time: bounds are off


def in_bounds(done):
    if not SANITIZED:
        assert done.cpu_s < MAX_SECONDS, f"too slow: {done}"
        assert done.peak_bytes < MAX_BYTES, f"too much memory: {done}"
    return done


def refused(*args, says=""):
    done = in_bounds(expect(qbench(*args, timeout=20), 3))
    assert says in done.err.decode("utf-8", "replace"), f"expected '{says}': {done}"
    return done


def every_verb_on(path, folder):
    """The command lines of all verbs that read a model."""
    tokens = folder / "tokens.safetensors"
    tokens.write_bytes(tiny_models.tokens_file())
    return [["run", path], ["inspect", path], ["verify", path], ["convert", path, folder / "out.bin"],
            ["generate", path, "--prompt", "a"], ["tokenize", path, tokens],
            ["analyze", path], ["logits", "--tokens", tokens, "--out", folder / "out.safetensors", path]]


def test_files_that_are_no_model(folder):
    cases = {
        "empty": b"",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "zip": b"PK\x03\x04" + b"\0" * 500,
        "pickle": b"\x80\x02}q\0." + b"\0" * 500,
        "html": b"<!DOCTYPE html><html>404</html>",
        "noise": bytes(random.Random(1).randrange(256) for _ in range(5000)),
        "one": b"Q",
    }
    hints = {"empty": "empty", "lfs": "git-LFS", "zip": "zip", "html": "HTML"}
    for name, data in cases.items():
        path = folder / name
        path.write_bytes(data)
        for command in every_verb_on(path, folder):
            done = refused(*command)
            assert str(path).encode() in done.err, f"the file is not named: {done}"
        refused("inspect", path, says=hints.get(name, ""))
    no_leftovers(folder)


def test_things_that_are_no_file(folder):
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    (folder / "folder").mkdir()
    for path in (fifo, folder / "folder", "/dev/zero", folder / "absent", folder / "a" / "b"):
        for command in every_verb_on(path, folder):
            refused(*command)


def test_unreadable_file(folder):
    if os.geteuid() == 0:
        raise Skip("root may read everything")
    path = folder / "locked"
    path.write_bytes(tiny_models.llama_gguf())
    path.chmod(0)
    for command in every_verb_on(path, folder):
        refused(*command, says="Permission denied")


def test_truncated_at_any_place(folder):
    for name, path in models(folder).items():
        if name == "hf":
            continue
        data = path.read_bytes()
        cuts = {0, 1, 7, 8, 63, 64, 100, len(data) // 3, len(data) - 33, len(data) - 1}
        if name == "safetensors":
            short = path  # keeps config.json beside it
        else:
            short = folder / f"short-{name}"
        for n in sorted(cuts):
            short.write_bytes(data[:n])
            refused("inspect", short)
            refused("verify", short)
        short.write_bytes(data)
        expect(qbench("verify", short))


def test_trailing_bytes(folder):
    for name in ("model.bin", "safetensors"):
        path = models(folder)[name]
        path.write_bytes(path.read_bytes() + b"x")
        refused("verify", path)


def test_random_bit_flips(folder):
    """A flip in a weight may go unseen where the format has no checksum; nothing else may."""
    for name, path in models(folder).items():
        if name == "hf":
            continue
        data = path.read_bytes()
        rng = random.Random(name)
        checked = name == "model.bin"
        for i in range(FLIPS):
            broken = bytearray(data)
            # half of them where the headers are
            at = rng.randrange(len(data) if i % 2 else min(len(data), 4096))
            broken[at] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            done = in_bounds(qbench("verify" if checked or i % 4 else "inspect", path, timeout=20))
            assert done.code == 3 or (done.code == 0 and not (checked and i % 4)), (
                f"{name}: flip {i} at byte {at}: {done}")
            if done.code:
                expect(done, 3)
        path.write_bytes(data)


def oversized(data, places):
    for offset, form, value in places:
        broken = bytearray(data)
        struct.pack_into(form, broken, offset, value)
        yield bytes(broken)


def test_oversized_headers(folder):
    made = models(folder)
    huge = [1 << 20, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
    cases = {
        "gguf": [(offset, "<Q", n) for offset in (8, 16, 24) for n in huge],
        "safetensors": [(0, "<Q", n) for n in huge + [100_000_001]],
        "llm.c": [(4 * i, "<i", n) for i in range(1, 8)
                  for n in (-1, 0, 1 << 20, (1 << 31) - 1, -(1 << 31))],
        "model.bin": [(offset, "<Q", n) for offset in range(8, 57, 8) for n in huge],
    }
    for name, places in cases.items():
        path = made[name]
        data = path.read_bytes()
        for broken in oversized(data, places):
            if broken != data:
                path.write_bytes(broken)
                refused("inspect", path)
        path.write_bytes(data)


def broken_ggufs():
    """One file a rule of GGUF; see FORMATS of known parser faults."""
    meta, tensors = tiny_models.llama_metadata(), tiny_models.llama_tensors()

    def with_meta(key, kind, value):
        return tiny_models.gguf([(k, kind, value) if k == key else (k, t, v) for k, t, v in meta],
                                tensors)

    def with_tensor(dims=None, ggml_type=None):
        name, old_dims, old_type, data = tensors[0]
        return tiny_models.gguf(meta, [(name, dims or old_dims, old_type if ggml_type is None
                                        else ggml_type, data)] + tensors[1:])

    four, text = tiny_models.U32, tiny_models.STRING
    return {
        "five dimensions": with_tensor(dims=[32, 259, 1, 1, 1]),
        "dimension 0": with_tensor(dims=[0, 259]),
        "product wraps": with_tensor(dims=[1 << 62, 4]),
        "product negative": with_tensor(dims=[(1 << 63) - 1, 2]),
        "unknown type": with_tensor(ggml_type=9999),
        "no multiple of the block": with_tensor(dims=[33, 259], ggml_type=8),
        "alignment 0": tiny_models.gguf(meta + [("general.alignment", four, 0)], tensors),
        "alignment 2^30": tiny_models.gguf(meta + [("general.alignment", four, 1 << 30)], tensors),
        "alignment of type string": tiny_models.gguf(meta + [("general.alignment", text, "32")],
                                                     tensors),
        "duplicate key": tiny_models.gguf(meta + [meta[2]], tensors),
        "duplicate tensor": tiny_models.gguf(meta, tensors + [tensors[0]]),
        "heads do not divide": with_meta("llama.attention.head_count", four, 7),
        "no layers": with_meta("llama.block_count", four, 0),
        "too many layers": with_meta("llama.block_count", four, 4_000_000_000),
        "unknown architecture": with_meta("general.architecture", text, "gptx"),
        "unknown pre-tokenizer": with_meta("tokenizer.ggml.pre", text, "nobody-knows"),
        "token_type of bytes": with_meta("tokenizer.ggml.token_type", tiny_models.ARRAY,
                                         (text, ["x"])),
        "a tensor lacks": tiny_models.gguf(meta, tensors[:-1]),
    }


def test_gguf_rules(folder):
    for name, data in broken_ggufs().items():
        path = folder / name.replace(" ", "-").replace("^", "")
        path.write_bytes(data)
        refused("inspect", path)


def test_safetensors_rules(folder):
    made = models(folder)
    path = made["safetensors"]
    n, = struct.unpack("<Q", path.read_bytes()[:8])
    header, data = path.read_bytes()[8:8 + n].decode(), path.read_bytes()[8 + n:]

    def with_header(text):
        raw = text.encode()
        return struct.pack("<Q", len(raw)) + raw + data

    first = '"data_offsets": [0, '
    cases = {
        "deep nesting": with_header('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        "negative offset": with_header(header.replace(first, '"data_offsets": [-4, ')),
        "fractional offset": with_header(header.replace(first, '"data_offsets": [0.5, ')),
        "huge offset": with_header(header.replace(first, '"data_offsets": [1e308, ')),
        "hole": with_header(header.replace(first, '"data_offsets": [4, ')),
        "duplicate key": with_header(header.rstrip()[:-1] + "," + header.lstrip()[1:]),
        "unknown dtype": with_header(header.replace('"F32"', '"F33"', 1)),
        "shape too large": with_header(header.replace("[259, 32]", "[4611686018427387904, 4]")),
        "no JSON": with_header("x" * len(header)),
    }
    for name, broken in cases.items():
        assert broken != with_header(header), name
        path.write_bytes(broken)
        refused("inspect", path)


def test_broken_texts_and_tokens(folder):
    made = models(folder)
    cases = {"text.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\0broken", "text.xz": b"\xfd7zXZ\0broken!!!",
             "text.jsonl": b'{"text": "a"}\n{"text": \n', "empty.txt": b""}
    for name, data in cases.items():
        path = folder / name
        path.write_bytes(data)
        refused("run", "--text", path, "--no-speed", made["model.bin"])
    for name, data in {"tokens": b"", "short": tiny_models.tokens_file()[:-1],
                       "beyond": tiny_models.safetensors(
                           {"tokens": ("I32", [1, 2], struct.pack("<2i", 5, 1 << 30))}),
                       "negative": tiny_models.safetensors(
                           {"tokens": ("I32", [1, 2], struct.pack("<2i", 5, -1))}),
                       "rank": tiny_models.safetensors(
                           {"tokens": ("I32", [2], struct.pack("<2i", 5, 1))})}.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(data)
        refused("logits", "--tokens", path, "--out", folder / "o.safetensors", made["model.bin"])
        assert not (folder / "o.safetensors").exists()
    no_leftovers(folder)


def test_outputs_that_cannot_be_written(folder):
    made = models(folder)
    refused("convert", made["gguf"], folder / "no" / "such" / "folder.bin")
    refused("run", "--no-speed", "--max-tokens", "128", "--json", folder / "no" / "x.json",
            made["model.bin"])


def send_later(process, number, seconds):
    time.sleep(seconds)
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=20)
    except Exception:
        process.kill()
        raise AssertionError("still running 20 s after the signal") from None
    return out, err


def test_ctrl_c_exits_130_and_leaves_nothing(folder):
    made = models(folder)
    for number in (signal.SIGINT, signal.SIGTERM):
        text = folder / "long.txt"
        text.write_text("all work and no play " * 200_000)
        process = start("run", "--text", text, "--json", folder / "r.json", "--nll", folder / "nll",
                        made["model.bin"])
        out, err = send_later(process, number, 0.7)
        assert process.returncode == 130, (process.returncode, err)
        assert err.decode().splitlines()[-1].startswith("qbench: "), err
        assert not (folder / "r.json").exists()
        no_leftovers(folder)


def test_ctrl_c_while_waiting_for_input(folder):
    model = models(folder)["gguf"]
    for args in (["run", "--device", "cpu", "--text", "-", model],
                 ["generate", "--device", "cpu", model, "--prompt", "-"], ["tokenize", model]):
        process = start(*args, stdin=-1)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(20)  # nothing is written, and the input stays open
        finally:
            process.kill()
        err = process.stderr.read()
        assert code == 130 and b"interrupted" in err and err.count(b"\n") == 1, (code, err)


def test_file_truncated_while_mapped(folder):
    """generate has the model open while it waits for its prompt."""
    path = models(folder)["gguf"]
    process = start("generate", "--quiet", path, "--prompt", "-", stdin=-1)
    time.sleep(0.5)
    os.truncate(path, 4096)
    _, err = process.communicate(b"hello", timeout=20)
    assert process.returncode == 3 and b"truncated" in err and err.count(b"\n") == 1, (
        process.returncode, err)
