"""Faults that go on beside a scenario: another kind, so that two kinds meet."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator

from raftkv.client import ClientError
from tests.partition.disks import NotPermitted, syncs
from tests.partition.ground import Ground, meanwhile
from tests.partition.starving import starve

LOST = 0.03
KILL_SECONDS = 2.0


@contextlib.contextmanager
def beside(kind: str, ground: Ground) -> Iterator[None]:
    """Let a fault go on until the end of the block; no kind, no fault."""
    if not kind:
        yield
        return
    ground.note(f"beside: {kind}")
    if kind == "lost packets":
        ground.network.lose(LOST)
        try:
            yield
        finally:
            ground.network.lose(0.0)
        return
    problems: list[BaseException] = []
    # Always the same one, so that the others are a majority whatever else happens to one of them.
    victim = random.Random(kind).choice(ground.numbers)

    def work(done: threading.Event) -> None:
        try:
            _KINDS[kind](ground, victim, done)
        except (AssertionError, ClientError, OSError, NotPermitted) as error:
            problems.append(error)

    with meanwhile(work):
        yield
    if kind == "kills":
        # A member dies with the thread that started it (PR_SET_PDEATHSIG).
        ground.kill_member(victim)
        ground.start_member(victim)
    if problems:
        raise problems[0]


def _starve(ground: Ground, victim: int, done: threading.Event) -> None:
    """A member's processor hardly has time for it."""
    ground.circumstances.append(starve(ground.members[victim], done))


def _slow_disk(ground: Ground, victim: int, done: threading.Event) -> None:
    with syncs(ground.members[victim], "delay_exit=200000"):
        done.wait()


def _kill(ground: Ground, victim: int, done: threading.Event) -> None:
    while not done.wait(KILL_SECONDS):
        ground.kill_member(victim)
        done.wait(KILL_SECONDS)
        ground.note(f"start {victim}")
        ground.members[victim].start()


_KINDS: dict[str, Callable[[Ground, int, threading.Event], None]] = {
    "a starved member": _starve,
    "a slow disk": _slow_disk,
    "kills": _kill,
}
