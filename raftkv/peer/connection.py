"""What members send each other by: gRPC calls on an HTTP/2 connection of one's own, the calling side (RFC 9113).

Written by hand because every message between members goes this way: see docs/decisions on the peer streams. What a
general client has and members do not need is left out: no push, no priorities; and since members bound neither the
streams nor the calls of a connection of their own, nothing is held back for that.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast
from urllib.parse import unquote

import hpack

from raftkv.http import frames

PING_SECONDS = 5.0
PONG_SECONDS = 3.0
"""A member that vanishes without a word is noticed after the sum of these."""

MAX_ANSWER_BYTES = 512 << 20
"""What one answer may hold: as much as a message of a member that was let in."""

PREFIX_BYTES = 5
"""What stands before each message: whether it is compressed, and its size."""

Metadata = Sequence[tuple[str, str]]

_WINDOW_BYTES = 4 << 20
_HEADER_BYTES = 256 << 10


class Stream:
    """One call: what is left to say of it, and what has been heard of its answer.

    `ended` says how it ended: gRPC status or None, and a text.
    """

    __slots__ = ("answer", "complete", "ended", "head", "number", "status", "waiting", "window")

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.head = b""
        """The frames that open it, until they are sent."""
        self.waiting: deque[memoryview] = deque()
        """In order, what the receiver's windows do not let through yet."""
        self.complete = False
        """Whether no more requests come."""
        self.window = window
        self.answer = bytearray()
        self.status: dict[str, str] = {}
        self.ended: asyncio.Future[tuple[int | None, str]] = asyncio.get_running_loop().create_future()

    def put(self, message: bytes) -> None:
        """Add a request."""
        self.waiting.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))

    def end(self, problem: str) -> None:
        """Settle it: by the status that came, or else by what went wrong."""
        self.waiting.clear()
        if self.ended.done():
            return
        status, http = self.status.get("grpc-status", ""), self.status.get(":status", "200")
        if status.isdecimal():
            self.ended.set_result((int(status), unquote(self.status.get("grpc-message", ""))))
        else:
            self.ended.set_result((None, problem if http == "200" else f"HTTP status {http}"))


