"""Calls of a member's services without sockets: the host that stands between a simulated stream and the ASGI app.

The request goes through the app that serves real ports: its framing, deadlines, interruptions and errors are the
shipping ones. Only HTTP/2 itself is left out. Between the two ends lie two channels; a window keeps a sender from
running ahead of a reader that does not read.
"""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

from raftkv.http.asgi import ASGIApp
from raftkv.rpc.framing import Deframer
from raftkv.simulation.network import Channel, Network
from raftkv.simulation.scheduler import ProcessLoop, Scheduler
from raftkv.status import Code, StatusError

WINDOW_BYTES = 64 << 10
_PREFIX = struct.Struct(">BI")
_MAX_BYTES = 1 << 30
_TRAILERS: dict[str, dict[str, object]] = {"http.response.trailers": {}}

Metadata = Sequence[tuple[str, str]]


class Served(Protocol):
    """A process that answers."""

    loop: ProcessLoop
    exchanges: "dict[Exchange, None]"

    def app(self, port: str) -> ASGIApp | None:
        """What answers on a port; None: nothing yet."""


class Exchange:
    """One call, seen from both ends.

    Invariants:
    1. `on_end` is called at most once, and nothing is called after it or after `close`.
    2. No more than `WINDOW_BYTES` and one message wait for a reader that does not read.
    """

    def __init__(
        self,
        network: Network,
        scheduler: Scheduler,
        *,
        caller: int,
        caller_loop: ProcessLoop,
        target: int,
        process: Callable[[], Served | None],
        port: str,
        path: str,
        metadata: Metadata = (),
        on_message: Callable[[bytes], None],
        on_end: Callable[[int | None, str], None],
    ) -> None:
        """Begin a call; `on_end` hears a gRPC status, or None and a reason when there was no answer."""
        self._caller_loop = caller_loop
        self._process = process
        self._port = port
        self._path = path
        self._metadata = metadata
        self._on_message = on_message
        self._on_end = on_end
        self._up = Channel(network, scheduler, caller, target)
        self._down = Channel(network, scheduler, target, caller)
        self._scheduler = scheduler
        self._deframer = Deframer(b"", _MAX_BYTES)
        self._served: Served | None = None
        self._task: asyncio.Task[None] | None = None
        self._inbox: deque[MutableMapping[str, Any]] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._unread = 0
        self._read = 0
        self._room: asyncio.Future[None] | None = None
        self._held: list[bytes] | None = None
        self._over = False
        self._gone = False
        self._up.put(self._open)

    # The caller's end

    def send(self, message: bytes, *, last: bool = False) -> None:
        """Send one request message."""
        body = _PREFIX.pack(0, len(message)) + message
        self._up.put(self._arrive, {"type": "http.request", "body": body, "more_body": not last})

    def close(self) -> None:
        """Give the call up; the other end hears of it when the network lets it."""
        if not self._over:
            self._over = True
            self._down.close()
            self._up.put(self._leave)

    def hold(self) -> None:
        """Read no more for now."""
        self._held = []

    def read_on(self) -> None:
        """Read again, first what has come meanwhile."""
        held, self._held = self._held or [], None
        for body in held:
            self._take(body)

    def _take(self, body: bytes) -> None:
        if self._over:
            return
        if self._held is not None:
            self._held.append(body)
            return
        self._read += len(body)
        if self._read > WINDOW_BYTES // 4:
            self._up.put(self._credit, self._read)
            self._read = 0
        for message in self._deframer.feed(body):
            if not self._over:
                self._on_message(message)

    def _end(self, code: int | None, details: str) -> None:
        if self._over:
            return
        self._over = True
        self._up.close()
        self._down.close()
        self._on_end(code, details)

    def _to_caller(self, callback: Callable[..., None], *args: Any) -> None:
        self._down.put(self._caller_loop.run_in, callback, *args)

    def broken(self, seconds: float) -> None:
        """The process is gone: the caller hears of it after a while, if the network lets it."""
        self._gone = True
        self._scheduler.after(seconds, self._to_caller, self._end, None, "the connection is lost")

    # The server's end

    def _open(self) -> None:
        served = self._process()
        app = served.app(self._port) if served is not None else None
        if served is None or app is None:
            self._gone = True
            self._to_caller(self._end, None, "connection refused")
            return
        self._served = served
        served.exchanges[self] = None
        served.loop.run_in(self._start, app)

    def _start(self, app: ASGIApp) -> None:
        assert self._served is not None
        headers = [(b"content-type", b"application/grpc"), *((k.encode(), v.encode()) for k, v in self._metadata)]
        scope = {"type": "http", "method": "POST", "path": self._path, "headers": headers, "extensions": _TRAILERS}
        self._task = self._served.loop.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]
        self._task.add_done_callback(self._served_out)

    def _served_out(self, task: "asyncio.Task[None]") -> None:
        assert self._served is not None
        self._served.exchanges.pop(self, None)
        self._gone = True
        if not task.cancelled() and task.exception() is not None:
            self._served.loop.call_exception_handler({"message": self._path, "exception": task.exception()})

    def _arrive(self, event: MutableMapping[str, Any]) -> None:
        if not self._gone and self._served is not None:
            self._served.loop.run_in(self._receive_event, event)

    def _receive_event(self, event: MutableMapping[str, Any]) -> None:
        self._inbox.append(event)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _leave(self) -> None:
        self._arrive({"type": "http.disconnect"})
        if self._served is not None and not self._gone:
            self._served.loop.run_in(self._disconnected)

    def _disconnected(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _credit(self, size: int) -> None:
        if not self._gone and self._served is not None:
            self._served.loop.run_in(self._credited, size)

    def _credited(self, size: int) -> None:
        self._unread -= size
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _receive(self) -> MutableMapping[str, Any]:
        while not self._inbox:
            assert self._served is not None
            self._arrived = self._served.loop.create_future()
            await self._arrived
        return self._inbox.popleft()

    async def _send(self, event: MutableMapping[str, Any]) -> None:
        if self._over:
            raise OSError("the client is gone")
        kind = event["type"]
        if kind == "http.response.trailers":
            status = dict(event["headers"])
            code = int(status[b"grpc-status"])
            details = unquote(status.get(b"grpc-message", b"").decode("latin-1"))
            self._to_caller(self._end, code, details)
        elif kind == "http.response.body" and event["body"]:
            while self._unread > WINDOW_BYTES and not self._over:
                assert self._served is not None
                self._room = self._served.loop.create_future()
                await self._room
            self._unread += len(event["body"])
            self._to_caller(self._take, event["body"])


class Caller:
    """Makes calls from one place."""

    def __init__(self, network: Network, scheduler: Scheduler, endpoint: int, loop: ProcessLoop) -> None:
        self._network = network
        self._scheduler = scheduler
        self.endpoint = endpoint
        self._loop = loop

    def open(
        self,
        target: int,
        process: Callable[[], Served | None],
        path: str,
        on_message: Callable[[bytes], None],
        on_end: Callable[[int | None, str], None],
        *,
        port: str = "client",
        metadata: Metadata = (),
    ) -> Exchange:
        """Begin a call that streams."""
        return Exchange(
            self._network,
            self._scheduler,
            caller=self.endpoint,
            caller_loop=self._loop,
            target=target,
            process=process,
            port=port,
            path=path,
            metadata=metadata,
            on_message=on_message,
            on_end=on_end,
        )

    async def call(
        self,
        target: int,
        process: Callable[[], Served | None],
        path: str,
        requests: "AsyncIterator[bytes] | Sequence[bytes]",
        timeout: float,
        *,
        port: str = "client",
        metadata: Metadata = (),
    ) -> bytes:
        """Make a call with one answer.

        Raises:
            StatusError: what the other end answered.
            ConnectionError: no answer within `timeout` seconds, or no connection.
        """
        ended: asyncio.Future[tuple[int | None, str]] = self._loop.create_future()
        answers: list[bytes] = []

        def on_end(code: int | None, details: str) -> None:
            if not ended.done():
                ended.set_result((code, details))

        exchange = self.open(target, process, path, answers.append, on_end, port=port, metadata=metadata)
        timer = self._loop.call_later(timeout, on_end, None, "no answer in time")
        try:
            if isinstance(requests, AsyncIterator):
                async for request in requests:
                    if ended.done():
                        break
                    exchange.send(request)
            else:
                for place, request in enumerate(requests, 1):
                    exchange.send(request, last=place == len(requests))
            code, details = await ended
        finally:
            timer.cancel()
            exchange.close()
        if code is None:
            raise ConnectionError(details)
        if code:
            raise StatusError(Code(code), details)
        return answers[0]
