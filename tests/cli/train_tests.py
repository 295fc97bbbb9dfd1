"""qbench train and presets: runs, resumption bit for bit (also after kill -9 at random moments),
signals, what the files hold, recorded runs, bad
input. QB_KILLS=50 kills that often (default 5)."""
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import time
from xml.etree import ElementTree

import support
import tiny_models
from support import expect, golden, no_leftovers, qbench, start

# One thread: with so little work others spend most of the time waiting.
TINY = ["--preset", "bb-1l", "--d-model", "32", "--context", "16", "--batch", "4", "--threads", "1",
        "--quiet"]
WORDS = "sun moon tree river stone walks sleeps over under the a old bright".split()


def write_data_folder(folder, **env):
    """Shards of a small text, some for validation, and their tokenizer, by qbench data."""
    numbers = random.Random(1)
    texts = folder.parent / (folder.name + "-texts")
    texts.mkdir()
    for name, n in (("train-0.txt", 400), ("train-1.txt", 100), ("valid.txt", 60)):
        (texts / name).write_text("\n<|endoftext|>\n".join(
            " ".join(numbers.choice(WORDS) for _ in range(60)) + "." for _ in range(n)))
    expect(qbench("data", "--quiet", "--train-bpe", "300", "--out", folder, texts / "train-0.txt",
                  texts / "train-1.txt"))
    expect(qbench("data", "--quiet", "--tokenizer", folder / "tokenizer.json", "--out", folder,
                  texts / "valid.txt"))
    return folder


def train(*args, code=0, **more):
    return expect(qbench("train", *args, **more), code)


