#!/usr/bin/env python3
"""Checks the figures of qbench analyze against a second computation that shares nothing with it: a
forward pass (float64_model.py) and plain formulas in float64, on whole arrays. Usage:

    check_analysis.py FOLDER TOKENS.safetensors ANALYSIS.json [--tolerance 1e-6]

FOLDER is a Hugging Face folder of a model, TOKENS what analyze --tokens read. What ANALYSIS has
besides the metrics - interventions, a sensitivity - is computed again, too. Prints the largest
relative difference of each figure; exit 1 where one is over the tolerance. Needs NumPy."""
import argparse
import json
import math
import pathlib
import sys

import numpy as np

from float64_model import Model, read_safetensors

# Times the tolerance: fourth powers or differences of activations that the program has as f32, and
# single ones of them; losses of a few tokens; numbers that f32 and float64 round to other codes.
LENIENT = {"kurt_channel_max": 5, "kurt_channel_top10": 5, "act_median": 5, "std": 100,
           "kurt_norm_ratio_correlation": 100, "interventions": 100, "sensitivity": 1e4}
# From 0 or -1 to 1, or a difference itself: how far apart two are is not divided by the value.
ABSOLUTE = {"attn_first_share", "attn_silent_share", "sink_alpha", "alpha", "loss_increase",
            "kurt_norm_ratio_correlation"}


# ---- the stream: x is (B, T, C) ----

