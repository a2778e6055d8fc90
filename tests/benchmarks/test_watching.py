"""The watch benchmark measures both engines, and notices whatever a watcher should not have received."""

import json
from pathlib import Path

import pytest

from benchmarks import engines, measure, report
from benchmarks.__main__ import main
from benchmarks.generator import Wrong
from benchmarks.http2 import DATA, Frame
from benchmarks.load import Load
from benchmarks.measure import Cell
from benchmarks.watchers import MARK, Marks, Messages, Watching, judge
from benchmarks.watching import Shape
from benchmarks.wire import frame
from raftkv.pb import rpc_pb2 as pb

needs_programs = pytest.mark.skipif(engines.missing() is not None, reason=f"not installed: {engines.missing()}")

SMALL = (
    Shape(title="key", load=Load(2, 3), watchers=2, keys=1, window=3),
    Shape(title="prefixes", load=Load(2, 3), watchers=1, keys=6, prefix=True, window=4),
    Shape(title="rate", load=Load(2, 2), watchers=4, keys=4, rate=500.0),
)


@needs_programs
def test_events_and_latency_of_both_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHAPES", SMALL)
    figures = tmp_path / "figures.json"
    tiny = ["--quick", "--let-sleep", "--members", "1", "--requests", "12", "--rounds", "2", "--work", "watch"]
    assert main([*tiny, "--dir", str(tmp_path), "--json", str(figures)]) == 0
    cells = json.loads(figures.read_text())["cells"]
    assert [cell["load"] for cell in cells] == ["2x3", "2x3", "2x2"]
    for cell in cells:
        assert cell["failure"] is None
        assert cell["requests"] == dict.fromkeys(("etcd", "raftkv"), 12)
        for kind in ("etcd", "raftkv"):
            assert len(cell["figures"][kind]) == 2
            assert all(0 < p50 <= p99 for p50, p99 in cell["latency_ms"][kind])


PLAN = Watching(
    endpoint="", connections=1, streams=1, watchers=2, keys=2, prefix=False, puts=4, rate=0, window=1
)  # fmt: skip
RIGHT = [(0, 0, 12), (1, 1, 11), (0, 2, 13), (1, 3, 14)]
"""Watcher, put, revision: the puts that were in flight together came in another order than they were sent."""


class Heard:
    """What a listener received."""

    def __init__(self, events: list[tuple[int, int, int]]) -> None:
        self._events = events

    def deliveries(self):
        for place, (watcher, number, revision) in enumerate(self._events):
            answer = pb.WatchResponse()
            kv = answer.events.add().kv
            kv.value, kv.mod_revision = MARK + b"%d:%d:..." % (number, number * 10), revision
            yield watcher, 100 + place, answer


def test_what_all_watchers_should_receive_is_accepted() -> None:
    begin, end, latencies = judge(PLAN, [Heard(RIGHT)])
    assert (begin, end) == (0, 103)
    assert list(latencies) == [73, 82, 91, 100]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (RIGHT[:3], "3 of 4 puts"),
        ([*RIGHT, RIGHT[3]], "watcher 1 received 3 events, not the 2"),
        ([RIGHT[2], RIGHT[1], RIGHT[0], RIGHT[3]], "watcher 0 received 2 events, not the 2 of its key in order"),
        ([*RIGHT, (0, 1, 11)], "watcher 0 received 3 events"),
        ([*RIGHT, (0, 0, 15)], "put 0 was told with two revisions"),
        ([(0, 1, 11), *RIGHT[:1], *RIGHT[2:]], "watcher 0 received 3 events"),
    ],
    ids=["lost", "doubled", "out of order", "of another key", "told twice", "told to another"],
)
def test_anything_else_is_refused(events: list[tuple[int, int, int]], words: str) -> None:
    with pytest.raises(Wrong, match=words):
        judge(PLAN, [Heard(events)])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 13, 1000])
def test_marks_are_counted_in_whatever_pieces_they_come(size: int) -> None:
    data = (MARK + b"...") * 5 + b"#even" + MARK * 3 + b"#"
    marks = Marks()
    assert sum(marks.count(data[begin : begin + size]) for begin in range(0, len(data), size)) == 8


@pytest.mark.parametrize("size", [1, 4, 5, 6, 1000])
def test_messages_are_put_together_from_frames(size: int) -> None:
    data, messages = frame(b"one") + frame(b"") + frame(b"three"), Messages()
    frames = [Frame(DATA, 0, 1, data[begin : begin + size]) for begin in range(0, len(data), size)]
    assert [message for one in frames for message in messages.take(one)] == [b"one", b"", b"three"]


def test_the_table_tells_latency_and_a_busy_generator() -> None:
    cell = Cell(members=1, work="watch", title="Watch", load="10×10", unit="/s")
    cell.figures = {"etcd": [1000.0], "raftkv": [2000.0]}
    cell.latency_ms = {"etcd": [(1.0, 20.0), (3.0, 40.0)], "raftkv": [(2.0, 4.0)]}
    cell.saturated = {"etcd": 0, "raftkv": 2}
    assert (
        "| 1,000/s, p50 2.00 ms, p99 30.0 ms | 2,000/s, p50 2.00 ms, p99 4.00 ms | "
        "**2.00** (raftkv: the generator was busy or late in 2) |"
    ) in report.markdown([cell], {}, "")
