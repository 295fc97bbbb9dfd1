"""qbench watch: a history that grows by whole lines, spark lines, changes of level."""
import json

import gate_tests
import tiny_models
from support import expect, qbench


def history_of(own, values):
    """A history whose perplexities are the values, and the file of one result."""
    result = gate_tests.record(tiny_models.write_hf_folder(own / "m"), own / "r.json", "--scheme",
                               "fine", *gate_tests.QUALITY)
    history = own / "h.jsonl"
    history.unlink(missing_ok=True)
    expect(qbench("watch", "--quiet", history, result))
    r = json.loads(history.read_text())
    lines = []
    for i, value in enumerate(values):
        r["quality"]["ppl"] = value
        r["time_utc"] = f"2026-01-{i + 1:02d}T00:00:00Z"
        lines.append(json.dumps(r))
    history.write_text("\n".join(lines) + "\n")
    return history, result


def test_watch_appends_each_record_once(own):
    history, result = history_of(own, [20.0])
    before = history.read_text()
    done = expect(qbench("watch", history, result))
    assert b"1 of 1 records are new" in done.err and history.read_text().startswith(before)
    assert b"0 of 1 records are new" in expect(qbench("watch", history, result)).err
    lines = history.read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[1])["quality"]["windows"]["nll"] is None
    assert b"perplexity" in done.out and "▁".encode() in done.out


def test_watch_sees_a_change(own):
    history, _ = history_of(own, [20.0] * 10 + [20.1] * 4)
    done = expect(qbench("watch", history))
    assert "20.100  " + "▁" * 10 + "█" * 4 in done.out.decode(), done.out.decode()
    assert b"worse  +0.50 % since record 11, 2026-01-11" in done.out, done
    done = expect(qbench("watch", "--fail-on-change", history), 1)
    assert b"h.jsonl: found 1 figures that became worse" in done.err
    history, _ = history_of(own, [20.1] * 10 + [20.0] * 4)
    assert b"better  -0.50 %" in expect(qbench("watch", "--fail-on-change", history)).out
    history, _ = history_of(own, [20.0] * 10 + [20.1] * 12)  # an old change is known by now
    expect(qbench("watch", "--fail-on-change", history))
    history, _ = history_of(own, [20.0 + 0.01 * (7 * i % 5) for i in range(20)])
    assert b"since record" not in expect(qbench("watch", "--fail-on-change", history)).out


def test_watch_refuses(own):
    history, result = history_of(own, [20.0, 20.0])
    whole = history.read_text()
    history.write_text(whole.rstrip("\n"))
    for args in ([history], [history, result]):
        done = expect(qbench("watch", "--quiet", *args), 3)
        assert b"line 2: found no end of the line" in done.err, done
    history.write_text(whole.replace('"ppl": 20.0', '"ppl": "x"', 1))
    done = expect(qbench("watch", history), 3)
    assert b"h.jsonl: line 1.quality.ppl: found a text" in done.err, done
    expect(qbench("watch", own / "absent.jsonl"), 3)
    expect(qbench("watch", own / "new.jsonl", own / "absent.json"), 3)
    expect(qbench("watch", own, result), 3)
    expect(qbench("watch"), 2)
