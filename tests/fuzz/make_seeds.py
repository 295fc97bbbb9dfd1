#!/usr/bin/env python3
"""Writes the seed corpora: make_seeds.py FOLDER makes FOLDER/<reader>/, one folder for each
tests/fuzz/fuzz_<reader>.c. Standard library only."""
import gzip
import hashlib
import json
import lzma
import pathlib
import shutil
import struct
import subprocess
import sys
import zlib

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cli"))
import made_pages
import nasty_seeds
import tiny_models


def texts():
    plain = b"one line\n<|endoftext|>\nanother, caf\xc3\xa9\n"
    lines = b'{"text": "a"}\n{"text": "b\\n", "more": [1, null]}\n'
    # the first byte chooses plain text or JSON lines
    return {"plain": b"P" + plain, "lines": b"J" + lines, "gzip": b"P" + gzip.compress(plain, mtime=0),
            "xz": b"P" + lzma.compress(plain), "lines-gzip": b"J" + gzip.compress(lines, mtime=0)}


def tokenizers():
    data = tiny_models.tokenizer_json()
    pairs = json.loads(json.dumps(data))
    pairs["model"]["merges"] = [list(pair) for pair in tiny_models.MERGES]
    return {"strings": json.dumps(data).encode(), "pairs": json.dumps(pairs).encode()}


def gpt2_header():
    """The JSON of a safetensors file alone is where most mutations should fall."""
    data = tiny_models.safetensors(tiny_models.gpt2_tensors())
    return {"gpt2": data, "tokens": tiny_models.tokens_file()}


def model_bins(folder):
    """By the program itself, where it was built."""
    program = HERE.parent.parent / "build" / "qbench"
    made = {}
    if program.exists():
        source, llama = folder / "source.gguf", tiny_models.llama_gguf()
        for name, data, options in (("raw", llama, []), ("zlib", llama, ["--zlib", "6"]),
                                    ("u4", llama, ["--quantize", "zeropoint4"]),
                                    ("s8", llama, ["--quantize", "fine"]),
                                    ("blocks", tiny_models.block_types_gguf(), [])):
            out = folder / f"{name}.bin"
            source.write_bytes(data)
            if not subprocess.run([program, "convert", "--quiet", *options, source, out],
                                  stderr=subprocess.DEVNULL).returncode:
                made[name] = out.read_bytes()
                out.unlink()
        source.unlink()
        flags, out = tiny_models.write_flags_folder(folder / "flags"), folder / "flags.bin"
        if not subprocess.run([program, "convert", "--quiet", flags, out],
                              stderr=subprocess.DEVNULL).returncode:
            made["flags"] = out.read_bytes()
            out.unlink()
        shutil.rmtree(flags)
    return made


def checkpoints():
    """The first byte says that the fuzz target shall mend the sizes."""
    config = {"preset": "bb-1l", "n_layers": 1, "d_model": 4, "n_heads": 1, "vocab": 8, "steps": 3}
    state = {"step": 2, "windows": 4, "evaluated_step": 0, "valid_loss": None, "best_loss": 1.5,
             "best_step": 2, "losses": [1.25, 2.0], "metrics_bytes": 10, "events_bytes": 0,
             "seconds": 0.5, "data_sha256": "00"}
    buffers = [struct.pack("<64f", *range(i, i + 64)) for i in range(3)]
    text = json.dumps({"config": config, "state": state,
                       "crc32": [zlib.crc32(data) for data in buffers]}).encode()
    padding = bytes(-(64 + len(text)) % 64)
    total = 64 + len(text) + len(padding) + 3 * 256
    header = struct.pack("<8sIIQQQQ12s", b"QBTRAIN", 1, zlib.crc32(text), len(text), 3, 64, total,
                         bytes(12))
    return {"three": b"\1" + header + struct.pack("<I", zlib.crc32(header)) + text + padding +
            b"".join(buffers)}


def shards():
    made = {}
    for name, width, vocab, docs in (("narrow", 2, 300, [[299, 1, 2], [299, 3]]),
                                     ("wide", 4, 70000, [[5], [69999, 0]]), ("empty", 2, 9, [])):
        tokens = [t for doc in docs for t in doc]
        ends = [sum(map(len, docs[:i + 1])) for i in range(len(docs))]
        offset = (256 + 8 * len(docs) + 63) // 64 * 64
        head = struct.pack("<8sIIIiQQQQQ128s", b"QBSHARD\0", 1, width, vocab, docs[0][0] if docs else -1,
                           len(docs), len(tokens), 77, offset, 0, b"0a" * 64)
        body = struct.pack(f"<{len(docs)}Q", *ends)
        body += bytes(offset - 256 - len(body))
        body += struct.pack(f"<{len(tokens)}{'H' if width == 2 else 'I'}", *tokens)
        made[name] = head + hashlib.sha256(head + body).hexdigest().encode() + body
    return made


