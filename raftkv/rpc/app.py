"""The ASGI application: one HTTP request is one call.

A unary call costs no task and no timer of its own. A call that streams has one more task, which reads the request and
notices that the client went away; then the handler is cancelled.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from raftkv.rpc.framing import Deframer, frame, parse_timeout, percent_encode
from raftkv.rpc.method import Context, Kind, Method
from raftkv.status import Code, StatusError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

_HEADERS = [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity,gzip")]
_START = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_TRAILERS_OK = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}
_END = {"type": "http.response.body", "body": b""}
_QUEUED_MESSAGES = 64


class _Disconnected(Exception):
    """The client is gone; nobody reads an answer."""


class App:
    """Serves a table of methods by path; requests that are not gRPC go to `http`."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        max_receive_bytes: int = 4 << 20,
        max_send_bytes: int = (1 << 31) - 1,
        http: ASGIApp | None = None,
    ) -> None:
        self._methods = dict(methods)
        self._services = {path.split("/")[1] for path in methods}
        self._max_receive_bytes = max_receive_bytes
        self._max_send_bytes = max_send_bytes
        self._http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] != "http":
            await _other_scope(scope, receive, send)
            return
        content_type = encoding = timeout = b""
        headers = scope["headers"]
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"grpc-encoding":
                encoding = value
            elif name == b"grpc-timeout":
                timeout = value
        if not _is_grpc(content_type):
            await self._plain(scope, receive, send, content_type)
            return
        if scope["method"] != "POST":
            await _respond(send, 405, b"gRPC calls are POST requests\n")
            return
        try:
            await self._call(scope, receive, send, encoding, timeout)
        except StatusError as error:
            await _fail(send, error)
        except _Disconnected:
            return

    async def _call(self, scope: Scope, receive: Receive, send: Send, encoding: bytes, timeout: bytes) -> None:
        path = scope["path"]
        method = self._methods.get(path)
        if method is None:
            # Some hosts drop the connection when an answer ends before the request does.
            await receive()
            raise self._unknown(path)
        if encoding not in (b"", b"identity", b"gzip"):
            text = f"grpc: Decompressor is not installed for grpc-encoding {encoding.decode('latin-1')!r}"
            raise StatusError(Code.UNIMPLEMENTED, text)
        peer = scope.get("client")
        deframer = Deframer(encoding, self._max_receive_bytes)
        call = self._unary if method.kind is Kind.UNARY else self._stream
        if not timeout:
            await call(method, receive, send, deframer, Context(scope["headers"], peer, None))
            return
        seconds = parse_timeout(timeout)
        context = Context(scope["headers"], peer, asyncio.get_running_loop().time() + seconds)
        try:
            async with asyncio.timeout(seconds):
                await call(method, receive, send, deframer, context)
        except TimeoutError as error:
            raise StatusError(Code.DEADLINE_EXCEEDED, "context deadline exceeded") from error

    def _unknown(self, path: str) -> StatusError:
        service, _, name = path.lstrip("/").rpartition("/")
        if service in self._services:
            return StatusError(Code.UNIMPLEMENTED, f"unknown method {name} for service {service}")
        return StatusError(Code.UNIMPLEMENTED, f"unknown service {service}")

    async def _plain(self, scope: Scope, receive: Receive, send: Send, content_type: bytes) -> None:
        if scope["path"] in self._methods:
            text = b'invalid gRPC request content-type "' + content_type + b'"\n'
            await _respond(send, 415, text)
        elif self._http is not None:
            await self._http(scope, receive, send)
        else:
            await _respond(send, 415, b"this port speaks gRPC\n")

    async def _unary(self, method: Method, receive: Receive, send: Send, deframer: Deframer, context: Context) -> None:
        request = await _whole_request(receive, deframer)
        try:
            answer = await method.handler(request, context)
        except Exception as error:
            raise _as_status(error) from error
        response = self._checked(frame(answer))
        await send(_START)
        await send({"type": "http.response.body", "body": response, "more_body": False})
        await send(_TRAILERS_OK)

    def _checked(self, response: bytes) -> bytes:
        size = len(response) - 5
        if size > self._max_send_bytes:
            text = f"grpc: trying to send message larger than max ({size} vs. {self._max_send_bytes})"
            raise StatusError(Code.RESOURCE_EXHAUSTED, text)
        return response

    async def _stream(self, method: Method, receive: Receive, send: Send, deframer: Deframer, context: Context) -> None:
        started = False
        try:
            async with _Requests(receive, deframer) as requests:
                if method.kind is Kind.CLIENT_STREAM:
                    response = self._checked(frame(await _guard(method.handler(requests, context))))
                    started = True
                    await send(_START)
                    await send({"type": "http.response.body", "body": response, "more_body": True})
                else:
                    request = requests if method.kind is Kind.BIDI else await requests.only()
                    # Headers at once: a client may wait for them before it sends, and the first message may be late.
                    started = True
                    await send(_START)
                    async with contextlib.aclosing(method.handler(request, context)) as responses:
                        async for message in _guarded(responses):
                            body = self._checked(frame(message))
                            await send({"type": "http.response.body", "body": body, "more_body": True})
        except StatusError as error:
            if not started:
                raise
            await send(_END)
            await send({"type": "http.response.trailers", "headers": _trailers(error)})
            return
        await send(_END)
        await send(_TRAILERS_OK)


