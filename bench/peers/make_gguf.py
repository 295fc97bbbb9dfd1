#!/usr/bin/env python3
"""Writes a random GPT2-shaped GGUF for llama-bench: the sizes of a preset of `qbench convert
--random`, as F16, Q8_0 or Q4_0. It has no vocabulary and its output is noise; it is for timing.

A file of a type has what llama-quantize gives it: the matrices of the blocks in that type, the
tied embedding in F16, Q8_0 or (with Q4_0) Q6_K, vectors and positions in F32. The numbers of one
drawing of normal deviates are used again and again, from another place for each matrix, so that a
file is written about as fast as the disk takes it. Needs NumPy.
"""
import argparse
import os
import struct
import sys

try:
    import numpy as np
except ImportError as error:
    sys.exit("make_gguf: %s; on Debian: apt install python3-numpy" % error)

PRESETS = {  # model/random_model.c: layers, d, heads, d_ff, V, context
    "gpt2-60m": (8, 512, 8, 2048, 50304, 1024),
    "gpt2-130m": (12, 768, 12, 3072, 50304, 1024),
    "gpt2-1.4b": (24, 2048, 16, 8192, 50304, 1024),
}
ALIGNMENT = 32
U32, F32_VALUE, STRING = 4, 6, 8            # types of metadata
DEVIATION = 0.02


# ---- types of tensors --------------------------------------------------------------------------
# Each takes x, rows of one block of numbers, and returns rows of the block's bytes.

def bytes_of(*columns):
    return np.concatenate([np.ascontiguousarray(c).view(np.uint8).reshape(len(c), -1)
                           for c in columns], axis=1)


def f32(x):
    return bytes_of(x.astype("<f4"))


def f16(x):
    return bytes_of(x.astype("<f2"))


def q8_0(x):
    d = (np.abs(x).max(axis=1, keepdims=True) / 127).astype("<f2")
    return bytes_of(d, np.rint(x / d.astype("f4")).clip(-127, 127).astype("i1"))


def q4_0(x):
    at = np.abs(x).argmax(axis=1)[:, None]
    d = (np.take_along_axis(x, at, axis=1) / -8).astype("<f2")
    q = (np.rint(x / d.astype("f4")) + 8).clip(0, 15).astype("u1")
    return bytes_of(d, q[:, :16] | q[:, 16:] << 4)


def q6_k(x):
    """Low four bits of all, high two bits of all, 16 scales, one scale of these. Which number lies
    where does not matter to a random matrix."""
    parts = np.abs(x.reshape(len(x), 16, 16)).max(axis=2) / 32
    d = (parts.max(axis=1, keepdims=True) / 127).astype("<f2")
    scales = np.rint(parts / d.astype("f4")).clip(1, 127)
    steps = np.repeat(scales * d.astype("f4"), 16, axis=1)
    q = (np.rint(x / steps) + 32).clip(0, 63).astype("u1")
    low, high = q & 15, q >> 4
    ql = low[:, :128] | low[:, 128:] << 4
    qh = high[:, :64] | high[:, 64:128] << 2 | high[:, 128:192] << 4 | high[:, 192:] << 6
    return bytes_of(ql, qh, scales.astype("i1"), d)


TYPES = {  # name: (number in the file, numbers a block, encoder)
    "F32": (0, 1, f32), "F16": (1, 1, f16), "Q4_0": (2, 32, q4_0), "Q8_0": (8, 32, q8_0),
    "Q6_K": (14, 256, q6_k),
}
EMBEDDING_TYPE = {"F16": "F16", "Q8_0": "Q8_0", "Q4_0": "Q6_K"}
FILE_TYPE = {"F16": 1, "Q4_0": 2, "Q8_0": 7}


class Noise:
    """Blocks of a type, as many as asked for, out of a stock that is drawn once."""

    STOCK = 1 << 22  # numbers

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.x = self.rng.standard_normal(self.STOCK, dtype=np.float32) * np.float32(DEVIATION)
        self.stocks = {}

    def blocks(self, kind, n):
        """The bytes of n blocks, piece by piece."""
        _, size, encode = TYPES[kind]
        if kind not in self.stocks:
            self.stocks[kind] = encode(self.x.reshape(-1, size))
        stock = self.stocks[kind]
        while n:
            first = int(self.rng.integers(len(stock) // 2))
            piece = stock[first:first + n]
            yield memoryview(piece).cast("B")
            n -= len(piece)


# ---- the file ----------------------------------------------------------------------------------

def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def metadata(preset, kind):
    layers, d, heads, d_ff, vocab, context = PRESETS[preset]
    pairs = [
        ("general.architecture", STRING, "gpt2"), ("general.name", STRING, preset + " random"),
        ("general.file_type", U32, FILE_TYPE[kind]), ("general.quantization_version", U32, 2),
        ("gpt2.context_length", U32, context),
        ("gpt2.embedding_length", U32, d), ("gpt2.feed_forward_length", U32, d_ff),
        ("gpt2.block_count", U32, layers), ("gpt2.attention.head_count", U32, heads),
        ("gpt2.attention.layer_norm_epsilon", F32_VALUE, 1e-5),
        ("gpt2.vocab_size", U32, vocab), ("tokenizer.ggml.model", STRING, "none"),
    ]
    pack = {U32: lambda v: struct.pack("<I", v), F32_VALUE: lambda v: struct.pack("<f", v),
            STRING: string}
    return len(pairs), b"".join(string(key) + struct.pack("<I", t) + pack[t](value)
                                for key, t, value in pairs)


def tensors(preset, kind):
    """(name, type, shape) in GGUF's order of dimensions: the contiguous one first."""
    layers, d, _, d_ff, vocab, context = PRESETS[preset]
    yield "token_embd.weight", EMBEDDING_TYPE[kind], (d, vocab)
    yield "position_embd.weight", "F32", (d, context)
    for i in range(layers):
        for name, n_in, n_out in (("attn_qkv", d, 3 * d), ("attn_output", d, d),
                                  ("ffn_up", d, d_ff), ("ffn_down", d_ff, d)):
            yield "blk.%d.%s.weight" % (i, name), kind, (n_in, n_out)
            yield "blk.%d.%s.bias" % (i, name), "F32", (n_out,)
        for name in "attn_norm", "ffn_norm":
            yield "blk.%d.%s.weight" % (i, name), "F32", (d,)
            yield "blk.%d.%s.bias" % (i, name), "F32", (d,)
    yield "output_norm.weight", "F32", (d,)
    yield "output_norm.bias", "F32", (d,)


def padding(n_bytes):
    return -n_bytes % ALIGNMENT


def write(path, preset, kind, seed):
    noise = Noise(seed)
    header, offset, table = b"", 0, list(tensors(preset, kind))
    for name, t, shape in table:
        number, size, encode = TYPES[t]
        header += string(name) + struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, number,
                                             offset)
        n_bytes = int(np.prod(shape)) // size * encode(np.ones((1, size), "f4")).nbytes
        offset += n_bytes + padding(n_bytes)
    n_pairs, pairs = metadata(preset, kind)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(table), n_pairs) + pairs + header
    with open(path + ".tmp", "wb") as f:
        f.write(head + bytes(padding(len(head))))
        for _, t, shape in table:
            n_bytes = 0
            for piece in noise.blocks(t, int(np.prod(shape)) // TYPES[t][1]):
                n_bytes += f.write(piece)
            f.write(bytes(padding(n_bytes)))
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("type", choices=EMBEDDING_TYPE)
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write(args.out, args.preset, args.type, args.seed)


if __name__ == "__main__":
    main()
