"""Tiny random models in every format that qbench reads, made from the formats' descriptions: for
tests and as seeds for the fuzzers. Standard library only."""
import json
import random
import struct

import gguf_blocks

VOCAB, D, HEADS, FF, LAYERS, CONTEXT = 259, 32, 2, 64, 1, 64


def byte_alphabet():
    """GPT-2's 256 printable stand-ins for bytes, in the order of the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


MERGES = [("h", "e"), ("he", "l")]
TOKENS = byte_alphabet() + ["he", "hel", "<|endoftext|>"]
assert len(TOKENS) == VOCAB


def tokenizer_json():
    return {
        "version": "1.0",
        "added_tokens": [{"id": VOCAB - 1, "content": "<|endoftext|>", "single_word": False,
                          "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "vocab": {token: i for i, token in enumerate(TOKENS)},
                  "merges": [" ".join(pair) for pair in MERGES]},
    }


class Numbers:
    """Seeded random weights."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def f32(self, n, around=0.0):
        return struct.pack(f"<{n}f", *(around + self.random.gauss(0, 0.2) for _ in range(n)))

    def q8_0(self, n):
        blocks = bytearray()
        for _ in range(n // 32):
            blocks += struct.pack("<e", 0.01)
            blocks += bytes(self.random.randrange(256) for _ in range(32))
        return bytes(blocks)


# ---- safetensors and Hugging Face folders ----

def safetensors(tensors):
    """tensors: {name: (dtype, shape, data)} -> the bytes of a file."""
    header, data = {}, b""
    for name, (dtype, shape, payload) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(payload)]}
        data += payload
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def gpt2_tensors(seed=1, n_layers=LAYERS):
    numbers = Numbers(seed)
    shapes = {"wte.weight": [VOCAB, D], "wpe.weight": [CONTEXT, D]}
    for i in range(n_layers):
        shapes |= {f"h.{i}.ln_1.weight": [D], f"h.{i}.ln_1.bias": [D],
                   f"h.{i}.attn.c_attn.weight": [D, 3 * D], f"h.{i}.attn.c_attn.bias": [3 * D],
                   f"h.{i}.attn.c_proj.weight": [D, D], f"h.{i}.attn.c_proj.bias": [D],
                   f"h.{i}.ln_2.weight": [D], f"h.{i}.ln_2.bias": [D],
                   f"h.{i}.mlp.c_fc.weight": [D, 4 * D], f"h.{i}.mlp.c_fc.bias": [4 * D],
                   f"h.{i}.mlp.c_proj.weight": [4 * D, D], f"h.{i}.mlp.c_proj.bias": [D]}
    shapes |= {"ln_f.weight": [D], "ln_f.bias": [D]}
    tensors = {}
    for name, shape in shapes.items():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        gain = 1.0 if ".weight" in name and "ln_" in name else 0.0
        tensors["transformer." + name] = ("F32", shape, numbers.f32(n, gain))
    return tensors


GPT2_CONFIG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": LAYERS,
               "n_embd": D, "n_head": HEADS, "n_positions": CONTEXT, "n_ctx": CONTEXT,
               "vocab_size": VOCAB, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
               "bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1, "tie_word_embeddings": True}


