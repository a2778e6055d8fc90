"""A connection without a socket: what a client sends is what the test says, and what the server writes is kept."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import hpack

from raftkv.http import Load, frames
from raftkv.http.asgi import ASGIApp, Receive, Scope, Send
from raftkv.http.connection import Connection

GET = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]
POST = [(":method", "POST"), *GET[1:]]


class Transport(asyncio.Transport):
    """Keeps what is written. `stuck` is a client that does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = bytearray()
        self.waiting = 0
        self.stuck = False
        self.reading = True
        self.ended = False
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing, "nothing is written to a closed connection"
        assert not self.ended
        self.written += data
        if self.stuck:
            self.waiting += len(data)
            if self.waiting > 256 << 10:
                self.protocol.pause_writing()

    def read(self) -> None:
        """Let the client read all there is."""
        self.stuck, self.waiting = False, 0
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default


@dataclass
class Frame:
    """One frame that the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes


@dataclass
class Client:
    """Speaks frames to a `Connection`; raises whatever that raises."""

    app: ASGIApp
    max_streams: int = 1 << 20
    settings: list[tuple[int, int]] = field(default_factory=list)
    forgotten: int = 0
    load: Load | None = None
    ping_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.transport = Transport()
        self.connection = Connection(
            self.app, self.max_streams, self._forget, load=self.load, ping_seconds=self.ping_seconds
        )
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self._taken = 0
        self.connection.data_received(frames.PREFACE + frames.settings(self.settings))

    def _forget(self, connection: Connection) -> None:
        self.forgotten += 1

    def send(self, *data: bytes) -> None:
        self.connection.data_received(b"".join(data))

    def headers(self, stream: int, headers: list[tuple[str, str]], *, end: bool = True) -> bytes:
        """A HEADERS frame."""
        return frames.frame(
            frames.HEADERS, frames.END_HEADERS | (frames.END_STREAM if end else 0), stream, self.encoder.encode(headers)
        )

    def received(self) -> list[Frame]:
        """The frames since the last call."""
        found, data = [], self.transport.written
        while self._taken < len(data):
            high, low, kind, flags, stream = frames.HEAD.unpack_from(data, self._taken)
            self._taken += frames.HEAD.size
            size = high << 16 | low
            found.append(Frame(kind, flags, stream, bytes(data[self._taken : self._taken + size])))
            self._taken += size
        assert self._taken == len(data), "frames are whole"
        return found

    def resets(self) -> list[tuple[int, int]]:
        """The streams that were reset since the last call, and why."""
        return [
            (frame.stream, int.from_bytes(frame.payload, "big"))
            for frame in self.received()
            if frame.kind == frames.RST_STREAM
        ]

    def goaway(self) -> tuple[int, int] | None:
        """The last GOAWAY: the last stream it names, and why."""
        found = None
        for frame in self.received():
            if frame.kind == frames.GOAWAY:
                found = int.from_bytes(frame.payload[:4], "big"), int.from_bytes(frame.payload[4:8], "big")
        return found

    def status(self, stream: int) -> str:
        """The status of the one answer to a stream since the last call."""
        blocks = [f for f in self.received() if f.kind == frames.HEADERS and f.stream == stream]
        assert len(blocks) == 1, blocks
        return str(dict(self.decoder.decode(blocks[0].payload))[":status"])


class App:
    """Answers what each test wants; `requests` has what it saw."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None) -> None:
        self.answer = answer or plain(b"ok")
        self.requests: list[Scope] = []
        self.ended = 0
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests.append(scope)
        try:
            await self.answer(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1


def plain(body: bytes, status: int = 200) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Answers at once."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return answer


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole request, then says how long it was."""
    size, event = 0, await receive()
    while event["type"] == "http.request":
        size += len(event["body"])
        if not event["more_body"]:
            await plain(b"%d" % size)(scope, receive, send)
            return
        event = await receive()


async def wait(scope: Scope, receive: Receive, send: Send) -> None:
    """Waits until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def turns(count: int = 5) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def rested(client: Client) -> None:
    """Let the loop turn until all that was sent is taken."""
    while client.connection._resting:
        await asyncio.sleep(0)


Event = MutableMapping[str, Any]
