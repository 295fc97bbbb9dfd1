"""Pages in headless Chromium: what it measures, says on its console and shows. Standard library
only.

A page is shown at an eighth of its size, so that a screenshot's pixel is the mean of a block of 8;
references hold means of blocks of 16 (tests/cli/shots/NAME.png, small enough to keep, large enough
to look at). They are of one set of fonts: with others the comparison is left out, and said so.
To make them anew after the page was changed on purpose:

    QB_RENEW_SHOTS=1 tests/cli/run.py build/qbench report_in_a_browser
"""
import html
import itertools
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import zlib

from support import Skip

SHOTS = pathlib.Path(__file__).resolve().parent / "shots"
RENEW = "QB_RENEW_SHOTS=1 tests/cli/run.py build/qbench report_in_a_browser"
SHRINK, BLOCK = 8, 16  # px of the page behind a pixel of the screenshot, and of a reference
TOLERANCE = 12         # levels of 255 that a block may differ in a channel: another rasteriser
MOST_BLOCKS = 6        # that may differ by more; one curve or bar less are ten to thirty

MEASURE = """
const f = document.querySelector('iframe');
f.onload = () => {
  const d = f.contentDocument, e = d.documentElement, w = e.clientWidth;
  const box = x => x.getBoundingClientRect();
  const out = [...d.querySelectorAll('body *')].filter(x => !x.parentElement.closest('.scroll') &&
    !x.closest('svg svg, svg > *') && box(x).width > 0 && box(x).right > w + 1);
  const svgs = [...d.querySelectorAll('svg[role=img]')];
  const ruler = d.createElement('span');
  ruler.textContent = 'The five boxing wizards jump quickly: 0123456789.';
  ruler.style.cssText = 'position:absolute;white-space:nowrap;font:100px system-ui,sans-serif';
  d.body.append(ruler);
  const ruled = box(ruler).width;
  ruler.remove();
  f.height = e.scrollHeight;
  const found = {width: w, scroll: e.scrollWidth, height: e.scrollHeight, ruled: ruled,
    out: out.map(x => x.outerHTML.slice(0, 90)),
    figures: svgs.length, hidden: svgs.filter(x => box(x).width < 200 || box(x).height < 60).length,
    cut: svgs.flatMap(s => [...s.querySelectorAll('text')].filter(t =>
      box(t).left < box(s).left - 1 || box(t).right > box(s).right + 1).map(t => t.textContent)),
    small: Math.min(...svgs.map(s => 13 * box(s).width / s.viewBox.baseVal.width)),
    parts: [...d.querySelectorAll('section, figure')].map(x => ({
      name: x.id || 'figure "' + x.querySelector('figcaption').textContent + '"',
      top: box(x).top, bottom: box(x).bottom, left: box(x).left, right: box(x).right}))};
  document.querySelector('pre').textContent = 'FOUND' + JSON.stringify(found) + 'END';
};
"""


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    raise Skip("there is no Chromium here (Debian: chromium)")


