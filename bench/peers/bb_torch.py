#!/usr/bin/env python3
"""The one-block Bigram-Backcopy model (arXiv:2410.13835) in plain PyTorch, to hold against `qbench train
--preset bb-1l`: the same recipe, written apart.

    bench/peers/bb_torch.py --seed 42 --steps 1000 [--device cuda] [--batch 512] > record.json
    bench/peers/bb_torch.py --d-model 64 --context 64 --batch 64 --device cpu      (minutes on a processor)

Prints one line in the form of results/bb/runs.jsonl, with the figures of docs/training.md. The weights
are those of torch.manual_seed(SEED), which `--init pytorch` draws too; the sequences are others. Needs
torch."""
import argparse
import json
import pathlib
import time

import torch
from torch import nn
from torch.nn import functional as F

COUNTS = pathlib.Path(__file__).parents[2] / "share" / "bb" / "tinyshakespeare-bigrams.tsv"
EVAL_STEPS = {round(m * 10 ** e) for e in range(1, 5) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)}


class Task:
    """Draws sequences: <s>, a non-trigger, then a copy of the last but one after a trigger, else a
    successor of the last."""

    def __init__(self, path, n_triggers, device):
        rows = [line.split("\t") for line in path.read_text().splitlines() if line[0] != "#"]
        unigram = torch.tensor([float(row[1]) for row in rows], dtype=torch.float64)
        pairs = torch.tensor([[float(n) for n in row[2:]] for row in rows], dtype=torch.float64)
        n = len(rows)
        self.names = [chr(int(row[0])) for row in rows]
        self.bos, self.vocab = n, n + 2  # one token is never drawn
        self.truth = torch.zeros(self.vocab, self.vocab, dtype=torch.float64)
        self.truth[:n, :n] = pairs / pairs.sum(1, keepdim=True)
        self.truth[self.bos, :n] = unigram / unigram.sum()
        self.is_trigger = torch.zeros(self.vocab, dtype=torch.bool)
        self.is_trigger[unigram.argsort(descending=True)[:n_triggers]] = True
        drawn = self.truth.clone()
        drawn[self.bos, self.is_trigger] = 0
        self.cumulated = (drawn / drawn.sum(1, keepdim=True)).cumsum(1).float()
        self.cumulated[:, n - 1:] = 2  # no draw goes past the last character
        for name in ("truth", "is_trigger", "cumulated"):
            setattr(self, name, getattr(self, name).to(device))
        self.device = device

    def draw(self, batch, T, generator):
        chance = torch.rand(T, batch, 1, generator=generator, device=self.device)
        x = torch.full((T + 1, batch), self.bos, device=self.device)
        for t in range(T):
            next_token = torch.searchsorted(self.cumulated[x[t]], chance[t], right=True)[:, 0]
            x[t + 1] = torch.where(self.is_trigger[x[t]], x[t - 1], next_token) if t else next_token
        return x.T.contiguous()


class Model(nn.Module):
    """Made in the publication's order, which is that of its random numbers."""

    def __init__(self, vocab, T, D):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, D), nn.Embedding(T, D)
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(3))
        self.head = nn.Linear(D, vocab, bias=False)

    def attention_input(self, tokens):
        x = self.token(tokens) + self.position.weight
        return x, self.norms[0](x)

    def scores(self, h):
        return self.q(h) @ self.k(h).mT / h.shape[-1] ** 0.5

    def weights(self, tokens):
        """Of attention (B, T, T), the scores they are made of, and their input."""
        h = self.attention_input(tokens)[1]
        scores = self.scores(h)
        seen = torch.ones_like(scores[0], dtype=torch.bool).tril()
        return scores.masked_fill(~seen, -torch.inf).softmax(-1), scores, h

    def forward(self, tokens):
        """Logits, and the stream after the block."""
        x, h = self.attention_input(tokens)
        x = x + self.o(F.scaled_dot_product_attention(
            *(w(h)[:, None] for w in (self.q, self.k, self.v)), is_causal=True)[:, 0])
        x = x + self.down(F.relu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x)), x