class _Requests:
    """The request messages of a streaming call, read by a task of their own.

    The queue is bounded: a client that sends faster than the handler takes is held by flow control. When the client
    disconnects, the task that serves the call is cancelled.
    """

    def __init__(self, receive: Receive, deframer: Deframer) -> None:
        self._receive = receive
        self._deframer = deframer
        self._queue: asyncio.Queue[bytes | StatusError | None] = asyncio.Queue(_QUEUED_MESSAGES)
        self._gone = False

    async def __aenter__(self) -> "_Requests":
        self._call = asyncio.current_task()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._reader.cancel()
        if self._gone and kind is asyncio.CancelledError:
            assert self._call is not None
            self._call.uncancel()
            raise _Disconnected from error

    async def _read(self) -> None:
        try:
            ended = False
            while True:
                event = await self._receive()
                if event["type"] == "http.disconnect":
                    self._gone = True
                    assert self._call is not None
                    self._call.cancel()
                    return
                for message in self._deframer.feed(event.get("body", b"")):
                    await self._queue.put(message)
                if not event.get("more_body", False) and not ended:
                    ended = True
                    self._deframer.finish()
                    await self._queue.put(None)
        except StatusError as error:
            await self._queue.put(error)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        message = await self._queue.get()
        if message is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        if isinstance(message, StatusError):
            raise message
        return message

    async def only(self) -> bytes:
        """The one request of a server-streaming call."""
        async for message in self:
            return message
        raise StatusError(Code.INTERNAL, "grpc: the call has no request message")


async def _whole_request(receive: Receive, deframer: Deframer) -> bytes:
    event = await receive()
    messages: list[bytes] = []
    while True:
        if event["type"] == "http.disconnect":
            raise _Disconnected
        messages += deframer.feed(event.get("body", b""))
        if not event.get("more_body", False):
            break
        event = await receive()
    deframer.finish()
    if len(messages) != 1:
        raise StatusError(Code.INTERNAL, f"grpc: a unary call has one request message, not {len(messages)}")
    return messages[0]


async def _guard(answer: Awaitable[bytes | list[bytes]]) -> bytes | list[bytes]:
    try:
        return await answer
    except Exception as error:
        raise _as_status(error) from error


async def _guarded(responses: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for response in responses:
            yield response
    except Exception as error:
        raise _as_status(error) from error


def _as_status(error: Exception) -> Exception:
    if isinstance(error, StatusError | TimeoutError):
        return error
    logger.error("a handler failed", exc_info=error)
    return StatusError(Code.INTERNAL, f"internal error: {type(error).__name__}")


def _is_grpc(content_type: bytes) -> bool:
    kind = content_type[:16].lower()
    return kind == b"application/grpc" and content_type[16:17] in (b"", b"+", b";")


def _trailers(error: StatusError) -> list[tuple[bytes, bytes]]:
    return [(b"grpc-status", b"%d" % error.code), (b"grpc-message", percent_encode(error.message))]


async def _fail(send: Send, error: StatusError) -> None:
    """Answer with the status alone.

    Not as one HEADERS frame ("trailers-only"): ASGI cannot ask for that, and a server that ends the stream in a frame
    of its own would make headers of it, which clients do not take for a status.
    """
    await send(_START)
    await send(_END)
    await send({"type": "http.response.trailers", "headers": _trailers(error)})


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _other_scope(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
