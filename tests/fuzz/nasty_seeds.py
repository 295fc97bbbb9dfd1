"""Hostile files: the published attacks on parsers of model files, one input each, as seeds for the
fuzzers and as cases for the command line. Each must be refused with one line. Standard library only.

References: CVE-2024-21802, -21825, -21836, -23496, -23605, CVE-2025-53630, CVE-2026-7482, -27940,
-33298 (GGUF); attacks/README.md of huggingface/safetensors."""
import json
import struct

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9


# ---- safetensors ----

def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_nasties():
    one = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    return {
        "length-huge": struct.pack("<Q", 2**64 - 1) + b"{}",
        "length-over-limit": struct.pack("<Q", 100_000_001) + b"{}",
        "length-past-end": struct.pack("<Q", 1000) + b"{}",
        "length-wraps": struct.pack("<Q", 2**64 - 8) + b"{}",
        "short": b"\x02\x00\x00",
        "overlap": safetensors({"a": tensor("U8", [8], 0, 8), "b": tensor("U8", [8], 4, 12)}, bytes(12)),
        "same-range": safetensors({f"t{i}": tensor("U8", [64], 0, 64) for i in range(50)}, bytes(64)),
        "hole": safetensors({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 8, 12)}, bytes(12)),
        "trailing": safetensors({"a": tensor("U8", [4], 0, 4)}, bytes(9)),
        "truncated": safetensors({"a": tensor("U8", [4], 0, 4)}, bytes(3)),
        "offsets-not-shape": safetensors({"a": tensor("F32", [4], 0, 4)}, bytes(4)),
        "shape-wraps": safetensors({"a": tensor("F32", [2**32, 2**32], 0, 0)}),
        "bytes-wrap": safetensors({"a": tensor("F64", [2**61], 0, 0)}),
        "shape-negative": safetensors({"a": tensor("F32", [-1, -4], 0, 16)}, bytes(16)),
        "shape-fraction": safetensors({"a": tensor("F32", [1.5], 0, 6)}, bytes(6)),
        "offsets-fraction": safetensors({"a": tensor("F32", [1], 0, 4.0)}, bytes(4)),
        "offsets-reversed": safetensors({"a": tensor("F32", [1], 4, 0)}, bytes(4)),
        "shape-1e308": safetensors(b'{"a":{"dtype":"F32","shape":[1e308],"data_offsets":[0,4]}}', bytes(4)),
        "integer-too-big": safetensors(b'{"a":{"dtype":"F32","shape":[99999999999999999999],'
                                       b'"data_offsets":[0,4]}}', bytes(4)),
        "nan": safetensors(b'{"a":NaN}'),
        "nul-in-name": safetensors(b'{"a\\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "key-twice": safetensors(f"{{{one},{one}}}".encode(), bytes(4)),
        "deep": safetensors(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        "not-utf8": safetensors(b'{"\xff\xfe":1}'),
        "metadata-number": safetensors({"__metadata__": {"a": 1}}),
        "rank-huge": safetensors({"a": tensor("U8", [1] * 3000, 0, 1)}, b"x"),
    }


# ---- GGUF ----

def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def kv(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def kv_u32(key, value):
    return kv(key, U32, struct.pack("<I", value))


def array(item_kind, n, items=b""):
    return struct.pack("<IQ", item_kind, n) + items


def info(name="t", dims=(4,), kind=0, offset=0, n_dims=None):
    return (text(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
            + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset))


def gguf(kvs=(), infos=(), data=bytes(16), version=3, n_kvs=None, n_tensors=None):
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos) if n_tensors is None else n_tensors,
                                 len(kvs) if n_kvs is None else n_kvs) + b"".join(kvs) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


