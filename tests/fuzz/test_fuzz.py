"""A short run of every target, the inputs that are kept, and the search itself."""

import contextlib
import time
from pathlib import Path

import pytest

from tests.fuzz import search as search_module
from tests.fuzz import target as target_module
from tests.fuzz.search import failure, search
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

INPUTS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_kept_is_harmless(name: str) -> None:
    target = TARGETS[name]
    for data in (*target.seeds, *target.kept()):
        target.check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name: str) -> None:
    outcome = search(TARGETS[name], INPUTS, seed=1)
    assert outcome.inputs == INPUTS
    assert not outcome.failures, outcome.failures[0][1]


def planted(data: bytes) -> None:
    """Fails where the second byte is high."""
    if data[1:2] > b"\x80":
        raise ZeroDivisionError


def test_a_failure_is_found_and_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "CORPUS", tmp_path)
    target = Target("planted", planted, (b"abcdef",))
    outcome = search(target, 2000, seed=1)
    [(data, problem)] = outcome.failures
    assert data[1] > 0x80
    assert "ZeroDivisionError" in problem
    target.keep(data, "planted")
    assert target.kept() == [data]
    assert search(target, 2000, seed=1).inputs == 2000


def test_memory_that_grows_is_found() -> None:
    kept: list[bytes] = []
    outcome = search(Target("planted", lambda data: kept.append(bytes(200_000 + len(data))), (b"a",)), 801, seed=1)
    assert outcome.leaks
    assert not search(Target("planted", lambda data: None, (b"a",)), 801, seed=1).leaks


def test_an_input_without_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(data: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(search_module, "HANG_SECONDS", 0.05)
    problem = failure(Target("planted", endless, (b"",)), b"")
    assert problem is not None
    assert "Hang" in problem


def test_who_swallows_the_first_alarm_hears_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an event loop does in a callback, which then waits for what that callback should have done."""

    def deaf(data: bytes) -> None:
        for _ in range(2):
            with contextlib.suppress(search_module.Hang):
                time.sleep(20)
        time.sleep(20)

    monkeypatch.setattr(search_module, "HANG_SECONDS", 0.05)
    problem = failure(Target("planted", deaf, (b"",)), b"")
    assert problem is not None
    assert "Hang" in problem


def test_a_machine_that_stands_still_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bytes] = []

    def late(data: bytes) -> None:
        tried.append(data)
        if len(tried) == 1:
            raise search_module.Hang("20 s and no end")

    assert failure(Target("planted", late, (b"",)), b"") is None
    assert len(tried) == 2
