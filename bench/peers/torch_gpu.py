#!/usr/bin/env python3
"""Speed of torch on GPT2-shaped random models, one JSON line a figure: what it reaches on one GPU.

The model is qbench's preset of that name (`qbench convert --random`): RMSNorm, no biases, tied
output projection, bf16 weights and bf16 cache. Made to be torch at its best: the parts of a layer
on either side of the attention are compiled (the sum with the residual stream and the norm are
fused into them, and one compilation serves every layer), attention is torch's own fused one, and
each figure is the replay of a captured CUDA graph, so that no launch is waited for. A decoding
graph holds several steps, each with the exact length of its cache.

Prefill is reported twice: with the logits of all tokens (what torch users run) and of the last one
(what qbench and llama.cpp compute). int8 and int4 are torchao's, for the layers of the blocks.
A figure that could not be measured has tok_per_s null and says why in "refused".
"""
import argparse
import gc
import json
import statistics
import sys
import time

import gpu_table

MODELS = {  # model/random_model.c
    "gpt2-60m": {"layers": 8, "d": 512, "heads": 8, "ff": 2048, "vocab": 50304, "context": 1024},
    "gpt2-130m": {"layers": 12, "d": 768, "heads": 12, "ff": 3072, "vocab": 50304, "context": 1024},
    "gpt2-1.4b": {"layers": 24, "d": 2048, "heads": 16, "ff": 8192, "vocab": 50304,
                  "context": 1024},
}
DECODE_STEPS = 16   # of one graph
EPS = 1e-5
INT4_GROUP = 128
INT4_MOST_ROWS = 2048  # its kernel is made for few; a prefill of 16,384 tokens takes seconds


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="gpt2-1.4b,gpt2-130m")
    parser.add_argument("--rows", metavar="MODEL/WORK/BATCHxCONTEXT,...",
                        help="what to measure (default: the rows of gpu_table.py)")
    parser.add_argument("--schemes", default="bf16,int8,int4")
    parser.add_argument("--repetitions", type=int, default=10)
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
    sys.exit("torch_gpu: %s" % error)


def say(message):
    print("torch_gpu: " + message, file=sys.stderr, flush=True)


# ---- the model ---------------------------------------------------------------------------------

class Block(nn.Module):
    """One layer in two compiled halves. `x` is the residual stream, `pending` what the half before
    has yet to add to it."""

    def __init__(self, m):
        super().__init__()
        d, ff = m["d"], m["ff"]
        self.gain1 = nn.Parameter(torch.ones(d))
        self.gain2 = nn.Parameter(torch.ones(d))
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.o = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, ff, bias=False)
        self.down = nn.Linear(ff, d, bias=False)


def before_attention(block, x, pending):
    x = x + pending
    qkv = block.qkv(F.rms_norm(x, x.shape[-1:], block.gain1, EPS))
    return x, qkv


def after_attention(block, x, attended):
    x = x + block.o(attended)
    h = F.rms_norm(x, x.shape[-1:], block.gain2, EPS)
    return x, block.down(F.gelu(block.up(h), approximate="tanh"))


def head(x, pending, gain, weight):
    return F.linear(F.rms_norm(x + pending, x.shape[-1:], gain, EPS), weight)


