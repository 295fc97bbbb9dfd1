"""qbench report: one page without network or script, well formed whatever the names are; and in
Chromium on two widths, where it is installed."""
import collections
import csv
import html
import html.parser
import json
import re
import shutil
import xml.etree.ElementTree

import made_pages
import page_shots
import schema_check
from support import ROOT, Skip, expect, no_leftovers, qbench

MODELS = ROOT / "share" / "models"
NASTY = ["</title><script>alert(1)</script>", '"><img src=x onerror=1>', "&lt;b&gt; ' & \u202e\uffff\x01"]
VOID = {"meta", "br", "path", "rect", "line"}


def records():
    return json.loads((MODELS / "results-builtin.json").read_text())


def with_speed(root):
    """Speeds and samples, made up: each scheme somewhat faster than the one before."""
    for i, r in enumerate(root["results"]):
        r["speed"]["batch"], r["speed"]["context"] = 1, 256
        for phase, ms in (("prefill", 80), ("decode", 9)):
            for timing, factor in ((r["speed"][phase], 1 - i / 20), (r["speed"]["full"][phase], 1.1)):
                samples = [ms * factor * (1 + 0.01 * (7 * k % 11)) for k in range(40)]
                timing.update(tok_per_s=1e3 / (ms * factor), p50_ms=ms * factor, p90_ms=1.1 * ms,
                              p99_ms=1.2 * ms, samples=40, samples_ms=samples,
                              tok_per_s_ci95=[900 / (ms * factor), 1100 / (ms * factor)])
    return root


def save(path, root):
    path.write_text(json.dumps(root))
    return path