def lines_of(run, kind=None):
    """Of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("tok_per_s", "mfu", "seconds"):
            line.pop(key, None)
    return [line for line in lines if kind in (None, line["kind"])]


def same_end(a, b):
    """The two runs ended in the same bits: models, metrics, and the last checkpoint's buffers."""
    for name in ("model.bin", "best.bin"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert lines_of(a) == lines_of(b)
    last = [sorted(run.glob("step-*.ckpt"))[-1] for run in (a, b)]
    assert last[0].name == last[1].name
    data = [path.read_bytes() for path in last]
    states = [json.loads(qbench("inspect", "--json", "-", path).out)["state"] for path in last]
    for state in states:
        state.pop("seconds"), state.pop("metrics_bytes")  # lines hold times
    assert states[0] == states[1]
    n_bytes = 3 * 4 * json.loads(qbench("inspect", "--json", "-", last[0]).out)["buffer_elems"]
    assert data[0][-n_bytes:] == data[1][-n_bytes:]


# ---- runs ----

def test_train_preset_on_a_data_folder(folder):
    """The shortest way from a text to a model that the other verbs run."""
    data = write_data_folder(folder / "shards")
    run = folder / "run"
    done = train("--preset", "gpt2-1m", "--data", data, "--out", run, "--steps", "30", "--warmup",
                 "5", "--eval-every", "10", "--batch", "8", "--context", "32", "--tensorboard")
    assert re.search(rb"^ +30 .* best$", done.out, re.M), done
    assert max(map(len, done.out.decode().splitlines()[:-1])) <= 80, done
    losses = [line["loss"] for line in lines_of(run, "train")]
    evals = lines_of(run, "eval")
    assert losses[-1] < losses[0] - 0.5 and [line["step"] for line in evals] == [10, 20, 30]
    assert 1 < evals[-1]["kurt_token_rest"] < 100 and evals[-1]["max_abs_first"] > 0
    assert 0 <= evals[-1]["attn_first_argmax"] <= 1 and 0 < evals[-1]["attn_first_share"] < 1
    assert evals[-1]["ppl"] < evals[0]["ppl"] and 0 < evals[-1]["bits_per_byte"] < 8
    assert (run / "events.out.tfevents.qbench").stat().st_size > 1000
    record = json.loads(expect(qbench("inspect", "--json", "-", run / "model.bin")).out)
    assert record["training"]["optimizer"] == "adam"
    assert record["training"]["tokens"] == 30 * 8 * 32
    assert record["training"]["config"]["context"] == 32
    assert record["training"]["config"]["data"] == "shards"
    assert str(folder).encode() not in (run / "model.bin").read_bytes()  # models travel
    assert record["architecture"]["vocab"] == 320 and record["tokenizer"]["vocab"] == 300
    expect(qbench("verify", run / "model.bin", run / "best.bin", *run.glob("*.ckpt")))
    text = expect(qbench("generate", "--quiet", run / "best.bin", "--prompt", "the sun",
                         "--max-tokens", "8")).out.decode()
    assert any(word in text for word in WORDS), text
    (folder / "text").write_text("the old moon walks over the stone. " * 20)
    result = folder / "result.json"
    expect(qbench("--quiet", "--no-speed", "--json", result, "--text", folder / "text",
                  run / "model.bin"))
    model = json.loads(result.read_text())["results"][0]["model"]
    assert model["optimizer"] == "adam" and model["train_tokens"] == 30 * 8 * 32


def test_train_without_validation_shards_or_with_others(folder):
    data = write_data_folder(folder / "shards")
    (folder / "judge").mkdir()
    (data / "valid.qbs").rename(folder / "judge" / "any.qbs")
    args = ["--preset", "gpt2-1m", "--data", data, "--steps", "3", "--batch", "2", "--context", "16"]
    done = train(*args, "--out", folder / "a")
    assert b"no validation shards" in done.err and not lines_of(folder / "a", "eval")
    assert (folder / "a" / "model.bin").exists() and not (folder / "a" / "best.bin").exists()
    (data / "tokenizer.json").rename(folder / "tokenizer.json")
    done = train(*args, "--out", folder / "b", "--valid", folder / "judge", "--outliers=off")
    assert b"no tokenizer.json" in done.err
    (line,) = lines_of(folder / "b", "eval")
    assert line["loss"] > 0 and line["kurt_token_first"] is None
    assert [r["loss"] for r in lines_of(folder / "a", "train")] == \
        [r["loss"] for r in lines_of(folder / "b", "train")]
    train(*args, "--out", folder / "c", "--valid", data / "absent", code=3)
    (folder / "empty").mkdir()
    assert "empty" in train(*args, "--out", folder / "c", "--valid", folder / "empty",
                            code=3).err.decode()


def test_train_same_command_gives_the_same_bits(folder):
    for name, threads in (("a", "1"), ("b", "2")):
        train(*TINY, "--steps", "9", "--threads", threads, "--eval-every", "4", "--out",
              folder / name)
    assert [line.get("loss") for line in lines_of(folder / "a")] == [
        line.get("loss") for line in lines_of(folder / "b")]


def test_train_config_file_and_flags(folder):
    config = folder / "c.json"
    config.write_text('{"steps": 3, "preset": "bb-1l", "d_model": 16, "context": 8, "batch": 2}')
    train("--config", config, "--lr", "0.5", "--out", folder / "run", "--quiet")
    record = json.loads((folder / "run" / "config.json").read_text())
    assert record["lr"] == 0.5 and record["d_model"] == 16 and record["steps"] == 3
    again = train("--config", folder / "run" / "config.json", "--out", folder / "again", "--quiet")
    assert (folder / "run" / "model.bin").read_bytes() == \
        (folder / "again" / "model.bin").read_bytes(), again


def test_train_every_optimizer_and_schedule(folder):
    for optimizer in "adam adamw orthoadam rmsprop sgd sgd_momentum".split():
        run = folder / optimizer
        train(*TINY, "--optimizer", optimizer, "--lr", "0.001", "--steps", "4", "--out", run,
              "--schedule", "constant", "--save-every", "2")
        train("--resume", run, "--steps", "5", "--quiet")
        assert json.loads(qbench("inspect", "--json", "-", run / "model.bin").out)["training"][
            "optimizer"] == optimizer


# ---- stopping and going on ----

def undisturbed(folder, steps):
    args = [*TINY, "--steps", str(steps), "--save-every", "3", "--eval-every", "10", "--log-every",
            "2", "--eval-windows", "4", "--tensorboard"]
    train(*args, "--out", folder / "whole")
    return args, folder / "whole"


def test_train_resumes_bit_for_bit(folder):
    args, whole = undisturbed(folder, 40)
    part = folder / "part"
    stopped = [*args]
    stopped[stopped.index("--steps") + 1] = "40"
    train(*stopped, "--minutes", "0.000001", "--out", part)  # saves before the first step
    done = train("--resume", part, "--minutes", "0.0001")
    assert b"saves and stops after 0.0001 minutes" in done.err, done
    for minutes in ("0.0001", "0"):
        train("--resume", part, "--minutes", minutes, "--quiet")
    same_end(whole, part)
    assert len(list(part.glob("*.ckpt"))) == 2  # --keep
    done = train("--resume", part, "--quiet")  # nothing is left to do
    same_end(whole, part)
    assert b"40 of 40 steps" in done.out


def test_train_saves_nothing_where_told(folder):
    args = ["--preset", "gpt2-1m", "--task", "random", "--vocab", 64, "--context", 8, "--batch", 2,
            "--n-layers", 1, "--steps", 12, "--save-every", 5, "--log-every", 1]
    done = train(*args, "--checkpoints=off", "--out", folder / "run")
    assert b"12 of 12 steps" in done.out and b"nothing was saved" in done.err, done
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {"config.json", "metrics.jsonl"}, names
    assert len((folder / "run/metrics.jsonl").read_text().splitlines()) == 12
    train(*args, "--keep-models", "--keep", 1, "--out", folder / "kept", "--quiet")
    names = sorted(path.name for path in (folder / "kept").iterdir() if "-0" in path.name)
    assert names == [*(f"model-{step:08}.bin" for step in (5, 10, 12)), "step-00000012.ckpt"], names
    steps = [json.loads(qbench("inspect", "--json", "-", folder / "kept" / name).out)["training"]["steps"]
             for name in names[:3]]
    assert steps == [5, 10, 12], steps


def test_train_killed_at_random_moments(folder):
    """Also while a checkpoint is being written: each third step ends in one."""
    n_kills, done = int(os.environ.get("QB_KILLS", "5")), 0
    args, whole = undisturbed(folder, 60 * n_kills)
    part = folder / "part"
    numbers = random.Random(7)
    process = start("train", *args, "--out", part)
    for _ in range(n_kills):
        time.sleep(0.03 + 0.2 * numbers.random())
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        done += 1
        again = ["--resume", part, "--quiet"] if (part / "config.json").exists() else \
            [*args, "--out", part]
        process = start("train", *again)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert 2 * done >= n_kills, f"{done} kills of {n_kills} before the end"
    same_end(whole, part)
    no_leftovers(part)


def test_train_signals_save_and_say_how_to_go_on(folder):
    args, whole = undisturbed(folder, 400)
    run = folder / "run"
    process = start("train", *args, "--out", run)
    for number in (signal.SIGTERM, signal.SIGINT):
        time.sleep(0.4)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was done before the signal came
        assert process.returncode == 130, err
        assert re.fullmatch(rb"qbench: .*: interrupted after step (\d+) of 400 and saved; to go on: "
                            rb"qbench train --resume .*\n", err), err
        process = start("train", "--resume", run, "--quiet")
    process.communicate(timeout=60)
    expect(qbench("train", "--resume", run, "--quiet"))
    same_end(whole, run)
    no_leftovers(run)


def test_train_answers_ctrl_c_on_a_terminal_at_once(folder):
    """Before the step's end, which may take a minute; and says at the start that it will."""
    own, its = os.openpty()
    process = subprocess.Popen(
        [support.QBENCH, "train", "--preset", "bb-3l", "--d-model", "512", "--n-heads", "4", "--out",
         folder / "run"], stdin=its, stdout=its, stderr=its, env=support.BASE_ENV,
        start_new_session=True)
    os.close(its)
    try:
        text = read_until(own, b"at the least")
        assert re.search(rb"a step takes [\d.]+ s and the run \d+ hours, at the least", text), text
        process.send_signal(signal.SIGINT)
        read_until(own, b"finishing the step, then saving; Ctrl-C again leaves at once")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
        os.close(own)


def read_until(terminal, words):
    text = b""
    while words not in text:
        assert select.select([terminal], [], [], 60)[0], text
        text += os.read(terminal, 4096)
    return text


def test_train_says_what_comes_next(folder):
    data = write_data_folder(folder / "shards")
    args = ["--preset", "gpt2-1m", "--data", data, "--out", folder / "run", "--steps", "2", "--batch",
            "2", "--context", "16"]
    assert b"qbench --scheme all " + str(folder).encode() + b"/run/best.bin" in train(*args).err
    done = train("--resume", folder / "run")
    assert b"nothing was left to do; --steps N" in done.err, done
    assert b"nothing was left" not in train("--resume", folder / "run", "--steps", "3").err


def test_train_skips_a_damaged_checkpoint(folder):
    args, whole = undisturbed(folder, 20)
    newest = sorted(whole.glob("step-*.ckpt"))[-1]
    (folder / "model.bin").write_bytes((whole / "model.bin").read_bytes())
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(data)
    done = train("--resume", whole)
    assert b"1 newer checkpoint cannot be read" in done.err and b"step 18" in done.err, done
    assert (folder / "model.bin").read_bytes() == (whole / "model.bin").read_bytes()


def test_train_resume_refuses_another_run(folder):
    run = folder / "run"
    train(*TINY, "--steps", "4", "--out", run)
    for args, hint in ((["--lr", "1"], "--lr"), (["--seed", "1"], "--seed"),
                       (["--optimizer", "sgd"], "--optimizer"), (["--batch", "8"], "--batch"),
                       (["--steps", "3"], "--steps"), (["--preset", "bb-1l"], "--preset"),
                       (["--out", folder / "x"], "--out")):
        assert hint in train("--resume", run, *args, code=2).err.decode(), args
    (folder / "data").mkdir()
    assert "no run" in train("--resume", folder / "data", code=3).err.decode()
    train("--resume", folder / "absent", code=3)
    train(*TINY, "--steps", "4", "--out", run, code=2)  # a run is there


def test_train_resume_refuses_other_data(folder):
    data = write_data_folder(folder / "shards")
    run = folder / "run"
    train("--preset", "gpt2-1m", "--data", data, "--out", run, "--steps", "2", "--batch", "2",
          "--quiet")
    (data / "train-1.qbs").unlink()
    assert "data" in train("--resume", run, "--steps", "3", code=3).err.decode()


def test_train_stops_at_nan_and_names_the_last_good_checkpoint(folder):
    run = folder / "run"
    done = train(*TINY, "--lr", "1000", "--optimizer", "sgd_momentum", "--steps", "2000",
                 "--save-every", "1", "--out", run, code=4)
    text = done.err.decode()
    match = re.search(r"step (\d+): found a NaN or infinity in .*; last good checkpoint: (\S+)", text)
    assert match, text
    if match[2] != "none":
        expect(qbench("verify", match[2]))
        stats = json.loads(expect(qbench("inspect", "--stats", "--json", "-",
                                         run / "model.bin")).out)
        assert not any(tensor["not_finite"] for tensor in stats["tensors"])


# ---- refusals ----

def test_train_usage_errors(folder):
    out = ["--out", folder / "run"]
    cases = [
        (["--preset", "bb-1m", *out], "did you mean 'bb-"), (["--preset", "bb-1l"], "--out"),
        (["--preset", "gpt2-1m", *out], "--data"), ([*out], "--data"),
        ([*TINY, *out, "--wieght-decay", "1"], "--weight-decay"),
        ([*TINY, *out, "--batch", "0"], "--batch"), ([*TINY, *out, "--lr", "x"], "--lr"),
        ([*TINY, *out, "--recompute=maybe"], "on or off"),
        ([*TINY, *out, "--softmax", "hard"], "softmax1"),
        ([*TINY, *out, "--micro-batch", "3"], "micro-batch"),
        ([*TINY, *out, "--n-heads", "5", "--n-kv-heads", "2"], "n_kv_heads"),
        ([*TINY, *out, "--device", "tpu"], "tpu"), ([*TINY, *out, "extra"], "extra"),
        ([*TINY, *out, "--kernel", "gemm_f32/nosuch"], "gemm_f32/nosuch"),
    ]
    for args, hint in cases:
        assert hint in train(*args, code=2).err.decode(), args
    assert not (folder / "run" / "model.bin").exists()


def test_train_bad_files(folder):
    out = ["--out", folder / "run"]
    config = folder / "c.json"
    for text in ("", "[]", "{", '{"bacth": 3}', '{"batch": "3"}', '{"batch": 0}',
                 '{"preset": "bb-1l", "preset": "bb-3l"}', '{"optimizer": ["adam"]}'):
        config.write_text(text)
        assert "c.json" in train("--config", config, *out, code=3).err.decode(), text
    config.write_text('{"weight_deacy": 3}')
    assert "weight-decay" in train("--config", config, *out, code=3).err.decode()
    train("--config", folder / "absent.json", *out, code=3)
    gpt2 = ["--preset", "gpt2-1m", *out, "--data"]
    train(*gpt2, folder / "absent", code=3)
    (folder / "empty").mkdir()
    assert "qbs" in train(*gpt2, folder / "empty", code=3).err.decode()
    (folder / "bad").mkdir()
    (folder / "bad" / "train.qbs").write_bytes(b"not a shard" * 99)
    assert "train.qbs" in train(*gpt2, folder / "bad", code=3).err.decode()
    data = write_data_folder(folder / "shards")
    (folder / "other").mkdir()
    for path in data.glob("*.qbs"):
        shutil.copy(path, folder / "other")
    (folder / "other" / "tokenizer.json").write_text(json.dumps(tiny_models.tokenizer_json()))
    assert "tokenizer" in train(*gpt2, folder / "other", code=3).err.decode()
    train(*TINY, "--out", folder / "no" / "such", code=3)
    (folder / "file").write_text("x")
    train(*TINY, "--out", folder / "file", code=3)


def test_train_two_processes_never_share_a_folder(folder):
    run = folder / "run"
    process = start("train", *TINY, "--steps", "100000", "--out", run)
    while not (run / "config.json").exists():
        time.sleep(0.02)
    try:
        assert "another process" in train("--resume", run, code=3).err.decode()
    finally:
        process.kill()
        process.communicate()


def test_checkpoint_bit_flips_are_refused(folder):
    run = folder / "run"
    train(*TINY, "--steps", "2", "--out", run)
    path = next(run.glob("*.ckpt"))
    data = path.read_bytes()
    numbers = random.Random(3)
    broken = folder / "broken.ckpt"
    for _ in range(40):
        bit = numbers.randrange(8 * min(len(data), 4000 + numbers.randrange(len(data))))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        broken.write_bytes(flipped)
        expect(qbench("verify", broken), 3)
    broken.write_bytes(data[:-1])
    expect(qbench("inspect", broken), 3)


# ---- recorded runs ----

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


# ---- presets ----

def test_presets_are_listed_and_can_be_used(folder):
    screen = expect(qbench("presets")).out.decode()
    assert max(map(len, screen.splitlines())) <= 80, screen
    names = re.findall(r"^(\S+) +[\d.]+ M", screen, re.M)
    assert len(names) >= 9 and "gpt2-130m" in names and "bb-1l" in names
    for name in names:
        config = json.loads(expect(qbench("presets", name)).out)
        assert config["name"] == name and config["batch"] > 0
    (folder / "c.json").write_bytes(qbench("presets", "bb-3l").out)
    train("--config", folder / "c.json", "--d-model", "16", "--head-dim", "16", "--d-ff", "32",
          "--context", "8", "--batch", "2", "--steps", "1", "--out", folder / "run", "--quiet")
    assert "did you mean" in expect(qbench("presets", "gpt2-13om"), 2).err.decode()


# ---- bench/bb_runs.py ----

def test_bb_runs_judges_every_variant(folder):
    done = subprocess.run(
        [support.ROOT / "bench" / "bb_runs.py", support.QBENCH, folder / "out", "--gpus", "0,1",
         "--", "--device", "cpu", "--d-model", "16", "--context", "8", "--batch", "2", "--steps", "12",
         "--observe-windows", "4", "--eval-windows", "8"],
        env=support.BASE_ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and not done.stderr, done  # two steps reach nothing
    assert "l1-adamw: 12 steps" in done.stdout and "published: 2.2299" in done.stdout, done.stdout
    assert "s: nothing published" in done.stdout, done.stdout
    lines = (folder / "out" / "runs.jsonl").read_text().splitlines()
    records = {r["name"]: r for r in map(json.loads, lines)}
    assert len(records) == 15 and all(r["exit"] == 0 for r in records.values())
    assert {r["runs_at_a_time"] for r in records.values()} == {2}
    for r in records.values():
        assert [e["step"] for e in r["evaluations"]] == [10, 12], r["name"]
        assert r["evaluations"][-1]["bigram_risk"] > 2
    last = records["l3-minimal"]["evaluations"][-1]
    assert "attn_bos_2" in last and "attn_bos_3" not in last and "stream_bos_3" in last
    parts = [(p["layer"], p["no_attention"], p["no_mlp"]) for p in records["l3-minimal"]["without"]]
    assert parts == [(1, 1, 0), (1, 0, 1), (1, 1, 1), (2, 1, 0), (2, 0, 1), (2, 1, 1), (3, 0, 1)]
    risks = {p["bigram_risk"] for p in records["l3-minimal"]["without"]}
    assert len(risks) == 7 and last["bigram_risk"] not in risks  # each part does something
    subprocess.run([support.ROOT / "bench" / "bb_record.py", folder / "out"], check=True)
    text = (folder / "out" / "README.md").read_text()
    assert "MLP of block 3" in text and "**no**" in text, text
    assert text.count("| one block, AdamW, seed") == 6, text
    for name in ("one-block.svg", "three-blocks.svg"):
        ElementTree.parse(folder / "out" / name)


# ---- docs/training.md ----

def key_table():
    """The table of keys as the program knows them, from its help and two configurations."""
    text = expect(qbench("help", "train")).out.decode()
    options = re.findall(r"^  (?:-\w, |    )--([a-z0-9-]+)(\S*)(?: (\S+))?(.*(?:\n {26}.*)*)", text,
                         re.M)
    keys = json.loads(expect(qbench("presets", "gpt2-1m")).out)
    source = (support.ROOT / "train" / "config.h").read_text()
    yield "| key | may change | |\n|---|---|---|"
    for name, switch, value, rest in options:
        if name.replace("-", "_") not in keys:
            continue  # of the command line alone
        use = re.search(r'"%s", [A-Z]+, (FIXED|FREE)' % name, source)[1]
        words = " ".join(rest.split()).replace("<s>", "`<s>`")
        shown = "on\\|off" if switch else value
        yield f"| `{name}` {shown} | {'yes' if use == 'FREE' else ''} | {words} |"


def test_documented_keys_are_those_of_the_program(_):
    text = (support.ROOT / "docs" / "training.md").read_text()
    table = re.search(r"<!-- keys: begin.*?-->\n(.*?)<!-- keys: end -->", text, re.S)[1]
    want = "\n".join(key_table()) + "\n"
    assert table == want, "docs/training.md, keys: expected\n" + want
