"""Ending a call from outside: its deadline, a client that went away, a server that stops."""

import asyncio
from typing import Any

from raftkv.rpc.framing import parse_timeout
from raftkv.status import Code, StatusError

GRAIN_SECONDS = 0.02
"""How late a deadline may strike. The client keeps its own; ours only ends work that nobody waits for."""
NEAR_SECONDS = 60.0


class Disconnected(Exception):
    """The client is gone; nobody reads an answer."""


class Ending:
    """Cancels what one call waits for, once, and keeps the reason apart from cancellations that others ask for.

    `disarm` must follow, or a deadline could strike what comes next.
    """

    __slots__ = ("_due", "_group", "_reason", "_timer", "_waits_for")

    def __init__(self, waits_for: "asyncio.Future[Any] | None" = None) -> None:
        self._waits_for = waits_for
        self._reason: Exception | None = None
        self._due: dict[Ending, None] | None = None
        self._group: dict[Ending, None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, reason: Exception) -> None:
        """End the call with this error; the first reason counts."""
        if self._reason is None and self._waits_for is not None:
            self._reason = reason
            self._waits_for.cancel()

    def expire(self) -> None:
        """End the call because its deadline has passed."""
        self(deadline_exceeded())

    def disarm(self) -> None:
        """Reasons that come later are too late. Safe to call twice."""
        self._waits_for = None
        if self._due is not None:
            self._due.pop(self, None)
        if self._group is not None:
            self._group.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def strike_with(self, due: "dict[Ending, None]") -> None:
        """Join the calls that end at the same moment."""
        self._due = due
        due[self] = None

    def join(self, group: "dict[Ending, None]") -> None:
        """Be among these calls, which somebody may end, until `disarm`."""
        self._group = group
        group[self] = None

    def strike_at(self, deadline: float) -> None:
        """End the call at a loop time, with a timer of its own."""
        self._timer = asyncio.get_running_loop().call_at(deadline, self.expire)


class Interrupt(Ending):
    """Cancels the task of a call. Made, and asked, inside that task."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(asyncio.current_task())

    def claim(self) -> Exception | None:
        """Take the cancellation that just arrived for this one; None when someone else asked for it too."""
        task = asyncio.current_task()
        if self._reason is None or self._waits_for is None or task is None or task.uncancel() > 0:
            return None
        return self._reason


class Deadlines:
    """The deadlines of many calls, on few timers.

    Most calls have one and end long before it. A timer each would cost more than the rest of the call's machinery, so
    those that are near are rounded up to a multiple of `GRAIN_SECONDS`, and each such moment has one timer.
    """

    def __init__(self) -> None:
        self._due: dict[int, dict[Ending, None]] = {}

    def add(self, deadline: float, ending: Ending) -> None:
        """End a call at a loop time (seconds) unless it is disarmed before."""
        slot = int(deadline / GRAIN_SECONDS) + 1
        due = self._due.get(slot)
        if due is None:
            loop = asyncio.get_running_loop()
            if deadline - loop.time() > NEAR_SECONDS:
                # A moment stays until it has come: far ones, of a caller's choice, would pile up.
                ending.strike_at(deadline)
                return
            due = self._due[slot] = {}
            loop.call_at(slot * GRAIN_SECONDS, self._expire, slot)
        ending.strike_with(due)

    def _expire(self, slot: int) -> None:
        for ending in tuple(self._due.pop(slot)):
            ending.expire()


def deadline_of(timeout: bytes) -> float:
    """Loop time at which a call with this grpc-timeout ends.

    Raises:
        StatusError: it is over already, or malformed.
    """
    seconds = parse_timeout(timeout)
    if not seconds:
        raise deadline_exceeded()
    return asyncio.get_running_loop().time() + seconds


def deadline_exceeded() -> StatusError:
    """What a call ends with when its time is over."""
    return StatusError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