class Page(html.parser.HTMLParser):
    """Checks that elements nest, that ids are single, and that nothing is fetched or run."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.ids, self.links = text, [], collections.Counter(), []
        self.figures, self.words = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"
        assert max(self.ids.values()) == 1, self.ids.most_common(1)
        assert all(link[1:] in self.ids for link in self.links), self.links
        for svg in re.findall(r"<svg.*?</svg>", text, re.S):
            xml.etree.ElementTree.fromstring(svg)
            assert "nan" not in re.sub(r">[^<]*<", "><", svg) and "inf" not in re.sub(
                r">[^<]*<", "><", svg), svg

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in {"script", "img", "link", "iframe", "object"}, self.get_starttag_text()
        assert not any(k.startswith("on") or k == "src" for k in attrs), self.get_starttag_text()
        assert attrs.get("href", "#").startswith("#"), attrs
        self.links += [attrs["href"]] if "href" in attrs else []
        self.ids.update([attrs["id"]] if "id" in attrs else [])
        if tag == "figure":
            self.figures.append(collections.Counter())
        elif self.figures and "figure" in self.open:
            self.figures[-1][attrs.get("role", "") + tag] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID, tag

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open and self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        self.words.append(data)


def made_up_profile(own):
    profile = made_pages.profile()
    schema = json.loads((ROOT / "docs" / "profile.schema.json").read_text())
    wrong = [e for e in schema_check.errors(profile, schema, schema) if "is missing" not in e]
    assert not wrong, wrong  # keys that came later do not concern the page
    return save(own / "profile.json", profile)


def analysis_of(own, name):
    """Of a shipped model, on little text, with maps."""
    path = own / f"{name}.analysis.json"
    expect(qbench("analyze", "--quiet", "--maps", "--max-tokens", 600, "--json", path,
                  MODELS / f"{name}.bin"))
    return path


def page_of(own, *files, options=()):
    out = own / "page.html"
    expect(qbench("report", *files, "-o", out, *options))
    no_leftovers(own)
    text = out.read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert "@import" not in text
    page = Page(text)
    for figure in page.figures:
        assert figure["imgsvg"] == 1 and figure["title"] >= 1 and figure["desc"] == 1, figure
        assert figure["details"] == 1 and figure["table"] == 1 and figure["figcaption"] == 1, figure
    return page


def sections(page):
    return re.findall(r'<section id="(\w+)"', page.text)


def test_report_sections_are_there_where_their_data_are(own):
    curves = sorted(MODELS.glob("*.metrics.jsonl"))
    quality = MODELS / "results-builtin.json"
    last = ["environment", "reproduce"]
    assert sections(page_of(own, quality)) == ["summary", "penalty", "memory", *last]
    assert sections(page_of(own, *curves)) == ["training", "reproduce"]
    full = page_of(own, save(own / "r.json", with_speed(records())), *curves)
    assert sections(full) == ["summary", "tradeoff", "penalty", "latency", "memory", "training", *last]
    assert len(full.figures) == 2 + 1 + 2 + 2 + 5
    speed_only = with_speed(records())
    for r in speed_only["results"]:
        r["quality"] = {k: None for k in r["quality"]}
    assert sections(page_of(own, save(own / "s.json", speed_only))) == ["summary", "latency", "memory",
                                                                        *last]


def test_report_says_what_the_records_say(own):
    page = page_of(own, MODELS / "results-builtin.json", options=["--title", "A & B"])
    words = " ".join(page.words)
    for r in records()["results"]:
        assert r["scheme"]["name"] in words and r["model"]["sha256"] in words
        assert f"{r['quality']['penalty']:.2f}"[:3] in words
        assert r["command"] in words and r["text"]["sha256"] in words
    assert "<h1>A &amp; B</h1>" in page.text
    two = page_of(own, MODELS / "results-builtin.json", MODELS / "results-valid.json")
    assert two.text.count("Every model and scheme") == 2  # texts are never mixed in a table


def test_report_of_analyses_and_profiles(own):
    ours, vanilla = analysis_of(own, "gpt2-8m-ours"), analysis_of(own, "gpt2-8m-vanilla")
    page = page_of(own, ours, vanilla, made_up_profile(own))
    assert sections(page) == ["profile", "layers", "effects", "maps", "reproduce"]
    assert len(page.figures) == 4 + 8 + (3 + 1 + 2) + 2 + 2 * 2 * 6
    words = " ".join(page.words)
    layers = json.loads(vanilla.read_text())["layers"]
    table = re.search(r"Kurtosis by layer, first token</caption>.*?</table>", page.text, re.S)[0]
    assert table.count("<tr><th") == 2 * len(layers) + 1
    assert f">{layers[-1]['kurt_token_first']:.2f}<" in table, table
    assert "products wait for weights - a larger batch" in words and "qbench analyze" in words
    for title in ("Roofline: decode", "Heads of gpt2-8m-ours", "Attention of gpt2-8m-vanilla, layer 8",
                  "Hidden state of gpt2-8m-ours, mean over layers"):
        assert title in words, title
    # A map has the levels of its cells: of the attention's rows none lies above the diagonal.
    svg = re.search(r"<title[^>]*>Attention of gpt2-8m-ours, layer 1</title>.*?</svg>", page.text, re.S)[0]
    boxes = re.findall(r"M(\d+) (\d+)h(\d+)v1", svg)
    assert boxes and all(int(x) + int(n) <= int(y) + 1 for x, y, n in boxes)
    broken = own / "broken.json"
    broken.write_text(ours.read_text().replace('"layer": 2', '"layer": 7', 1))
    done = expect(qbench("report", broken, "-o", own / "p.html"), 3)
    assert b"broken.json: layers[1]: layer: found 7, expected 2" in done.err


def test_report_of_a_sensitivity(own):
    path = own / "s.json"
    expect(qbench("analyze", "--quiet", "--max-tokens", 520, "--sensitivity", "--by", "role", "--scheme",
                  "coarse", "--json", path, MODELS / "gpt2-8m-vanilla.bin"))
    page = page_of(own, path)
    assert sections(page) == ["sensitivity", "layers", "effects", "maps", "reproduce"]
    parts = json.loads(path.read_text())["sensitivity"]["parts"]
    rows = cells_of_html(page.text)[0][2:]
    assert [row[0] for row in rows] == [part["name"] for part in parts]
    for row, part in zip(rows, parts):
        assert abs(float(row[1].replace(",", "")) - part["penalty"]) <= max(
            0.006 * abs(part["penalty"]), 0.0001), (row, part)


def test_report_pareto_front(own):
    root = with_speed(records())
    root["results"] = root["results"][:4]
    for r, speed, penalty in zip(root["results"], (100, 200, 150, 300), (1, 2, 3, 4)):
        r["speed"]["decode"]["tok_per_s"], r["quality"]["penalty"] = speed, penalty
        r["speed"]["full"]["decode"]["tok_per_s"] = 50
    page = page_of(own, save(own / "r.json", root))
    table = re.search(r"Penalty against speed of decode</caption>.*?</table>", page.text, re.S)[0]
    rows = [re.findall(r">([^<>]+)</t[hd]>", row) for row in table.split("<tr>")[2:]]
    names = [r["scheme"]["name"] for r in root["results"]]
    assert [(row[0], row[-1]) for row in rows] == [
        (names[3], "yes"), (names[1], "yes"), (names[2], "no"), (names[0], "yes"), ("full", "yes")]


def test_report_escapes_every_text(own):
    root = with_speed(records())
    for i, r in enumerate(root["results"]):
        for group in ("model", "text", "protocol", "scheme", "environment"):
            for key, value in r[group].items():
                if isinstance(value, str):
                    r[group][key] = NASTY[i % 3]
        r["trust"] = {"level": NASTY[0], "reasons": NASTY}
        r["command"] = r["git_commit"] = r["time_utc"] = NASTY[i % 3]
    run = own / NASTY[1].replace("/", "")
    run.mkdir()
    shutil.copy(MODELS / "gpt2-8m-ours.metrics.jsonl", run / "metrics.jsonl")
    profile = made_pages.profile()
    profile["scheme"] = profile["machine"] = profile["command"] = NASTY[0]
    profile["verdict"][0]["text"] = profile["operations"][0]["operation"] = NASTY[1]
    for part in profile["operations"][0]["full"]["phases"] + profile["operations"][0]["full"]["kernels"]:
        part.update(phase=NASTY[0], kernel=NASTY[1], role=NASTY[2])
    analysis = {"schema": "qbench.analysis/1", "model": {"name": NASTY[0]}, "command": NASTY[1],
                "layers": [{"layer": 1, "kurt_token_first": 1e300, "max_abs_rest": 5e-324}],
                "maps": {"layers": [{"attention": [[0.5]], "hidden": [[1e14]]}]}}
    page = page_of(own, save(own / "r.json", root), run, save(own / "p.json", profile),
                   save(own / "a.json", analysis), options=["--title", NASTY[0]])
    assert "<script" not in page.text and "<img" not in page.text
    assert NASTY[0] in " ".join(page.words)


def test_report_draws_extremes(own):
    for values in ([1e308, -1e308], [0, 0], [5e-324, 1e14], [-3, -2]):
        root = with_speed(records())
        for i, r in enumerate(root["results"]):
            value = values[i % 2]
            r["quality"].update(penalty=value, ppl=value, penalty_ci95=[-value, value])
            r["speed"]["decode"].update(tok_per_s=abs(value), samples_ms=[abs(value) or 1] * 7)
            r["memory"]["weights_bytes"] = 2**63 - 1
            r["model"]["name"] = None if i % 2 else "x" * 5000
            r["scheme"]["name"] = None if i % 3 else "y" * 5000
        page_of(own, save(own / "r.json", root))


def test_report_twins(own):
    quality = MODELS / "results-builtin.json"
    done = expect(qbench("report", quality, "--csv", "-", "--md", own / "r.md"))
    rows = list(csv.DictReader(done.out.decode().splitlines()))
    assert [row["scheme.name"] for row in rows] == [r["scheme"]["name"] for r in records()["results"]]
    assert "| gpt2-8m-ours | coarse |" in (own / "r.md").read_text()
    assert expect(qbench("report", quality, "-o", "-")).out.startswith(b"<!DOCTYPE html>")


def cells_of_html(text):
    """[[caption, [cell...]...]] of every table."""
    return [[html.unescape(re.search(r"<caption[^>]*>(.*?)</caption>", table)[1]),
             *([html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in
                re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)]
               for row in re.findall(r"<tr>(.*?)</tr>", table, re.S))]
            for table in re.findall(r"<table>(.*?)</table>", text, re.S)]


def ungrouped(row):
    """Cells with 1234 for 1,234, "" for "-", and spaces for lines."""
    return [" ".join(re.sub(r"(?<=\d),(?=\d\d\d)", "", cell).split()) if cell != "-" else ""
            for cell in row]


def test_report_tables_as_markdown_and_csv(own):
    """Both twins have every cell of every table of the page, those behind the figures too."""
    root = with_speed(records())
    root["results"][0]["trust"] = {"level": "low", "reasons": ['a, "quoted"', "one\nmore"]}
    root["results"][0]["model"]["name"] = "a | b, c"
    page = page_of(own, save(own / "r.json", root), MODELS / "gpt2-8m-ours.metrics.jsonl",
                   made_up_profile(own), save(own / "a.json", made_pages.analysis()),
                   options=["--md", own / "p.md", "--tables", own / "tables"])
    tables = cells_of_html(page.text)
    md, files = (own / "p.md").read_text(), sorted((own / "tables").iterdir())
    assert len(files) == len(tables) > 20
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in md.splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows if "---" not in row[0]]
    flat = [[" ".join(cell.split()) for cell in row] for table in tables for row in table[1:]]
    assert rows == flat, [pair for pair in zip(rows, flat) if pair[0] != pair[1]][:3]
    assert re.findall("^## (.*)$", md, re.M) == re.findall(r"<h2>(.*?)</h2>", page.text)
    for i, (path, table) in enumerate(zip(files, tables)):
        with path.open(newline="") as file:
            seen = list(csv.reader(file))
        assert path.name.startswith(f"{i + 1:02}-") and path.suffix == ".csv", path
        assert list(map(ungrouped, seen)) == list(map(ungrouped, table[1:])), (path.name, seen[:3])
    hashes = next(path for path in files if path.name.endswith("-hashes.csv")).read_text()
    assert f",{records()['results'][0]['text']['bytes']}," in hashes, hashes  # not 40,406
    done = expect(qbench("report", own / "r.json", "--tables", own / "r.json"), 3)
    assert b"found a file, expected a folder" in done.err


def test_report_refuses(own):
    quality, out = MODELS / "results-builtin.json", own / "page.html"
    out.write_text("as it was")
    broken = own / "broken.json"
    broken.write_bytes(quality.read_bytes()[:-30])
    expect(qbench("report", quality, broken, "-o", out), 3)
    broken.write_text('{"schema": "qbench.results/1", "results": []}')
    assert b"found no records" in expect(qbench("report", broken, "-o", out), 3).err
    broken.write_text('{"kind": "train", "step": 1}\n{"kind": "train"}\n')
    assert b'broken.json: line 2: key "step"' in expect(qbench("report", broken, "-o", out), 3).err
    many = {**records(), "results": records()["results"] * 63}
    done = expect(qbench("report", save(own / "many.json", many), "-o", out), 3)
    assert b"found 1008 records, expected at most 1000" in done.err
    expect(qbench("report", own / "absent.json", "-o", out), 3)
    expect(qbench("report", own, "-o", out), 3)  # a folder without metrics.jsonl
    assert b"--tables" in expect(qbench("report", quality), 2).err
    expect(qbench("report", "-o", out), 2)
    expect(qbench("report", quality, "-o", "-", "--csv", "-"), 2)
    expect(qbench("report", quality, "-o", own / "absent" / "page.html"), 3)
    assert out.read_text() == "as it was"
    no_leftovers(own)


def test_report_example_is_of_today(own):
    """docs/example-report.html is what docs/report.md's command writes."""
    page = (ROOT / "docs" / "report.md").read_text()
    command = re.search(r"^    build/qbench report ((?:.*\\\n)?.*) -o docs/example-report.html$", page, re.M)[1]
    command = command.replace("\\\n", " ")
    files = [path for word in command.split() for path in sorted(ROOT.glob(word))]
    expect(qbench("report", *files, "-o", own / "page.html"))
    assert (own / "page.html").read_text() == (ROOT / "docs/example-report.html").read_text(), \
        f"make docs/example-report.html again: build/qbench report {command} -o it"