def look_at(own, page, width, dark=False):
    """What a browser of that width makes of the page: (boxes and the like, console, Shot)."""
    name = f"{width}{'-dark' if dark else ''}"
    wrapper, shot = own / f"wrapper-{name}.html", own / f"shot-{name}.png"
    wrapper.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><style>body{{margin:0;overflow:hidden}}iframe{{border:0;'
        f'transform:scale({2 / SHRINK});transform-origin:0 0}}</style><body><iframe width="{width}" '
        f'height="900"></iframe><pre hidden></pre><script>{MEASURE}'
        f"f.srcdoc = {json.dumps(page).replace('</', '<' + chr(92) + '/')};</script>")
    done = subprocess.run([browser(), "--headless", "--no-sandbox", "--disable-gpu",
                           "--enable-logging=stderr", f"--user-data-dir={own / 'profile'}",
                           "--hide-scrollbars", "--force-device-scale-factor=0.5",
                           f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                           f"--window-size={max(width * 2 // SHRINK, 320)},6000",
                           f"--screenshot={shot}", "--dump-dom", wrapper.as_uri()],
                          capture_output=True, text=True, timeout=100)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(r"FOUND(\{.*?\})END</pre>", done.stdout, re.S)
    assert found and shot.exists(), (done.returncode, done.stdout[-300:], done.stderr[-600:])
    found = json.loads(html.unescape(found[1]))
    return found, console, read_png(shot).cut(width // SHRINK, found["height"] // SHRINK)


# ---- pictures ----

class Shot:
    """Rows of RGB bytes."""

    def __init__(self, width, height, rows):
        self.width, self.height, self.rows = width, height, rows

    def cut(self, width, height):
        assert width <= self.width and height <= self.height, (self.width, self.height, height)
        return Shot(width, height, [row[:3 * width] for row in self.rows[:height]])

    def blocks(self, size):
        """Means of squares of pixels; what is left over at the right and at the end is dropped."""
        width, height, rows = self.width // size, self.height // size, []
        for y in range(height):
            columns = [sum(column) for column in zip(*self.rows[y * size:(y + 1) * size])]
            rows.append(bytes(sum(columns[3 * size * x + c:3 * size * (x + 1):3]) // size**2
                              for x in range(width) for c in range(3)))
        return Shot(width, height, rows)


def paeth(a, b, c):
    p = a + b - c
    x, y, z = abs(p - a), abs(p - b), abs(p - c)
    return a if x <= y and x <= z else b if y <= z else c


def unfilter(kind, line, above):
    """One row of a PNG of 3 bytes a pixel (RFC 2083, section 6)."""
    if kind == 0:
        return line
    if kind == 2:
        return bytes((x + y) & 255 for x, y in zip(line, above))
    row = bytearray(len(line))
    if kind == 1:
        for c in range(3):
            row[c::3] = bytes(x & 255 for x in itertools.accumulate(line[c::3]))
        return bytes(row)
    for i, x in enumerate(line):
        left, corner = (row[i - 3], above[i - 3]) if i >= 3 else (0, 0)
        row[i] = (x + ((left + above[i]) // 2 if kind == 3 else paeth(left, above[i], corner))) & 255
    return bytes(row)


def read_png(path):
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", data, at + 8)
            assert (depth, colour) == (8, 2), "a PNG of another kind than RGB of 8 bits"
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + size]
        at += size + 12
    raw, rows, stride = zlib.decompress(packed), [], 3 * width + 1
    above = bytes(3 * width)
    for y in range(height):
        above = unfilter(raw[y * stride], raw[y * stride + 1:(y + 1) * stride], above)
        rows.append(above)
    return Shot(width, height, rows)


def write_png(path, shot, text):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" +
                     chunk(b"IHDR", struct.pack(">IIBBBBB", shot.width, shot.height, 8, 2, 0, 0, 0)) +
                     chunk(b"tEXt", b"Comment\0" + text.encode()) +
                     chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in shot.rows), 9)) +
                     chunk(b"IEND", b""))


# ---- comparison ----

def differing(shot, reference):
    """[(block x, block y)] that differ by more than a rasteriser may."""
    return [(x, y) for y, (a, b) in enumerate(zip(shot.rows, reference.rows))
            for x in range(shot.width)
            if a[3 * x:3 * x + 3] != b[3 * x:3 * x + 3] and
            max(abs(a[3 * x + c] - b[3 * x + c]) for c in range(3)) > TOLERANCE]


def part_of(block, parts):
    """The innermost section or figure that a block lies in."""
    x, y = (BLOCK * (i + 0.5) for i in block)
    inside = [p["name"] for p in parts
              if p["left"] <= x <= p["right"] and p["top"] <= y <= p["bottom"]]
    return inside[-1] if inside else "the page's frame"


def compare(name, shot, found, where):
    """Holds a screenshot to its reference; returns why that could not be done, else None."""
    blocks, path = shot.blocks(BLOCK // SHRINK), SHOTS / f"{name}.png"
    fonts = f"{found['ruled']:.1f}"
    if os.environ.get("QB_RENEW_SHOTS"):
        SHOTS.mkdir(exist_ok=True)
        write_png(path, blocks, fonts)
        return None
    kept = re.search(rb"tEXtComment\0([0-9.]+)", path.read_bytes())[1].decode()
    if kept != fonts:
        return f"fonts are not those of the kept screenshots (a line is {fonts} px, there {kept})"
    reference = read_png(path)
    write_png(where / f"{name}-seen.png", blocks, fonts)
    size, expected = (blocks.width, blocks.height), (reference.width, reference.height)
    wrong = differing(blocks, reference)
    parts = sorted({part_of(block, found["parts"]) for block in wrong})
    assert size == expected, (f"{name}: the page is {size[0]} x {size[1]} blocks, kept is {expected[0]} x "
                              f"{expected[1]}; first other part: {parts[:1]}; if meant: {RENEW}")
    assert len(wrong) <= MOST_BLOCKS, (
        f"{name}: {len(wrong)} of {size[0] * size[1]} blocks differ from {path}, in {parts}; if meant: "
        f"{RENEW}")
    return None
