"""The runs of arXiv:2410.17174 that paper_runs.py repeats. Standard library only.

A run's name is that of the row that it stands for in `qbench table` (report/paper.c). What the paper
says (sections 5 and A): batch 512, 256 tokens a window, peak rate 1e-3, cosine with linear warm-up,
RMSNorm with one gain, no biases in linear layers; the presets of qbench train have all that. Ours
differ in data, vocabulary and in the number of tokens, which is a thirtieth or less of the paper's."""
import collections

Run = collections.namedtuple("Run", "group preset flags tokens about")

SOFTMAX1, ORTHOADAM = ["--softmax", "softmax1"], ["--optimizer", "orthoadam"]
BOTH = [*SOFTMAX1, *ORTHOADAM]
LAYERNORM = ["--norm", "layernorm", "--norm-bias"]  # GPT2's own; its bias is no linear layer's
RMSNORM = ["--norm", "rmsnorm"]
SGD = ["--lr", "0.2"]  # the paper's rate for SGD
# The paper's sequence lengths at as many tokens a step, so that runs have as many steps, too.
T512, T1024 = ["--context", "512", "--batch", "256"], ["--context", "1024", "--batch", "128"]
SPEED = ["--task", "random", "--vocab", "50304", "--checkpoints=off", "--eval-every", "0", "--log-every", "1"]

MAIN_TOKENS, LARGE_TOKENS, ABLATION_TOKENS = 600_000_000, 500_000_000, 262_144_000


def ablation(flags, about, tokens=ABLATION_TOKENS):
    return Run("ablation", "gpt2-60m", flags, tokens, about)


def speed(preset, flags, steps):
    about = "OrthoAdam, softmax-1" if flags else "Adam, softmax"
    return Run("speed", preset, [*SPEED, "--steps", str(steps), *flags], 0,
               f"steps of {preset} on random tokens: {about}")


# In order of value: what a table needs first stands first.
RUNS = {
    "gpt2-60m": Run("60m", "gpt2-60m", [], MAIN_TOKENS, "softmax, Adam"),
    "gpt2-60m-both": Run("60m", "gpt2-60m", BOTH, MAIN_TOKENS, "softmax-1, OrthoAdam"),
    "gpt2-60m-softmax1": Run("60m", "gpt2-60m", SOFTMAX1, MAIN_TOKENS, "softmax-1, Adam"),
    "gpt2-60m-orthoadam": Run("60m", "gpt2-60m", ORTHOADAM, MAIN_TOKENS, "softmax, OrthoAdam"),
    "speed-gpt2-60m": speed("gpt2-60m", [], 150),
    "speed-gpt2-60m-both": speed("gpt2-60m", BOTH, 150),
    "speed-gpt2-130m": speed("gpt2-130m", [], 60),
    "speed-gpt2-130m-both": speed("gpt2-130m", BOTH, 60),
    "speed-gpt2-350m": speed("gpt2-350m", [], 20),
    "speed-gpt2-350m-both": speed("gpt2-350m", BOTH, 20),
    "speed-gpt2-1.4b": speed("gpt2-1.4b", [], 8),
    "speed-gpt2-1.4b-both": speed("gpt2-1.4b", BOTH, 8),
    "gpt2-130m": Run("130m", "gpt2-130m", [], LARGE_TOKENS, "softmax, Adam"),
    "gpt2-130m-both": Run("130m", "gpt2-130m", BOTH, LARGE_TOKENS, "softmax-1, OrthoAdam"),
    "llama2-130m": Run("llama", "llama2-130m", [], LARGE_TOKENS, "softmax, Adam"),
    "llama2-130m-both": Run("llama", "llama2-130m", BOTH, LARGE_TOKENS, "softmax-1, OrthoAdam"),
    "ablation-single": ablation(SOFTMAX1, "RMSNorm-Single, Adam, softmax-1"),
    "ablation-orthoadam": ablation(BOTH, "RMSNorm-Single, OrthoAdam, softmax-1"),
    "ablation-orthoadam-softmax": ablation(ORTHOADAM, "RMSNorm-Single, OrthoAdam, softmax"),
    "ablation-orthoadam-layernorm": ablation([*BOTH, *LAYERNORM], "LayerNorm, OrthoAdam, softmax-1"),
    "ablation-orthoadam-rmsnorm": ablation([*BOTH, *RMSNORM], "RMSNorm, OrthoAdam, softmax-1"),
    "ablation-layernorm": ablation(LAYERNORM, "LayerNorm, Adam, softmax"),
    "ablation-biases": ablation([*LAYERNORM, "--attn-bias", "--mlp-bias"], "biases, LayerNorm, Adam, softmax"),
    "ablation-layernorm-softmax1": ablation([*LAYERNORM, *SOFTMAX1], "LayerNorm, Adam, softmax-1"),
    "ablation-rmsnorm": ablation([*RMSNORM, *SOFTMAX1], "RMSNorm, Adam, softmax-1"),
    "ablation-rmsprop": ablation([*SOFTMAX1, "--optimizer", "rmsprop"], "RMSNorm-Single, RMSProp, softmax-1"),
    "ablation-no-positions": ablation([*LAYERNORM, "--pos", "none"], "no positions, LayerNorm, Adam, softmax"),
    "ablation-rotary": ablation([*LAYERNORM, "--pos", "rope"], "rotary positions, LayerNorm, Adam, softmax"),
    "ablation-sgd-momentum": ablation([*SOFTMAX1, "--optimizer", "sgd_momentum", *SGD],
                                      "RMSNorm-Single, SGD with momentum, softmax-1", 2 * ABLATION_TOKENS),
    "ablation-sgd": ablation([*SOFTMAX1, "--optimizer", "sgd", *SGD],
                             "RMSNorm-Single, SGD, softmax-1", 2 * ABLATION_TOKENS),
    "gpt2-60m-t1024": Run("sequence", "gpt2-60m", T1024, MAIN_TOKENS, "1,024 tokens, softmax, Adam"),
    "gpt2-60m-both-t1024": Run("sequence", "gpt2-60m", [*BOTH, *T1024], MAIN_TOKENS,
                               "1,024 tokens, softmax-1, OrthoAdam"),
    "gpt2-60m-t512": Run("sequence", "gpt2-60m", T512, MAIN_TOKENS, "512 tokens, softmax, Adam"),
    "gpt2-60m-both-t512": Run("sequence", "gpt2-60m", [*BOTH, *T512], MAIN_TOKENS,
                              "512 tokens, softmax-1, OrthoAdam"),
}
GROUPS = list(dict.fromkeys(run.group for run in RUNS.values()))

# Tokens a second on one H100 for planning (results/train_speed.txt: d 512 with 8,192 tokens of
# vocabulary, and 124M with 50,304, of which 8,192 make it faster); what is recorded replaces them.
RATES = {"gpt2-60m": 2.4e6, "gpt2-130m": 0.69e6, "llama2-130m": 0.6e6}
SPEED_SECONDS = {"gpt2-60m": 17, "gpt2-130m": 24, "gpt2-350m": 35, "gpt2-1.4b": 90}


def warmup(preset, steps):
    """The paper's share of the steps would be 6 to 19 of 3,000: too few to be stable. A twelfth, and
    the paper's number at most."""
    return min({"gpt2-60m": 1000}.get(preset, 2000), max(1, steps // 12))
