#!/usr/bin/env python3
"""Checks the figures of qbench analyze against a second computation that shares nothing with it: a
forward pass and plain formulas in float64, on whole arrays. Usage:

    check_analysis.py FOLDER TOKENS.safetensors ANALYSIS.json [--tolerance 1e-6]

FOLDER is a Hugging Face folder of a GPT2 or Llama model (config.json, model.safetensors), TOKENS
what analyze --tokens read. Prints the largest difference of each figure; exit 1 where one is over
the tolerance (of kurt_channel_max five times as much: it is one channel's fourth powers, of
activations that the program has as f32 and this script as float64). Needs NumPy."""
import argparse
import json
import math
import pathlib
import struct
import sys

import numpy as np


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    kinds = {"F32": np.float32, "I32": np.int32}
    return {name: np.frombuffer(data, kinds[t["dtype"]], math.prod(t["shape"]),
                                8 + size + t["data_offsets"][0]).reshape(t["shape"])
            for name, t in json.loads(data[8:8 + size]).items() if name != "__metadata__"}


LENIENT = {"kurt_channel_max": 5}


# ---- forward passes: each gives the views of one sequence ----

def attention_weights(q, k):
    """(H, T, D) each, k repeated to H heads: causal softmax (H, T, T)."""
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    scores = np.where(np.tri(scores.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def split_heads(x, n_heads):
    return x.reshape(len(x), n_heads, -1).transpose(1, 0, 2)


class Views:
    """What one sequence shows: a list over layers of each."""

    def __init__(self):
        self.stream, self.attn_out, self.mlp_out, self.norm1, self.norm2 = [], [], [], [], []
        self.weights, self.key, self.value = [], [], []
        self.embedding = self.final = None

    def attend(self, q, k, v, n_heads):
        self.key.append(k)
        self.value.append(v)
        group = n_heads // len(k)
        weights = attention_weights(q, np.repeat(k, group, 0))
        self.weights.append(weights)
        return (weights @ np.repeat(v, group, 0)).transpose(1, 0, 2).reshape(q.shape[1], -1)


def gpt2(config, w, tokens):
    w = {name.removeprefix("transformer."): t.astype(np.float64) for name, t in w.items()}
    n_heads, see = config["n_head"], Views()

    def linear(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    def norm(x, name):
        variance = x.var(-1, keepdims=True) + config["layer_norm_epsilon"]
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance) * w[name + ".weight"] + \
            w[name + ".bias"]

    x = see.embedding = w["wte.weight"][tokens] + w["wpe.weight"][:len(tokens)]
    for i in range(config["n_layer"]):
        see.norm1.append(norm(x, f"h.{i}.ln_1"))
        q, k, v = (split_heads(part, n_heads)
                   for part in np.split(linear(see.norm1[-1], f"h.{i}.attn.c_attn"), 3, -1))
        see.attn_out.append(linear(see.attend(q, k, v, n_heads), f"h.{i}.attn.c_proj"))
        x = x + see.attn_out[-1]
        see.norm2.append(norm(x, f"h.{i}.ln_2"))
        up = linear(see.norm2[-1], f"h.{i}.mlp.c_fc")
        up = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up ** 3)))
        see.mlp_out.append(linear(up, f"h.{i}.mlp.c_proj"))
        x = x + see.mlp_out[-1]
        see.stream.append(x)
    see.final = norm(x, "ln_f")
    return see


def inverse_frequencies(config, dim):
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    frequency = theta ** -(np.arange(0, dim, 2) / dim)
    if rope.get("rope_type") != "llama3":
        return frequency
    wavelength, old = 2 * math.pi / frequency, rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((old / wavelength - low) / (high - low), 0, 1)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency


