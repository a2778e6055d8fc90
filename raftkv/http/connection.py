"""One HTTP/2 connection of a client (RFC 9113), which hands each request to an ASGI application.

Everything happens in the event loop, in the turn that brings it: no thread and no queue lies between the socket and
the application. Small frames that leave in one turn leave in one write.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

from raftkv.http import frames
from raftkv.http.asgi import DIRECT, ASGIApp, Scope
from raftkv.http.frames import ErrorCode, ProtocolError
from raftkv.http.requests import HeaderReader, Malformed
from raftkv.http.stream import Stream

logger = logging.getLogger(__name__)

STREAM_WINDOW_BYTES = 4 << 20
"""How much of a request is taken before the application reads it."""
CONNECTION_WINDOW_BYTES = 16 * STREAM_WINDOW_BYTES
"""The same for all streams of a connection. Were it no larger, one request that nobody reads would hold all others."""
MAX_STREAMS = (1 << 32) - 1
MAX_BLOCK_BYTES = 256 << 10
MAX_CONTROL_BYTES = 1 << 20
"""A client that provokes more answers than this, and reads none of them, loses its connection."""
_WRITE_BYTES = 64 << 10


class Connection(asyncio.Protocol):
    """The server's side of a connection.

    Invariants:
    1. `_streams` has those whose response is not complete; each other one is forgotten.
    2. `_ready` has, in turn, the streams that wait for nothing but the connection's window or its socket.
    """

    def __init__(self, app: ASGIApp, max_concurrent_streams: int, forget: Callable[["Connection"], None]) -> None:
        """`forget` is called when the connection is over."""
        self._loop = asyncio.get_running_loop()
        self._app = app
        self._max_streams = max_concurrent_streams
        self._forget = forget
        self._transport: asyncio.Transport | None = None
        self._client: tuple[str, int] | None = None
        self._greeted = False
        self._closed = False
        self._leaving = False
        # What comes
        self._received = b""
        self._reader = HeaderReader({})
        self._block = b""
        self._block_of = 0
        self._block_flags = 0
        self._last_stream = 0
        self._streams: dict[int, Stream] = {}
        self._running: set[Stream] = set()
        self._begun: list[tuple[Stream, Scope]] = []
        self._receivable = CONNECTION_WINDOW_BYTES
        self._owed = 0
        # What leaves
        self._window = self._initial_window = frames.DEFAULT_WINDOW
        self._prefix = b""
        self._paused = False
        self._ready: deque[Stream] = deque()
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._flushing = False
        self._corked = False

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Speak first."""
        # Not every loop's transports inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._client = address(transport, "peername")
        self._reader = HeaderReader({"client": self._client, "server": address(transport, "sockname")})
        self.write(
            frames.settings(
                [
                    (frames.MAX_CONCURRENT_STREAMS, min(self._max_streams, MAX_STREAMS)),
                    (frames.INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES),
                    (frames.MAX_HEADER_LIST_SIZE, MAX_BLOCK_BYTES),
                ]
            )
            + frames.number(frames.WINDOW_UPDATE, 0, CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW)
        )

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole, then begin the requests they brought."""
        if self._closed:
            return
        self._corked = True
        try:
            self._received = self._take_all(self._received + data if self._received else data)
        except ProtocolError as error:
            self._fail(error)
        self._begin()
        self._corked = False
        self._write_out()

    def eof_received(self) -> None:
        """A client that closes its half is gone: the transport closes, too."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End every request."""
        self._closed = True
        self._out.clear()
        self._ready.clear()
        for stream in tuple(self._streams.values()):
            self._drop(stream)
        self._forget(self)

    def pause_writing(self) -> None:
        """Note that the socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._pump()

    # Frames that come

    def _take_all(self, data: bytes) -> bytes:
        """Take every whole frame; the rest."""
        start, size = 0, len(data)
        if not self._greeted:
            if size < len(frames.PREFACE):
                return data
            if not data.startswith(frames.PREFACE):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
            self._greeted = True
            start = len(frames.PREFACE)
        unpack = frames.HEAD.unpack_from
        while size - start >= frames.HEAD.size:
            high, low, kind, flags, stream = unpack(data, start)
            if high or low > frames.FRAME_BYTES:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a frame larger than was allowed")
            body = start + frames.HEAD.size
            start = body + low
            if start > size:
                return data[body - frames.HEAD.size :]
            self._take(kind, flags, stream & frames.STREAM_MASK, data[body:start])
            if self._closed:
                return b""
        return data[start:]

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block_of and kind != frames.CONTINUATION:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "headers were interrupted")
        if kind == frames.DATA:
            self._take_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._take_headers(flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._take_window(stream_id, payload)
        elif kind == frames.PING:
            self._take_ping(flags, stream_id, payload)
        elif kind == frames.SETTINGS:
            self._take_settings(flags, stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._take_reset(stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._take_continuation(flags, stream_id, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "clients push nothing")
        elif kind == frames.GOAWAY:
            # The client begins no more; it closes the connection when it has its answers.
            self._leaving = True
            self._leave_if_idle()

    def _take_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receivable -= size
        if self._receivable < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more was sent than the connection's window allows")
        stream = self._streams.get(stream_id)
        if stream is None or stream.request_ended:
            if stream_id > self._last_stream or not stream_id & 1:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "data of a stream that was not begun")
            self._give_back(size)
            return
        stream.receivable -= size
        if stream.receivable < 0:
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
            self._give_back(size)
            return
        data = _unpadded(payload) if flags & frames.PADDED else payload
        if len(data) < size:
            self.read(stream, size - len(data))
        stream.arrived(data)
        if flags & frames.END_STREAM:
            stream.end_request()

    def _take_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = _unpadded(payload)
        if flags & frames.PRIORITISED:
            payload = payload[5:]
        if not stream_id & 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "clients begin streams of odd numbers")
        if flags & frames.END_HEADERS:
            self._take_block(flags, stream_id, payload)
        else:
            self._block, self._block_of, self._block_flags = payload, stream_id, flags

    def _take_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != self._block_of or not stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        self._block += payload
        if len(self._block) > MAX_BLOCK_BYTES or (not payload and not flags & frames.END_HEADERS):
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "headers without end")
        if flags & frames.END_HEADERS:
            block, self._block, self._block_of = self._block, b"", 0
            self._take_block(self._block_flags, stream_id, block)

    def _take_block(self, flags: int, stream_id: int, block: bytes) -> None:
        if stream_id <= self._last_stream:
            self._take_trailers(flags, stream_id, block)
            return
        try:
            scope = self._reader.scope(block)
        except Malformed:
            self._last_stream = stream_id
            self.write(frames.number(frames.RST_STREAM, stream_id, ErrorCode.PROTOCOL_ERROR))
            return
        if self._leaving:
            # What the GOAWAY said: never begun. The client asks elsewhere.
            return
        self._last_stream = stream_id
        if len(self._streams) + len(self._running) >= 2 * self._max_streams or len(self._streams) >= self._max_streams:
            self.write(frames.number(frames.RST_STREAM, stream_id, ErrorCode.REFUSED_STREAM))
            return
        stream = Stream(self, stream_id, self._initial_window, STREAM_WINDOW_BYTES)
        self._streams[stream_id] = stream
        self._begun.append((stream, scope))
        if flags & frames.END_STREAM:
            stream.end_request()

    def _take_trailers(self, flags: int, stream_id: int, block: bytes) -> None:
        """Take the end of a request; of one that is over already the block still changes the decoder's table."""
        self._reader.headers(block)
        stream = self._streams.get(stream_id)
        if stream is None or stream.request_ended:
            return
        if flags & frames.END_STREAM:
            stream.end_request()
        else:
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)

    def _take_window(self, stream_id: int, payload: bytes) -> None:
        size = _number(payload) & frames.STREAM_MASK
        if stream_id == 0:
            self._window += size
            if not size or self._window > frames.MAX_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window that cannot be")
            self._pump()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_stream:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a window of a stream that was not begun")
            return
        if not size or stream.window + size > frames.MAX_WINDOW:
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR if size else ErrorCode.PROTOCOL_ERROR)
            return
        stream.window += size
        self._queue(stream)
        self._pump()

    def _take_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8 or stream_id:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a ping has 8 bytes and no stream")
        if not flags & frames.ACK:
            self._answer(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _take_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % frames.SETTING.size:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "settings have 6 bytes each and no stream")
        if flags & frames.ACK:
            return
        for name, value in frames.SETTING.iter_unpack(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                self._set_initial_window(value)
            elif name == frames.HEADER_TABLE_SIZE and value < frames.DEFAULT_TABLE_BYTES:
                # The next header block has to confirm it; a table of no size at all is never too large.
                self._prefix = b"\x20"
        self._answer(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._pump()

    def _set_initial_window(self, size: int) -> None:
        if size > frames.MAX_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window that cannot be")
        change, self._initial_window = size - self._initial_window, size
        for stream in self._streams.values():
            stream.window += change
            self._queue(stream)

    def _take_reset(self, stream_id: int, payload: bytes) -> None:
        _number(payload)
        if not stream_id or stream_id > self._last_stream:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a reset of a stream that was not begun")
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)

    # Requests

    def _begin(self) -> None:
        """Run the application for requests that began; one that was reset in the same breath never runs."""
        begun, self._begun = self._begun, []
        for stream, scope in begun:
            if not stream.closed:
                self._running.add(stream)
                extensions = {**scope["extensions"], DIRECT: stream}
                call = self._app({**scope, "extensions": extensions}, stream.receive, stream.send)
                stream.task = self._loop.create_task(call)  # type: ignore[arg-type]
                stream.task.add_done_callback(partial(self._returned, stream))

    def _returned(self, stream: Stream, task: "asyncio.Task[None]") -> None:
        self._running.discard(stream)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a request failed", exc_info=error)
        if not stream.complete:
            self._reset(stream, ErrorCode.INTERNAL_ERROR)
        self._leave_if_idle()

    def read(self, stream: Stream, size: int) -> None:
        """Note that the application has taken so many bytes of a request; the client may send as many more."""
        self._give_back(size)
        stream.owed += size
        if stream.owed >= STREAM_WINDOW_BYTES // 2 and not stream.request_ended:
            stream.receivable += stream.owed
            self.write(frames.number(frames.WINDOW_UPDATE, stream.id, stream.owed))
            stream.owed = 0

    def _give_back(self, size: int) -> None:
        self._owed += size
        if self._owed >= CONNECTION_WINDOW_BYTES // 2:
            self._receivable += self._owed
            self.write(frames.number(frames.WINDOW_UPDATE, 0, self._owed))
            self._owed = 0

    def answered(self, stream: Stream) -> None:
        """Note that a response has been sent whole; a client that still sends its request may stop."""
        if not stream.request_ended:
            self.write(frames.number(frames.RST_STREAM, stream.id, ErrorCode.NO_ERROR))
        self._streams.pop(stream.id, None)
        self._give_back(stream.unread)
        stream.close()
        if not self._streams and not self._corked:
            # Nobody else's answer can join this one.
            self._write_out()

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        self.write(frames.number(frames.RST_STREAM, stream.id, code))
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        """End a request whose client is gone."""
        self._streams.pop(stream.id, None)
        self._give_back(stream.unread)
        stream.close()
        if stream.task is not None:
            stream.task.cancel()

    # Frames that leave

    def block_prefix(self) -> bytes:
        """What the next header block must begin with."""
        prefix, self._prefix = self._prefix, b""
        return prefix

    def write(self, data: bytes) -> None:
        """Send a frame that no window holds."""
        self._out.append(data)
        self._out_bytes += len(data)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing and not self._corked:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _answer(self, data: bytes) -> None:
        """Send what the client provoked."""
        self.write(data)
        assert self._transport is not None
        if self._paused and self._out_bytes + self._transport.get_write_buffer_size() > MAX_CONTROL_BYTES:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "answers are not read")

    def claim(self, stream: Stream, size: int) -> bool:
        """Whether a frame of so much data may leave now; if so, it counts as sent."""
        if size > frames.FRAME_BYTES or size > self._window or size > stream.window or self._paused or stream.unsent:
            return False
        self._window -= size
        stream.window -= size
        return True

    def send(self, stream: Stream, data: bytes) -> None:
        """Send a piece of a response, as far as windows and the socket allow; the rest is kept."""
        size = len(data)
        if self.claim(stream, size):
            self._out.append(frames.HEAD.pack(0, size, frames.DATA, 0, stream.id))
            self.write(data)
            return
        stream.unsent.append(memoryview(data))
        stream.unsent_bytes += size
        self._queue(stream)
        self._pump()

    def _queue(self, stream: Stream) -> None:
        if stream.unsent and stream.window > 0 and not stream.queued:
            stream.queued = True
            self._ready.append(stream)

    def _pump(self) -> None:
        """Send what waits, a frame of each stream in turn."""
        ready = self._ready
        while ready and self._window > 0 and not self._paused:
            stream = ready.popleft()
            stream.queued = False
            if stream.unsent:
                self._send_frame(stream)
                self._queue(stream)
                stream.sent()

    def _send_frame(self, stream: Stream) -> None:
        piece = stream.unsent[0]
        size = min(len(piece), self._window, stream.window, frames.FRAME_BYTES)
        if size == len(piece):
            stream.unsent.popleft()
        else:
            stream.unsent[0] = piece[size:]
            piece = piece[:size]
        self._window -= size
        stream.window -= size
        stream.unsent_bytes -= size
        self._out.append(frames.HEAD.pack(0, size, frames.DATA, 0, stream.id))
        self._out.append(piece)
        self._out_bytes += size
        if self._out_bytes >= _WRITE_BYTES:
            self._write_out()
        else:
            self._flush_soon()

    def _flush(self) -> None:
        self._flushing = False
        self._write_out()

    def _write_out(self) -> None:
        if self._out and not self._closed:
            assert self._transport is not None
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._transport.write(data)

    # The end

    def leave(self) -> None:
        """Say that no request is begun any more, and close when those under way are answered."""
        if not self._leaving and not self._closed:
            self._leaving = True
            self.write(frames.goaway(self._last_stream, ErrorCode.NO_ERROR))
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._leaving and not self._streams and not self._running and not self._closed:
            self._close()

    def abort(self) -> None:
        """End what still runs, and the connection."""
        for stream in tuple(self._running):
            self._drop(stream)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: ProtocolError) -> None:
        logger.debug("a connection of %s ends: %s", self._client, error)
        self.write(frames.goaway(self._last_stream, error.code, str(error)))
        self._close()

    def _close(self) -> None:
        assert self._transport is not None
        self._write_out()
        self._closed = True
        if self._paused:
            # It may never take what waits.
            self._transport.abort()
        else:
            self._transport.close()


def _unpadded(payload: bytes) -> bytes:
    padding = payload[0] if payload else 1
    if padding >= len(payload):
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - padding]


def _number(payload: bytes) -> int:
    if len(payload) != 4:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a frame of another size")
    return int.from_bytes(payload, "big")


def address(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    """One end of a connection, as ASGI wants it; None when there is none, as with Unix sockets."""
    name = transport.get_extra_info(which)
    return name[:2] if isinstance(name, tuple) else None
