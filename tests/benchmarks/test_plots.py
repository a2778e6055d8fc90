"""Curves are drawn where their figures are."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import plots
from benchmarks.measure import Cell

SVG = "{http://www.w3.org/2000/svg}"


def cell(load: str, etcd: float, raftkv: float, **more: object) -> Cell:
    found = Cell(members=3, work="put", title="Put", load=load, unit="/s", **more)  # type: ignore[arg-type]
    found.figures = {"etcd": [etcd], "raftkv": [raftkv * 0.9, raftkv, raftkv * 1.2]}
    found.latency_ms = {"etcd": [(1.0, 1000 / etcd)], "raftkv": [(1.0, 1000 / raftkv)]}
    return found


def test_a_curve_has_a_dot_for_each_load_and_what_is_faster_lies_higher(tmp_path: Path) -> None:
    cells = [cell("1×1", 100, 50), cell("10×1", 1000, 2000), cell("100×10", 4000, 9000)]
    [path] = plots.write(cells, tmp_path / "plots")
    assert path.name == "put-3.svg"
    root = ElementTree.parse(path).getroot()
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", "")), dot.get("fill")) for dot in root.iter(f"{SVG}circle")]
    first, second = plots.COLOURS
    throughput = [[(x, y) for x, y, fill in dots if fill == colour and x < plots.WIDTH] for colour in (first, second)]
    assert [len(curve) for curve in throughput] == [3, 3]
    for etcd, raftkv, higher in zip(*throughput, (False, True, True), strict=True):
        assert etcd[0] == raftkv[0]
        assert (raftkv[1] < etcd[1]) is higher, "heights are counted from above"
    one, ten, thousand = (x for x, _ in throughput[0])
    assert (thousand - ten) / (ten - one) == pytest.approx(2, abs=0.01), "1,000 is twice as far from 10 as 10 from 1"
    assert len([x for x, _, _ in dots if x > plots.WIDTH]) == 6, "and as many for p99"
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"Put, 3 members", "per second", "p99 in ms", "etcd", "raftkv", "1,000", "512"} <= set(texts)


def test_what_failed_or_was_measured_once_is_not_drawn(tmp_path: Path) -> None:
    assert plots.write([cell("1×1", 100, 50), cell("10×1", 1, 1, failure="etcd: gone")], tmp_path) == []
