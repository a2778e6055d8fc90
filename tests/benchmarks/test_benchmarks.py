"""The benchmark measures both engines, and what is not a right answer does not count as one."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from benchmarks import awake, calm, engines, report
from benchmarks.__main__ import main
from benchmarks.load import CheckFailed
from benchmarks.measure import Cell
from benchmarks.renewing import RENEWALS, RenewJob, grant_many
from benchmarks.restart import restart, store_each
from benchmarks.wire import Connection
from benchmarks.work import PUT, WORKS, store_many

needs_programs = pytest.mark.skipif(engines.missing() is not None, reason=f"not installed: {engines.missing()}")

REQUESTS = 40
TINY = ["--quick", "--let-sleep", "--members", "1", "--load", "1x1,10x10", "--requests", str(REQUESTS), "--rounds", "2"]


def bench(directory: Path, works: str) -> tuple[int, list[dict]]:
    """Run a tiny benchmark; returns its exit code and its cells."""
    figures = directory / "figures.json"
    code = main([*TINY, "--work", works, "--dir", str(directory), "--json", str(figures)])
    return code, json.loads(figures.read_text())["cells"]


@needs_programs
def test_both_engines_are_measured_in_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, cells = bench(tmp_path, "put,txn,serializable")
    assert code == 0
    assert [(cell["work"], cell["load"]) for cell in cells] == [
        (name, load) for name in ("put", "txn", "serializable") for load in ("1x1", "10x10")
    ]
    for cell in cells:
        assert cell["failure"] is None
        assert all(
            len(cell["figures"][kind]) == 2 and min(cell["figures"][kind]) > 0 and len(cell["cpu_us"][kind]) == 2
            for kind in ("etcd", "raftkv")
        )
        assert cell["requests"] == dict.fromkeys(("etcd", "raftkv"), 40 if cell["load"] == "1x1" else 100)
        for found in cell["latency_ms"].values():
            assert len(found) == (2 if cell["load"] == "1x1" else 0), "one client in a row is timed"
            assert all(0 < p50 <= p99 for p50, p99 in found)
    assert "| 1 | Put 256 B | 10×10 |" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["figures.json"], "the temporary directory is gone"


@needs_programs
def test_what_is_no_right_answer_fails_the_cell_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = "/etcdserverpb.KV/Nowhere"
    # A write to an unknown method is an HTTP 200 that makes no revision. Answers to puts, taken for reads, get longer
    # than the first one was when the revision passes 127.
    monkeypatch.setitem(WORKS, "put", dataclasses.replace(WORKS["put"], path=nowhere))
    monkeypatch.setitem(WORKS, "range", dataclasses.replace(WORKS["put"], path=PUT, writes=False, title="mixed up"))
    code, cells = bench(tmp_path, "put,range")
    assert code == 1
    writes = [cell for cell in cells if cell["work"] == "put"]
    assert [cell["failure"] for cell in writes] == [
        "etcd: 1 writes made 0 revisions",
        "etcd: 100 writes made 0 revisions",
    ]
    reads = next(cell for cell in cells if (cell["work"], cell["load"]) == ("range", "10x10"))
    assert "reads received" in reads["failure"]
    assert all(not any(cell["figures"].values()) and cell["ratio"] is None for cell in writes)
    assert "FAILED: etcd: 100 writes made 0 revisions" in capsys.readouterr().out


@needs_programs
def test_the_many_keys_are_really_stored(tmp_path: Path) -> None:
    with engines.running(engines.RAFTKV, 1, tmp_path / "raftkv") as engine:
        connection = Connection(engine.leader().endpoint)
        store_many(connection, 250)
        assert connection.revision() == 4
        connection.close()


@needs_programs
def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    with engines.running(engines.RAFTKV, 1, tmp_path / "raftkv") as engine:
        store_each(engine, 500)
        found = restart(engine, 2)
        assert len(found.seconds) == len(found.resident_bytes) == 2
        assert min(found.resident_bytes) > 20 << 20
        with pytest.raises(CheckFailed, match="400 keys were stored, 500 are there"):
            store_each(engine, 400)


@needs_programs
def test_each_renewal_of_a_stream_is_answered_and_a_lease_that_is_gone_is_noticed(tmp_path: Path) -> None:
    with engines.running(engines.RAFTKV, 1, tmp_path / "raftkv") as engine:
        leader = engine.leader()
        grant_many(leader.endpoint, 30)
        job = RenewJob(30)
        assert job.size(leader.endpoint, 1.0, 700) == RENEWALS
        sample = job.run(leader.endpoint, 3 * RENEWALS)
        assert (sample.operations, sample.rate > 0) == (3 * RENEWALS, True)
        with pytest.raises(CheckFailed, match="is gone"):
            RenewJob(31).run(leader.endpoint, RENEWALS)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no SCHED_IDLE")
def test_every_processor_is_kept_awake_by_who_gives_way_and_leaves() -> None:
    with awake.processors() as keepers:
        assert {os.sched_getscheduler(keeper) for keeper in keepers} == {os.SCHED_IDLE}
        assert sorted(os.sched_getaffinity(keeper).pop() for keeper in keepers) == sorted(os.sched_getaffinity(0))
        deadline = time.monotonic() + 30
        while not awake.cpu_seconds() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert awake.cpu_seconds() > 0
    assert not any(Path(f"/proc/{keeper}").exists() for keeper in keepers)
    assert awake.cpu_seconds() == 0


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([]) == 2
    assert "h2load (Debian: nghttp2-client)" in capsys.readouterr().err


def test_the_table_stands_between_the_markers_of_the_readme(tmp_path: Path) -> None:
    cell = Cell(members=3, work="put", title="Put", load="1×1", unit="/s")
    cell.figures = {"etcd": [100.0, 300.0, 200.0], "raftkv": [50.0, 150.0, 100.0]}
    cell.cpu = {"etcd": [10.0], "raftkv": [20.0]}
    text = report.markdown([cell], {"disk": "slow"}, "make bench")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_readme(text, readme)
    assert readme.read_text() == f"before\n{report.BEGIN}\n{text}\n{report.END}\nafter\n"
    assert "| 3 | Put | 1×1 | 200/s (100–300) | 100/s (50.0–150) | **0.50** | 10.0 | 20.0 |" in text
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="figures: begin"):
        report.write_readme(text, readme)


def test_a_disturbed_run_is_repeated_while_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    shares = iter([0.5, 0.05, 0.3, 0.02, 0.3])

    class Others:
        def share_of_others(self, servers_seconds: float) -> float:
            return next(shares)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(calm, "Processors", Others)
    monkeypatch.setattr(calm.time, "monotonic", lambda: now)
    monkeypatch.setattr(calm.time, "sleep", sleep)
    patience = calm.Patience(5.0, lambda: 0.0)
    patience.wait()
    assert now == 2 * calm.WINDOW_SECONDS, "it waited while others were busy"
    assert patience.judge() == (0.3, False)
    patience.wait()
    now = 5.0
    assert patience.judge() == (0.3, True), "nobody waits for ever"
