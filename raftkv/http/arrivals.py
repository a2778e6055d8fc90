"""Connections that arrive at a listener: one in a turn of the loop, and TLS handshakes bounded in time and in number.

The event loop's own servers take as many in a turn as there are, for which all others wait. A handshake costs the
buffers of Python's TLS before its client has proved anything. So where there are as many as may be, the one that began
first makes room for the next: who means to come in needs two round trips, and who only holds a place is found at the
front.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

MAX_HANDSHAKES = 512
"""On one listener: 130 MiB of buffers."""
PAUSE_SECONDS = 1.0
"""How long nothing is accepted when it cannot be, for want of files mostly."""

Arrived = TypeVar("Arrived", bound=asyncio.Protocol)


class Arrivals(Generic[Arrived]):
    """Accepts the connections of one listener in the running event loop, and shakes hands on them if it speaks TLS."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        seconds: float,
        *,
        arrive: Callable[[], Arrived | None],
        crowded: Callable[[], bool],
        lost: Callable[[Arrived], None],
    ) -> None:
        """`arrive` makes what a connection is given to when hands were shaken, within `seconds`; None refuses it.

        While `crowded`, and when there are `MAX_HANDSHAKES`, the oldest handshake makes room first. `lost` is told of
        what was made and gets no connection; what gets one is told so by its `connection_made`, and calls `shaken`.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._context = context
        self._seconds = seconds
        self._arrive = arrive
        self._crowded = crowded
        self._lost = lost
        self._pause: asyncio.TimerHandle | None = None
        self._tasks: dict[Arrived, asyncio.Task[None]] = {}
        """The oldest first."""
        self.dropped = 0
        self._listen()

    async def close(self) -> None:
        """Accept no more, and end the handshakes that are under way."""
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()
        # By then the one accepted last has begun, and closes its socket itself.
        await asyncio.sleep(0)
        self._listener.close()
        while self._tasks:
            self._drop()

    def shaken(self, arrived: Arrived) -> None:
        """Note that a handshake is over."""
        self._tasks.pop(arrived, None)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as error:
            logger.error("no connection can be accepted: %s; trying again in %.0f s", error, PAUSE_SECONDS)
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._listen)
            return
        connection.setblocking(False)
        if self._context and self._tasks and (len(self._tasks) >= MAX_HANDSHAKES or self._crowded()):
            if not self.dropped & (self.dropped - 1):
                # The first, the second, the fourth: a flood of connections is no flood of lines.
                logger.warning("%d TLS handshakes are under way; the oldest makes room for the next", len(self._tasks))
            self.dropped += 1
            self._drop()
        arrived = self._arrive()
        if arrived is None:
            connection.close()
            return
        self._tasks[arrived] = self._loop.create_task(self._shake(connection, arrived))

    async def _shake(self, connection: socket.socket, arrived: Arrived) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: arrived,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._seconds if self._context else None,
            )
        except OSError as error:
            logger.debug("a connection failed at once, or its TLS handshake: %s", error)
        finally:
            if self._tasks.pop(arrived, None) is not None:
                self._lost(arrived)

    def _drop(self) -> None:
        oldest = next(iter(self._tasks))
        self._tasks.pop(oldest).cancel()
        self._lost(oldest)