class Connection(asyncio.Protocol):
    """One connection, and the calls on it.

    Invariants:
    1. `_streams` holds, by number, the calls that are not settled, `_unsaid` those of them with something left to say.
    2. Once `open` is false no call is begun any more; without calls the connection is closed then.
    3. Once it is closed nothing more is written.
    """

    def __init__(self, authority: str, on_round_trip: Callable[[float], None] = lambda seconds: None) -> None:
        """Prepare a connection; `on_round_trip` is told how long each answered ping took, in seconds."""
        self._loop = asyncio.get_running_loop()
        self.open = True
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when it is known what the other side's windows are."""
        self.closed = False
        """Whether it is over, and nothing is written any more."""
        self._authority = authority
        self._scheme = ""
        self._on_round_trip = on_round_trip
        self._streams: dict[int, Stream] = {}
        self._unsaid: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._decoder = hpack.Decoder()
        self._received = b""
        self._block: tuple[int, int, bytes] | None = None
        self._window = self._initial_window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.FRAME_BYTES
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._pinged_at = 0.0
        self._silent = False
        """Whether nothing came since it was last looked."""

    def close(self) -> None:
        """End all calls, and drop the connection and whatever waits."""
        self._end("closed here")

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the HTTP/2 connection."""
        if self.closed:
            cast(asyncio.Transport, transport).abort()
            return
        # Not every loop's transports inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._scheme = "http" if transport.get_extra_info("ssl_object") is None else "https"
        self._transport.write(self._greeting())
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def _greeting(self) -> bytes:
        wanted = frames.settings(((frames.ENABLE_PUSH, 0), (frames.INITIAL_WINDOW_SIZE, _WINDOW_BYTES)))
        return frames.PREFACE + wanted + frames.number(frames.WINDOW_UPDATE, 0, _WINDOW_BYTES)

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole."""
        self._silent = False
        received = self._received + data
        start, head = 0, frames.HEAD.size
        try:
            while len(received) - start >= head:
                high, low, kind, flags, stream = frames.HEAD.unpack_from(received, start)
                end = start + head + (high << 16 | low)
                if end - start - head > frames.FRAME_BYTES:
                    raise ValueError("a frame larger than was allowed")
                if end > len(received):
                    break
                self._take(kind, flags, stream & frames.STREAM_MASK, received[start + head : end])
                if self.closed:
                    return
                start = end
        except (ValueError, IndexError, struct.error, hpack.HPACKError) as error:
            self._end(f"what listens there does not speak HTTP/2: {error}")
        self._received = received[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        """End the calls that have no status yet."""
        self._end("the connection was lost" if exc is None else f"the connection was lost: {exc}")

    def pause_writing(self) -> None:
        """Note that the socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._go_on()

    # Frames that come

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big") & frames.MAX_WINDOW)
        elif kind == frames.DATA:
            self._take_data(flags, stream, payload)
        elif kind in (frames.HEADERS, frames.CONTINUATION):
            self._take_headers(kind, flags, stream, payload)
        elif kind == frames.PING:
            self._take_ping(flags, payload)
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._take_settings(payload)
        elif kind == frames.RST_STREAM:
            # No reset is answered with one.
            self._unsaid.pop(stream, None)
            self._settle(stream, f"the call was reset with HTTP/2 error {int.from_bytes(payload, 'big')}")
        elif kind == frames.GOAWAY:
            self.open = False
            for late in [late for late in self._streams if late > int.from_bytes(payload[:4], "big")]:
                self._settle(late, "the member refuses calls")
            self._close_if_over()

    def _widen(self, number: int, size: int) -> None:
        if number == 0:
            self._window += size
        elif (stream := self._streams.get(number)) is not None:
            stream.window += size
        self._go_on()

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        if payload:
            widened = (0,) if stream is None else (0, number)
            self._put(b"".join(frames.number(frames.WINDOW_UPDATE, one, len(payload)) for one in widened))
        if stream is None:
            return
        stream.answer += _without_padding(flags, payload)
        if len(stream.answer) > MAX_ANSWER_BYTES:
            self._settle(number, f"an answer of more than {MAX_ANSWER_BYTES} bytes", unwanted=True)
        elif flags & frames.END_STREAM:
            self._settle(number, "the call was ended")

    def _take_headers(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            payload = _without_padding(flags, payload)[5 if flags & frames.PRIORITISED else 0 :]
            self._block = number, flags, b""
        if self._block is None:
            raise ValueError("a continuation of nothing")
        number, first, before = self._block
        self._block = number, first, before + payload
        if len(self._block[2]) > _HEADER_BYTES:
            raise ValueError("headers larger than an answer has")
        if not flags & frames.END_HEADERS:
            return
        decoded = self._decoder.decode(self._block[2], raw=True)
        self._block = None
        if (stream := self._streams.get(number)) is not None:
            stream.status.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in decoded)
        if first & frames.END_STREAM:
            self._settle(number, "the call was ended")

    def _take_settings(self, payload: bytes) -> None:
        for name, value in frames.SETTING.iter_unpack(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
            elif name == frames.MAX_FRAME_SIZE:
                self._frame_bytes = value
        self._put(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if not self.ready.done():
            self.ready.set_result(None)
        self._go_on()

    # Signs of life

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self._put(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif self._timer is not None:
            # The loop's clock may stand still during a turn.
            self._on_round_trip(time.monotonic() - self._pinged_at)
            self._timer.cancel()
            self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def _ping(self) -> None:
        self._pinged_at = time.monotonic()
        self._put(frames.frame(frames.PING, 0, 0, bytes(8)))
        self._listen()

    def _listen(self) -> None:
        self._silent = True
        self._timer = self._loop.call_later(PONG_SECONDS, self._judge)

    def _judge(self) -> None:
        # The answer to a ping may be behind a long one to a call.
        if self._silent:
            self._end(f"no sign of life for {PONG_SECONDS:g} s")
        else:
            self._listen()

    # Frames that go

    def _opening(self, number: int, path: str, metadata: Metadata) -> bytes:
        """The frames that open a call."""
        headers = (
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        )
        block = frames.header_block(tuple((name.encode(), value.encode()) for name, value in headers))
        return frames.header_frames(block, number, 0)

    def _begin(self, stream: Stream) -> None:
        self._streams[stream.number] = self._unsaid[stream.number] = stream

    def _put(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _go_on(self) -> None:
        """Say what has become possible."""
        for stream in tuple(self._unsaid.values()):
            self._say(stream)

    def _say(self, stream: Stream) -> None:
        """Send of a call what the windows allow, once it is known how wide they are."""
        if not self.ready.done():
            return
        pieces: list[bytes] = []
        if stream.head:
            pieces.append(stream.head)
            stream.head = b""
        waiting = stream.waiting
        while waiting:
            data = waiting[0]
            size = min(len(data), self._window, stream.window, self._frame_bytes)
            if size <= 0:
                break
            self._window -= size
            stream.window -= size
            if size == len(data):
                waiting.popleft()
            else:
                waiting[0] = data[size:]
            flags = frames.END_STREAM if stream.complete and not waiting else 0
            pieces.append(frames.frame(frames.DATA, flags, stream.number, data[:size]))
            if flags:
                del self._unsaid[stream.number]
        # In one piece, so that the other side has a short request as a whole.
        if pieces:
            self._put(b"".join(pieces))

    # The end

    def _settle(self, number: int, problem: str, unwanted: bool = False) -> None:
        """End a call; the other side is told where more would follow: of the requests, or of an `unwanted` answer."""
        unsaid = self._unsaid.pop(number, None) is not None
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        if not stream.head and (unsaid or unwanted):
            self._put(frames.number(frames.RST_STREAM, number, frames.ErrorCode.CANCEL))
        stream.end(problem)
        self._close_if_over()

    def _close_if_over(self) -> None:
        if not self.open and not self._streams:
            self._end("closed here")

    def _end(self, problem: str) -> None:
        if self.closed:
            return
        self.open, self.closed = False, True
        greeted = self.ready.done()
        self.ready.cancel()
        if self._timer is not None:
            self._timer.cancel()
        transport = self._transport
        # Before the peer has answered there is nothing to end in good order. Besides, uvloop closes the transport of an
        # attempt to connect that was cancelled, without a word and without `is_closing`: to write there is an error.
        orderly = transport is not None and greeted and not self._paused and not transport.is_closing()
        if not orderly:
            self._transport = None
        for number in tuple(self._streams):
            self._settle(number, problem, unwanted=True)
        self._transport = None
        if transport is not None and orderly:
            transport.write(frames.goaway(0, frames.ErrorCode.NO_ERROR))
            transport.close()
        elif transport is not None:
            transport.abort()


def _without_padding(flags: int, payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & frames.PADDED else payload
