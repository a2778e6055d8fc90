"""Connections that want more than their part of a turn of the event loop: together they have one part in two turns."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

PART = 32
"""What they may have done, as `Connection` counts work: a millisecond."""

_GONE = frozenset((7, 8))
"""TCP's states CLOSE and CLOSE_WAIT, as Linux numbers them: the client has reset the connection, or closed its half."""


class Turns:
    """Lets connections go on one after the other, one part in every second turn of the loop, however many they are.

    Were each to go on in every turn, all others would wait for as many parts as there are floods. Where all have much
    to do, what waits may have as much done as what does not.
    """

    __slots__ = ("_due", "_waiting", "begun")

    def __init__(self) -> None:
        self.begun = 0
        """The work that was done since the last part for connections that did not wait."""
        self._waiting: deque[Callable[[], int]] = deque()
        self._due = False

    def wait(self, go_on: Callable[[], int]) -> None:
        """Have `go_on` called once, in a later turn, to do a `PART` at most; it says how much it did."""
        self._waiting.append(go_on)
        if not self._due:
            self._due = True
            self._soon(self._leave_one)

    def _leave_one(self) -> None:
        """Leave a turn to all others."""
        self._soon(self._next)

    def _next(self) -> None:
        left, self.begun = max(self.begun, PART), 0
        try:
            while self._waiting and left > 0:
                left -= self._waiting.popleft()()
        finally:
            self._due = bool(self._waiting)
            if self._due:
                self._soon(self._leave_one)

    def _soon(self, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(call)


def is_gone(transport: asyncio.BaseTransport) -> bool:
    """Whether the client has left a connection that is not read, and so has not been seen to end.

    What it sent before it left need not be looked at: nobody waits for the answers. Only Linux knows; elsewhere nobody
    is gone.
    """
    connection = transport.get_extra_info("socket")
    if connection is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _GONE
    except OSError:
        return False