@torch.no_grad()
def evaluate(model, task, windows):
    """Means over all positions that a figure is of."""
    sums = {}

    def add(name, values):
        total, n = sums.get(name, (0, 0))
        sums[name] = total + values.double().sum().item(), n + values.numel()

    T = windows.shape[1] - 1
    between = torch.ones(T, T, dtype=torch.bool, device=task.device).tril(-1)
    between[:, 0] = False
    for tokens in windows[:, :-1].split(32):
        trigger = task.is_trigger[tokens]
        logits, stream = model(tokens)
        log_p = logits.double().log_softmax(-1)
        truth = task.truth[tokens]
        add("backcopy_risk", -log_p.gather(2, tokens.roll(1, 1)[..., None])[..., 0][trigger])
        add("bigram_risk", -(truth * log_p).sum(-1)[~trigger])
        add("bigram_excess", (truth.xlogy(truth) - truth * log_p).sum(-1)[~trigger])
        weights, scores, h = model.weights(tokens)
        gap = scores[:, :, 0] - (scores * between).sum(-1) / between.sum(-1).clamp(min=1)
        value, norm = model.o(model.v(h)).norm(dim=-1), stream.norm(dim=-1)
        add("attn_bos_1", weights[:, :, 0][~trigger])
        add("attn_triggers_1", (weights * trigger[:, None]).sum(-1)[~trigger])
        add("score_gap_1", gap[:, 2:][~trigger[:, 2:]])
        add("value_bos_1", value[:, 0])
        add("value_triggers_1", value[trigger])
        add("value_rest_1", value[:, 1:])
        add("stream_bos_1", norm[:, 0])
        add("stream_rest_1", norm[:, 1:])
    return {name: total / n for name, (total, n) in sums.items()}


@torch.no_grad()
def kinds(model, task, windows):
    """Of each kind of token that is no trigger, with 50 queries or more past the window's quarter: how
    many, and the mean of their weights on <s> and on the triggers."""
    tokens, first = windows[:, :-1], windows.shape[1] // 4
    trigger = task.is_trigger[tokens]
    weights = model.weights(tokens)[0]
    bos, triggers = weights[:, :, 0], (weights * trigger[:, None]).sum(-1)
    found = {}
    for token in tokens.unique().tolist():
        of = (tokens == token)[:, first:] & ~trigger[:, first:]
        if of.sum() >= 50:
            found[token] = [of.sum().item(), round(bos[:, first:][of].mean().item(), 3),
                            round(triggers[:, first:][of].mean().item(), 3)]
    return {task.names[token]: figures for token, figures in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--data-seed", type=int, help="of the sequences (default: --seed)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=128, help="of an evaluation")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--counts", type=pathlib.Path, default=COUNTS)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # TF32
    torch.manual_seed(args.seed)
    task = Task(args.counts, 3, args.device)
    model = Model(task.vocab, args.context, args.d_model).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    data_seed = args.seed if args.data_seed is None else args.data_seed
    generator = torch.Generator(args.device).manual_seed(data_seed)
    windows = task.draw(args.windows, args.context,
                        torch.Generator(args.device).manual_seed(data_seed + 1))
    evaluations, start = [], time.monotonic()
    for step in range(1, args.steps + 1):
        x = task.draw(args.batch, args.context, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten()).backward()
        optimizer.step()
        if step in EVAL_STEPS or step == args.steps:
            evaluations.append({"step": step, **evaluate(model, task, windows)})
    name = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    print(json.dumps({"name": f"torch-seed{args.seed}", "version": [f"torch {torch.__version__}"],
                      "machine": name, "date": time.strftime("%Y-%m-%d", time.gmtime()),
                      "seconds": round(time.monotonic() - start, 1), "batch": args.batch,
                      "data_seed": data_seed,
                      "kinds": kinds(model, task, windows), "evaluations": evaluations}))


if __name__ == "__main__":
    main()
