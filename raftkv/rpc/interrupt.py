"""Ending a call from outside: its deadline, a client that went away, a server that stops."""

import asyncio

from raftkv.status import Code, StatusError

GRAIN_SECONDS = 0.02
"""How late a deadline may strike. The client keeps its own; ours only ends work that nobody waits for."""
NEAR_SECONDS = 60.0


class Disconnected(Exception):
    """The client is gone; nobody reads an answer."""


class Interrupt:
    """Cancels the task of one call, once, and keeps the reason apart from cancellations that others ask for.

    Made inside that task. `disarm` must follow, or a deadline could strike what the task does next.
    """

    __slots__ = ("__weakref__", "_due", "_reason", "_task", "_timer")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._reason: Exception | None = None
        self._due: dict[Interrupt, None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, reason: Exception) -> None:
        """End the call with this error; the first reason counts."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    def expire(self) -> None:
        """End the call because its deadline has passed."""
        self(deadline_exceeded())

    def claim(self) -> Exception | None:
        """Take the cancellation that just arrived for this one; None when someone else asked for it too."""
        if self._reason is None or self._task is None or self._task.uncancel() > 0:
            return None
        return self._reason

    def disarm(self) -> None:
        """Reasons that come later are too late. Safe to call twice."""
        self._task = None
        if self._due is not None:
            self._due.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def strike_with(self, due: "dict[Interrupt, None]") -> None:
        """Join the calls that end at the same moment."""
        self._due = due
        due[self] = None

    def strike_at(self, deadline: float) -> None:
        """End the call at a loop time, with a timer of its own."""
        self._timer = asyncio.get_running_loop().call_at(deadline, self.expire)


class Deadlines:
    """The deadlines of many calls, on few timers.

    Most calls have one and end long before it. A timer each would cost more than the rest of the call's machinery, so
    those that are near are rounded up to a multiple of `GRAIN_SECONDS`, and each such moment has one timer.
    """

    def __init__(self) -> None:
        self._due: dict[int, dict[Interrupt, None]] = {}

    def add(self, deadline: float, interrupt: Interrupt) -> None:
        """End a call at a loop time (seconds) unless it is disarmed before."""
        slot = int(deadline / GRAIN_SECONDS) + 1
        due = self._due.get(slot)
        if due is None:
            loop = asyncio.get_running_loop()
            if deadline - loop.time() > NEAR_SECONDS:
                # A moment stays until it has come: far ones, of a caller's choice, would pile up.
                interrupt.strike_at(deadline)
                return
            due = self._due[slot] = {}
            loop.call_at(slot * GRAIN_SECONDS, self._expire, slot)
        interrupt.strike_with(due)

    def _expire(self, slot: int) -> None:
        for interrupt in tuple(self._due.pop(slot)):
            interrupt.expire()


def deadline_exceeded() -> StatusError:
    """What a call ends with when its time is over."""
    return StatusError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