def write_hf_folder(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(GPT2_CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (folder / "model.safetensors").write_bytes(safetensors(gpt2_tensors()))
    return folder


FLAGS_CONFIG = {"model_type": "qbench",
                "qbench": {"arch": "gpt2", "n_layers": 2, "d_model": D, "n_heads": HEADS,
                           "n_kv_heads": HEADS, "head_dim": D // HEADS, "d_ff": 4 * D,
                           "vocab": VOCAB, "context": CONTEXT, "softmax": "sink",
                           "attn_gate": True, "free_prefix": 4, "no_attention": [1]}}


def write_flags_folder(folder):
    """Sink logits, gated attention, a free prefix of 4 and no attention in the first block: what
    transformers has no class for."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, tensors = Numbers(5), gpt2_tensors(n_layers=2)
    tensors = {name: t for name, t in tensors.items()
               if not any(part in name for part in ("h.0.ln_1", "h.0.attn"))}
    for name, shape in (("sinks", [HEADS]), ("gate.weight", [HEADS, D]), ("gate.bias", [HEADS])):
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[f"transformer.h.1.attn.{name}"] = ("F32", shape, numbers.f32(n))
    (folder / "config.json").write_text(json.dumps(FLAGS_CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


# ---- every kind of architecture ----

KIND = {"arch": "gpt2", "n_layers": 3, "d_model": 24, "n_heads": 4, "n_kv_heads": 4, "head_dim": 6,
        "d_ff": 40, "vocab": 61, "context": 96, "norm": "layernorm", "norm_eps": 1e-5,
        "act": "gelu_tanh", "pos": "learned", "softmax": "softmax", "attn_bias": True,
        "mlp_bias": True, "norm_bias": True, "tied_head": True, "fused_qkv": True}
LLAMA_KIND = KIND | {"arch": "llama", "norm": "rmsnorm", "act": "swiglu", "pos": "rope",
                     "rope": {"kind": "default", "theta": 10000.0}, "attn_bias": False,
                     "mlp_bias": False, "norm_bias": False, "tied_head": False, "fused_qkv": False}
KINDS = {
    "softmax1": KIND | {"softmax": "softmax1", "norm": "rmsnorm_single", "norm_bias": False,
                        "attn_bias": False, "mlp_bias": False},
    "relu": KIND | {"softmax": "relu", "act": "relu", "pos": "none", "tied_head": False},
    "clipped": KIND | {"softmax": "clipped", "softmax_gamma": -0.03, "softmax_zeta": 1.01},
    "gated-sink": KIND | {"softmax": "sink", "attn_gate": True, "pos": "none"},
    "free-prefix": KIND | {"free_prefix": 5, "no_attention": [2], "pos": "rope",
                           "rope": {"kind": "default", "theta": 10000.0}},
    "one-key-head": LLAMA_KIND | {"n_kv_heads": 1, "softmax": "softmax1", "tied_head": True},
    "crossed": LLAMA_KIND | {"pos": "learned", "norm": "layernorm", "norm_bias": True,
                             "mlp_bias": True},
    "gpt2-swiglu": KIND | {"act": "swiglu", "norm": "rmsnorm", "norm_bias": False},
    "gqa": LLAMA_KIND | {"n_heads": 6, "n_kv_heads": 2, "head_dim": 4},
}
KIND_TOKENS = 3, 70, KIND["vocab"]  # of tokens_file
KIND_NAMES = {
    "gpt2": ("transformer.", "h.", {
        "embd": "wte", "pos": "wpe", "norm1": "ln_1", "qkv": "attn.c_attn", "o": "attn.c_proj",
        "gate_of_heads": "attn.gate", "sinks": "attn.sinks", "norm2": "ln_2", "up": "mlp.c_fc",
        "gate": "mlp.c_gate", "down": "mlp.c_proj", "norm_f": "ln_f"}),
    "llama": ("model.", "layers.", {
        "embd": "embed_tokens", "pos": "embed_positions", "norm1": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate_of_heads": "self_attn.gate", "sinks": "self_attn.sinks",
        "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
        "down": "mlp.down_proj", "norm_f": "norm"})}


def kind_shapes(c):
    """[(role, layer or None, (out, in) or (n,), has a bias)] of a configuration of KIND's keys."""
    width, ff = c["d_model"], c["d_ff"]
    q, kv = (c[key] * c["head_dim"] for key in ("n_heads", "n_kv_heads"))
    gain = (1 if c["norm"] == "rmsnorm_single" else width,)
    yield "embd", None, (c["vocab"], width), False
    if c["pos"] == "learned":
        yield "pos", None, (c["context"], width), False
    for layer in range(c["n_layers"]):
        if layer + 1 not in c.get("no_attention", []):
            yield "norm1", layer, gain, c["norm_bias"]
            parts = {"qkv": q + 2 * kv} if c["fused_qkv"] else {"q": q, "k": kv, "v": kv}
            for role, rows in parts.items():
                yield role, layer, (rows, width), c["attn_bias"]
            yield "o", layer, (width, q), c["attn_bias"]
            if c.get("attn_gate"):
                yield "gate_of_heads", layer, (c["n_heads"], width), True
            if c["softmax"] == "sink":
                yield "sinks", layer, (c["n_heads"],), False
        yield "norm2", layer, gain, c["norm_bias"]
        for role in ("gate", "up") if c["act"] == "swiglu" else ("up",):
            yield role, layer, (ff, width), c["mlp_bias"]
        yield "down", layer, (width, ff), c["mlp_bias"]
    yield "norm_f", None, gain, c["norm_bias"]
    if not c["tied_head"]:
        yield "head", None, (c["vocab"], width), False


def write_kind_folder(folder, config, spike=0.0, seed=7):
    """A random model; channel 5 of the first eight embeddings is `spike` or more, if not 0."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, tensors = random.Random(seed), {}
    prefix, layers, names = KIND_NAMES[config["arch"]]
    for role, layer, shape, has_bias in kind_shapes(config):
        name = "lm_head" if role == "head" else prefix + names[role]
        if layer is not None:
            name = f"{prefix}{layers}{layer}.{names[role]}"
        rows, cols = shape if len(shape) == 2 else (1, shape[0])
        around, spread = (1, 0.2) if role.startswith("norm") else (0, 1.4 / cols ** 0.5)
        if role in ("embd", "sinks"):
            spread = 1.0
        values = [[draw.gauss(around, spread) for _ in range(cols)] for _ in range(rows)]
        for i, row in enumerate(values[:8] if spike and role == "embd" else []):
            row[5] = spike * (1 + i / 8)
        if config["arch"] == "gpt2" and role in ("qkv", "o", "gate", "up", "down"):  # (in, out)
            values, shape = list(zip(*values)), shape[::-1]
        flat = [value for row in values for value in row]
        tensors[name + ("" if role == "sinks" else ".weight")] = (
            "F32", list(shape), struct.pack(f"<{len(flat)}f", *flat))
        if has_bias:
            n = rows if len(shape) == 2 else cols
            bias = struct.pack(f"<{n}f", *(draw.gauss(0, 0.1) for _ in range(n)))
            tensors[name + ".bias"] = ("F32", [n], bias)
    (folder / "config.json").write_text(json.dumps({"model_type": "qbench", "qbench": config}))
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


# ---- GGUF ----

U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
GGML_F32, GGML_Q8_0 = 0, 8


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(kind, value):
    if kind == STRING:
        return gguf_string(value)
    if kind == ARRAY:
        item_kind, items = value
        return struct.pack("<IQ", item_kind, len(items)) + b"".join(
            gguf_value(item_kind, item) for item in items)
    return struct.pack({U32: "<I", F32: "<f", I32: "<i"}[kind], value)


def gguf(metadata, tensors):
    """metadata: [(key, kind, value)]; tensors: [(name, dims fastest first, ggml type, data)]."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, kind, value in metadata:
        head += gguf_string(key) + struct.pack("<I", kind) + gguf_value(kind, value)
    data = b""
    for name, dims, ggml_type, payload in tensors:
        head += gguf_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", ggml_type, len(data))
        data += payload + b"\0" * (-len(payload) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def llama_metadata():
    return [
        ("general.architecture", STRING, "llama"),
        ("general.quantization_version", U32, 2),
        ("llama.context_length", U32, CONTEXT),
        ("llama.embedding_length", U32, D),
        ("llama.block_count", U32, LAYERS),
        ("llama.feed_forward_length", U32, FF),
        ("llama.attention.head_count", U32, HEADS),
        ("llama.attention.head_count_kv", U32, HEADS),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.dimension_count", U32, D // HEADS),
        ("llama.rope.freq_base", F32, 10000.0),
        ("llama.vocab_size", U32, VOCAB),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [1] * (VOCAB - 1) + [3])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, [" ".join(pair) for pair in MERGES])),
        ("tokenizer.ggml.bos_token_id", U32, VOCAB - 1),
        ("tokenizer.ggml.eos_token_id", U32, VOCAB - 1),
    ]