# ---- in a browser ----

def test_report_in_a_browser(own):
    page_shots.browser()
    root = with_speed(records())
    root["results"][0]["model"]["name"] = "a-model-whose-name-is-longer-than-any-column-of-a-phone" * 2
    page = page_of(own, save(own / "r.json", root), *sorted(MODELS.glob("*.metrics.jsonl")),
                   made_up_profile(own), save(own / "a.json", made_pages.analysis()))
    why = None
    for width, dark in ((360, True), (1280, False)):
        found, console, shot = page_shots.look_at(own, page.text, width, dark)
        assert not console, console
        assert found["width"] in (width, width - 15) and found["scroll"] <= width, found
        assert not found["out"] and not found["hidden"] and not found["cut"], found
        assert found["figures"] == len(page.figures) and found["small"] >= 9, found
        name = f"report-{width}{'-dark' if dark else ''}"
        why = page_shots.compare(name, shot, found, own) or why
    if why:
        raise Skip("screenshots are not compared: " + why)


def test_figures_of_the_pages_in_a_browser(own):
    """Those that scripts draw of records: in docs/ and results/."""
    page_shots.browser()
    paths = sorted([*(ROOT / "docs").glob("*.svg"), *(ROOT / "results").rglob("*.svg")])
    page = "<!DOCTYPE html><title>figures</title>" + "".join(path.read_text() for path in paths)
    found, console, shot = page_shots.look_at(own, page, 1280)
    assert not console and found["figures"] == len(paths) == 3, (console, found)
    assert not found["hidden"] and not found["cut"], found
    inked = sum(row.count(b"\xff") < len(row) for row in shot.rows)
    assert inked > shot.height / 2, (inked, shot.height)  # their curves and texts are seen


# ---- colours ----

def luminance(colour):
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_report_contrast(own):
    """WCAG AA: texts 4.5:1, marks 3:1, on the page and on figures, light, dark and printed."""
    text = page_of(own, MODELS / "results-builtin.json").text
    roots = re.findall(r":root\{(.*?)\}", text, re.S)
    assert len(roots) == 3
    for root in roots:
        colours = dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", root))
        for ground in (colours["bg"], colours["card"]):
            for name in ("fg", "soft", "link"):
                assert contrast(colours[name], ground) >= 4.5, (name, colours[name], ground)
            for i in range(12):
                assert contrast(colours[f"c{i}"], ground) >= 3, (i, colours[f"c{i}"], ground)
        for i in range(8):  # levels of heat maps: each a step further from the background
            near, far = (contrast(colours[f"h{k}"], colours["card"]) for k in (i, i + 1))
            assert far >= 1.2 * near and near >= 1.05, (i, near, far)
