"""The request messages of a streaming call, read ahead by a task of their own unless all are here."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn, Protocol, Self

from raftkv.http.asgi import Direct
from raftkv.http.load import Load
from raftkv.rpc.calls import Calls
from raftkv.rpc.framing import Deframer
from raftkv.rpc.held import BODY_SECONDS, Held, too_slow
from raftkv.rpc.interrupt import Disconnected
from raftkv.status import Code, StatusError

READ_AHEAD_BYTES = 1 << 20
READ_AHEAD_MESSAGES = 1024
HELD_BYTES = 64 << 10
"""Less than this of complete messages does not count at once: most are taken in the same turn."""


class Incoming(Protocol):
    """The requests of a stream, one after the other."""

    def more(self) -> bool:
        """Whether one is here that can be had without waiting."""

    def __aiter__(self) -> Self:
        """Iterate over the rest."""

    async def __anext__(self) -> bytes:
        """Wait for the next one."""


class Requests:
    """Iterates over the request messages. `read` reads them, in a task that notices when the client goes away, or
    `read_whole` those that are all here.

    A client that sends faster than the handler takes is held by flow control: nothing more is read while
    `READ_AHEAD_BYTES` or `READ_AHEAD_MESSAGES` wait. A message that is larger than that alone passes.
    """

    def __init__(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        deframer: Deframer,
        interrupt: Callable[[Exception], None],
        calls: Calls,
        direct: Direct | None = None,
        load: Load | None = None,
    ) -> None:
        """`interrupt` is called when the client disconnects; `direct` is what the scope has under that name.

        What waits counts as a part of `load`.
        """
        self._receive = receive
        self._deframer = deframer
        self._interrupt = interrupt
        self._calls = calls
        self._direct = direct
        self._held = Held(load or Load())
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._take: Callable[[bytes], None] | None = None
        self._ended = False
        self._latest = 0.0
        """By when the message that has begun must be complete; 0: none has."""
        self._error: Exception | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    async def read_whole(self) -> None:
        """Read what has arrived whole, and is not compressed: one event, without waiting.

        Nobody tells then that the client goes away. `close` must follow.
        """
        event = await self._receive()
        try:
            for message in self._deframer.feed(event.get("body", b"")):
                self._count(message)
                self._keep(message)
            self._hold()
            self._end()
        except Exception as error:
            self._error = error

    def close(self) -> None:
        """Give back what is held of the load."""
        self._held.set(0)

    async def read(self) -> None:
        """Read until the client disconnects; the task of the call cancels this."""
        try:
            while (event := await self._event())["type"] != "http.disconnect":
                for message in self._deframer.feed(event.get("body", b"")):
                    self._latest = 0.0
                    self._count(message)
                    if self._take is None:
                        await self._put(message)
                    else:
                        self._take(message)
                if self._held.bytes or self._waiting or self._deframer.waiting_bytes:
                    self._hold()
                if not self._ended and not event.get("more_body", False):
                    self._end()
                elif self._take is not None and self._direct is not None:
                    self._direct.feed(self._fed)
        except Exception as error:
            self._error = error
            self._arrived.set()
        else:
            self._interrupt(Disconnected())
        finally:
            self.close()

    def _event(self) -> Awaitable[MutableMapping[str, Any]]:
        """The next event; soon, if a message has begun."""
        if not self._deframer.waiting_bytes or self._take is not None:
            # What is handed over in the turn that brings it does not come this way.
            self._latest = 0.0
            return self._receive()
        return self._rest_of_message()

    async def _rest_of_message(self) -> MutableMapping[str, Any]:
        if not self._latest:
            self._latest = asyncio.get_running_loop().time() + BODY_SECONDS
        try:
            async with asyncio.timeout_at(self._latest):
                return await self._receive()
        except TimeoutError:
            raise too_slow() from None

    def _hold(self) -> None:
        self._held.set(self._waiting_bytes + self._deframer.waiting_bytes)

    def _fed(self, data: bytes, last: bool) -> None:
        """Take a piece of the body that the host hands over by itself."""
        if self._error is not None or self._take is None:
            return
        try:
            for message in self._deframer.feed(data):
                self._count(message)
                self._take(message)
            if last:
                self._end()
        except Exception as error:
            self._error = error
            self._arrived.set()

    def _end(self) -> None:
        self._deframer.finish()
        self._ended = True
        self._arrived.set()

    def _count(self, message: bytes) -> None:
        self._calls.received += 1
        self._calls.received_bytes += len(message)

    def _keep(self, message: bytes) -> None:
        self._waiting.append(message)
        self._waiting_bytes += len(message)
        self._arrived.set()

    async def _put(self, message: bytes) -> None:
        self._keep(message)
        if self._waiting_bytes > HELD_BYTES:
            self._hold()
        while self._waiting_bytes >= READ_AHEAD_BYTES or len(self._waiting) >= READ_AHEAD_MESSAGES:
            self._taken.clear()
            await self._taken.wait()

    def more(self) -> bool:
        """Whether a message is here that can be had without waiting."""
        return bool(self._waiting)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._waiting:
            if self._error is not None:
                self._fail()
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        message = self._waiting.popleft()
        self._waiting_bytes -= len(message)
        if self._held.bytes:
            self._hold()
        self._taken.set()
        return message

    async def each(self, take: Callable[[bytes], None]) -> None:
        """Call `take` with every message, within the turn of the loop that brings it; until there are no more.

        Raises what `take` raised, which ends it.
        """
        waiting, self._waiting = self._waiting, deque()
        self._waiting_bytes = 0
        for message in waiting:
            take(message)
        self._take = take
        self._taken.set()
        while not self._ended and self._error is None:
            self._arrived.clear()
            await self._arrived.wait()
        if self._error is not None:
            self._fail()

    def _fail(self) -> NoReturn:
        """Raise what ended the requests, once: kept, it would keep whoever it passed through, and be kept by them."""
        error, self._error, self._ended = self._error, None, True
        assert error is not None
        try:
            raise error
        finally:
            del error

    async def only(self) -> bytes:
        """The one request of a server-streaming call."""
        async for message in self:
            return message
        raise StatusError(Code.INTERNAL, "grpc: the call has no request message")
