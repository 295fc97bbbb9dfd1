#!/usr/bin/env python3
"""Writes tests/golden/baselines.safetensors: LLM.int8() and SmoothQuant of one small layer, computed
with NumPy from the definitions in docs/schemes.md and nothing of qbench's.

    make_baselines.py [OUT]

f32 where the definition says f32, one rounding an operation; numpy's rint rounds halves to even."""
import json
import pathlib
import sys

import numpy as np

F = np.float32
M, K, SEGMENTS = 9, 40, (24, 8, 8)  # tokens, input channels, output channels of q, k and v
LEAST, ALPHA = F(6.0), 0.5


def absmax_scale(x, axis=None):
    return (np.abs(x).max(axis=axis) / F(127)).astype(F)


def codes(x, scale):
    safe = np.where(scale > 0, scale, F(1))
    q = np.clip(np.rint((x / safe).astype(F)), -127, 127)
    return np.where(scale > 0, q, 0).astype(np.int8)


def product(qx, sx, qw, sw, bias):
    acc = qx.astype(np.int32) @ qw.astype(np.int32).T
    scale = (np.broadcast_to(sx, (M,))[:, None] * np.broadcast_to(sw, (qw.shape[0],))).astype(F)
    return ((acc.astype(F) * scale).astype(F) + bias).astype(F)


def make_inputs(rng):
    x = rng.normal(0, 1.5, (M, K)).astype(F).clip(-5.75, 5.75)
    x[0, 3], x[2, 3], x[5, 17], x[7, 31] = 6.0, 41.5, -6.0, -9.25  # columns 3, 17, 31 are outliers
    x[4, 20] = np.nextafter(LEAST, F(0))  # just below
    x[6] = 0
    w = rng.normal(0, 0.2, (sum(SEGMENTS), K)).astype(F)
    w[5] = 0
    w[:, 11] = 0
    maxima = np.abs(x).max(axis=0) * rng.uniform(0.7, 1.3, K).astype(F)
    maxima[22] = 0
    return x, w, maxima.astype(F), rng.normal(0, 1, sum(SEGMENTS)).astype(F)


def llm_int8(x, w, bias):
    outlier = (np.abs(x) >= LEAST).any(axis=0)
    inliers = np.where(outlier, F(0), x)
    sx, sw = absmax_scale(inliers, 1), absmax_scale(w, 1)
    qx, qw = codes(inliers, sx[:, None]), codes(w, sw[:, None])
    total = np.zeros((M, w.shape[0]), F)
    for j in np.flatnonzero(outlier):
        total = (total + (x[:, j, None] * qw[:, j].astype(F)).astype(F)).astype(F)
    y = (product(qx, sx, qw, sw, bias) + (total * sw).astype(F)).astype(F)
    return {"channels": np.flatnonzero(outlier).astype(np.int32), "qx": qx, "sx": sx, "qw": qw,
            "sw": sw, "y": y}


def smoothquant(x, w, maxima, bias):
    largest = np.abs(w).max(axis=0)
    used = (maxima > 0) & (largest > 0)
    s = np.ones(K, F)
    s[used] = (np.power(maxima[used].astype(np.float64), ALPHA)
               / np.power(largest[used].astype(np.float64), 1 - ALPHA)).astype(F)
    smooth_x, smooth_w = (x / s).astype(F), (w * s).astype(F)
    sx = absmax_scale(smooth_x)
    qx = codes(smooth_x, sx)
    edges = np.cumsum((0,) + SEGMENTS)
    parts = [smooth_w[a:b] for a, b in zip(edges, edges[1:])]
    sw = np.array([absmax_scale(part) for part in parts], F)
    qw = np.concatenate([codes(part, scale) for part, scale in zip(parts, sw)])
    y = product(qx, sx, qw, np.repeat(sw, SEGMENTS), bias)
    return {"s": s, "qx": qx, "sx": sx.reshape(1), "qw": qw, "sw": sw, "y": y}


def write(path, tensors):
    names = {np.dtype(np.float32): "F32", np.dtype(np.int8): "I8", np.dtype(np.int32): "I32"}
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape),
                        "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            file.write(np.ascontiguousarray(t).tobytes())


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "baselines.safetensors"
    x, w, maxima, bias = make_inputs(np.random.default_rng(7))
    tensors = {"x": x, "w": w, "in_channel_max": maxima, "bias": bias}
    tensors |= {f"llm-int8.{k}": v for k, v in llm_int8(x, w, bias).items()}
    tensors |= {f"smoothquant.{k}": v for k, v in smoothquant(x, w, maxima, bias).items()}
    write(out, tensors)


if __name__ == "__main__":
    main()
