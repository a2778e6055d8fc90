"""Nothing of a connection waits for the garbage collector: all others would wait while it looks for it."""

import asyncio
import gc
from collections.abc import Callable, Iterator

import pytest

from raftkv.http import HttpServer, frames, listen
from raftkv.http.asgi import ASGIApp, Receive, Scope, Send
from tests.unit.http.memory import GET, POST, plain, read_all, wait
from tests.unit.http.test_hostile import HELLO, requests
from tests.unit.rpc.service import Service
from tests.unit.rpc.wire import message


async def begin(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a part, and waits until the client is gone."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await wait(scope, receive, send)


CLOSED = frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)])
CALL = [(":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers")]
TALK = [*POST[:2], (":path", "/test.Service/Talk"), *CALL]
# What may be compressed is no call without a task.
ECHO = [*POST[:2], (":path", "/test.Service/Echo"), *CALL, ("grpc-encoding", "gzip")]


def data(body: bytes) -> Callable[[int], bytes]:
    return lambda stream: frames.frame(frames.DATA, frames.END_STREAM, stream, body)


TALKS: dict[str, tuple[ASGIApp, bytes, bool]] = {
    "answered": (plain(b"ok"), HELLO + requests(5, GET), True),
    "gone before the application runs": (plain(b"ok"), HELLO + requests(5, GET), False),
    "gone while the application waits": (wait, HELLO + requests(5, GET), True),
    "gone in the midst of a body": (read_all, HELLO + requests(5, POST), True),
    "gone with closed windows": (plain(b"x" * 1000), HELLO + CLOSED + requests(5, GET), True),
    "gone in the midst of a large answer": (plain(b"x" * (1 << 20)), HELLO + requests(5, GET), True),
    "gone in the midst of a frame": (plain(b"ok"), HELLO + requests(5, GET)[:-3], True),
    "ended for what it sent": (plain(b"ok"), HELLO + requests(5, GET) + frames.frame(frames.DATA, 0, 0), True),
    "HTTP/1.1": (plain(b"ok"), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
    "HTTP/1.1, gone in the midst of an answer": (begin, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
    "streams that end amid a message": (Service().app(), HELLO + requests(5, TALK, data(message(b"x")[:-1])), True),
    "calls that are refused": (Service().app(), HELLO + requests(5, ECHO, data(message(b"refuse"))), True),
    "a stream of calls": (Service().app(), HELLO + requests(5, TALK), True),
}


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    """What only the collector would have freed, once it was called."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(0)
    gc.garbage.clear()
    gc.collect()


@pytest.mark.parametrize("name", TALKS)
def test_what_is_over_is_freed_at_once(name: str, garbage: list[object]) -> None:
    app, said, hears = TALKS[name]

    async def scenario() -> None:
        server = HttpServer(app, listen("127.0.0.1", 0), grace_seconds=5.0)
        await server.start()
        reader, writer = await asyncio.open_connection(*server.address.split(":"))
        writer.write(said)
        if hears:
            await reader.read(1)
            for _ in range(10):
                await asyncio.sleep(0)
        writer.transport.abort()
        async with asyncio.timeout(30):
            while server.load.connections:
                await asyncio.sleep(0)
        del reader, writer
        gc.collect()
        left = {kind.__name__ for kind in map(type, garbage) if kind.__module__.startswith("raftkv")}
        garbage.clear()
        await server.stop()
        assert left == set()

    asyncio.run(asyncio.wait_for(scenario(), 60))
