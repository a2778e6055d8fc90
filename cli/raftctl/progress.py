"""What is shown on stderr of long work, where somebody may be looking."""

import sys
import time
from collections.abc import Iterator, Sequence

from cli.raftctl import golang

_BAR = 24
_PAUSE_SECONDS = 0.1


def each(doing: str, endpoints: Sequence[str]) -> Iterator[str]:
    """Go through endpoints at which something takes long; say at which it is when stderr is a terminal."""
    terminal = sys.stderr.isatty()
    for number, endpoint in enumerate(endpoints, 1):
        if terminal:
            print(f"{doing} {endpoint} ({number} of {len(endpoints)}) …", file=sys.stderr, flush=True)
        yield endpoint


class Progress:
    """Hears how many bytes are done, and of how many; shows it when stderr is a terminal.

    >>> Progress("checking").line(500_000, 2_000_000)
    'checking [======                  ]  25 % 500 kB of 2.0 MB'
    """

    def __init__(self, what: str) -> None:
        self._what = what
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
        bar = "=" * int(share * _BAR)
        size = f"{golang.humanize(done)} of {golang.humanize(whole)}"
        return f"{self._what} [{bar:<{_BAR}}] {int(share * 100):3} % {size}"

    def end(self) -> None:
        """Leave the line; call it however the work ended."""
        if self._shown:
            print(file=sys.stderr)
            self._shown = False
