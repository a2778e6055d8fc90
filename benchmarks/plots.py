"""Figures against load, or against what else grows, as SVG: how much per second, and how long the slowest hundredth
waits."""

import html
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Load
from benchmarks.measure import Cell

CURVE = tuple(Load(connections, streams) for connections, streams in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1)))
CURVE += (Load(64, 1), Load(64, 2), Load(64, 4), Load(64, 8), Load(64, 16))
"""1 to 1,024 requests in flight."""
WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 26, 40, 44
COLOURS = ("#c2410c", "#1d4ed8")
"""Of the first and the second engine; told apart by whoever cannot tell red from green."""
DASHES = ("6 4", "none")

Point = tuple[float, float, float, float]
"""Where it lies, its height, the lowest and the highest of its runs."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Places on an axis by the logarithm: the pixels of the lowest and the highest value."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.first + (self.last - self.first) * share

    def powers(self) -> Iterator[float]:
        """Yield the powers of two between both ends."""
        yield from (2.0**power for power in range(-10, 40) if self.low <= 2.0**power <= self.high)

    def tens(self) -> Iterator[float]:
        """Yield the powers of ten between both ends."""
        yield from (10.0**power for power in range(10) if self.low <= 10.0**power <= self.high)

    def steps(self) -> Iterator[float]:
        """Yield 1, 2 and 5 of each power of ten between both ends."""
        values = (digit * 10.0**power for power in range(-4, 10) for digit in (1, 2, 5))
        yield from (value for value in values if self.low <= value <= self.high)


def write(cells: Sequence[Cell], directory: Path) -> list[Path]:
    """Write a file for each work and size of cluster of which there are several loads; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for members, work in dict.fromkeys((cell.members, cell.work) for cell in cells):
        curve = [
            cell
            for cell in cells
            if (cell.members, cell.work) == (members, work) and cell.load and cell.failure is None and cell.unit == "/s"
        ]
        if len(curve) > 1:
            path = directory / f"{work}-{members}.svg"
            path.write_text(picture(curve))
            written.append(path)
    return written


def picture(cells: Sequence[Cell]) -> str:
    """Draw one work of one size of cluster: throughput to the left and, where it was timed, p99 to the right."""
    place = cells[0].place
    title = (
        f"{cells[0].title if place is None else place.title}, {cells[0].members} member{'s' * (cells[0].members > 1)}"
    )
    panels = [_panel("per second", cells, lambda cell, kind: cell.figures[kind], 0)]
    if all(cell.latency_ms[kind] for cell in cells for kind in cell.kinds):
        panels.append(_panel("p99 in ms", cells, lambda cell, kind: [p99 for _, p99 in cell.latency_ms[kind]], WIDTH))
    width = WIDTH * len(panels)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 20}" font-family="sans-serif" '
            'font-size="11">',
            f'<rect width="{width}" height="{HEIGHT + 20}" fill="white"/>',
            f'<text x="{LEFT}" y="16" font-size="13">{html.escape(title)}</text>',
            *(line for panel in panels for line in panel),
            *_legend(cells[0].kinds),
            "</svg>\n",
        ]
    )


def _panel(name: str, cells: Sequence[Cell], runs: Callable[[Cell, str], list[float]], shift: int) -> list[str]:
    curves = {kind: [_point(cell, runs(cell, kind)) for cell in cells] for kind in cells[0].kinds}
    points = [point for curve in curves.values() for point in curve]
    across = Scale(min(x for x, *_ in points), max(x for x, *_ in points), shift + LEFT, shift + WIDTH - RIGHT)
    lowest, highest = min(low for *_, low, _ in points), max(high for *_, high in points)
    up = Scale(lowest / 1.3, highest * 1.3, HEIGHT - BOTTOM, TOP)
    lines = [f'<text x="{shift + LEFT}" y="{TOP - 6}" fill="#555">{name}</text>']
    for value in across.powers() if cells[0].place is None else across.tens():
        lines += _tick(across(value), HEIGHT - BOTTOM, across(value), TOP, f"{value:,.0f}", "middle", 0, 14)
    for value in up.steps():
        lines += _tick(shift + LEFT, up(value), shift + WIDTH - RIGHT, up(value), f"{value:,.10g}", "end", -5, 4)
    lines.append(f'<text x="{shift + WIDTH // 2}" y="{HEIGHT - 12}" fill="#555">{_axis(cells[0])}</text>')
    for place, curve in enumerate(curves.values()):
        lines += _curve([(across(x), up(y), up(low), up(high)) for x, y, low, high in curve], place)
    return lines


def _point(cell: Cell, runs: list[float]) -> Point:
    across = Load.parse(cell.load).in_flight if cell.place is None else cell.place.value
    return across, statistics.median(runs), min(runs), max(runs)


def _axis(cell: Cell) -> str:
    return "requests in flight" if cell.place is None else cell.place.axis


def _tick(x: float, y: float, to_x: float, to_y: float, text: str, anchor: str, dx: int, dy: int) -> list[str]:
    return [
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#ddd"/>',
        f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}" fill="#555">{text}</text>',
    ]


def _curve(points: list[Point], place: int) -> list[str]:
    """A line through the medians, and for each the span of its runs."""
    colour = COLOURS[place]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
    spans = (
        f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-opacity="0.4"/>'
        for x, _, low, high in points
    )
    dots = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y, _, _ in points)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-dasharray="{DASHES[place]}"/>'
    return [line, *spans, *dots]


def _legend(kinds: Sequence[str]) -> Iterator[str]:
    for place, kind in enumerate(kinds):
        x = LEFT + 110 * place
        yield (
            f'<line x1="{x}" y1="{HEIGHT + 6}" x2="{x + 24}" y2="{HEIGHT + 6}" stroke="{COLOURS[place]}" '
            f'stroke-dasharray="{DASHES[place]}"/>'
        )
        yield f'<text x="{x + 30}" y="{HEIGHT + 10}">{html.escape(kind)}</text>'
