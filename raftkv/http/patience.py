"""How long a connection may keep us waiting, and how often it may ask whether we live."""

import asyncio
from collections.abc import Callable

FRAME_SECONDS = 30.0
"""How long a frame, or the headers of one request, may take from their first byte to their last."""
ANSWER_SECONDS = 60.0
"""How long a client may take nothing of an answer that is complete and waits for it."""
PING_STRIKES = 2
"""So many pings may come too early, as in gRPC for Go."""
_NEARLY = 0.9
"""A part of the time between pings is time enough: clocks differ, and what is sent evenly does not arrive so."""


class FrameWatch:
    """Ends a connection on which what was begun does not end. One timer, and only while something is incomplete."""

    __slots__ = ("_begun", "_fail", "_loop", "_state", "_timer")

    def __init__(self, state: Callable[[], tuple[int, int] | None], fail: Callable[[], None]) -> None:
        """`state` tells how many reads completed a frame, and of which stream the headers are incomplete (0: none);
        None: nothing is incomplete."""
        self._loop = asyncio.get_running_loop()
        self._state = state
        self._fail = fail
        self._begun = (0, 0)
        self._timer: asyncio.TimerHandle | None = None

    def incomplete(self) -> None:
        """Note that something is incomplete now."""
        if self._timer is None:
            self._begun = self._state() or (0, 0)
            self._timer = self._loop.call_later(FRAME_SECONDS, self._look)

    def stop(self) -> None:
        """Watch no more, and let go of the connection, which holds this."""
        if self._timer is not None:
            self._timer.cancel()
        self._state = self._fail = _nothing

    def _look(self) -> None:
        self._timer = None
        state = self._state()
        if state is None:
            return
        if state[0] == self._begun[0] or (state[1] and state[1] == self._begun[1]):
            self._fail()
        else:
            self.incomplete()


def _nothing() -> None:
    pass


class PingWatch:
    """Counts pings that come sooner after the one before than they may, while nothing is sent or begun in between.

    It bears whatever gRPC's server for Go bears as etcd sets it, and more: a ping in good time starts the count
    anew, and a connection without a stream may ask as often as one that has some; there it is once in two hours.
    """

    __slots__ = ("_last", "_marker", "_seconds", "_strikes")

    def __init__(self, seconds: float) -> None:
        """`seconds` between pings; 0: any number may come."""
        self._seconds = seconds
        self._last = float("-inf")
        self._marker = (-1, -1)
        self._strikes = 0

    def too_many(self, now: float, marker: tuple[int, int]) -> bool:
        """Note a ping; `marker` differs from the last one's if the connection has been of use since."""
        if not self._seconds:
            return False
        if marker != self._marker:
            self._marker, self._strikes = marker, 0
        elif now - self._last < _NEARLY * self._seconds:
            self._strikes += 1
        else:
            self._strikes = 0
        self._last = now
        return self._strikes > PING_STRIKES
