"""Requests that are not all alike: both engines are measured, and an answer that is wrong or old is noticed."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from benchmarks import engines, load, measure, mixing, plots
from benchmarks.__main__ import main
from benchmarks.generator import Wrong
from benchmarks.load import CheckFailed, Load
from benchmarks.mixer import Begun, Driver, Mix, Outcome, key_of
from benchmarks.mixing import LARGES, BesideJob, Large, MixJob, store_mixed
from benchmarks.watching import CROWDS
from benchmarks.wire import Connection, frame
from benchmarks.work import store_many
from raftkv.pb import rpc_pb2 as pb

needs_programs = pytest.mark.skipif(engines.missing() is not None, reason=f"not installed: {engines.missing()}")
TINY = ["--quick", "--let-sleep", "--members", "1", "--requests", "60", "--rounds", "1"]


@needs_programs
def test_all_other_works_measure_both_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "KEYS", (20, 50))
    monkeypatch.setattr(measure, "VALUE_BYTES", (10, 1_000_000))
    monkeypatch.setattr(measure, "CROWDS", CROWDS[:2])
    monkeypatch.setattr(engines, "SETTLE_SECONDS", 0.4)
    monkeypatch.setattr(measure, "POINTS", (Load(1, 1), Load(2, 5)))
    monkeypatch.setattr(plots, "CURVE", (Load(1, 1), Load(2, 5)))
    monkeypatch.setattr(measure, "OVERLOAD", Load(4, 5))
    monkeypatch.setattr(load, "PEAK", Load(1, 5))
    monkeypatch.setattr(load, "OVERLOAD", Load(4, 5))
    figures = tmp_path / "figures.json"
    works = "mixed,overload,values,keyspace,watchers"
    pictures = tmp_path / "plots"
    asked = [*TINY, "--work", works, "--dir", str(tmp_path), "--json", str(figures), "--plots", str(pictures)]
    assert main(asked) == 0
    drawn = {path.name: path.read_text() for path in pictures.iterdir()}
    assert sorted(drawn) == [
        f"{name}-1.svg" for name in ("keyspace", "mixed", "values-put", "values-range", "watchers")
    ]
    assert ">bytes of a value<" in drawn["values-put-1.svg"]
    assert ">requests in flight<" in drawn["mixed-1.svg"]
    cells = json.loads(figures.read_text())["cells"]
    assert [(cell["work"], cell["load"]) for cell in cells] == [
        ("overload", "4x5"),
        ("mixed", "1x1"),
        ("mixed", "2x5"),
        *[("values-put", "10x1"), ("values-range", "10x1")] * 2,
        *[("keyspace", "2x5")] * 2,
        ("watchers", "1x1"),
        ("watchers", "1x10"),
    ]
    for cell in cells:
        assert all(len(cell["figures"][kind]) == 1 and min(cell["figures"][kind]) > 0 for kind in ("etcd", "raftkv"))
        if cell["work"] == "mixed":
            assert all(0 < p50 <= p99 for found in cell["latency_ms"].values() for p50, p99 in found)


@needs_programs
def test_puts_go_on_beside_each_large_work_which_is_done_at_least_once(tmp_path: Path) -> None:
    with engines.running(engines.RAFTKV, 1, tmp_path / "raftkv") as engine:
        leader = engine.leader()
        store_many(leader.connection, 100)
        store_mixed(leader.connection, 0, 100)
        for large in LARGES:
            job = BesideJob(100, large)
            assert job.size(leader.endpoint, 1.0, 60) == 60
            assert job.run(leader.endpoint, 60).rate > 0
        assert leader.connection.revision() > len(LARGES) * 80

        def refused(_: Connection) -> None:
            raise ValueError("not today")

        with pytest.raises(CheckFailed, match="done 0 times: not today"):
            BesideJob(100, Large("nothing", refused)).run(leader.endpoint, 20)


@needs_programs
def test_puts_that_make_no_revision_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engines.running(engines.RAFTKV, 1, tmp_path / "raftkv") as engine:
        leader = engine.leader()
        store_mixed(leader.connection, 0, 10)
        with pytest.raises(RuntimeError, match="5 keys were stored, 10 are there"):
            store_mixed(leader.connection, 5, 5)
        with pytest.raises(CheckFailed, match="was read as"):
            MixJob(Load(1, 4), 11).run(leader.endpoint, 400)

        def generate(*_: object) -> dict[str, object]:
            return dataclasses.asdict(Outcome(seconds=1, puts=3, p50_ms=1, p99_ms=1, busy=0))

        monkeypatch.setattr(mixing, "generate", generate)
        with pytest.raises(CheckFailed, match="3 puts made 0 revisions"):
            MixJob(Load(1, 4), 10).run(leader.endpoint, 4)


def test_an_answer_that_is_missing_wrong_or_old_is_noticed() -> None:
    driver = Driver(Mix(endpoint="", connections=1, streams=1, keys=3, value_bytes=2, reads=0.5, requests=9))
    now = time.perf_counter_ns()

    def read(number: int, key: bytes, value: bytes, revision: int, floor: int) -> None:
        answer = pb.RangeResponse()
        answer.kvs.add(key=key, value=value, mod_revision=revision)
        driver.end(Begun(number, True, now, floor), frame(answer.SerializeToString()))

    def put(number: int, revision: int) -> None:
        answer = pb.PutResponse()
        answer.header.revision = revision
        driver.end(Begun(number, False, now, 0), frame(answer.SerializeToString()))

    read(1, key_of(1), b"vv", 7, 7)
    put(1, 9)
    put(1, 8)
    assert driver.floor(1) == 9, "what was acknowledged last need not be the newest"
    with pytest.raises(Wrong, match="put at revision 9, then read as of 8"):
        read(1, key_of(1), b"vv", 8, driver.floor(1))
    for key, value in ((key_of(2), b"vv"), (key_of(1), b"v")):
        with pytest.raises(Wrong, match="was read as"):
            read(1, key, value, 9, 0)
    with pytest.raises(Wrong, match="was read as"):
        driver.end(Begun(1, True, now, 0), frame(b""))
    with pytest.raises(Wrong, match="was refused"):
        driver.end(Begun(1, False, now, 0), b"")