def llama_tensors(seed=2):
    numbers = Numbers(seed)

    def norm(name):
        return name, [D], GGML_F32, numbers.f32(D, 1.0)

    def matrix(name, rows, cols):
        return name, [cols, rows], GGML_Q8_0, numbers.q8_0(rows * cols)

    tensors = [("token_embd.weight", [D, VOCAB], GGML_F32, numbers.f32(VOCAB * D)),
               norm("output_norm.weight"), matrix("output.weight", VOCAB, D)]
    for i in range(LAYERS):
        blk = f"blk.{i}."
        tensors += [norm(blk + "attn_norm.weight"), norm(blk + "ffn_norm.weight"),
                    *(matrix(blk + f"attn_{x}.weight", D, D) for x in ("q", "k", "v", "output")),
                    matrix(blk + "ffn_gate.weight", FF, D), matrix(blk + "ffn_up.weight", FF, D),
                    matrix(blk + "ffn_down.weight", D, FF)]
    return tensors


def llama_gguf():
    return gguf(llama_metadata(), llama_tensors())


BLOCK_D, BLOCK_ROWS = 256, 4  # the longest block; rows of a head, an MLP and a vocabulary


def block_types_tensors(seed=3):
    """Each of the block formats is the type of a matrix; five matrices a layer."""
    numbers, types = Numbers(seed), list(gguf_blocks.TYPES)

    def f32(name, rows, cols, around=0.0):
        return name, [cols, rows][:1 if rows == 1 else 2], GGML_F32, numbers.f32(rows * cols, around)

    tensors = [f32("token_embd.weight", BLOCK_ROWS, BLOCK_D), f32("output_norm.weight", 1, BLOCK_D, 1)]
    for i, kind in enumerate(types + types[:-len(types) % 5]):
        blk = f"blk.{i // 5}."
        if i % 5 == 0:
            tensors += [f32(blk + "attn_norm.weight", 1, BLOCK_D, 1),
                        f32(blk + "ffn_norm.weight", 1, BLOCK_D, 1),
                        f32(blk + "attn_output.weight", BLOCK_D, BLOCK_ROWS),
                        f32(blk + "ffn_down.weight", BLOCK_D, BLOCK_ROWS)]
        name = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")[i % 5]
        tensors.append((f"{blk}{name}.weight", [BLOCK_D, BLOCK_ROWS], gguf_blocks.TYPES[kind][0],
                        gguf_blocks.random_blocks(kind, BLOCK_ROWS * BLOCK_D, numbers.random)))
    return tensors


