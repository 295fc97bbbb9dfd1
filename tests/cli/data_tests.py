"""qbench data: shards read back by an independent reader, Hugging Face's trainer and encoder as the
reference, decontamination, refusals, signals."""
import gzip
import hashlib
import json
import lzma
import random
import signal
import struct

import tiny_models
from bad_input_tests import send_later
from support import Skip, expect, models, no_leftovers, qbench, start

MARK = "<|endoftext|>"
WORDS = ("the of a to and in is it you that he was for on are with as I his they be at one have this "
         "from or had by hot word but what some we can out other were all there when up use your how "
         "said an each she which do their time if will way about many then them write would like so "
         "these her long make thing see him two has look more day could go come did number sound no "
         "most people my over know water than call first who may down side been now find").split()


def document(seed, n_words=120):
    """English-like text; some words with numbers, accents, apostrophes, more than one blank."""
    pick = random.Random(seed)
    parts = []
    for i in range(n_words):
        word = pick.choice(WORDS)
        roll = pick.random()
        if roll < 0.05:
            word = str(pick.randrange(3000))
        elif roll < 0.08:
            word += "'s"
        elif roll < 0.1:
            word = "caf\u00e9 \u2014 " + word
        parts.append(word + pick.choice([" ", " ", " ", " ", ", ", ".\n", "  ", "!\n\n"]))
    return "".join(parts)