def llama(config, w, tokens):
    w = {name.removeprefix("model."): t.astype(np.float64) for name, t in w.items()}
    n_heads, see = config["num_attention_heads"], Views()
    n_kv = config.get("num_key_value_heads", n_heads)
    dim = config.get("head_dim") or config["hidden_size"] // n_heads
    angle = np.outer(np.arange(len(tokens)), inverse_frequencies(config, dim))
    cosine, sine = np.cos(angle), np.sin(angle)

    def linear(x, name):
        return x @ w[name + ".weight"].T

    def norm(x, name):
        square = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(square + config["rms_norm_eps"]) * w[name + ".weight"]

    def rotate(x):
        a, b = x[..., :dim // 2], x[..., dim // 2:]
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)

    x = see.embedding = w["embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        at, mlp = f"layers.{i}.self_attn.", f"layers.{i}.mlp."
        h = norm(x, f"layers.{i}.input_layernorm")
        see.norm1.append(h)
        q = rotate(split_heads(linear(h, at + "q_proj"), n_heads))
        k = rotate(split_heads(linear(h, at + "k_proj"), n_kv))
        v = split_heads(linear(h, at + "v_proj"), n_kv)
        see.attn_out.append(linear(see.attend(q, k, v, n_heads), at + "o_proj"))
        x = x + see.attn_out[-1]
        h = norm(x, f"layers.{i}.post_attention_layernorm")
        see.norm2.append(h)
        gate = linear(h, mlp + "gate_proj")
        see.mlp_out.append(linear(gate / (1 + np.exp(-gate)) * linear(h, mlp + "up_proj"),
                                  mlp + "down_proj"))
        x = x + see.mlp_out[-1]
        see.stream.append(x)
    see.final = norm(x, "norm")
    return see


# ---- figures: x has the windows in front, (B, T, C) ----

def kurtosis(x, axis=-1):
    d = x - x.mean(axis, keepdims=True)
    return (d ** 4).mean(axis) / (d ** 2).mean(axis) ** 2


def first_and_rest(values):
    return values[:, 0].mean(), values[:, 1:].mean()


def sample_figures(x):
    """kurt_sample and inf_norm of (B, T, C)."""
    flat = x.reshape(len(x), -1)
    d = flat - flat.mean(1, keepdims=True)
    kurt = (d ** 4).mean(1) / (flat.std(1, ddof=1) ** 4 + 1e-6)
    return kurt.mean(), np.abs(flat).max(1).mean()


def stream_figures(x):
    found, magnitude, norm = {}, np.abs(x), np.linalg.norm(x, axis=-1)
    for name, values in (("kurt_token", kurtosis(x)), ("max_abs", magnitude.max(-1)),
                         ("norm_ratio", magnitude.max(-1) / norm), ("norm_hidden", norm)):
        found[name + "_first"], found[name + "_rest"] = first_and_rest(values)
    found["kurt_sample"], found["inf_norm"] = sample_figures(x)
    tokens, flat = x.reshape(-1, x.shape[-1]), magnitude.reshape(len(x), -1)
    channels = np.sort(kurtosis(tokens, 0) - 3)[::-1]
    found["kurt_channel_max"], found["kurt_channel_top10"] = channels[0], channels[:10].mean()
    squares = (tokens ** 2).mean(0)
    found["kurt_neuron_rms"] = (squares ** 2).mean() / squares.mean() ** 2
    for i in range(3):
        found[f"act_top{i + 1}"] = np.sort(flat, 1)[:, -1 - i].mean()
    median = np.median(flat, 1)
    found["act_median"] = median.mean()
    found["massive_count"] = ((flat > 100) & (flat >= 1000 * median[:, None])).sum(1).mean()
    found["residual_peak"] = (norm[:, 0] / np.median(norm[:, 1:], 1)).mean()
    return found


def attention_figures(weights, key, value):
    """weights (B, H, T, T); key, value (B, Hkv, T, D)."""
    found, asked = {}, weights[:, :, 1:]
    found["attn_first_argmax"] = (asked.argmax(-1) == 0).mean()
    found["attn_first_share"] = asked[..., 0].mean()
    found["dormant_share"] = (asked[..., 0] > 0.5).mean()
    found["attn_silent_share"] = 0.0
    n = min(64, weights.shape[-1])
    alpha = weights[:, :, :n, :n].sum(2) / (n - np.arange(n))  # zeros above the diagonal
    found["sink_alpha"] = alpha[..., 0].mean()
    found["sink_eps"] = 100 * (alpha[..., 0] > 0.3).mean()
    for name, x in (("norm_key", key), ("norm_value", value)):
        norm = np.linalg.norm(x, axis=-1)
        found[name + "_first"], found[name + "_rest"] = norm[..., 0].mean(), norm[..., 1:].mean()
    found["value_drain"] = found["norm_value_first"] / found["norm_value_rest"]
    return found


def figures(views):
    """{place: {key: value}} of all that is compared; place is "embedding", "layer 1", ..."""
    stack = lambda pick: np.stack([pick(view) for view in views])
    found = {"embedding": stream_figures(stack(lambda v: v.embedding))}
    tapped = [sample_figures(stack(lambda v: v.final))]
    layers = []
    for i in range(len(views[0].stream)):
        layer = stream_figures(stack(lambda v: v.stream[i]))
        layer |= attention_figures(*(stack(lambda v: getattr(v, name)[i])
                                     for name in ("weights", "key", "value")))
        for name in ("attn_out", "mlp_out", "norm1", "norm2"):
            sample = sample_figures(stack(lambda v: getattr(v, name)[i]))
            layer["kurt_sample_" + name], layer["inf_norm_" + name] = sample
        tapped += [(layer[k], layer[n]) for k, n in
                   [("kurt_sample", "inf_norm")] + [(f"kurt_sample_{t}", f"inf_norm_{t}") for t in
                                                    ("attn_out", "mlp_out", "norm1", "norm2")]]
        layers.append(layer)
        found[f"layer {i + 1}"] = layer
    found["mean"] = {key: np.mean([layer[key] for layer in layers]) for key in layers[0]}
    kurt, inf_norm = np.array(tapped).T
    found["all"] = {"kurt_sample_mean": kurt.mean(), "kurt_sample_max": kurt.max(),
                    "inf_norm_max": inf_norm.max()}
    for name in ("first", "rest"):
        pair = [[layer[f"{figure}_{name}"] for layer in layers]
                for figure in ("kurt_token", "norm_ratio")]
        found["all"]["correlation_" + name] = np.corrcoef(*pair)[0, 1]
    return found


def said_by(analysis):
    said = {"embedding": analysis["embedding"], "mean": analysis["mean"]}
    said |= {f"layer {layer['layer']}": layer for layer in analysis["layers"]}
    correlation = analysis["kurt_norm_ratio_correlation"]
    said["all"] = {**analysis, "correlation_first": correlation["first"],
                   "correlation_rest": correlation["rest"]}
    return said


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("tokens")
    parser.add_argument("analysis", type=pathlib.Path)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    args = parser.parse_args()
    config = json.loads((args.folder / "config.json").read_text())
    forward = {"gpt2": gpt2, "llama": llama}[config["model_type"]]
    weights = read_safetensors(args.folder / "model.safetensors")
    rows = read_safetensors(args.tokens)["tokens"]
    expected = figures([forward(config, weights, row) for row in rows])
    said, worst = said_by(json.loads(args.analysis.read_text())), {}
    for place, values in expected.items():
        for key, value in values.items():
            found = said[place][key]
            apart = math.inf if found is None else abs(found - value) / max(1, abs(value))
            worst[key] = max(worst.get(key, (0, "")), (apart, place))
    for key, (apart, place) in sorted(worst.items(), key=lambda item: -item[1][0]):
        print(f"{key:24} {apart:.1e}  {place}")
    largest = max(apart for apart, _ in worst.values())
    print(f"{len(worst)} figures, largest difference {largest:.1e}, tolerance {args.tolerance:.0e}")
    sys.exit(any(not apart <= args.tolerance * LENIENT.get(key, 1)
                 for key, (apart, _) in worst.items()))


if __name__ == "__main__":
    main()
