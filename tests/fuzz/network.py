"""Fuzz targets of what strangers send: HTTP/2 frames, header blocks, HTTP/1.1 and WebSockets, gRPC, JSON."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import hpack

from raftkv.gateway import Gateway
from raftkv.gateway.codec import decode, encode
from raftkv.gateway.routes import Route, routes
from raftkv.http.frames import DEFAULT_TABLE_BYTES, ProtocolError
from raftkv.http.hpack import ENTRY_BYTES, Decoder
from raftkv.http.http1 import Http1
from raftkv.rpc import App, Context, Method
from raftkv.status import Code
from tests.fuzz.bytestream import Choices
from tests.fuzz.target import Target
from tests.unit.http import memory
from tests.unit.http.test_fuzz import REQUESTS, conversation, converse, mixed
from tests.unit.http.test_websocket import UPGRADE, accept, frame

MESSAGE_BYTES = 1000
LIST_BYTES = 2000

loop = asyncio.new_event_loop()


class Complaints(logging.Handler):
    """What was logged as an error, and what the loop was told: nobody else would hear of either."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []
        logging.getLogger("raftkv").addHandler(self)
        loop.set_exception_handler(lambda _, context: self.heard.append(str(context)))

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a log line."""
        self.heard.append(record.getMessage())

    def check(self) -> None:
        """Raise what was heard."""
        heard, self.heard = self.heard, []
        assert not heard, heard


complaints = Complaints()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run to the end; whoever waits for nothing is found by the alarm of the search."""
    # What other tests of this process were told is theirs.
    complaints.heard.clear()
    task = loop.create_task(scenario)
    try:
        loop.run_until_complete(task)
    finally:
        task.cancel()
    complaints.check()


# Frames and headers


def http2(data: bytes) -> None:
    """A connection answers, or ends; it raises nothing and keeps nothing."""
    run(converse(list(Choices(data).pieces())))


def conversations() -> tuple[bytes, ...]:
    async def said() -> bytes:
        return conversation(memory.Client(memory.App()))

    whole = loop.run_until_complete(said())
    return b"\0" + whole, b"\4" + whole


def header_blocks(data: bytes) -> None:
    """Blocks of one connection: decoded within the limits, as the library decodes them, or refused."""
    ours, theirs = Decoder(LIST_BYTES), hpack.Decoder(LIST_BYTES)
    theirs.max_allowed_table_size = DEFAULT_TABLE_BYTES
    choices = Choices(data)
    while block := choices.text():
        try:
            headers = ours.decode(block)
        except ProtocolError:
            return
        assert sum(len(name) + len(value) + ENTRY_BYTES for name, value in headers) <= LIST_BYTES
        try:
            expected = theirs.decode(block, raw=True)
        except hpack.HPACKError:
            # It is stricter with the padding of strings; what it cannot read is not compared any more.
            return
        assert headers == [(bytes(name), bytes(value)) for name, value in expected]


def blocks() -> tuple[bytes, ...]:
    encoder = hpack.Encoder()
    found = b""
    for token in ("t1", "t2", "a much longer token, and with it one that is packed"):
        block = encoder.encode([*memory.GET, ("token", token), ("grpc-timeout", "5S")])
        found += bytes([len(block)]) + block
    return (found, b"\1\x20" + found, b"\3\x3f\xe1\x1f" + found)


def http1(data: bytes) -> None:
    """Requests one after the other; a WebSocket may come of one."""

    async def scenario() -> None:
        choices = Choices(data)
        app = memory.App(choices.choose((mixed, accept)))
        transport = memory.Transport()
        transport.set_protocol = lambda protocol: setattr(transport, "protocol", protocol)  # type: ignore[method-assign]
        transport.protocol = Http1(app, lambda socket: None, lambda connection: None)
        transport.protocol.connection_made(transport)
        for piece in choices.pieces():
            if transport.ended or transport.closing:
                break
            transport.protocol.data_received(piece)
            await memory.turns(1)
        await memory.turns(5)
        transport.abort()
        await memory.turns(10)
        assert app.ended == len(app.requests)

    # What the application did wrong is logged, and `accept` does wrong whatever is no WebSocket.
    logging.disable(logging.ERROR)
    try:
        run(scenario())
    finally:
        logging.disable(logging.NOTSET)


# Calls


async def respond(request: bytes, context: Context) -> bytes:
    dict(context.metadata)
    return request[:10]


