"""Tests that two workers run at a time take turns where one of them is to be alone."""

import fcntl
import threading
import time
from pathlib import Path

from tests.conftest import turn

BOUND_SECONDS = 90.0


def test_whoever_is_to_be_alone_waits_for_the_others_and_is_not_overtaken(tmp_path: Path) -> None:
    gate, room = tmp_path / "gate", tmp_path / "room"
    gate.touch()
    room.touch()
    inside: list[str] = []
    seen: list[list[str]] = []

    def enter(name: str, alone: bool) -> None:
        with turn(gate, room, alone=alone):
            inside.append(name)
            seen.append(inside.copy())
            inside.remove(name)

    alone = threading.Thread(target=enter, args=("alone", True))
    late = threading.Thread(target=enter, args=("late", False))
    with turn(gate, room, alone=False):
        inside.append("early")
        enter("beside", False)
        alone.start()
        wait_shut(gate)
        late.start()
        assert seen == [["early", "beside"]]
        inside.remove("early")
    for thread in (alone, late):
        thread.join(BOUND_SECONDS)
    assert seen == [["early", "beside"], ["alone"], ["late"]]


def wait_shut(gate: Path) -> None:
    """Wait until somebody keeps the gate."""
    deadline = time.monotonic() + BOUND_SECONDS
    with gate.open() as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(0.01)
    raise AssertionError("nobody waits")