def gguf_nasties():
    arch = kv("general.architecture", STRING, text("llama"))
    tokenizer = [arch, kv("tokenizer.ggml.model", STRING, text("llama")),
                 kv("tokenizer.ggml.tokens", ARRAY, array(STRING, 2, text("a") + text("b")))]
    return {
        "version-1": gguf(version=1),
        "big-endian": gguf(version=3 << 24),
        "keys-huge": gguf(n_kvs=2**64 - 1),
        "keys-wrap": gguf(n_kvs=(2**64 + 13) // 14),
        "tensors-huge": gguf(n_tensors=2**64 - 1),
        "tensors-wrap": gguf(n_tensors=2**61 + 1),
        "string-huge": gguf([kv("a", STRING, struct.pack("<Q", 2**64 - 1))]),
        "string-1gib": gguf([kv("a", STRING, struct.pack("<Q", 2**30))]),
        "array-1gib": gguf([kv("a", ARRAY, array(0, 2**30))]),
        "array-wraps": gguf([kv("a", ARRAY, array(10, 2**61))]),
        "array-of-strings-huge": gguf([kv("a", ARRAY, array(STRING, 2**60))]),
        "array-nested": gguf([kv("a", ARRAY, array(ARRAY, 2**30))]),
        "type-unknown": gguf([kv("a", 2**32 - 1, b"\0")]),
        "item-type-unknown": gguf([kv("a", ARRAY, array(13, 1, b"\0"))]),
        "key-twice": gguf([kv_u32("a", 1), kv_u32("a", 1)]),
        "key-empty": gguf([kv_u32("", 1)]),
        "alignment-0": gguf([kv_u32("general.alignment", 0)], [info()]),
        "alignment-2-30": gguf([kv_u32("general.alignment", 2**30)], [info()]),
        "alignment-3": gguf([kv_u32("general.alignment", 3)], [info()]),
        "alignment-text": gguf([kv("general.alignment", STRING, text("32"))], [info()]),
        "dims-0": gguf([], [info(dims=())]),
        "dims-5": gguf([], [info(dims=(1, 1, 1, 1, 1))]),
        "dims-huge": gguf([], [info(n_dims=2**32 - 1)]),
        "dim-0": gguf([], [info(dims=(4, 0))]),
        "dim-int64-max-times-2": gguf([], [info(dims=(2**63 - 1, 2, 1, 1))]),
        "dims-wrap": gguf([], [info(dims=(2**32, 2**32))]),
        "bytes-wrap": gguf([], [info(dims=(2**62,))]),
        "sizes-sum-wraps": gguf([], [info("a", (2**61 - 8,)), info("b", (2**61,), 0, 2**63 - 32)]),
        "row-not-blocks": gguf([], [info(dims=(33,), kind=8)], bytes(64)),
        "row-not-long-blocks": gguf([], [info(dims=(32,), kind=12)], bytes(64)),
        "long-blocks-wrap": gguf([], [info(dims=(2**62,), kind=14)]),
        "type-99": gguf([], [info(kind=99)]),
        "offset-odd": gguf([], [info(offset=1)]),
        "offset-far": gguf([], [info(offset=2**63)]),
        "data-short": gguf([], [info(dims=(1024, 1024))]),
        "name-65": gguf([], [info("n" * 65)]),
        "name-twice": gguf([], [info("a", (8,)), info("a", (8,), 0, 32)], bytes(64)),
        "no-architecture": gguf([], [info("token_embd.weight", (2, 2))]),
        "scores-as-bytes": gguf(tokenizer + [kv("tokenizer.ggml.scores", ARRAY, array(0, 2, b"ab"))],
                                [info("token_embd.weight", (2, 2))]),
        "types-as-bytes": gguf(tokenizer + [kv("tokenizer.ggml.token_type", ARRAY, array(0, 2, b"ab"))],
                               [info("token_embd.weight", (2, 2))]),
    }


# ---- llm.c ----

def llmc(version=3, context=8, vocab=16, n_layers=1, n_heads=2, channels=4, padded=16, data=bytes(64)):
    header = struct.pack("<8i", 20240326, version, context, vocab, n_layers, n_heads, channels, padded)
    return header + bytes(1024 - len(header)) + data


def llmc_nasties():
    most = 2**31 - 1
    return {
        "header-short": llmc()[:100],
        "version-4": llmc(version=4),
        "channels-negative": llmc(channels=-4),
        "channels-huge": llmc(channels=most),
        "layers-huge": llmc(n_layers=most),
        "layers-0": llmc(n_layers=0),
        "vocab-huge": llmc(vocab=most, padded=most),
        "context-huge": llmc(context=most),
        "heads-0": llmc(n_heads=0),
        "heads-do-not-divide": llmc(n_heads=3),
        "padding-negative": llmc(padded=-16),
        "padding-less": llmc(padded=8),
        "data-short": llmc(data=b""),
        "data-long": llmc(data=bytes(1 << 16)),
    }


# ---- config.json ----

def hf_config_nasties():
    llama = {"model_type": "llama", "vocab_size": 8, "max_position_embeddings": 8, "hidden_size": 8,
             "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    changes = {
        "layers-negative": {"num_hidden_layers": -1},
        "heads-0": {"num_attention_heads": 0},
        "width-huge": {"hidden_size": 2**40},
        "width-text": {"hidden_size": "8"},
        "heads-fraction": {"num_attention_heads": 2.5},
        "head-size-huge": {"head_dim": 2**24},
        "groups-do-not-divide": {"num_attention_heads": 3, "num_key_value_heads": 2},
        "rope-unknown": {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        "rope-list": {"rope_parameters": []},
        "activation-unknown": {"hidden_act": "gelu"},
        "type-unknown": {"model_type": "mamba"},
        "type-number": {"model_type": 3},
    }
    made = {name: json.dumps({**llama, **change}).encode() for name, change in changes.items()}
    return {**made, "empty": b"", "list": b"[]", "deep": b"[" * 5000, "bom": b"\xef\xbb\xbf{}",
            "valid": json.dumps(llama).encode()}


def all_nasties():
    """{reader: {name: bytes}}, by the names of the fuzz targets."""
    return {"safetensors": safetensors_nasties(), "gguf": gguf_nasties(), "llmc": llmc_nasties(),
            "hf_config": hf_config_nasties()}
