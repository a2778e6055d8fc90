"""One outgoing gRPC call that streams requests, on an HTTP/2 connection of its own (RFC 9113).

Written by hand because every message between members goes this way: see docs/decisions on the peer streams. What a
general client has and this call does not need is left out: one stream, no push, no priorities, no answer but a status.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast
from urllib.parse import unquote

import hpack

PING_SECONDS = 5.0
PONG_SECONDS = 3.0
"""A member that vanishes without a word is noticed after the sum of these."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 2, 4, 5
_CANCEL = 8
_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_STREAM = 1
_DEFAULT_WINDOW = 65_535
_DEFAULT_FRAME_BYTES = 16_384


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    size = len(payload)
    return b"".join((_HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream), payload))


class Call(asyncio.Protocol):
    """A call whose requests are sent by `write`; `ended` says how it ended: gRPC status or None, and a text.

    Invariants:
    1. `_waiting` holds, in order, what the receiver's windows do not let through yet.
    2. Once `ended` is done nothing more is written.
    """

    def __init__(
        self,
        path: str,
        authority: str,
        metadata: Sequence[tuple[str, str]],
        on_writable: Callable[[], None],
        on_round_trip: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Prepare a call; `on_writable` is called whenever `congested` has turned false.

        `on_round_trip` is told how long each answered ping took, in seconds.
        """
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[tuple[int | None, str]] = self._loop.create_future()
        self._on_writable = on_writable
        self._on_round_trip = on_round_trip
        self._pinged_at = 0.0
        self._path = path
        self._authority = authority
        self._metadata = metadata
        self._transport: asyncio.Transport | None = None
        self._decoder = hpack.Decoder()
        self._received = b""
        self._header_block = b""
        self._answer: dict[str, str] = {}
        self._waiting: deque[memoryview] = deque()
        self._connection_window = self._stream_window = self._initial_window = _DEFAULT_WINDOW
        self._frame_bytes = _DEFAULT_FRAME_BYTES
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def congested(self) -> bool:
        """Whether what is written now would have to wait."""
        return self._paused or bool(self._waiting)

    def write(self, message: bytes) -> None:
        """Send one request message; what may not leave yet is kept."""
        if not self.ended.done():
            self._waiting.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
            self._send()

    def close(self) -> None:
        """Drop the connection and whatever waits."""
        self._end(None, "closed here")

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the HTTP/2 connection and the call in one write."""
        # Not every loop's transports inherit from asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        if self.ended.done():
            transport.abort()
            return
        headers = [
            (":method", "POST"),
            (":scheme", "http" if transport.get_extra_info("ssl_object") is None else "https"),
            (":path", self._path),
            (":authority", self._authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *self._metadata,
        ]
        settings = _frame(_SETTINGS, 0, 0, _SETTING.pack(_ENABLE_PUSH, 0))
        opening = _frame(_HEADERS, _END_HEADERS, _STREAM, hpack.Encoder().encode(headers))
        transport.write(_PREFACE + settings + opening)
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole."""
        received = self._received + data
        start = 0
        try:
            while len(received) - start >= _HEAD.size:
                high, low, kind, flags, stream = _HEAD.unpack_from(received, start)
                body = start + _HEAD.size
                end = body + (high << 8 | low)
                if end - body > _DEFAULT_FRAME_BYTES:
                    raise ValueError("a frame larger than was allowed")
                if end > len(received):
                    break
                self._take(kind, flags, stream & 0x7FFFFFFF, received[body:end])
                if self.ended.done():
                    return
                start = end
        except (ValueError, IndexError, struct.error, hpack.HPACKError) as error:
            self._end(None, f"what listens there does not speak HTTP/2: {error}")
        self._received = received[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call, unless its status came before."""
        self._end(None, "the connection was lost" if exc is None else f"the connection was lost: {exc}")

    def pause_writing(self) -> None:
        """Note that the socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._opened()

    # Frames that come

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big") & 0x7FFFFFFF)
        elif kind == _PING:
            self._take_ping(flags, payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self._take_headers(kind, flags, payload)
        elif kind == _RST_STREAM:
            self._finish(f"the call was reset with HTTP/2 error {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY and int.from_bytes(payload[:4], "big") < _STREAM:
            self._finish("the member refuses calls")
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM and not self._header_block:
            self._finish("the call was ended")

    def _take_settings(self, payload: bytes) -> None:
        for name, value in _SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == _MAX_FRAME_SIZE:
                self._frame_bytes = value
        self._put(_frame(_SETTINGS, _ACK, 0, b""))
        if not self.ready.done():
            self.ready.set_result(None)
        self._opened()

    def _widen(self, stream: int, size: int) -> None:
        if stream == 0:
            self._connection_window += size
        elif stream == _STREAM:
            self._stream_window += size
        self._opened()

    def _take_headers(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _HEADERS and flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == _HEADERS and flags & _PRIORITY:
            payload = payload[5:]
        self._header_block += payload
        if flags & _END_HEADERS:
            block, self._header_block = self._header_block, b""
            decoded = self._decoder.decode(block, raw=True)
            self._answer.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in decoded)
            if "grpc-status" in self._answer:
                self._finish("")

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if not flags & _ACK:
            self._put(_frame(_PING, _ACK, 0, payload))
        elif self._timer is not None:
            # The loop's clock may stand still during a turn.
            self._on_round_trip(time.monotonic() - self._pinged_at)
            self._timer.cancel()
            self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def _ping(self) -> None:
        self._pinged_at = time.monotonic()
        self._put(_frame(_PING, 0, 0, bytes(8)))
        silence = f"no sign of life for {PING_SECONDS + PONG_SECONDS:g} s"
        self._timer = self._loop.call_later(PONG_SECONDS, self._end, None, silence)

    # Frames that go

    def _put(self, frame: bytes) -> None:
        if self._transport is not None and not self.ended.done():
            self._transport.write(frame)

    def _send(self) -> None:
        """Send what waits, as far as the windows allow."""
        frames: list[bytes] = []
        while self._waiting:
            head = self._waiting[0]
            size = min(len(head), self._connection_window, self._stream_window, self._frame_bytes)
            if size <= 0:
                break
            frames.append(_frame(_DATA, 0, _STREAM, head[:size]))
            self._connection_window -= size
            self._stream_window -= size
            if size == len(head):
                self._waiting.popleft()
            else:
                self._waiting[0] = head[size:]
        if frames:
            self._put(b"".join(frames))

    def _opened(self) -> None:
        self._send()
        if not self.congested:
            self._on_writable()

    # The end

    def _finish(self, text: str) -> None:
        status = self._answer.get("grpc-status", "")
        if status.isdecimal():
            self._end(int(status), unquote(self._answer.get("grpc-message", "")))
        else:
            http = self._answer.get(":status", "200")
            self._end(None, text if http == "200" else f"HTTP status {http}")

    def _end(self, code: int | None, text: str) -> None:
        if self.ended.done():
            return
        opened = self.ready.done()
        self.ended.set_result((code, text))
        self.ready.cancel()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is None:
            return
        # Before the peer has answered there is nothing to end in good order. Besides, uvloop closes the transport of an
        # attempt to connect that was cancelled, without a word and without `is_closing`: to write there is an error.
        if not opened or self._paused or self._transport.is_closing():
            self._transport.abort()
        else:
            reset = _frame(_RST_STREAM, 0, _STREAM, _CANCEL.to_bytes(4, "big"))
            self._transport.write(reset + _frame(_GOAWAY, 0, 0, bytes(8)))
            self._transport.close()
