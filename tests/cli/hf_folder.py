"""Writes a small random GPT2 as a Hugging Face folder with a byte-level tokenizer, so that commands
which need a model with a text can be tried without fetching one."""
import json
import pathlib
import random
import struct


def byte_alphabet():
    """GPT2's visible character for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(256 + i) for i, b in enumerate(hidden)}}


def tokenizer():
    vocab = {char: byte for byte, char in byte_alphabet().items()}
    vocab["<|endoftext|>"] = 256
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None,
            "added_tokens": [{"id": 256, "content": "<|endoftext|>", "single_word": False,
                              "lstrip": False, "rstrip": False, "normalized": False,
                              "special": True}],
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}}


def write_safetensors(path, shapes, draw):
    header, blobs, at = {}, [], 0
    for name, shape in shapes.items():
        n = 1
        for size in shape:
            n *= size
        blobs.append(struct.pack(f"<{n}f", *(draw(name) for _ in range(n))))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * n]}
        at += 4 * n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def make(folder, seed=1, layers=2, width=32, context=64, with_tokenizer=True):
    folder = pathlib.Path(folder)
    folder.mkdir()
    vocab, numbers = 257, random.Random(seed)
    shapes = {"transformer.wte.weight": [vocab, width], "transformer.wpe.weight": [context, width]}
    for layer in range(layers):
        p = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{p}{norm}.weight": [width], f"{p}{norm}.bias": [width]}
        for name, rows, cols in (("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width),
                                 ("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width)):
            shapes |= {f"{p}{name}.weight": [rows, cols], f"{p}{name}.bias": [cols]}
    shapes |= {"transformer.ln_f.weight": [width], "transformer.ln_f.bias": [width]}

    def draw(name):
        return numbers.gauss(1.0 if ".ln_" in name and name.endswith("weight") else 0.0, 0.2)

    write_safetensors(folder / "model.safetensors", shapes, draw)
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": layers,
              "n_embd": width, "n_head": 4, "n_positions": context, "n_ctx": context,
              "vocab_size": vocab, "layer_norm_epsilon": 1e-5,
              "activation_function": "gelu_new", "bos_token_id": 256, "eos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(config))
    if with_tokenizer:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return folder
