"""qbench train --replay: recorded runs, usage, bad input."""
import json

from support import expect, golden, qbench


def test_train_replays_a_record(folder):
    record = golden("a-train-rmsnorm_s.safetensors")
    out = folder / "r.json"
    expect(qbench("train", "--replay", record, "--softmax", "softmax1", "--optimizer", "orthoadam",
                  "--norm", "rmsnorm_s", "--lr", "1e-3", "--out", out))
    result = json.loads(out.read_text())
    assert len(result["losses"]) == 12
    assert 0 < result["grad_max_rel_error"] < 1e-4 and result["loss_max_rel_error"] < 1e-4


def test_train_replay_refuses_other_files(folder):
    expect(qbench("train", "--replay", folder / "absent.safetensors"), 3)
    other = folder / "other.safetensors"
    other.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    expect(qbench("train", "--replay", other), 3)
