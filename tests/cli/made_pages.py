"""Files as `qbench profile --json` and `qbench analyze --json` write them (docs/profile.schema.json;
of an analysis what a page shows), made up: the same on every machine."""


def part(ms, total, gops, per_byte, **more):
    ops = gops * ms * 1e6
    return {**more, "ms": ms, "share": ms / total, "calls": 4, "bytes": ops / per_byte, "ops": ops,
            "gb_per_s": gops / per_byte, "gops_per_s": gops, "roofline_share": min(1, gops / 500),
            "limit": "memory" if per_byte < 10 else "compute"}


def run(scheme, operation, gops):
    heavy = 200 if operation == "prefill" else 2  # operations a byte
    total = 10.0
    phases = [("norm", 0.8, 2, 0.5), ("gemm", 5.5, gops, heavy), ("attention", 1.5, gops / 3, heavy / 4),
              ("head", 1.2, gops / 2, heavy)]
    if scheme != "full":
        phases.insert(1, ("quantise", 0.6, 1.5, 0.8))
    kernels = [part(ms / 2, total, speed * factor, per_byte * factor, kernel=f"{phase}/{scheme}",
                    phase=phase, role=role, p50_us=100.0, p90_us=110.0, p99_us=130.0)
               for phase, ms, speed, per_byte in phases for role, factor in (("qkv", 1), ("fc", 1.4))]
    return {"scheme": scheme, "ms": total, "ms_ci95": [9.9, 10.1], "p90_ms": 10.5, "p99_ms": 11.0,
            "tok_per_s": 25600.0, "samples": 40, "samples_ms": None, "histogram": [],
            "instrumented_ms": 10.2, "overhead": 0.02, "slices": 1, "covered_ms": 9.6,
            "gaps_ms": total - sum(p[1] for p in phases), "roof_ms": 4.0, "weights_bytes": 2e7,
            "in_cache": False,
            "phases": [part(ms, total, speed, per_byte, phase=phase)
                       for phase, ms, speed, per_byte in phases],
            "layers": [], "kernels": kernels}


def profile():
    return {"schema": "qbench.profile/1",
            "model": {"path": "m.bin", "name": "gpt2-8m", "arch": "gpt2", "n_layers": 8, "d_model": 256,
                      "n_heads": 4, "n_params": 8454161, "vocab": 8192, "context": 256},
            "scheme": "fine", "device": "cpu", "machine": "a processor", "cpu": "a processor",
            "threads": 2, "batch": 1, "context": 256,
            "peaks": {"copy_gb_per_s": 20.0, "read_gb_per_s": 25.0, "cache_gb_per_s": 90.0,
                      "cache_bytes": 3e7, "f32_gops_per_s": 250.0, "bf16_gops_per_s": None,
                      "s8_gops_per_s": 900.0, "time_utc": "2026-01-01T00:00:00Z"},
            "operations": [{"operation": name, "tokens": 256, "rows": 256, "context": 256,
                            "full": run("full", name, 150), "scheme": run("fine", name, 400),
                            "difference": None, "sampling_us": None}
                           for name in ("prefill", "decode")],
            "verdict": [{"rule": "bandwidth-bound", "operation": "decode", "engine": "full",
                         "weight": 0.55, "text": "products wait for weights", "help": "a larger batch"}],
            "notes": [], "sweep": None, "time_utc": "2026-01-01T00:00:00Z", "qbench_version": "0",
            "git_commit": "0", "command": "qbench profile m.bin --scheme fine"}


def analysis(n_layers=8, n_cells=32):
    """Sinks on the first key and outliers in two channels, more of both with depth."""
    def attention(depth):
        rows = [[1 / (1 + 3 * (q - k)) + (depth if k == 0 else 0) if k <= q else 0
                 for k in range(n_cells)] for q in range(n_cells)]
        return [[x / sum(row) for x in row] for row in rows]

    def hidden(depth):
        return [[1 + (7 * t + 5 * c) % 11 / 5 + (40 * depth if c in (5, 20) else 0) +
                 (90 * depth if t == 0 else 0) for c in range(n_cells)] for t in range(n_cells)]

    layers = [{"layer": i + 1, "kurt_token_first": 3.0 + 9 * i, "kurt_token_rest": 3.0 + i,
               "max_abs_first": 4.0 * 2**i, "max_abs_rest": 4.0 + i, "attn_first_argmax": 0.1 * i,
               "attn_first_share": 0.05 * i} for i in range(n_layers)]
    heads = [{"layer": i + 1, "head": h + 1, "attn_first_share": (i + 1) * (h + 1) / 40}
             for i in range(n_layers) for h in range(4)]
    parts = [{"name": f"{i + 1}.{role}", "penalty": 3.0 / 2**k, "penalty_ci95": [2.5 / 2**k, 3.5 / 2**k],
              "share": 0.5**(k + 1), "sqnr_db": 20.0 + k, "input_kurtosis": 200.0 / (k + 1)}
             for k, (i, role) in enumerate((i, role) for i in range(n_layers) for role in ("qkv", "fc"))]
    return {"schema": "qbench.analysis/1", "model": {"name": "gpt2-8m"}, "layers": layers,
            "texts": [{"name": "text", "protocol": {"context": 256}}], "heads": heads,
            "sensitivity": {"scheme": {"name": "coarse"}, "by": "linear", "parts": parts},
            "maps": {"channels": 256,
                     "layers": [{"layer": layer, "attention": attention(depth), "hidden": hidden(depth)}
                                for layer, depth in ((None, 0.3), (n_layers, 1))]},
            "command": "qbench analyze gpt2-8m.bin --maps --json analysis.json"}