async def respond_each(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request[:10]


async def respond_once(requests: AsyncIterator[bytes], context: Context) -> bytes:
    return b"%d" % len([request async for request in requests])


async def respond_often(request: bytes, context: Context) -> AsyncIterator[bytes]:
    for _ in request[:3]:
        yield request


CALLS = App(
    {
        "/s/Unary": Method.unary(respond),
        "/s/Bidi": Method.bidi(respond_each),
        "/s/Client": Method.client_stream(respond_once),
        "/s/Server": Method.server_stream(respond_often),
    },
    max_receive_bytes=MESSAGE_BYTES,
    max_send_bytes=MESSAGE_BYTES,
)
Serve = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


async def exchange(app: Serve, scope: dict[str, Any], pieces: list[bytes]) -> list[dict[str, Any]]:
    """What an application sends to a client that sends these pieces, waits for the answer, and leaves."""
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    events.append({"type": "http.request", "body": b"", "more_body": False})
    coming, sent = iter(events), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        event = next(coming, None)
        if event is None:
            await asyncio.Event().wait()
        return event or {}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await app(scope, receive, send)
    return sent


def request_scope(path: str) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": [], "client": ("127.0.0.1", 1)}


def grpc(data: bytes) -> None:
    """A call ends with a status, of which none says that raftkv is wrong."""

    async def scenario() -> None:
        choices = Choices(data)
        path = choices.choose(("/s/Unary", "/s/Bidi", "/s/Client", "/s/Server", "/s/Nothing", "/x", ""))
        headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        if encoding := choices.choose((b"", b"", b"gzip", b"identity", b"snappy")):
            headers.append((b"grpc-encoding", encoding))
        flags = choices.byte()
        if flags & 1:
            # Hours: no answer may depend on the clock.
            timeout = choices.text()
            headers.append((b"grpc-timeout", b"0" * (timeout[-1:] in (b"m", b"u", b"n")) + timeout))
        if flags & 2:
            headers.append((choices.choose((b"token", b"x-bin", b"authorization")), choices.text()))
        scope = {**request_scope(path), "headers": headers, "extensions": {"http.response.trailers": {}}}
        sent = await exchange(CALLS, scope, list(choices.pieces()))
        status = [value for event in sent for name, value in event.get("headers", ()) if name == b"grpc-status"]
        assert len(status) == 1
        assert Code(int(status[0])) not in (Code.UNKNOWN, Code.DATA_LOSS)

    run(scenario())


def grpc_seeds() -> tuple[bytes, ...]:
    import gzip

    message = b"\0\0\0\0\5hello"
    packed = gzip.compress(b"hello" * 20, mtime=0)
    compressed = b"\1" + len(packed).to_bytes(4, "big") + packed
    return (
        b"\0\0\0\0" + message,
        b"\1\0\0\1" + message * 3,
        b"\2\2\0\2" + compressed * 2 + message,
        b"\3\0\3\x0299H\0\5token\0" + message,
        b"\0\2\0\3" + compressed,
    )


ROUTES = routes()
PATHS = sorted(ROUTES)


def answering(route: Route) -> Method:
    """A handler that reads its requests, which must be what they are said to be, and answers with nothing."""

    async def one(request: bytes, context: Context) -> bytes:
        route.request.FromString(request)
        return b""

    async def many(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            route.request.FromString(request)
            yield b""

    async def several(request: bytes, context: Context) -> AsyncIterator[bytes]:
        route.request.FromString(request)
        yield b""

    if route.request_streams:
        return Method.bidi(many)
    return Method.server_stream(several) if route.response_streams else Method.unary(one)


GATEWAY = Gateway(
    App({route.call: answering(route) for route in ROUTES.values()}, max_receive_bytes=MESSAGE_BYTES),
    max_receive_bytes=MESSAGE_BYTES,
)


def gateway(data: bytes) -> None:
    """A request in JSON is answered in JSON; one that is taken means the same when it is written again."""

    async def scenario() -> None:
        choices = Choices(data)
        path = choices.choose(PATHS)
        pieces = list(choices.pieces())
        start, *bodies = await exchange(GATEWAY, request_scope(path), pieces)
        body = b"".join(event.get("body", b"") for event in bodies)
        assert start["status"] in (200, 400, 408, 429, 500, 501)
        for line in body.splitlines():
            json.loads(line)
        if start["status"] == 200 and not ROUTES[path].request_streams:
            message = decode(ROUTES[path].request, b"".join(pieces))
            assert decode(ROUTES[path].request, encode(message)) == message

    run(scenario())


def gateway_seeds() -> tuple[bytes, ...]:
    def request(path: str, body: bytes, pieces: int = 0) -> bytes:
        return bytes([PATHS.index(path), pieces]) + body

    txn = (
        b'{"compare":[{"key":"eA==","target":"VERSION","result":"EQUAL","version":"1"}],'
        b'"success":[{"request_put":{"key":"eA==","value":"eQ==","lease":-1,"prevKv":true}}],'
        b'"failure":[{"request_txn":{"success":[{"requestRange":{"key":"AA==","range_end":"AA==","limit":1e2}}]}}]}'
    )
    return (
        request("/v3/kv/txn", txn),
        request("/v3/kv/range", b'{"key":"eA==","sort_order":"DESCEND","serializable":true,"x":[null,{"y":1.5}]}'),
        request("/v3/watch", b'{"create_request":{"key":"eA==","filters":["NOPUT",1]}} {"cancel_request":{}}', 3),
        request("/v3/auth/user/add", b'{"name":"\\ud83d\\u0041\\n","password":"p","options":{"no_password":false}}'),
    )


TARGETS = (
    Target("http2", http2, conversations()),
    Target("hpack", header_blocks, blocks(), 1024),
    Target(
        "http1", http1, (b"\0\0" + REQUESTS, b"\1\0" + UPGRADE + frame(1, b"hello") + frame(9) + frame(8, b"\x03\xe8"))
    ),
    Target("grpc", grpc, grpc_seeds(), 2048),
    Target("gateway", gateway, gateway_seeds(), 3000),
)
