"""One WebSocket (RFC 6455), which hands its messages to an ASGI application. The protocol is wsproto's."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

from wsproto import ConnectionType, WSConnection, events
from wsproto.utilities import RemoteProtocolError

from raftkv.http.asgi import ASGIApp, Scope

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 << 20
"""A larger message ends the socket."""
_READ_AHEAD_BYTES = 1 << 20
_PIECE_BYTES = 64
"""What each piece of a message counts more than its bytes: it takes memory, too."""
_NORMAL, _GOING_AWAY, _TOO_BIG, _LOST = 1000, 1001, 1009, 1006


class WebSocket(asyncio.Protocol):
    """A connection of HTTP/1.1 that became a WebSocket."""

    def __init__(self, app: ASGIApp, scope: Scope, forget: Callable[["WebSocket"], None]) -> None:
        """Go on from a request that asks for one; `forget` is called when the connection is over."""
        self._loop = asyncio.get_running_loop()
        self._forget = forget
        self._ws = WSConnection(ConnectionType.SERVER)
        self._ws.initiate_upgrade_connection(scope["headers"], scope["raw_path"])
        [request] = [event for event in self._ws.events() if isinstance(event, events.Request)]
        self._transport: asyncio.Transport | None = None
        self._app = app
        self._scope = {**scope, "type": "websocket", "subprotocols": list(request.subprotocols)}
        self._task: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._waiting: deque[MutableMapping[str, Any]] = deque([{"type": "websocket.connect"}])
        self._message: list[str | bytes] = []
        self._message_bytes = 0
        self._waiting_bytes = 0
        self._code: int | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Run the application."""
        self._transport = transport  # type: ignore[assignment]
        self._task = self._loop.create_task(self._app(self._scope, self.receive, self.send))  # type: ignore[arg-type]
        self._task.add_done_callback(self._returned)

    def data_received(self, data: bytes) -> None:
        """Take the messages that are whole."""
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                self._take(event)
        except RemoteProtocolError as error:
            if error.event_hint is not None:
                self._write(error.event_hint)
            self._end(_LOST)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application."""
        self._transport = None
        self._writable.set()
        self._disconnected(_LOST)
        self._forget(self)

    def pause_writing(self) -> None:
        """Hold what is sent; answers to pings have no other bound than that nothing more is read."""
        self._writable.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()
        self._read_on()

    # What comes

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.Message):
            if event.data or not self._message:
                self._message.append(event.data if isinstance(event.data, str) else bytes(event.data))
                self._message_bytes += len(event.data) + _PIECE_BYTES
            if self._message_bytes > MAX_MESSAGE_BYTES:
                self._write(events.CloseConnection(_TOO_BIG))
                self._end(_TOO_BIG)
            elif event.message_finished:
                self._arrive()
        elif isinstance(event, events.Ping):
            self._write(event.response())
        elif isinstance(event, events.CloseConnection):
            self._write(event.response())
            self._end(event.code)

    def _arrive(self) -> None:
        pieces, self._message = self._message, []
        self._waiting_bytes += self._message_bytes
        message: MutableMapping[str, Any] = {"type": "websocket.receive", "size": self._message_bytes}
        self._message_bytes = 0
        if isinstance(pieces[0], str):
            message["text"] = "".join(map(str, pieces))
        else:
            message["bytes"] = b"".join(piece for piece in pieces if isinstance(piece, bytes))
        self._waiting.append(message)
        self._arrived.set()
        if self._waiting_bytes > _READ_AHEAD_BYTES and self._transport is not None:
            self._transport.pause_reading()

    async def receive(self) -> MutableMapping[str, Any]:
        """Wait for the next event."""
        while not self._waiting:
            if self._code is not None:
                return {"type": "websocket.disconnect", "code": self._code}
            self._arrived.clear()
            await self._arrived.wait()
        event = self._waiting.popleft()
        self._waiting_bytes -= event.pop("size", 0)
        self._read_on()
        return event

    def _read_on(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._code is not None:
            return
        if self._writable.is_set() and self._waiting_bytes <= _READ_AHEAD_BYTES:
            self._transport.resume_reading()

    # What leaves

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Send the next event of the application.

        Raises:
            ConnectionError: the client is gone.
        """
        if self._transport is None or self._code is not None:
            raise ConnectionResetError("the client is gone")
        kind = event["type"]
        if kind == "websocket.accept":
            self._write(events.AcceptConnection(subprotocol=event.get("subprotocol")))
        elif kind == "websocket.send":
            text = event.get("text")
            self._write(events.BytesMessage(event["bytes"]) if text is None else events.TextMessage(text))
            await self._writable.wait()
        elif kind == "websocket.close":
            self._close(event.get("code", _NORMAL))

    def _close(self, code: int) -> None:
        if self._ws.connection is None:
            self._write(events.RejectConnection(status_code=403))
        else:
            self._write(events.CloseConnection(code))
        self._end(code)

    def _write(self, event: events.Event) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._ws.send(event))

    # The end

    def _disconnected(self, code: int) -> None:
        if self._code is None:
            self._code = code
            self._arrived.set()

    def _end(self, code: int) -> None:
        self._disconnected(code)
        if self._transport is not None:
            self._transport.close()

    def _returned(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ConnectionError):
            logger.error("a WebSocket failed", exc_info=error)
        if self._code is None:
            self._close(_NORMAL)

    def leave(self) -> None:
        """Close: the client may come back elsewhere."""
        if self._code is None and self._transport is not None:
            self._close(_GOING_AWAY)

    def abort(self) -> None:
        """End what still runs, and the connection."""
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()
