"""What holds for the whole suite."""

import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import secrets

GATE, ROOM = Path(__file__), Path(__file__).with_name("__init__.py")
"""Files that are there anyway; workers lock them."""


def pytest_configure() -> None:
    """Hear what a shell that runs the suite in the background, or nohup, is deaf to: commands inherit that.

    And let Python keep what it compiles: the suite starts a thousand members and commands, a quarter of whose
    processor time would go into compiling the same modules again where the environment forbids to keep them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


@contextlib.contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """Hold a lock between processes; it ends with this one at the latest."""
    with path.open() as file:
        fcntl.flock(file, kind)
        try:
            yield
        finally:
            # Not left to closing: a child forked meanwhile has the file, too.
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def turn(gate: Path, room: Path, *, alone: bool) -> Iterator[None]:
    """Be in the room with others, or alone. Whoever waits for it keeps the gate: nobody overtakes."""
    with contextlib.ExitStack() as stack:
        with locked(gate, fcntl.LOCK_EX):
            stack.enter_context(locked(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is marked `alone` wait until the other workers' tests have ended, and theirs until it has."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(GATE, ROOM, alone=item.get_closest_marker("alone") is not None):
        return (yield)


listener = secrets.Listener()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Search what is logged within this process, even after a test that took all handlers away."""
    if listener not in logging.getLogger().handlers:
        logging.getLogger().addHandler(listener)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test during which a secret was told, once everything that it started has ended."""
    result = yield
    secrets.complain()
    return result
