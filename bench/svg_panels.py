"""Curves as SVG: panels two a row, a legend below. What bench/bb_record.py draws of the Bigram-Backcopy
runs, and tools/paper_figure.py of those of the paper. Standard library only."""
import html
import math

WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 340, 200, 60, 40, 80, 70
COLOURS = ["#1b6ca8", "#d1495b", "#2e8b57", "#e08a00", "#7a4fa3", "#5b5b5b", "#00a3a3"]


def nice_step(span):
    rough = span / 4
    power = 10 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough)


def power_of_ten(power):
    return f"{10.0 ** power:,.0f}" if power >= 0 else f"{10.0 ** power:g}"


class Axis:
    """Maps values to 0 ... 1. Ends are round numbers, of a logarithmic one powers of ten; a linear one
    begins at 0, or where values are negative below it, unless low says where."""

    def __init__(self, values, is_log=False, low=None, exact=False):
        self.of = (lambda v: math.log10(max(v, 1e-9))) if is_log else (lambda v: v)
        found = [self.of(v) for v in values]
        least = min(found) if is_log else min([*found, 0]) if low is None else low
        most = max(found)
        self.is_log, step = is_log, 1 if is_log else nice_step((most - least) or 1)
        self.low = least if exact else math.floor(least / step) * step
        self.high = most if exact else math.ceil(most / step) * step
        self.high += step if self.high == self.low else 0
        self.step = step if not is_log else max(1, (self.high - self.low) // 5)

    def at(self, value):
        return (self.of(value) - self.low) / (self.high - self.low)

    def ticks(self):
        """[(place, text)]"""
        first = math.ceil(self.low / self.step - 1e-9) * self.step
        for i in range(int((self.high - first) / self.step + 1e-9) + 1):
            value = first + i * self.step
            yield ((value - self.low) / (self.high - self.low),
                   power_of_ten(round(value)) if self.is_log else f"{round(value, 9):g}")


class Panel:
    """curves: [(colour, [(x, y)])]."""

    def __init__(self, place, title, curves, across, up, name, dots=False):
        self.x, self.y = place
        self.title, self.curves, self.across, self.up, self.name = title, curves, across, up, name
        self.dots = dots

    def place(self, x, y):
        return self.x + self.across.at(x) * WIDTH, self.y + (1 - self.up.at(y)) * HEIGHT

    def axes(self):
        yield (f'<rect x="{self.x}" y="{self.y}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
               'stroke="#999"/>')
        yield f'<text x="{self.x}" y="{self.y - 8}" font-weight="bold">{html.escape(self.title)}</text>'
        for at, text in self.across.ticks():
            x = self.x + at * WIDTH
            yield f'<line x1="{x:.1f}" y1="{self.y}" x2="{x:.1f}" y2="{self.y + HEIGHT}" stroke="#ddd"/>'
            yield f'<text x="{x:.1f}" y="{self.y + HEIGHT + 15}" text-anchor="middle">{text}</text>'
        yield (f'<text x="{self.x + WIDTH / 2:.0f}" y="{self.y + HEIGHT + 29}" '
               f'text-anchor="middle" fill="#555">{html.escape(self.name)}</text>')
        for at, text in self.up.ticks():
            y = self.y + (1 - at) * HEIGHT
            yield f'<line x1="{self.x}" y1="{y:.1f}" x2="{self.x + WIDTH}" y2="{y:.1f}" stroke="#eee"/>'
            yield f'<text x="{self.x - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'

    def lines(self):
        for colour, points in self.curves:
            places = ["{:.1f},{:.1f}".format(*self.place(x, y)) for x, y in points]
            yield f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            for place in places if self.dots else []:
                x, y = place.split(",")
                yield f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>'


def place_of(i):
    """Where the i-th panel stands."""
    return LEFT + i % 2 * (WIDTH + GAP_X), TOP + i // 2 * (HEIGHT + GAP_Y)


def svg(panels, legend):
    """legend: [(colour, text)]."""
    body = [line for panel in panels for line in (*panel.axes(), *panel.lines())]
    bottom = TOP + (len(panels) + 1) // 2 * (HEIGHT + GAP_Y) - 16
    for i, (colour, text) in enumerate(legend):
        x, y = LEFT + i % 2 * (WIDTH + GAP_X), bottom + i // 2 * 18  # below the panels
        body.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}" stroke-width="2" '
                    f'stroke="{colour}"/>')
        body.append(f'<text x="{x + 28}" y="{y}">{html.escape(text)}</text>')
    width = LEFT + 2 * WIDTH + GAP_X + 40
    height = bottom + (len(legend) + 1) // 2 * 18 + 4
    return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
            f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n")
