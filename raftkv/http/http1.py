"""One HTTP/1.1 connection of a client, which hands each request to an ASGI application. The protocol is h11's."""

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

import h11
import wsproto.utilities

from raftkv.http.asgi import CERTIFICATE_USER, WHOLE, ASGIApp, Scope
from raftkv.http.closing import Ending
from raftkv.http.connection import STREAM_WINDOW_BYTES, address
from raftkv.http.requests import MAX_HEADER_BYTES, target
from raftkv.http.websocket import WebSocket

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""How long the head of a request may take from its first byte."""
_TURN_EVENTS = 256
"""What one connection may have done in a turn of the loop, or others would wait for it."""
_BODILESS = frozenset((204, 304))
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
"""A status line may end without one, but some clients then see no status at all."""
_DISCONNECT = {"type": "http.disconnect"}


class Http1(asyncio.Protocol):
    """Requests one after the other; the next is read when the one before is answered."""

    def __init__(
        self, app: ASGIApp, made: Callable[[WebSocket], None], forget: Callable[[Any], None], user: str = ""
    ) -> None:
        """`made` is told of the WebSocket that takes over; `forget` is called when a connection is over.

        `user` is whom the client's certificate names.
        """
        self._user = user
        self._made = made
        self._loop = asyncio.get_running_loop()
        self._app = app
        self._forget = forget
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._transport: asyncio.Transport | None = None
        self._exchange: _Exchange | None = None
        self._running = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._ending: Ending | None = None
        self._resting = self._held = False
        self._head = False
        self._reading = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._leaving = False
        self._lost = False

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        self._transport = cast(asyncio.Transport, transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what the bytes say."""
        if self._ending is None and not self._lost:
            self._h11.receive_data(data)
            if not self._resting:
                self._advance()
            self._heed()

    def eof_received(self) -> None:
        """A client that closes its half is gone: the transport closes, too."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request under way."""
        self._lost = True
        self._writable.set()
        self._expect_no_head()
        if self._ending is not None:
            self._ending.over()
        if self._exchange is not None:
            self._exchange.drop()
        if not self._running:
            self._forget(self)

    def pause_writing(self) -> None:
        """Hold the response."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    # Requests

    def _advance(self) -> None:
        self._resting = False
        try:
            for _ in range(_TURN_EVENTS):
                if self._lost or self._ending is not None or not self._take(self._h11.next_event()):
                    break
            else:
                self._resting = True
                self._loop.call_soon(self._go_on)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))

    def _go_on(self) -> None:
        self._advance()
        self._heed()

    def _take(self, event: Any) -> bool:
        """Take an event; False when there is none."""
        if isinstance(event, h11.Request):
            self._expect_no_head()
            self._begin(event)
        elif isinstance(event, h11.Data) and self._exchange is not None:
            self._exchange.arrived(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and self._exchange is not None:
            self._exchange.end_request()
        else:
            if self._exchange is None and self._h11.trailing_data[0]:
                self._expect_head()
            return False
        return True

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_SECONDS, self._refuse, 408, "the request does not come")

    def _expect_no_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _begin(self, request: h11.Request) -> None:
        assert self._transport is not None
        self._head = request.method == b"HEAD"
        path = _origin_form(request.target)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "http" if self._transport.get_extra_info("ssl_object") is None else "https",
            **target(path),
            "headers": list(request.headers),
            "client": address(self._transport, "peername"),
            "server": address(self._transport, "sockname"),
            "extensions": {},
            CERTIFICATE_USER: self._user,
        }
        if (b"upgrade", b"websocket") in [(name, value.lower()) for name, value in request.headers]:
            self._become_websocket(scope)
            return
        self._exchange = exchange = _Exchange(self, head=self._head)
        self._running += 1
        scope["extensions"] = {WHOLE: exchange.whole}
        call = self._app(scope, exchange.receive, exchange.send)
        exchange.task = self._loop.create_task(call)  # type: ignore[arg-type]
        exchange.task.add_done_callback(lambda task: self._returned(exchange, task))

    def _become_websocket(self, scope: Scope) -> None:
        assert self._transport is not None
        try:
            socket = WebSocket(self._app, {**scope, "scheme": "ws"}, self._forget)
        except (wsproto.utilities.RemoteProtocolError, h11.LocalProtocolError) as error:
            raise h11.RemoteProtocolError(str(error)) from error
        except UnicodeError as error:
            raise h11.RemoteProtocolError("a header of a WebSocket is not ASCII") from error
        data, _ = self._h11.trailing_data
        self._lost = True
        self._made(socket)
        self._forget(self)
        self._transport.set_protocol(socket)
        socket.connection_made(self._transport)
        if data:
            socket.data_received(data)

    def _returned(self, exchange: "_Exchange", task: "asyncio.Task[None]") -> None:
        self._running -= 1
        # Else they and the stack of an error would hold each other, and wait for the collector.
        exchange.task = self._exchange = None
        error = None if task.cancelled() else task.exception()
        if error is not None and not (exchange.gone and isinstance(error, OSError)):
            logger.error("a request failed", exc_info=error)
        if self._lost:
            self._forget(self)
        elif self._h11.our_state is h11.SEND_RESPONSE:
            self._refuse(500, "the request failed")
        elif self._ending is None:
            self._next()

    def _next(self) -> None:
        """Go on with the next request, if there may be one."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE or self._leaving:
            self._close()
        else:
            self._h11.start_next_cycle()
            self._held = self._head = False
            self._go_on()

    def _refuse(self, status: int, text: str) -> None:
        """Answer with an error if that is still possible, and end the connection."""
        if self._lost or self._ending is not None:
            return
        exchange = self._exchange
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = f"{text}\n".encode()
            headers = [("content-length", str(len(body))), ("connection", "close")]
            self.put(h11.Response(status_code=status, headers=headers, reason=_PHRASES.get(status, b"")))
            if not self._head:
                self.put(h11.Data(data=body))
            self.put(h11.EndOfMessage())
        self._close()
        if exchange is not None:
            exchange.drop()

    def _close(self) -> None:
        assert self._transport is not None
        self._expect_no_head()
        if self._ending is None:
            self._ending = Ending(self._transport)

    def hold(self, held: bool) -> None:
        """Stop reading for the sake of the request under way, or go on."""
        self._held = held
        self._heed()

    def _heed(self) -> None:
        """Read from the client, or do not, as things are.

        What comes before the request under way is answered waits in h11, up to a limit: more than that, and a client
        that leaves is not noticed.
        """
        if self._lost or self._ending is not None or self._transport is None or self._transport.is_closing():
            return
        ahead = self._exchange is not None and len(self._h11.trailing_data[0]) > MAX_HEADER_BYTES
        reading = not (self._held or self._resting or ahead)
        if reading != self._reading:
            self._reading = reading
            (self._transport.resume_reading if reading else self._transport.pause_reading)()

    # Responses

    def put(self, event: Any) -> None:
        """Send an event of h11.

        Raises:
            ConnectionError: the client is gone.
        """
        if self._lost or self._ending is not None or self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        data = self._h11.send(event)
        if data:
            self._transport.write(data)

    def ask_for_body(self) -> None:
        """Let a client go on that asked whether it may send its body."""
        if self._h11.they_are_waiting_for_100_continue and self._ending is None:
            self.put(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    async def drained(self) -> None:
        """Wait until the socket takes more."""
        await self._writable.wait()

    # The end

    def leave(self) -> None:
        """Close when the request under way, if there is one, is answered."""
        self._leaving = True
        if not self._running and not self._lost and self._transport is not None:
            self._close()

    def abort(self) -> None:
        """End the request under way, and the connection."""
        if self._transport is not None:
            self._transport.abort()


def _origin_form(target: bytes) -> bytes:
    """The target of a request as most say it: a path, maybe a query.

    Raises:
        RemoteProtocolError: it is none.
    """
    if target.startswith(b"/") or target == b"*":
        return target
    try:
        parts = urlsplit(target)
    except ValueError as error:
        raise h11.RemoteProtocolError("the target is no URL") from error
    if parts.scheme not in (b"http", b"https") or not parts.netloc:
        raise h11.RemoteProtocolError("the target is neither a path nor a URL")
    return (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")


class _Exchange:
    """A request and its response, as ASGI sees them."""

    def __init__(self, connection: Http1, *, head: bool) -> None:
        self._connection = connection
        self.task: asyncio.Task[None] | None = None
        self.bodiless = head
        self.gone = False
        self._body: list[bytes] = []
        self._size = 0
        self._ended = False
        self._told = False
        self._arrived = asyncio.Event()
        self._started = False

    def arrived(self, data: bytes) -> None:
        """Keep a piece of the request's body."""
        self._body.append(data)
        self._size += len(data)
        if self._size > STREAM_WINDOW_BYTES:
            self._connection.hold(True)
        self._arrived.set()

    def end_request(self) -> None:
        """Note that the request is complete."""
        self._ended = True
        self._arrived.set()

    def whole(self) -> bool:
        """Whether the request is complete."""
        return self._ended

    def drop(self) -> None:
        """The client is gone."""
        self.gone = True
        self._arrived.set()
        if self.task is not None:
            self.task.cancel()

    async def receive(self) -> MutableMapping[str, Any]:
        """Wait for the next event of the request."""
        if not self._ended and not self.gone:
            self._connection.ask_for_body()
        while not self.gone:
            if (self._body or self._ended) and not self._told:
                data = b"".join(self._body)
                self._body, self._size, self._told = [], 0, self._ended
                self._connection.hold(False)
                return {"type": "http.request", "body": data, "more_body": not self._told}
            self._arrived.clear()
            await self._arrived.wait()
        return _DISCONNECT

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Send the next event of the response.

        Raises:
            ConnectionError: the client is gone.
            RuntimeError: the event does not come next.
        """
        kind = event["type"]
        if kind == "http.response.start" and not self._started:
            status = event["status"]
            self.bodiless = self.bodiless or status in _BODILESS
            headers = list(event.get("headers", ()))
            self._connection.put(h11.Response(status_code=status, headers=headers, reason=_PHRASES.get(status, b"")))
            self._started = True
        elif kind == "http.response.body" and self._started:
            body = event.get("body", b"")
            if body and not self.bodiless:
                self._connection.put(h11.Data(data=body))
            if not event.get("more_body", False):
                self._connection.put(h11.EndOfMessage())
            else:
                await self._connection.drained()
        else:
            raise RuntimeError(f"{kind} does not come next in a response")
