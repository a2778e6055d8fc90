"""A client that speaks HTTP/2 by hand, so that it can break every rule a gRPC library keeps."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

Headers = list[tuple[str, str]]
WAIT_SECONDS = 90.0


@dataclass
class Answer:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    header_blocks: int = 0
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> tuple[int, str]:
        """grpc-status and the decoded grpc-message."""
        return int(self.trailers["grpc-status"]), unquote(self.trailers.get("grpc-message", ""))

    @property
    def messages(self) -> list[bytes]:
        """The whole messages so far, which must be uncompressed."""
        found, rest = [], bytes(self.body)
        while len(rest) >= 5 and len(rest) >= 5 + (size := int.from_bytes(rest[1:5], "big")):
            assert rest[0] == 0, "an answer is never compressed unasked"
            found.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return found


class Wire:
    """One connection. Received data is acknowledged unless `acknowledge` is off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.reader = reader
        self.writer = writer
        self.answers: dict[int, Answer] = {}
        self.pings = 0
        self.goaways: list[h2.events.ConnectionTerminated] = []
        self.frame_types: list[int] = []
        self._unread = b""
        self.closed = False
        self.acknowledge = True

    async def start(self, settings: dict[h2.settings.SettingCodes, int] | None = None) -> None:
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            with contextlib.suppress(ConnectionError):
                self.writer.write(data)
                await self.writer.drain()

    async def open(
        self, path: str, extra: Headers | None = None, *, body: bytes = b"", end: bool = False, **replace: str | None
    ) -> int:
        """Begin a request; `replace` gives standard headers other values (`_` for `-`), None leaves one out.

        `body` leaves in the same piece as the headers.
        """
        standard = {
            ":method": "POST",
            ":path": path,
            ":scheme": "http",
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        values = {name: replace.get(name.lstrip(":").replace("-", "_"), value) for name, value in standard.items()}
        headers = [(name, value) for name, value in values.items() if value is not None]
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, headers + (extra or []), end_stream=end and not body)
        if body:
            self.h2.send_data(stream, body, end_stream=end)
        await self.flush()
        return stream

    async def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send a part of a request, as fast as the server's windows allow."""
        while len(data) > (room := self.room(stream)):
            if room:
                self.h2.send_data(stream, data[:room])
                data = data[room:]
            await self.flush()
            if not self.room(stream):
                await self.until(lambda: self.room(stream) > 0)
        self.h2.send_data(stream, data, end_stream=end)
        await self.flush()

    def room(self, stream: int) -> int:
        """How much one frame on this stream may carry now."""
        return min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)

    async def reset(self, stream: int) -> None:
        """Cancel a call as gRPC libraries do."""
        self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        await self.flush()

    async def ping(self) -> None:
        """Send a ping and wait for its answer."""
        sent = self.pings + 1
        self.h2.ping(bytes(8))
        await self.flush()
        await self.until(lambda: self.pings >= sent)

    async def call(self, path: str, body: bytes, extra: Headers | None = None, **replace: str | None) -> Answer:
        """Send a whole request and wait for the whole answer."""
        stream = await self.open(path, extra, **replace)
        await self.data(stream, body, end=True)
        return await self.end_of(stream)

    async def end_of(self, stream: int) -> Answer:
        answer = self.answers[stream]
        await self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until the condition holds.

        Raises:
            ConnectionError: the connection ended before.
        """
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                if self.closed:
                    raise ConnectionError(f"closed early, after {self.goaways}")
                await self.read()

    async def read(self) -> None:
        """Take what the server sent."""
        try:
            data = await self.reader.read(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        # Frame by frame: of what follows a GOAWAY in the same piece, h2 would hear nothing.
        data, start = self._unread + data, 0
        while len(data) >= start + 9:
            end = start + 9 + int.from_bytes(data[start : start + 3], "big")
            if len(data) < end:
                break
            self.frame_types.append(data[start + 3])
            for event in self.h2.receive_data(data[start:end]):
                self._take(event)
            start = end
        self._unread = data[start:]
        await self.flush()

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                answer = self.answers[event.stream_id]
                answer.headers = dict(event.headers)
                answer.header_blocks += 1
                if "grpc-status" in answer.headers:
                    answer.trailers = answer.headers
            case h2.events.DataReceived():
                self.answers[event.stream_id].body += event.data
                if self.acknowledge and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                answer = self.answers[event.stream_id]
                answer.trailers = dict(event.headers)
                answer.header_blocks += 1
            case h2.events.StreamEnded():
                self.answers[event.stream_id].ended = True
            case h2.events.StreamReset():
                self.answers[event.stream_id].reset = event.error_code
            case h2.events.PingAckReceived():
                self.pings += 1
            case h2.events.ConnectionTerminated():
                self.goaways.append(event)
                if event.error_code == 0:
                    # h2 takes every GOAWAY for the end; streams that were accepted go on after a graceful one.
                    self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN


@contextlib.asynccontextmanager
async def connect(
    address: str,
    settings: dict[h2.settings.SettingCodes, int] | None = None,
) -> AsyncIterator[Wire]:
    host, port = address.rsplit(":", 1)
    # A small buffer in the kernel, so that what the server sends first is soon seen first.
    dialling = socket.socket()
    dialling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    dialling.setblocking(False)
    await asyncio.get_running_loop().sock_connect(dialling, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=dialling, limit=1 << 20)
    wire = Wire(reader, writer)
    await wire.start(settings)
    try:
        yield wire
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def message(data: bytes, flag: int = 0) -> bytes:
    """Frame one message."""
    return bytes([flag]) + len(data).to_bytes(4, "big") + data
