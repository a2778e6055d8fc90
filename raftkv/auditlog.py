"""A file of JSON lines that must not lose one silently: written by a thread, rotated by size.

A line is kept until it has been written. While the file cannot be written (a full disk), or more waits than may,
`admits` is False and whoever would begin something that has to be recorded refuses it; what was under way is kept, and
written when there is space. A gap is a line of its own: how many were refused.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial

from raftkv.logs import timestamp

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 16 << 20
"""More than this waits only for a disk that is stuck."""
RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 5.0
_MODE = 0o600

Run = Callable[[Callable[[], None], Callable[[BaseException | None], None]], None]
"""Runs a blocking function in a thread, then calls the second in the event loop with what the first raised."""


class RotatingFile:
    """Appends whole pieces. FILE becomes FILE.1 when it would grow beyond a size, FILE.1 becomes FILE.2, and so on.

    A piece that cannot be written whole leaves nothing behind. A file that something else has moved away is made anew.
    """

    def __init__(self, path: str, *, max_bytes: int, backups: int) -> None:
        """Open or make it, readable by its owner alone.

        Raises:
            OSError
        """
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._file = -1
        self._size = 0
        self._open()

    def append(self, data: bytes) -> None:
        """Append a piece.

        Raises:
            OSError: nothing was appended.
        """
        if self._moved():
            self._open()
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, memoryview(data)[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close it."""
        os.close(self._file)

    def _moved(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def _open(self) -> None:
        opened = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        if self._file >= 0:
            os.close(self._file)
        self._file = opened
        self._size = os.fstat(opened).st_size

    def _rotate(self) -> None:
        for number in range(self._backups - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        if self._backups:
            os.replace(self._path, f"{self._path}.1")
        else:
            os.unlink(self._path)
        self._open()


class AuditLog:
    """The lines that wait for the file, and whether more may come."""

    def __init__(
        self, file: RotatingFile, run: Run, *, max_waiting_bytes: int = MAX_WAITING_BYTES, clock: Callable[[], float]
    ) -> None:
        """`run` is a thread's; `clock` gives seconds since the epoch."""
        self._file = file
        self._run = run
        self._clock = clock
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._writing = False
        self._failing = False
        self._refused = 0
        self._retry: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def admits(self) -> bool:
        """Whether something that has to be recorded may begin; if not, it counts as refused."""
        if self._failing or self._waiting_bytes > self._max_waiting_bytes:
            self._refused += 1
            return False
        return True

    def add(self, record: Mapping[str, object]) -> None:
        """Record something. Never waits and never fails."""
        if self._refused and not self._failing:
            refused, self._refused = self._refused, 0
            self._append({"event": "gap", "refused": refused})
        self._append(record)
        if not self._writing and self._retry is None:
            self._write()

    def _append(self, record: Mapping[str, object]) -> None:
        line = json.dumps({"ts": timestamp(self._clock()), **record}, ensure_ascii=False, separators=(",", ":"))
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        self._waiting.append(data)
        self._waiting_bytes += len(data)

    def _write(self) -> None:
        self._retry = None
        self._writing = True
        self._idle.clear()
        lines, self._waiting = self._waiting, []
        self._run(partial(self._file.append, b"".join(lines)), partial(self._written, lines))

    def _written(self, lines: list[bytes], error: BaseException | None) -> None:
        self._writing = False
        if error is not None:
            self._waiting = lines + self._waiting
            if not self._failing:
                self._failing = True
                logger.error("the audit log cannot be written, so calls are refused until it can: %s", error)
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._write)
            return
        self._waiting_bytes -= sum(map(len, lines))
        if self._failing:
            self._failing = False
            logger.warning("the audit log is written again; %d calls were refused meanwhile", self._refused)
        if self._waiting:
            self._write()
        else:
            self._idle.set()

    async def close(self) -> None:
        """Write what waits. What cannot be written goes to the log of the member, which must not lose it either."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._idle.wait()
        if self._retry is not None:
            self._retry.cancel()
        for line in self._waiting:
            logger.error("not in the audit log: %s", line.decode().rstrip())
        self._waiting = []