def write_texts(folder):
    """Four files of four kinds; returns {stem: documents}."""
    docs = {name: [document(f"{name}{i}") for i in range(12)] for name in "abcd"}
    plain = {name: "".join(f"{d}\n{MARK}\n" for d in docs[name]) for name in "abc"}
    (folder / "a.txt").write_text(plain["a"])
    (folder / "b.txt.gz").write_bytes(gzip.compress(plain["b"].encode()))
    (folder / "c.txt.xz").write_bytes(lzma.compress(plain["c"].encode()))
    (folder / "d.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in docs["d"]))
    return {name: [d + "\n" if name != "d" else d for d in docs[name]] for name in docs}


PATHS = ["a.txt", "b.txt.gz", "c.txt.xz", "d.jsonl"]


def read_shard(path):
    """By docs/data.md alone."""
    data = path.read_bytes()
    magic, version, width, vocab, eos, n_docs, n_tokens, text_bytes, offset, reserved = \
        struct.unpack("<8sIIIiQQQQQ", data[:64])
    assert magic == b"QBSHARD\0" and version == 1 and reserved == 0
    assert width == (2 if vocab <= 65536 else 4) and offset == (256 + 8 * n_docs + 63) // 64 * 64
    assert len(data) == offset + width * n_tokens
    assert hashlib.sha256(data[:192] + data[256:]).hexdigest().encode() == data[192:256]
    ends = struct.unpack(f"<{n_docs}Q", data[256:256 + 8 * n_docs])
    tokens = struct.unpack(f"<{n_tokens}{'H' if width == 2 else 'I'}", data[offset:])
    assert not any(data[256 + 8 * n_docs:offset])
    docs = [tokens[a:b] for a, b in zip((0,) + ends, ends)]
    return {"vocab": vocab, "eos": eos, "docs": docs, "text_bytes": text_bytes,
            "tokenizer": data[64:128].decode(), "text": data[128:192].decode()}


def byte_alphabet():
    """The bytes of each character of the byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(rest)}}


def token_texts(path):
    spell = byte_alphabet()
    model = json.loads(path.read_text())["model"]
    return {i: bytes(spell[c] for c in text) for text, i in model["vocab"].items() if text != MARK}


def test_data_trains_and_writes_shards(folder):
    docs = write_texts(folder)
    out = folder / "out"
    done = expect(qbench("data", *(folder / p for p in PATHS), "--train-bpe", 600, "--out", out,
                         "--json", folder / "r.json"))
    lines = done.out.decode().splitlines()
    assert len(lines) == 5 and lines[-1].startswith("all"), done
    record = json.loads((folder / "r.json").read_text())
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    texts = token_texts(out / "tokenizer.json")
    assert tokenizer["model"]["vocab"][MARK] == 599 and len(tokenizer["model"]["vocab"]) == 600
    assert record["tokenizer"]["vocab"] == 600 and record["tokenizer"]["trained"] is True
    assert [s["text"]["name"] for s in record["shards"]] == PATHS
    for name, shard in zip("abcd", record["shards"]):
        path = out / f"{name}.qbs"
        read = read_shard(path)
        assert read["vocab"] == 600 and read["eos"] == 599
        assert read["tokenizer"] == record["tokenizer"]["sha256"]
        assert read["text"] == shard["text"]["sha256"]
        assert all(d[0] == 599 and 599 not in d[1:] for d in read["docs"])
        assert [b"".join(texts[t] for t in d[1:]).decode() for d in read["docs"]] == docs[name]
        assert read["text_bytes"] == shard["text_bytes"] == len("".join(docs[name]).encode())
        assert shard["documents"] == 12 and shard["dropped"] == 0
        assert shard["tokens"] == sum(map(len, read["docs"]))
        report = json.loads(expect(qbench("inspect", "--json", "-", path)).out)
        assert report["tokens"] == shard["tokens"] and report["sha256"] == shard["sha256"]
        assert b"ok, token shard, 12 documents" in expect(qbench("verify", path)).out
    assert record["tokens"] == sum(s["tokens"] for s in record["shards"])
    no_leftovers(folder)


def test_data_is_the_same_at_any_thread_count_and_in_any_order(folder):
    write_texts(folder)
    paths = [folder / p for p in PATHS]
    for name, threads, order in (("1", 1, paths), ("3", 3, paths), ("back", 2, paths[::-1])):
        expect(qbench("data", "--quiet", *order, "--train-bpe", 500, "--threads", threads, "--out",
                      folder / name))
    for file in ("tokenizer.json", "a.qbs", "b.qbs", "c.qbs", "d.qbs"):
        first = (folder / "1" / file).read_bytes()
        assert (folder / "3" / file).read_bytes() == first
        assert (folder / "back" / file).read_bytes() == first


def test_data_with_a_given_tokenizer(folder):
    docs = write_texts(folder)
    made = models(folder)
    expect(qbench("data", "--quiet", folder / "a.txt", "--tokenizer", made["hf"], "--out",
                  folder / "json"))
    expect(qbench("data", "--quiet", folder / "a.txt", "--tokenizer", made["model.bin"], "--out",
                  folder / "model"))
    done = expect(qbench("data", "--quiet", "-", "--tokenizer", folder / "json" / "tokenizer.json",
                         "--out", folder / "json", stdin=(folder / "a.txt").read_bytes()))
    assert not done.out and not done.err, done
    shard = read_shard(folder / "json" / "a.qbs")
    assert read_shard(folder / "json" / "stdin.qbs")["docs"] == shard["docs"]
    for doc, text in zip(shard["docs"], docs["a"]):
        ids = expect(qbench("tokenize", "--no-special", made["hf"], "-", stdin=text.encode())).out
        first = [shard["eos"]] if shard["eos"] >= 0 else []
        assert list(doc) == first + json.loads(ids)
    from_model = read_shard(folder / "model" / "a.qbs")
    assert from_model["vocab"] == tiny_models.VOCAB
    again = json.loads((folder / "json" / "tokenizer.json").read_text())
    assert again["model"]["vocab"] == tiny_models.tokenizer_json()["model"]["vocab"]


def huggingface_tokenizer(texts, vocab):
    try:
        from tokenizers import Tokenizer, decoders, models as kinds, pre_tokenizers, trainers
    except ImportError:
        raise Skip("the Python package tokenizers is not here") from None
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=2, special_tokens=[MARK], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer, Tokenizer


def test_data_trains_as_huggingface_tokenizers(folder):
    docs = write_texts(folder)
    theirs, kind = huggingface_tokenizer([d for name in "abcd" for d in docs[name]], 700)
    expect(qbench("data", "--quiet", *(folder / p for p in PATHS), "--train-bpe", 700, "--out",
                  folder))
    ours = json.loads((folder / "tokenizer.json").read_text())["model"]
    reference = json.loads(theirs.to_str())["model"]

    def pairs(merges):
        return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    assert pairs(ours["merges"]) == pairs(reference["merges"])
    loaded = kind.from_file(str(folder / "tokenizer.json"))
    for name in "abcd":
        for doc, text in zip(read_shard(folder / f"{name}.qbs")["docs"], docs[name]):
            assert list(doc[1:]) == loaded.encode(text).ids
            assert loaded.decode(list(doc[1:])) == text


def test_data_drops_what_shares_thirteen_words(folder):
    held_out = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."
    words = held_out.rstrip(".").split()
    docs = {"verbatim": f"before {held_out} behind",
            "respelled": "ONE, two;three  four-five\nsix 'seven' eight (nine) ten... ELEVEN twelve "
                         "THIRTEEN",
            "the end": " ".join(words[1:]),
            "twelve": " ".join(words[:12]),
            "twelve and another": " ".join(words[:12] + ["thirtieth"] + words[13:]),
            "split over documents": " ".join(words[:7]) + f"\n{MARK}\n" + " ".join(words[7:]),
            "stuck together": " ".join(words[:12]) + "thirteen"}
    kept = ["twelve", "twelve and another", "split over documents", "stuck together"]
    (folder / "t.txt").write_text("".join(f"{d}\n{MARK}\n" for d in docs.values()))
    (folder / "held-out.txt.xz").write_bytes(lzma.compress(held_out.encode()))
    (folder / "short.txt").write_text("too few words")
    done = expect(qbench("data", folder / "t.txt", "--train-bpe", 300, "--out", folder / "o",
                         "--decontaminate", folder / "short.txt", "--decontaminate",
                         folder / "held-out.txt.xz", "--json", "-"))
    assert b"short.txt: no new 13-gram" in done.err and b"held-out" not in done.err, done
    record = json.loads(done.out)
    assert record["dropped"] == 3 and record["documents"] == 5, record
    assert [d["new_13_grams"] for d in record["decontaminate"]] == [0, 2]
    texts = token_texts(folder / "o" / "tokenizer.json")
    left = [b"".join(texts[t] for t in d[1:]).decode() for d in read_shard(folder / "o/t.qbs")["docs"]]
    assert left == [p.strip("\n") + "\n" for name in kept for p in docs[name].split(MARK)]


def test_data_where_nothing_is_left(folder):
    text = document(1)
    (folder / "t.txt").write_text(text)
    done = expect(qbench("data", folder / "t.txt", "--train-bpe", 300, "--out", folder / "o",
                         "--decontaminate", folder / "t.txt"))
    assert b"0 documents" in done.out and b"1 dropped" in done.out
    assert read_shard(folder / "o" / "t.qbs")["docs"] == []
    expect(qbench("verify", folder / "o" / "t.qbs"))


def test_data_small_texts_give_small_vocabularies(folder):
    (folder / "t.txt").write_text("abab abab")
    done = expect(qbench("data", folder / "t.txt", "--train-bpe", 5000, "--out", folder))
    assert b"give 259 tokens, not 5000" in done.err, done  # bytes, ab, abab, the end of a text
    assert not expect(qbench("data", "--quiet", folder / "t.txt", "--train-bpe", 5000, "--out",
                             folder)).err


def test_data_usage(folder):
    text = folder / "t.txt"
    text.write_text("some text")
    (folder / "sub").mkdir()
    (folder / "sub" / "t.jsonl").write_text('{"text": "x"}\n')
    made = models(folder)
    cases = [([text], "neither"), ([text, "--train-bpe", 300], "--out"),
             ([text, "--train-bpe", 300, "--tokenizer", made["hf"], "--out", folder], "both"),
             ([text, "--train-bpe", 256, "--out", folder], "from 257"),
             ([text, "--train-bpe", "1e3", "--out", folder], "whole number"),
             (["-", "--train-bpe", 300, "--out", folder], "reads each text twice"),
             ([text, folder / "sub" / "t.jsonl", "--train-bpe", 300, "--out", folder],
              "two texts would become this file"),
             ([text, "--train-bpe", 300, "--out", folder, "--scheme", "fine"], "no such option"),
             (["--train-bpe", 300, "--out", folder], "too few arguments")]
    for args, says in cases:
        done = expect(qbench("data", *args), 2)
        assert says in done.err.decode(), done
    assert not list(folder.glob("*.qbs")) and not (folder / "tokenizer.json").exists()


def test_data_bad_input(folder):
    good = folder / "good.txt"
    good.write_text(document(5))
    made = models(folder)
    bad = {"cut.txt.xz": lzma.compress(b"text " * 999)[:-9], "cut.txt.gz": b"\x1f\x8b\x08\0\0",
           "empty.txt": b"", "line.jsonl": b'{"text": "a"}\n{"txt": 1}\n', "zip.txt": b"PK\x03\x04rest"}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
        for options in (["--train-bpe", 300], ["--tokenizer", made["hf"]]):
            done = expect(qbench("data", folder / name, *options, "--out", folder / "o"), 3)
            assert str(folder / name) in done.err.decode(), done
            done = expect(qbench("data", good, *options, "--decontaminate", folder / name, "--out",
                                 folder / "o"), 3)
            assert str(folder / name) in done.err.decode(), done
    for tokenizer in ("absent.json", "good.txt", "empty.txt"):
        done = expect(qbench("data", good, "--tokenizer", folder / tokenizer, "--out", folder / "o"),
                      3)
        assert tokenizer in done.err.decode(), done
    expect(qbench("data", folder / "absent.txt", "--train-bpe", 300, "--out", folder / "o"), 3)
    for out in (good, folder / "no" / "folder", "/dev/null"):
        done = expect(qbench("data", good, "--train-bpe", 300, "--out", out), 3)
        assert str(out) in done.err.decode(), done
    assert not list(folder.rglob("*.qbs"))
    no_leftovers(folder)


def test_data_damaged_shards_are_refused(folder):
    (folder / "t.txt").write_text("".join(document(i) + f"\n{MARK}\n" for i in range(9)))
    expect(qbench("data", "--quiet", folder / "t.txt", "--train-bpe", 400, "--out", folder))
    whole = (folder / "t.qbs").read_bytes()
    pick = random.Random(3)
    broken = folder / "broken.qbs"
    for _ in range(60):
        data = bytearray(whole)
        data[pick.randrange(8, len(data))] ^= 1 << pick.randrange(8)
        broken.write_bytes(data)
        done = expect(qbench("verify", broken), 3)
        assert str(broken) in done.err.decode(), done
    for n in (8, 255, 256, 300, len(whole) - 1):
        broken.write_bytes(whole[:n])
        expect(qbench("verify", broken), 3)
        expect(qbench("inspect", broken), 3)


def test_data_interrupted_leaves_whole_files_only(folder):
    text = folder / "long.txt"
    part = "".join(f"{document(i, 400)}\n{MARK}\n" for i in range(200))
    with text.open("w") as file:  # in parts: a child's peak memory counts what we hold when it starts
        for _ in range(100):
            file.write(part)
    made = models(folder)
    n_interrupted = 0
    for options in (["--train-bpe", 5000], ["--tokenizer", made["hf"]]):
        for number, seconds in ((signal.SIGINT, 0.4), (signal.SIGTERM, 0.8)):
            process = start("data", text, *options, "--threads", 1, "--out", folder / "o")
            _, err = send_later(process, number, seconds)
            assert process.returncode in (0, 130), (process.returncode, err)
            if process.returncode == 130:
                n_interrupted += 1
                assert err.decode().splitlines()[-1].startswith("qbench: "), err
            no_leftovers(folder)
            for shard in (folder / "o").glob("*.qbs"):
                expect(qbench("verify", shard))
    assert n_interrupted
