#!/usr/bin/env python3
"""A forward pass in float64 on whole arrays, for checks: every architecture that qbench has, from a
Hugging Face folder (config.json, model.safetensors). It shares nothing with the program. Needs
NumPy.

    m = Model(folder)
    views = m.forward(tokens)      # (B, T) ids -> what each block shows
    m.losses(views.logits, tokens) # -log p of each next token, (B, T - 1)

`edit(place, layer, x)`, where given, may return another array for x: place is one of "qkv" (x is
the tuple q, k, v of (B, H, T, D)), "seen" (which query sees which key), "heads", "attn_out",
"mlp_out", "stream"; layers from 0. `product(name, layer, x, weight, bias)` replaces
x @ weight.T + bias in the blocks' linear layers."""
import json
import math
import pathlib
import struct

import numpy as np


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32}

    def read(t):
        x = np.frombuffer(data, kinds[t["dtype"]], math.prod(t["shape"]),
                          8 + size + t["data_offsets"][0])
        if t["dtype"] == "BF16":  # the upper half of an F32
            x = (x.astype(np.uint32) << 16).view(np.float32)
        return x.reshape(t["shape"])
    return {name: read(t) for name, t in json.loads(data[8:8 + size]).items()
            if name != "__metadata__"}


GPT2 = {"wte": "embd", "wpe": "pos", "ln_1": "norm1", "attn.c_attn": "qkv", "attn.c_proj": "o",
        "ln_2": "norm2", "mlp.c_fc": "up", "mlp.c_gate": "gate", "mlp.c_proj": "down",
        "ln_f": "norm_f",
        "lm_head": "head", "attn.gate": "attn_gate", "attn.sinks": "sinks"}
LLAMA = {"embed_tokens": "embd", "embed_positions": "pos",
         "input_layernorm": "norm1", "self_attn.q_proj": "q",
         "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
         "post_attention_layernorm": "norm2", "mlp.gate_proj": "gate", "mlp.up_proj": "up",
         "mlp.down_proj": "down", "norm": "norm_f", "lm_head": "head",
         "self_attn.gate": "attn_gate", "self_attn.sinks": "sinks"}
TRANSPOSED = {"qkv", "o", "up", "gate", "down"}  # GPT2 writes these as (in, out)


def from_transformers(c):
    """transformers' own configuration as qbench writes one."""
    if c["model_type"] == "gpt2":
        return {"arch": "gpt2", "n_layers": c["n_layer"], "d_model": c["n_embd"],
                "n_heads": c["n_head"], "n_kv_heads": c["n_head"],
                "head_dim": c["n_embd"] // c["n_head"], "norm": "layernorm",
                "norm_eps": c["layer_norm_epsilon"], "pos": "learned", "softmax": "softmax",
                "act": "relu" if c["activation_function"] == "relu" else "gelu_tanh"}
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default")
    if c["model_type"] != "llama" or kind not in ("default", "linear", "llama3"):
        raise SystemExit(f"float64_model: found {c['model_type']}, {kind}; expected gpt2 or llama")
    return {"arch": "llama", "n_layers": c["num_hidden_layers"], "d_model": c["hidden_size"],
            "n_heads": c["num_attention_heads"],
            "n_kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
            "head_dim": c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            "norm": "rmsnorm", "norm_eps": c["rms_norm_eps"], "act": "swiglu", "pos": "rope",
            "softmax": "softmax",
            "rope": {"kind": kind, **rope,
                     "theta": rope.get("rope_theta", c.get("rope_theta", 10000.0)),
                     "original_context": rope.get("original_max_position_embeddings")}}


class Views:
    """What a pass shows: of each block a list's item, or None where it has no attention."""

    def __init__(self):
        self.embedding = self.final = self.logits = None
        self.stream, self.mlp_out, self.norm2 = [], [], []
        self.attn_out, self.norm1, self.weights, self.key, self.value = [], [], [], [], []


