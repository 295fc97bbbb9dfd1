"""qbench tokenize: ids against the golden cases, back again, usage, bad input."""
import json

from support import expect, golden, qbench


def test_tokenize_golden_and_back(folder):
    tokenizer = golden("bpe-hf/tokenizer.json")
    for case in json.loads(golden("bpe-hf/cases.json").read_text())[::4] + [
            {"text": "a<|endoftext|>b", "ids": [65, 0, 66]}, {"text": "", "ids": []}]:
        text = case["text"].encode()
        done = expect(qbench("tokenize", tokenizer, stdin=text))
        assert json.loads(done.out) == case["ids"], case
        path = folder / "text"
        path.write_bytes(text)
        assert qbench("tokenize", tokenizer, path).out == done.out
        assert expect(qbench("tokenize", "--decode", tokenizer, "-", stdin=done.out)).out == text


def test_tokenize_any_bytes(folder):
    tokenizer = golden("bpe-hf/tokenizer.json")
    text = bytes(range(256)) * 3 + b"<|endoftext|>\xc3"
    ids = expect(qbench("tokenize", tokenizer, stdin=text)).out
    assert expect(qbench("tokenize", "--decode", tokenizer, stdin=ids)).out == text


def test_tokenize_no_special(folder):
    tokenizer = golden("bpe-hf/tokenizer.json")
    plain = json.loads(qbench("tokenize", "--no-special", tokenizer, stdin=b"<|endoftext|>").out)
    assert len(plain) > 1 and 0 not in plain


def test_tokenize_refuses(folder):
    tokenizer = golden("bpe-hf/tokenizer.json")
    for ids in (b"[1, 99999]", b"[-1]", b"[0.5]", b"{}", b"[1", b"", b"\xff"):
        expect(qbench("tokenize", "--decode", tokenizer, stdin=ids), 3)
    expect(qbench("tokenize"), 2)
    expect(qbench("tokenize", folder), 3)
    expect(qbench("tokenize", "/dev/zero"), 3)
    expect(qbench("tokenize", tokenizer, folder / "absent"), 3)
    broken = folder / "tokenizer.json"
    broken.write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    assert b"WordPiece" in expect(qbench("tokenize", broken), 3).err
