"""What is shown on stderr of long work, where somebody may be looking."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from cli.raftctl import golang

_BAR = 24
_PAUSE_SECONDS = 0.1
_TICK_SECONDS = 1.0


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show what a member is waited for, and for how long already; what was shown is erased at the end."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    ticking = threading.Thread(target=_tick, args=(what, ended), daemon=True)
    ticking.start()
    try:
        yield
    finally:
        ended.set()
        ticking.join()
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _tick(what: str, ended: threading.Event) -> None:
    started = time.monotonic()
    while True:
        seconds = int(time.monotonic() - started)
        print(f"\r{what}, {seconds} s\x1b[K", end="", file=sys.stderr, flush=True)
        if ended.wait(_TICK_SECONDS):
            return


def at(doing: str, endpoint: str, endpoints: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Show at which of the endpoints something is that takes long, and how many are done."""
    done = endpoints.index(endpoint)
    return waiting(f"{doing} {_bar(done / len(endpoints))} {done + 1} of {len(endpoints)}: {endpoint}")


def _bar(share: float) -> str:
    return f"[{'=' * int(share * _BAR):<{_BAR}}]"


class Progress:
    """Hears how many bytes are done, and of how many; shows it when stderr is a terminal. Other things than bytes
    are written by `number`.

    >>> Progress("checking").line(500_000, 2_000_000)
    'checking [======                  ]  25 % 500 kB of 2.0 MB'
    """

    def __init__(self, what: str, number: Callable[[int], str] = golang.humanize) -> None:
        self._what = what
        self._number = number
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._shown = False

    def __call__(self, done: int, whole: int) -> None:
        now = time.monotonic()
        if self._terminal and (now >= self._next or done == whole):
            self._next = now + _PAUSE_SECONDS
            self._shown = True
            # What the line before had more is erased.
            print(f"\r{self.line(done, whole)}\x1b[K", end="", file=sys.stderr, flush=True)

    def line(self, done: int, whole: int) -> str:
        """What is shown."""
        share = min(done / whole, 1.0) if whole else 1.0
        size = f"{self._number(done)} of {self._number(whole)}"
        return f"{self._what} {_bar(share)} {int(share * 100):3} % {size}"

    def end(self) -> None:
        """Leave the line; call it however the work ended."""
        if self._shown:
            print(file=sys.stderr)
            self._shown = False