class Model(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m
        self.tok = nn.Embedding(m["vocab"], m["d"])
        self.pos = nn.Embedding(m["context"], m["d"])
        self.blocks = nn.ModuleList(Block(m) for _ in range(m["layers"]))
        self.gain = nn.Parameter(torch.ones(m["d"]))

    def randomize(self):
        torch.manual_seed(0)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith("o.weight") or name.endswith("down.weight")
                p.data.normal_(0, 0.02 / ((2 * self.m["layers"]) ** 0.5 if residual else 1))
        return self


def make_model(name):
    with torch.device(ARGS.device):
        return Model(MODELS[name]).randomize().requires_grad_(False).eval()


def quantize(model, scheme):
    """Gives the layers of the blocks torchao's weights; the output projection stays bf16."""
    if scheme == "bf16":
        return
    from torchao.quantization import quantize_
    if scheme == "int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    else:
        from torchao.quantization import Int4WeightOnlyConfig
        config = Int4WeightOnlyConfig(group_size=INT4_GROUP,
                                      int4_packing_format="tile_packed_to_4d",
                                      set_inductor_config=False)
    quantize_(model.blocks, config)


class Runner:
    """The model's two jobs. Compiles what each needs on the first call."""

    def __init__(self, model):
        self.model = model
        self.before = torch.compile(before_attention, dynamic=False)
        self.after = torch.compile(after_attention, dynamic=False)
        self.head = torch.compile(head, dynamic=False)

    def heads(self, qkv, batch, n_tokens):
        h = self.model.m["heads"]
        return [t.view(batch, n_tokens, h, -1).transpose(1, 2) for t in qkv.chunk(3, dim=-1)]

    def embed(self, ids, first):
        n = ids.shape[1]
        x = self.model.tok(ids) + self.model.pos.weight[first:first + n]
        return x.view(ids.numel(), -1)

    def prefill(self, ids, all_logits):
        batch, n = ids.shape
        x = self.embed(ids, 0)
        pending = torch.zeros_like(x)
        for block in self.model.blocks:
            x, qkv = self.before(block, x, pending)
            q, k, v = self.heads(qkv, batch, n)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x, pending = self.after(block, x, y.transpose(1, 2).reshape(batch * n, -1))
        if not all_logits:
            x, pending = (t.view(batch, n, -1)[:, -1] for t in (x, pending))
        return self.head(x, pending, self.model.gain, self.model.tok.weight)

    def decode(self, ids, caches, position):
        """Logits of one token a sequence, `position` tokens being in the caches."""
        batch = ids.shape[0]
        x = self.embed(ids, position)
        pending = torch.zeros_like(x)
        for block, (ck, cv) in zip(self.model.blocks, caches):
            x, qkv = self.before(block, x, pending)
            q, k, v = self.heads(qkv, batch, 1)
            ck[:, :, position] = k[:, :, 0]
            cv[:, :, position] = v[:, :, 0]
            y = F.scaled_dot_product_attention(q, ck[:, :, :position + 1], cv[:, :, :position + 1])
            x, pending = self.after(block, x, y.transpose(1, 2).reshape(batch, -1))
        return self.head(x, pending, self.model.gain, self.model.tok.weight)


# ---- timing ------------------------------------------------------------------------------------

def captured(work):
    """A callable that replays what `work` does. The first calls compile and choose kernels."""
    if ARGS.device != "cuda":
        work()
        return work
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seconds(call):
    if ARGS.device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def measure(work, n_tokens):
    """Fields of a figure: the median of the repetitions, each of at least about 30 ms."""
    began = time.perf_counter()
    call = captured(work)
    ready = time.perf_counter() - began
    for _ in range(2):
        once = seconds(call)
    n = max(1, min(50, int(0.03 / once)))

    def several():
        for _ in range(n):
            call()

    samples = [n * n_tokens / seconds(several) for _ in range(ARGS.repetitions)]
    return {"tok_per_s": statistics.median(samples), "min": min(samples), "max": max(samples),
            "samples": len(samples), "ready_s": round(ready, 1)}


def random_ids(model, *shape):
    return torch.randint(model.m["vocab"], shape, device=ARGS.device)


def measure_prefill(runner, batch, context, all_logits):
    ids = random_ids(runner.model, batch, context)
    return measure(lambda: runner.prefill(ids, all_logits), batch * context)


def measure_decode(runner, batch, n_before):
    """Steps after n_before tokens, which stand in the cache before the clock starts."""
    m = runner.model.m
    shape = batch, m["heads"], n_before + DECODE_STEPS, m["d"] // m["heads"]
    caches = [(torch.randn(shape, device=ARGS.device), torch.randn(shape, device=ARGS.device))
              for _ in range(m["layers"])]
    ids = random_ids(runner.model, batch, 1)

    def steps():
        for i in range(DECODE_STEPS):
            runner.decode(ids, caches, n_before + i)

    return measure(steps, batch * DECODE_STEPS)


# ---- the run -----------------------------------------------------------------------------------

def rows():
    """(model, work, batch, context)"""
    if not ARGS.rows:
        return [row[:4] for row in gpu_table.ROWS]
    words = [word.split("/") for word in ARGS.rows.split(",")]
    return [(model, work, *map(int, shape.split("x"))) for model, work, shape in words]


def figures(name, scheme):
    """(work, batch, context, logits) of every figure of a model and scheme."""
    for model, work, batch, context in rows():
        if model != name or (scheme == "int4" and work == "prefill"
                             and batch * context > INT4_MOST_ROWS):
            continue
        yield work, batch, context, "last"
        if work == "prefill":
            yield work, batch, context, "all"


def refusal(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return {"tok_per_s": None,
            "refused": "%s: %s" % (type(error).__name__, (lines or ["no message"])[0][:200])}


def try_rows(model, n_rows):
    """Raises at once where a layer's kernel does not take so few rows: the compiled model would
    only say so after choosing kernels for all the rest."""
    model.blocks[0].qkv(torch.zeros(n_rows, model.m["d"], device=ARGS.device))


def figure(runner, work, batch, context, logits):
    # One row at a time the products are kernels of the compiler's own, which reach the memory's
    # speed only when tuned. Elsewhere they are cuBLAS's, and tuning the rest takes long for little.
    torch._inductor.config.coordinate_descent_tuning = work == "decode" and batch == 1
    try:
        with torch.no_grad():
            if work == "decode":
                try_rows(runner.model, batch)
                return measure_decode(runner, batch, context)
            return measure_prefill(runner, batch, context, logits == "all")
    except Exception as error:  # whatever torch raises: that a figure cannot be had is a result
        return refusal(error)


def measure_model(name, scheme):
    """The figures of a model and scheme, as dicts."""
    refused = None
    try:
        model = make_model(name)
        quantize(model, scheme)
        runner = Runner(model)
    except Exception as error:  # as in figure()
        refused = refusal(error)
    for words in figures(name, scheme):
        if time.perf_counter() - START > ARGS.deadline:
            say("%s %s: left out: the deadline has passed" % (name, scheme))
            return
        yield {"model": name, "scheme": scheme,
               **dict(zip(("work", "batch", "context", "logits"), words)),
               **(refused or figure(runner, *words))}


def versions():
    found = {"torch": torch.__version__}
    try:
        import torchao
        found["torchao"] = torchao.__version__
    except Exception as error:  # a binary for another torch raises more than ImportError
        found["torchao"] = None
        say("torchao: left out: %s" % error)
    return found


START = time.perf_counter()


def main():
    if ARGS.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch_gpu: torch sees no GPU")
    torch.set_default_dtype(torch.bfloat16)
    torch._dynamo.config.recompile_limit = 64  # one a shape
    torch._inductor.config.force_fuse_int_mm_with_mul = True  # as torchao recommends
    with_versions = versions()
    print(json.dumps({"versions": with_versions}), flush=True)
    for name in ARGS.models.split(","):
        for scheme in ARGS.schemes.split(","):
            if scheme != "bf16" and not with_versions["torchao"]:
                continue
            for line in measure_model(name, scheme):
                print(json.dumps(line), flush=True)
                say("%3.0f s: %s %s %s %d x %d"
                    % (time.perf_counter() - START, *list(line.values())[:5]))
            gc.collect()
            torch._dynamo.reset()
            if ARGS.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