def kurtosis(x, axis=-1):
    d = x - x.mean(axis, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (d ** 4).mean(axis) / (d ** 2).mean(axis) ** 2  # 0 / 0 = NaN: it has none


def mean(x):
    """Of those that have the figure."""
    x = np.asarray(x, float)
    x = x[~np.isnan(x)]
    return x.mean() if x.size else math.nan


def first_and_rest(found, name, values):
    found[name + "_first"], found[name + "_rest"] = mean(values[:, 0]), mean(values[:, 1:])


def sample_figures(x):
    """kurt_sample and inf_norm."""
    flat = x.reshape(len(x), -1)
    d = flat - flat.mean(1, keepdims=True)
    kurt = (d ** 4).mean(1) / (flat.var(1, ddof=1) ** 2 + 1e-6)
    return kurt.mean(), np.abs(flat).max(1).mean()


def massive_mask(x):
    magnitude = np.abs(x)
    return (magnitude > 100) & (magnitude >= 1000 * np.median(magnitude, (1, 2), keepdims=True))


def stream_figures(x):
    found, magnitude, norm = {}, np.abs(x), np.linalg.norm(x, axis=-1)
    first_and_rest(found, "kurt_token", kurtosis(x))
    first_and_rest(found, "max_abs", magnitude.max(-1))
    with np.errstate(invalid="ignore"):
        first_and_rest(found, "norm_ratio", magnitude.max(-1) / norm)
    first_and_rest(found, "norm_hidden", norm)
    found["kurt_sample"], found["inf_norm"] = sample_figures(x)
    tokens, flat = x.reshape(-1, x.shape[-1]), magnitude.reshape(len(x), -1)
    channels = kurtosis(tokens, 0) - 3
    channels = np.sort(channels[~np.isnan(channels)])[::-1]
    found["kurt_channel_max"], found["kurt_channel_top10"] = mean(channels[:1]), mean(channels[:10])
    squares = (tokens ** 2).mean(0)
    with np.errstate(invalid="ignore"):
        found["kurt_neuron_rms"] = (squares ** 2).mean() / squares.mean() ** 2
    for i in range(3):
        found[f"act_top{i + 1}"] = np.sort(flat, 1)[:, -1 - i].mean()
    found["act_median"] = np.median(flat, 1).mean()
    found["massive_count"] = massive_mask(x).sum((1, 2)).mean()
    if x.shape[1] > 1:
        with np.errstate(invalid="ignore"):
            found["residual_peak"] = mean(norm[:, 0] / np.median(norm[:, 1:], 1))
    return found


# ---- attention: weights (B, H, T, T); key, value (B, Hkv, T, D) ----

def alphas(weights):
    """alpha_k of each window, head and key: (B, H, n)."""
    n = min(64, weights.shape[-1])
    return np.tril(weights[:, :, :n, :n]).sum(2) / (n - np.arange(n))


def silent_weights(weights, config):
    sums = config["softmax"] in ("softmax1", "sink")
    return 1 - weights.sum(-1) if sums else np.zeros(weights.shape[:-1])


def head_figures(weights, config):
    """(H) each."""
    asked, alpha = weights[:, :, 1:], alphas(weights)[..., 0]
    silent = silent_weights(asked, config)
    found = {"sink_alpha": alpha.mean(0), "sink_eps": 100 * (alpha > 0.3).mean(0)}
    if asked.shape[2]:
        first = asked[..., 0]
        found |= {"attn_first_argmax": (asked.argmax(-1) == 0).mean((0, 2)),
                  "attn_first_share": first.mean((0, 2)), "attn_silent_share": silent.mean((0, 2)),
                  "dormant_share": (first + silent > 0.5).mean((0, 2))}
    return found


def attention_figures(weights, key, value, config):
    found = {name: x.mean() for name, x in head_figures(weights, config).items()}
    for name, x in (("norm_key", key), ("norm_value", value)):
        norm = np.linalg.norm(x, axis=-1)
        found[name + "_first"], found[name + "_rest"] = mean(norm[..., 0]), mean(norm[..., 1:])
    with np.errstate(invalid="ignore"):
        found["value_drain"] = found["norm_value_first"] / np.float64(found["norm_value_rest"])
    return found


# ---- all layers ----

def layer_figures(v, i, config):
    found = stream_figures(v.stream[i])
    tapped = {"": v.stream[i], "_attn_out": v.attn_out[i], "_mlp_out": v.mlp_out[i],
              "_norm1": v.norm1[i], "_norm2": v.norm2[i]}
    for name, x in tapped.items():
        if x is not None:
            found["kurt_sample" + name], found["inf_norm" + name] = sample_figures(x)
    if v.weights[i] is not None:
        found |= attention_figures(v.weights[i], v.key[i], v.value[i], config)
    return found


def correlations(layers):
    for name in ("first", "rest"):
        pair = [[layer[f"{figure}_{name}"] for layer in layers]
                for figure in ("kurt_token", "norm_ratio")]
        with np.errstate(invalid="ignore", divide="ignore"):
            yield name, np.corrcoef(*pair)[0, 1] if len(layers) > 1 else math.nan


def sinks(v):
    alpha = np.stack([alphas(w) for w in v.weights if w is not None])  # (L, B, H, n)
    bins = np.minimum((alpha[..., 0] * 20).astype(int), 19)
    return {"eps": 0.3, "tokens": alpha.shape[-1], "sink_1": 100 * (alpha[..., 0] > 0.3).mean(),
            "alpha": alpha.mean((0, 1, 2)), "sink": 100 * (alpha > 0.3).mean((0, 1, 2)),
            "alpha_1_bins": np.bincount(bins.ravel(), minlength=20) / bins.size}


def positions(v, at):
    layers = []
    for i, x in enumerate(v.stream):
        layer = {"layer": i + 1, "hidden": np.linalg.norm(x, axis=-1).mean(0)[at]}
        for name, rows in (("key", v.key[i]), ("value", v.value[i])):
            if rows is not None:
                layer[name] = np.linalg.norm(rows, axis=-1).mean((0, 1))[at]
        layers.append(layer)
    return {"position": at + 1, "layers": layers}


def massive(v):
    """{(layer from 1, channel): figures}"""
    found = {}
    for i, x in enumerate(v.stream):
        mask = massive_mask(x)
        for c in np.flatnonzero(mask.any((0, 1))):
            values, here = x[..., c][mask[..., c]], mask[..., c]
            found[i + 1, int(c)] = {
                "count": len(values), "first_share": here[:, 0].sum() / len(values),
                "window_share": here.any(1).mean(), "mean": values.mean(), "std": values.std(),
                "min_abs": np.abs(values).min(), "max_abs": np.abs(values).max()}
    return found


def mean_figures(layers):
    """Over those that have the figure."""
    keys = dict.fromkeys(key for layer in layers for key in layer)
    return {key: mean([layer[key] for layer in layers if key in layer]) for key in keys}


def metrics(model, v, said):
    layers = [layer_figures(v, i, model.c) for i in range(model.c["n_layers"])]
    tapped = [sample_figures(v.final)] + [
        (layer["kurt_sample" + name], layer["inf_norm" + name]) for layer in layers
        for name in ("", "_attn_out", "_mlp_out", "_norm1", "_norm2")
        if "kurt_sample" + name in layer]
    kurt, inf_norm = np.array(tapped).T
    found = {"embedding": stream_figures(v.embedding), "layers": layers,
             "mean": mean_figures(layers),
             "kurt_norm_ratio_correlation": dict(correlations(layers)), "sinks": sinks(v),
             "kurt_sample_mean": kurt.mean(), "kurt_sample_max": kurt.max(),
             "inf_norm_max": inf_norm.max(), "massive_places": len(massive(v))}
    at = np.array(said["norms_by_position"]["position"]) - 1
    found["norms_by_position"] = positions(v, at)
    found["heads"] = [{"layer": i + 1, "head": h + 1} | {key: x[h] for key, x in of.items()}
                      for i, w in enumerate(v.weights) if w is not None
                      for of in [head_figures(w, model.c)] for h in range(w.shape[1])]
    places = massive(v)
    found["massive"] = [places.get((one["layer"], one["channel"]), {}) for one in said["massive"]]
    return found


# ---- interventions ----

def set_massive(places, to_mean):
    def edit(place, layer, x):
        if place != "stream":
            return x
        x = x.copy()
        for (at, c), found in places.items():
            if at == layer + 1:
                hit = np.abs(x[..., c]) >= found["min_abs"] * (1 - 1e-7)
                x[..., c][hit] = found["mean"] if to_mean else 0
        return x
    return edit


def zero_first_value(place, layer, x):
    if place != "qkv":
        return x
    value = x[2].copy()
    value[:, :, 0] = 0
    return x[0], x[1], value


def drop_first_key(place, layer, x):
    """The weights of the others grow in proportion; so does what goes to no key."""
    if place != "seen":
        return x
    x = x.copy()
    x[1:, 0] = False
    return x


def remove(what):
    places = {"head": "heads", "attn": "attn_out", "mlp": "mlp_out"}
    part, _, at = what.partition(":")
    layer, _, head = at.partition(".")

    def edit(place, i, x):
        if i != int(layer) - 1 or place != places[part]:
            return x
        x = x.copy()
        if part == "head":
            x[:, :, int(head) - 1] = 0
        else:
            x[:] = 0
        return x
    return edit


def interventions(model, tokens, v, said):
    places = massive(v)
    edits = {"zero-massive": set_massive(places, False), "mean-massive": set_massive(places, True),
             "zero-first-value": zero_first_value, "drop-first-key": drop_first_key}
    before, found = model.losses(v.logits, tokens).mean(), []
    for one in said:
        edit = edits.get(one["name"]) or remove(one["name"])
        after = model.losses(model.forward(tokens, edit, logits=True).logits, tokens).mean()
        found.append({"name": one["name"], "ppl_untouched": np.exp(before),
                      "ppl": np.exp(after), "loss_increase": after - before})
    return found


# ---- sensitivity: schemes that quantise as quant/ does, rounded from float64 ----

def absmax8(x, axis):
    """x quantised to 8 bits and back; one scale a slice along `axis`, None = one for all."""
    scale = np.abs(x).max(axis, keepdims=True) / 127
    return np.clip(np.rint(x / np.where(scale > 0, scale, 1)), -127, 127) * scale


def zeropoint4(w):
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    scale = np.where(high > low, (high - low) / 15, 1)
    zero = np.rint(-low / scale)
    return np.where(high > low, (np.clip(np.rint(w / scale) + zero, 0, 15) - zero) * scale, w)


def quantised_product(scheme, x, w, bias):
    if scheme == "zeropoint4":
        return x @ zeropoint4(w).T + bias
    per_tensor = scheme in ("moderate", "coarse")
    y = absmax8(x, None if per_tensor else -1) @ absmax8(w, None if per_tensor else 1).T + bias
    return absmax8(y, None) if scheme == "coarse" else y


def sqnr_db(y, found):
    return 10 * math.log10((y ** 2).sum() / ((y - found) ** 2).sum())


class Mixed:
    """A model of which some linear layers are quantised."""

    def __init__(self, model, tokens, scheme):
        self.model, self.tokens, self.scheme, self.inputs = model, tokens, scheme, {}

    def ppl(self, is_quantised):
        def product(name, layer, x, w, bias):
            return quantised_product(self.scheme, x, w, bias) if is_quantised(name, layer) \
                else x @ w.T + bias
        views = self.model.forward(self.tokens, product=product, logits=True)
        return math.exp(self.model.losses(views.logits, self.tokens).mean())

    def look(self):
        def product(name, layer, x, w, bias):
            self.inputs[name, layer] = x, x @ w.T + bias, quantised_product(self.scheme, x, w, bias)
            return x @ w.T + bias
        self.model.forward(self.tokens, product=product)

    def figures(self, name, layer):
        x, y, quantised = self.inputs[name, layer]
        magnitude = np.sort(np.abs(x).ravel())
        n = magnitude.size
        p999 = magnitude[n - 1 - n // 1000]
        return {"sqnr_db": sqnr_db(y, quantised), "input_kurtosis": kurtosis(x.ravel()),
                "input_amax": magnitude[-1], "input_p999": p999, "amax_ratio": magnitude[-1] / p999}


def sensitivity(model, tokens, said):
    mixed = Mixed(model, tokens, said["scheme"]["name"])
    mixed.look()
    full, whole = mixed.ppl(lambda *at: False), mixed.ppl(lambda *at: True)
    parts, kept = [], []
    for one in said["parts"]:
        layer, name = one["layer"] - 1, one["role"].rpartition(".")[2]
        alone, without = (mixed.ppl(lambda *at: (at == (name, layer)) == own)
                          for own in (True, False))
        parts.append({"ppl": alone, "ppl_without": without} | mixed.figures(name, layer))
    for one in said["kept"]:
        left_out = [(p["role"].rpartition(".")[2], p["layer"] - 1)
                    for p in said["parts"][:one["n"]]]
        kept.append({"ppl": mixed.ppl(lambda *at: at not in left_out)})
    return {"ppl_full": full, "ppl": whole, "parts": parts, "kept": kept}


# ---- comparing ----

def compare(found, said, path, worst):
    if isinstance(found, dict):
        for key, value in found.items():
            compare(value, said.get(key), path + [key], worst)
    elif isinstance(found, (list, np.ndarray)):
        if len(found) != len(said):
            worst[path[0]] = (math.inf, f"{len(said)} in place of {len(found)}")
            return
        for i, value in enumerate(found):
            compare(value, said[i], path + [str(i)], worst)
    elif isinstance(found, str) or found is None:
        assert found == said, (path, found, said)
    else:
        found = float(found)
        if not math.isfinite(found) or said is None:  # what is no number is null
            apart = 0.0 if not math.isfinite(found) and said is None else math.inf
        else:
            unit = 1 if ABSOLUTE & set(path) else max(abs(found), 1e-30)
            apart = abs(found - said) / unit
        name = next(key for key in reversed(path) if not key.isdigit())
        name = f"{path[0]}.{name}" if path[0] in LENIENT else name
        if apart >= worst.get(name, (0, ""))[0]:
            worst[name] = (apart, f"{'.'.join(path)}: {said} in place of {found:.9g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("tokens")
    parser.add_argument("analysis", type=pathlib.Path)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    args = parser.parse_args()
    model, tokens = Model(args.folder), read_safetensors(args.tokens)["tokens"]
    said, worst = json.loads(args.analysis.read_text()), {}
    views = model.forward(tokens, logits=True)
    found = metrics(model, views, said)
    if said.get("interventions"):
        found["interventions"] = interventions(model, tokens, views, said["interventions"])
    if said.get("sensitivity"):
        found["sensitivity"] = sensitivity(model, tokens, said["sensitivity"])
    compare(found, said, [], worst)
    for key, (apart, where) in sorted(worst.items(), key=lambda item: -item[1][0]):
        print(f"{key:24} {apart:.1e}  {where}")
    wrong = [key for key, (apart, _) in worst.items()
             if not apart <= args.tolerance * LENIENT.get(key.partition(".")[0], 1)]
    largest = max(apart for apart, _ in worst.values())
    print(f"{len(worst)} figures, largest difference {largest:.1e}, tolerance {args.tolerance:.0e}")
    if wrong:
        print("over the tolerance:", *sorted(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