def block_types_gguf():
    sizes = {"context_length": 16, "embedding_length": BLOCK_D, "feed_forward_length": BLOCK_ROWS,
             "block_count": (len(gguf_blocks.TYPES) + 4) // 5, "attention.head_count": 1,
             "attention.key_length": BLOCK_ROWS, "attention.value_length": BLOCK_ROWS}
    metadata = [("general.architecture", STRING, "llama"), ("general.quantization_version", U32, 2),
                ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)]
    return gguf(metadata + [("llama." + key, U32, n) for key, n in sizes.items()],
                block_types_tensors())


# ---- llm.c ----

def llm_c(version=3):
    """A GPT-2 checkpoint of llm.c, float32 (version 3) or bf16 (5)."""
    padded = (VOCAB + 127) // 128 * 128
    header = [20240326, version, CONTEXT, VOCAB, LAYERS, HEADS, D, padded] + [0] * 248
    sizes = [(padded * D, 0), (CONTEXT * D, 0)]
    per_layer = [(D, 1), (D, 0), (3 * D * D, 0), (3 * D, 0), (D * D, 0), (D, 0), (D, 1), (D, 0),
                 (4 * D * D, 0), (4 * D, 0), (4 * D * D, 0), (D, 0)]
    sizes += [(n * LAYERS, around) for n, around in per_layer] + [(D, 1), (D, 0)]
    numbers = Numbers(3)
    data = b"".join(numbers.f32(n, around) for n, around in sizes)
    if version == 5:  # the upper halves of the floats
        data = b"".join(data[i + 2:i + 4] for i in range(0, len(data), 4))
    return struct.pack("<256i", *header) + data


# ---- tokens for `logits` ----

def tokens_file(batch=2, n=8, vocab=VOCAB):
    ids = [(7 * i * i + 3 * i + 3) % vocab for i in range(batch * n)]
    return safetensors({"tokens": ("I32", [batch, n], struct.pack(f"<{len(ids)}i", *ids))})