class Model:
    def __init__(self, folder):
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.c = config["qbench"] if config["model_type"] == "qbench" else from_transformers(config)
        names = GPT2 if self.c["arch"] == "gpt2" else LLAMA
        self.w = {}
        for name, t in read_safetensors(pathlib.Path(folder) / "model.safetensors").items():
            name = name.removeprefix("transformer.").removeprefix("model.")
            layer = ""
            if name.startswith(("h.", "layers.")):
                _, layer, name = name.split(".", 2)
                layer = f"{layer}."
            stem, _, kind = name.rpartition(".")
            if name in names:  # sinks have no ".weight"
                stem, kind = name, "weight"
            if stem not in names:
                continue
            role = names[stem]
            t = t.astype(np.float64)
            turned = self.c["arch"] == "gpt2" and role in TRANSPOSED and kind == "weight"
            self.w[f"{layer}{role}.{kind}"] = t.T if turned else t

    # ---- parts ----

    def norm(self, x, name):
        if self.c["norm"] == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["norm_eps"])
        return x * self.w[name + ".weight"] + self.w.get(name + ".bias", 0)

    def linear(self, name, layer, x):
        weight = self.w[f"{layer}.{name}.weight"]
        bias = self.w.get(f"{layer}.{name}.bias", 0)
        return self.product(name, layer, x, weight, bias) if self.product else x @ weight.T + bias

    def rotate(self, x):
        r, dim = self.c["rope"], self.c["head_dim"]
        frequency = r["theta"] ** -(np.arange(0, dim, 2) / dim)
        if r["kind"] == "linear":
            frequency = frequency / r["factor"]
        if r["kind"] == "llama3":
            share = r["original_context"] * frequency / (2 * math.pi)
            smooth = (share - r["low_freq_factor"]) / (r["high_freq_factor"] - r["low_freq_factor"])
            smooth = np.clip(smooth, 0, 1)
            frequency = (1 - smooth) * frequency / r["factor"] + smooth * frequency
        angle = np.outer(np.arange(x.shape[-2]), frequency)
        a, b = x[..., :dim // 2], x[..., dim // 2:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                               b * np.cos(angle) + a * np.sin(angle)], -1)

    def attention_weights(self, q, k, layer):
        """(B, H, T, D) each -> (B, H, T, T)."""
        n, kind = q.shape[2], self.c["softmax"]
        i, j = np.arange(n)[:, None], np.arange(n)[None, :]
        prefix = min(self.c.get("free_prefix", 0), n)
        seen = (j <= i) | ((i < prefix) & (j < prefix))
        seen = self.edit("seen", layer, seen)
        s = np.where(seen, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -np.inf)
        if kind == "relu":
            return np.maximum(s, 0) / seen.sum(1)[:, None]
        none = {"softmax1": 0.0}.get(kind, -np.inf)
        if kind == "sink":
            none = self.w[f"{layer}.sinks.weight"][:, None, None]
        top = np.maximum(s.max(-1, keepdims=True), none)
        p = np.exp(s - top)
        p = p / (p.sum(-1, keepdims=True) + np.exp(none - top))
        if kind == "clipped":
            gamma, zeta = self.c["softmax_gamma"], self.c["softmax_zeta"]
            p = np.where(seen, np.clip((zeta - gamma) * p + gamma, 0, 1), 0)
        return p

    def attend(self, h, layer, views):
        n_heads, n_kv, dim = (self.c[key] for key in ("n_heads", "n_kv_heads", "head_dim"))
        if f"{layer}.qkv.weight" in self.w:
            x = self.linear("qkv", layer, h)
            q, k, v = np.split(x, [n_heads * dim, (n_heads + n_kv) * dim], -1)
        else:
            q, k, v = (self.linear(name, layer, h) for name in "qkv")
        q, k, v = (x.reshape(*h.shape[:2], -1, dim).swapaxes(1, 2) for x in (q, k, v))
        if self.c["pos"] == "rope":
            q, k = self.rotate(q), self.rotate(k)
        q, k, v = self.edit("qkv", layer, (q, k, v))
        views.key.append(k)
        views.value.append(v)
        k, v = (np.repeat(x, n_heads // n_kv, 1) for x in (k, v))
        weights = self.attention_weights(q, k, layer)
        views.weights.append(weights)
        out = (weights @ v).swapaxes(1, 2)  # (B, T, H, D)
        out = self.edit("heads", layer, out)
        if self.c.get("attn_gate"):
            gate = h @ self.w[f"{layer}.attn_gate.weight"].T
            gate = gate + self.w.get(f"{layer}.attn_gate.bias", 0)
            out = out / (1 + np.exp(-gate[..., None]))
        return self.linear("o", layer, out.reshape(*h.shape[:2], -1))

    def mlp(self, h, layer):
        up = self.linear("up", layer, h)
        if self.c["act"] == "swiglu":
            gate = self.linear("gate", layer, h)
            up = gate / (1 + np.exp(-gate)) * up
        elif self.c["act"] == "relu":
            up = np.maximum(up, 0)
        else:
            up = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up ** 3)))
        return self.linear("down", layer, up)

    # ---- the pass ----

    def forward(self, tokens, edit=None, product=None, logits=False):
        self.edit = edit or (lambda place, layer, x: x)
        self.product = product
        tokens, views = np.asarray(tokens), Views()
        x = self.w["embd.weight"][tokens]
        if self.c["pos"] == "learned":
            x = x + self.w["pos.weight"][:tokens.shape[1]]
        views.embedding = x
        for layer in range(self.c["n_layers"]):
            if layer + 1 in self.c.get("no_attention", []):
                for empty in (views.norm1, views.attn_out, views.weights, views.key, views.value):
                    empty.append(None)
            else:
                views.norm1.append(self.norm(x, f"{layer}.norm1"))
                out = self.edit("attn_out", layer, self.attend(views.norm1[-1], layer, views))
                views.attn_out.append(out)
                x = x + out
            views.norm2.append(self.norm(x, f"{layer}.norm2"))
            views.mlp_out.append(self.edit("mlp_out", layer, self.mlp(views.norm2[-1], layer)))
            x = self.edit("stream", layer, x + views.mlp_out[-1])
            views.stream.append(x)
        views.final = self.norm(x, "norm_f")
        if logits:
            views.logits = views.final @ self.w.get("head.weight", self.w["embd.weight"]).T
        return views

    @staticmethod
    def losses(logits, tokens):
        x, targets = logits[:, :-1], np.asarray(tokens)[:, 1:]
        top = x.max(-1)
        log_sum = top + np.log(np.exp(x - top[..., None]).sum(-1))
        return log_sum - np.take_along_axis(x, targets[..., None], -1)[..., 0]