def results():
    """A recorded file, and what the lists of numbers may look like."""
    whole = (HERE.parent.parent / "results" / "smollm2_all.json").read_bytes()
    one = json.loads(whole)
    one["results"] = one["results"][:1]
    record = one["results"][0]
    record["speed"]["prefill"]["samples_ms"] = [1.5, 2, 1.25]
    record["quality"]["windows"] = {"n": [3, 4], "nll": [1.5, None], "nll_full": [1, 2.5],
                                    "kl": [0.1, 0], "agree": [3, 2]}
    return {"recorded": whole, "lists": json.dumps(one).encode(),
            "empty": b'{"schema": "qbench.results/1", "results": []}'}


def histories():
    records = json.loads(results()["lists"])["results"] * 2
    return {"two": "".join(json.dumps(r) + "\n" for r in records).encode()}


def losses():
    """Five tokens in two windows, of a scheme and of full precision."""
    reals, n = struct.pack("<5d", 0.5, 2, 1e-9, 7, 3), 5
    full = {"nll_full": ("F64", [n], reals), "target": ("I32", [n], struct.pack("<5i", *range(5))),
            "window": ("I32", [n], struct.pack("<5i", 0, 0, 0, 1, 1))}
    scheme = {**full, "nll": ("F64", [n], reals), "kl": ("F64", [n], reals),
              "agree": ("U8", [n], bytes([1, 0, 1, 1, 0]))}
    return {"full": tiny_models.safetensors(full), "scheme": tiny_models.safetensors(scheme)}


def metrics():
    """The curves of a shipped model, and lines of other kinds."""
    log = HERE.parent.parent / "share" / "models" / "gpt2-8m-ours.metrics.jsonl"
    return {"shipped": log.read_bytes(),
            "others": b'{"kind": "eval", "step": 2, "ppl": 1e300}\n{"kind": "x", "step": 0}\n'
                      b'{"kind": "train", "step": 1, "loss": null, "tokens": 7}\n{"kind"'}


def tables():
    """A record of each schema that qbench table reads."""
    outliers = {"ppl": 31.5, "kurt_token_first": 7.5, "max_abs_rest": 90, "attn_first_argmax": 0.02}
    run = {"schema": "qbench.run/1", "name": "a", "row": "gpt2-60m-both", "git_commit": "c0ffee",
           "sessions": [{"gpu": "g", "time_utc": "2026-01-01T00:00:00Z", "command": "qbench train"}],
           "training": {"tokens": 5, "seed": 42, "config": {"name": "a", "vocab": 300}},
           "evaluation": outliers, "speed": {"step_per_s": 3.5, "memory_bytes": 1e9},
           "config": {"vocab": 300, "seed": 1}}
    pair = {"schema": "qbench.pair/1", "models": {"ours": {"sha256": "00", "training": {
        **run["training"], "evaluation": outliers}}, "vanilla": {"sha256": None}}}
    analysis = {"schema": "qbench.analysis/1", "model": {"name": "a", "sha256": "00"}, "mean": outliers,
                "kurt_norm_ratio_correlation": {"first": 0.5, "rest": None}}
    return {**{record["schema"].split(".")[1].split("/")[0]: json.dumps(record).encode()
               for record in (run, pair, analysis)}, "results": results()["lists"]}


def pages():
    """A small analysis and a profile."""
    return {"analysis": json.dumps(made_pages.analysis(3, 4)).encode(),
            "profile": json.dumps(made_pages.profile()).encode()}


def limits():
    return {"all": b'{"limits": {"max-ppl-delta": "0.5%", "max-kl": 0.01, "min-top1": "99%"}, '
                   b'"schemes": {"coarse": {"max-kl": null, "max-slowdown": "3%"}}}'}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    corpora = {"text": texts(), "tokenizer_json": tokenizers(), "safetensors": gpt2_header(),
               "gguf": {"llama": tiny_models.llama_gguf(), "blocks": tiny_models.block_types_gguf()},
               "llmc": {"v3": tiny_models.llm_c(3), "v5": tiny_models.llm_c(5)},
               "hf_config": {"config": json.dumps(tiny_models.GPT2_CONFIG).encode(),
                             "flags": json.dumps(tiny_models.FLAGS_CONFIG).encode()},
               "model_bin": model_bins(folder), "checkpoint": checkpoints(),
               "shards": shards(), "results": results(), "history": histories(), "limits": limits(),
               "metrics": metrics(), "nll": losses(), "table": tables(), "pages": pages()}
    for reader, seeds in nasty_seeds.all_nasties().items():
        corpora.setdefault(reader, {}).update(seeds)
    for reader, seeds in corpora.items():
        (folder / reader).mkdir(exist_ok=True)
        for name, data in seeds.items():
            (folder / reader / name).write_bytes(data)


if __name__ == "__main__":
    main()
