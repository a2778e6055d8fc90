"""The gateway as an ASGI application: JSON in, a gRPC call on the application of the same port, JSON out."""

import asyncio
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from google.protobuf.message import Message

from raftkv.gateway import websocket
from raftkv.gateway.codec import decode, encode
from raftkv.gateway.routes import Route, routes
from raftkv.gateway.text import BadJson, Splitter, dumps
from raftkv.http.asgi import WHOLE, ASGIApp, Receive, Scope, Send
from raftkv.http.load import Load
from raftkv.rpc.framing import Deframer, frame, parse_timeout
from raftkv.rpc.held import BODY_SECONDS, Held, drain, too_slow
from raftkv.status import Code, StatusError

_STATUS = {
    Code.OK: 200,
    Code.CANCELED: 408,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 412,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
"""HTTP statuses of the codes, as etcd 3.4 answers them; the other codes are 500."""

_JSON = (b"content-type", b"application/json")
_CALLED = (b"grpc-metadata-content-type", b"application/grpc")
_GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
_METADATA = b"grpc-metadata-"
_LARGE_BYTES = 4 << 10
"""JSON of this size may take milliseconds, so it is read and written in a thread: the event loop keeps its turns."""
_MAX_FRAME = (1 << 32) - 1


class Gateway:
    """Serves `/v3/…`; anything else there is a plain 404.

    Requests that stream are a body of JSON objects, one after the other; responses that stream are one object a line.
    """

    def __init__(self, calls: ASGIApp, *, max_receive_bytes: int, load: Load | None = None) -> None:
        """`calls` serves gRPC; `max_receive_bytes` is its limit on a message, `load` what it may hold altogether."""
        self._load = load or Load()
        self._calls = calls
        self._routes = routes()
        # JSON is longer than the message it stands for: base64, field names, numbers in digits.
        self._max_body_bytes = 4 * max_receive_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or one WebSocket."""
        route = self._routes.get(scope["path"])
        if scope["type"] == "websocket":
            streams = route is not None and route.request_streams
            await websocket.serve(self, scope, receive, send, streams=streams, max_body_bytes=self._max_body_bytes)
        elif route is not None and scope["method"] == "POST":
            await self._serve(route, scope, receive, send)
        else:
            await drain(receive)
            await _plain(send, 404 if route is None else 405)

    async def _serve(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, self._max_body_bytes, self._load)
        try:
            await self._call(route, body, scope, send)
        finally:
            body.held.set(0)

    async def _call(self, route: Route, body: "_Body", scope: Scope, send: Send) -> None:
        try:
            headers = _call_headers(scope["headers"])
            requests = _Requests(route.request, body) if route.request_streams else _Request(await body.only(route))
            await requests.begin()
        except _Gone:
            return
        except BadJson as error:
            # etcd's gateway finds this while the call is under way already, so there it has no code of its own.
            code = Code.UNKNOWN if route.request_streams else Code.INVALID_ARGUMENT
            await _refuse(send, code, str(error))
            return
        except StatusError as error:
            await _refuse(send, error.code, error.message)
            return
        call = {**scope, "method": "POST", "path": route.call, "headers": headers}
        call["extensions"] = {"http.response.trailers": {}, WHOLE: lambda: True}
        response = _Stream(route, send) if route.response_streams else _Unary(route, send)

        async def receive_frames() -> dict[str, Any]:
            return await requests.next() or await body.disconnect()

        await self._calls(call, receive_frames, response.take)


class _Gone(Exception):
    """The client went away before its request was complete."""


class _Body:
    """The body of the HTTP request, and the news that the client went away."""

    def __init__(self, receive: Receive, max_bytes: int, load: Load) -> None:
        self._receive = receive
        self.held = Held(load)
        self.max_bytes = max_bytes
        self.ended = False

    async def piece(self) -> bytes:
        """Some bytes; `ended` says whether they are the last."""
        event = await self._receive()
        if event["type"] == "http.disconnect":
            raise _Gone
        self.ended = not event.get("more_body", False)
        return bytes(event.get("body", b""))

    async def only(self, route: Route) -> Message:
        """The one request message of a call that does not stream them."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not self.ended:
                    body += await self.piece()
                    if len(body) > self.max_bytes:
                        text = f"the request's body is larger than {self.max_bytes} bytes"
                        raise StatusError(Code.RESOURCE_EXHAUSTED, text)
                    self.held.set(len(body))
        except TimeoutError:
            raise too_slow() from None
        if len(body) < _LARGE_BYTES:
            return decode(route.request, bytes(body))
        return await asyncio.to_thread(decode, route.request, bytes(body))

    async def disconnect(self) -> dict[str, Any]:
        """Wait until the client goes away."""
        while (event := await self._receive())["type"] != "http.disconnect":
            pass
        return dict(event)


class _Request:
    """The request of a call with one message."""

    def __init__(self, message: Message) -> None:
        self._message: Message | None = message

    async def begin(self) -> None:
        """Nothing more need arrive."""

    async def next(self) -> dict[str, Any] | None:
        """The request as an event of the call; None when it has been given."""
        message, self._message = self._message, None
        return None if message is None else _event([message], more=False)


class _Requests:
    """The requests of a call that streams them, as they arrive."""

    def __init__(self, kind: type[Message], body: _Body) -> None:
        self._kind = kind
        self._body = body
        self._values = Splitter(body.max_bytes)
        self._ready: list[Message] = []
        self._begun = False
        self._ended = False
        self._given = False

    async def begin(self) -> None:
        """Wait for the first request, or for the end of a body without any: the call begins only then.

        Raises:
            BadJson: the body does not begin with a request.
            StatusError: the first request does not arrive.
        """
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not self._ready and not self._ended:
                    await self._read()
        except TimeoutError:
            raise too_slow() from None

    async def next(self) -> dict[str, Any] | None:
        """The next requests as one event of the call; None when all were given."""
        if self._given:
            return None
        self._begun = True
        if not self._ready and not self._ended:
            try:
                await self._read()
            except _Gone:
                return {"type": "http.disconnect"}
        ready, self._ready, self._given = self._ready, [], self._ended
        return _event(ready, more=not self._ended)

    async def _read(self) -> None:
        piece = await self._body.piece()
        self._ended = self._body.ended
        self._body.held.set(self._values.waiting_bytes + len(piece))
        try:
            if self._values.waiting_bytes + len(piece) < _LARGE_BYTES:
                self._take(piece)
            else:
                await asyncio.to_thread(self._take, piece)
        except BadJson:
            if not self._begun and not self._ready:
                raise
            # The call may have answered: as in etcd, what follows is not read.
            self._ended = True

    def _take(self, piece: bytes) -> None:
        for value in self._values.feed(piece, last=self._ended):
            self._ready.append(decode(self._kind, value))


def _event(messages: Iterable[Message], *, more: bool) -> dict[str, Any]:
    body = b"".join(frame(message.SerializeToString(), _MAX_FRAME) for message in messages)
    return {"type": "http.request", "body": body, "more_body": more}


class _Unary:
    """Turns the events of a call with one answer into an HTTP response."""

    def __init__(self, route: Route, send: Send) -> None:
        self._kind = route.response
        self._send = send
        self._answer = Deframer(b"", _MAX_FRAME)
        self._messages: list[bytes] = []

    async def take(self, event: Any) -> None:
        """Take an event that the call sends."""
        if event["type"] == "http.response.body":
            self._messages += self._answer.feed(event["body"])
        elif event["type"] == "http.response.trailers":
            code, message = _status(event)
            if code is not Code.OK:
                await _refuse(self._send, code, message)
                return
            body = await _encoded(self._kind, self._messages[0])
            await _respond(self._send, 200, body, [_JSON, _CALLED])


class _Stream:
    """Turns the events of a call whose answers stream into lines of JSON."""

    def __init__(self, route: Route, send: Send) -> None:
        self._kind = route.response
        self._send = send
        self._answers = Deframer(b"", _MAX_FRAME)
        self._started = False

    async def take(self, event: Any) -> None:
        """Take an event that the call sends."""
        if event["type"] == "http.response.body":
            for message in self._answers.feed(event["body"]):
                await self._start(200, [_JSON, _CALLED])
                line = b'{"result":' + await _encoded(self._kind, message) + b"}\n"
                await self._send({"type": "http.response.body", "body": line, "more_body": True})
        elif event["type"] == "http.response.trailers":
            await self._end(*_status(event))

    async def _end(self, code: Code, message: str) -> None:
        line = b""
        if code is Code.OK:
            await self._start(200, [_JSON, _CALLED])
        else:
            status = _STATUS.get(code, 500)
            await self._start(status, [_JSON])
            phrase = _phrase(status)
            error = {"grpc_code": int(code), "http_code": status, "message": message, "http_status": phrase}
            line = dumps({"error": error})
        await self._send({"type": "http.response.body", "body": line, "more_body": False})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the headers with the first line: only then is the status known."""
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": status, "headers": headers})


async def _encoded(kind: type[Message], message: bytes) -> bytes:
    return _to_json(kind, message) if len(message) < _LARGE_BYTES else await asyncio.to_thread(_to_json, kind, message)


def _to_json(kind: type[Message], message: bytes) -> bytes:
    return encode(kind.FromString(message))


def _call_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Make the metadata of a call from HTTP headers.

    Raises:
        StatusError: the time limit cannot be read.
    """
    return [*_GRPC, *_forwarded(headers), (b"grpcgateway-accept", b"*/*")]


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers:
        if name == b"authorization":
            yield name, value
        elif name == b"grpc-timeout":
            try:
                parse_timeout(value)
            except StatusError as error:
                text = f"invalid grpc-timeout: {value.decode('latin-1')}"
                raise StatusError(Code.INVALID_ARGUMENT, text) from error
            yield name, value
        elif name.startswith(_METADATA):
            forwarded = name[len(_METADATA) :]
            # How the call itself is made is not the client's business here.
            if forwarded and forwarded not in (b"content-type", b"te") and not forwarded.startswith(b"grpc-"):
                yield forwarded, value


def _status(event: Any) -> tuple[Code, str]:
    trailers = dict(event["headers"])
    return Code(int(trailers[b"grpc-status"])), unquote(trailers.get(b"grpc-message", b"").decode())


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase


async def _refuse(send: Send, code: Code, message: str) -> None:
    body = dumps({"error": message, "message": message, "code": int(code)})
    await _respond(send, _STATUS.get(code, 500), body, [_JSON])


async def _plain(send: Send, status: int) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    await _respond(send, status, _phrase(status).encode() + b"\n", headers)


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", b"%d" % len(body))
    try:
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})
    except OSError:
        # The client is gone.
        return
