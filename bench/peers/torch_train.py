#!/usr/bin/env python3
"""Training speed of torch.compile on the shapes of the training table, one JSON line a figure.

The model is the paper's GPT2 (arXiv:2410.17174): RMSNorm with one gain, no biases, learned
positions, tanh GELU, tied output projection; bf16 by autocast over f32 master weights, attention by
torch's own fused kernel, the whole forward and backward in one compiled function, gradients of a
step added up over its passes, clipped to norm 1. Adam is torch's fused AdamW; OrthoAdam is written
as one compiled function over all matrices, its rotations in bf16 products. A figure is the median of
the timed steps, each waited for; batches are random tokens, so that reading data costs nothing.
A figure that could not be measured has tok_per_s null and says why in "refused".
"""
import argparse
import json
import statistics
import sys
import time

from train_table import ROWS, SHAPES, row_batch


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="all", metavar="N,...",
                        help="numbers of the rows, from 0: " + "; ".join(
                            "%d %s T %d" % (i, *row[:2]) for i, row in enumerate(ROWS)))
    parser.add_argument("--optimizers", default="adam,orthoadam")
    parser.add_argument("--windows", type=int, help="of one pass (default: by row)")
    parser.add_argument("--batch", type=int, help="windows a step (default: by row)")
    parser.add_argument("--compile-only", action="store_true",
                        help="one pass of each, for what stays in the compiler's cache")
    parser.add_argument("--steps", type=int, default=20, help="timed, after 5 others")
    parser.add_argument("--deadline", type=float, default=1e9, metavar="SECONDS",
                        help="figures not begun by then are left out")
    parser.add_argument("--device", default="cuda", help="cpu tries the program out, untimed")
    return parser.parse_args()


ARGS = parse_args()
try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as error:
    sys.exit("torch_train: %s" % error)


def say(message):
    print("torch_train: " + message, file=sys.stderr, flush=True)


# ---- the model ---------------------------------------------------------------------------------

class SingleNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], eps=1e-5) * self.gain


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = SingleNorm(), SingleNorm()
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.o = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (u.view(b, t, self.heads, -1).transpose(1, 2)
                   for u in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self, layers, d, heads, vocab, context):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, d), nn.Embedding(context, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm = SingleNorm()
        for name, p in self.named_parameters():
            if p.dim() == 2:
                to_residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, 0, 0.02 / ((2 * layers) ** 0.5 if to_residual else 1))

    def forward(self, tokens):
        ids, targets = tokens[:, :-1], tokens[:, 1:]
        x = self.tok(ids) + self.pos.weight[:ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tok.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


# ---- OrthoAdam ---------------------------------------------------------------------------------

class OrthoAdam:
    """Algorithm 1 with Q on the residual-stream axis of each matrix."""

    def __init__(self, model, d):
        self.step_no = torch.zeros((), device=ARGS.device)
        self.params = [p for p in model.parameters()]
        self.q, self.left = [], []
        for name, p in model.named_parameters():
            self.left.append(name.endswith(("o.weight", "down.weight")))
            if p.dim() < 2:
                self.q.append(None)
                continue
            q, r = torch.linalg.qr(torch.randn(d, d, device=ARGS.device))
            self.q.append((q * r.diagonal().sign()).bfloat16())
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.compiled = torch.compile(self.update) if ARGS.device == "cuda" else self.update

    def update(self, grads, step_no):
        bias1, bias2 = 1 - 0.9 ** step_no, 1 - 0.999 ** step_no
        for p, g, m, v, q, left in zip(self.params, grads, self.m, self.v, self.q, self.left):
            if q is not None:
                g = (q @ g.bfloat16() if left else g.bfloat16() @ q.T).float()
            m.lerp_(g, 0.1)
            v.lerp_(g * g, 0.001)
            delta = (m / bias1) / ((v / bias2).sqrt() + 1e-8)
            if q is not None:
                delta = (q.T @ delta.bfloat16() if left else delta.bfloat16() @ q).float()
            p.sub_(1e-3 * delta)

    @torch.no_grad()
    def step(self):
        self.step_no += 1
        self.compiled([p.grad for p in self.params], self.step_no)


def make_optimizer(name, model, d):
    if name == "orthoadam":
        return OrthoAdam(model, d)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0,
                             fused=ARGS.device == "cuda")


# ---- timing ------------------------------------------------------------------------------------

def synchronize():
    if ARGS.device == "cuda":
        torch.cuda.synchronize()


def measure(shape, context, windows, batch, optimizer_name):
    layers, d, heads, vocab = SHAPES[shape]
    with torch.device(ARGS.device):
        model = Model(layers, d, heads, vocab, context)
    optimizer = make_optimizer(optimizer_name, model, d)
    forward = torch.compile(model, dynamic=False) if ARGS.device == "cuda" else model
    passes = 1 if ARGS.compile_only else max(1, batch // windows)
    tokens = torch.randint(vocab, (8, windows, context + 1), device=ARGS.device)

    def step(i):
        for p in model.parameters():
            p.grad = None
        for j in range(passes):
            with torch.autocast(ARGS.device, dtype=torch.bfloat16):
                loss = forward(tokens[(i + j) % len(tokens)]) / passes
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        synchronize()

    began = time.perf_counter()
    for i in range(1 if ARGS.compile_only else 5):
        step(i)
    ready = time.perf_counter() - began
    samples = []
    for i in range(1 if ARGS.compile_only else ARGS.steps):
        start = time.perf_counter()
        step(i)
        samples.append(passes * windows * context / (time.perf_counter() - start))
    memory = torch.cuda.max_memory_allocated() if ARGS.device == "cuda" else None
    return {"tok_per_s": statistics.median(samples), "min": min(samples), "max": max(samples),
            "samples": len(samples), "ready_s": round(ready, 1), "peak_bytes": memory}


def main():
    if ARGS.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch_train: torch sees no GPU")
    torch.set_float32_matmul_precision("high")
    print(json.dumps({"versions": {"torch": torch.__version__}}), flush=True)
    rows = ROWS if ARGS.rows == "all" else [ROWS[int(i)] for i in ARGS.rows.split(",")]
    began = time.perf_counter()
    for row in rows:
        shape, context, windows = row[:3]
        for optimizer in ARGS.optimizers.split(","):
            if time.perf_counter() - began > ARGS.deadline:
                say("%s %s: left out: the deadline has passed" % (shape, optimizer))
                continue
            windows = ARGS.windows or windows
            what = {"shape": shape, "context": context, "windows": windows, "optimizer": optimizer}
            try:
                found = measure(shape, context, windows, row_batch(row, ARGS.batch), optimizer)
            except Exception as error:  # that a figure cannot be had is a result
                found = {"tok_per_s": None, "refused": "%s: %s" % (
                    type(error).__name__, (str(error).strip().splitlines() or ["no message"])[0])}
            print(json.dumps({**what, **found}), flush=True)
            say("%3.0f s: %s" % (time.perf_counter() - began, " ".join(map(str, what.values()))))
            torch._dynamo.reset()
            if ARGS.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
