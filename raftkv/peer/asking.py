"""Questions to other members: unary gRPC calls, many at once on one HTTP/2 connection for each URL (RFC 9113).

Written by hand, as `raftkv.peer.call` is, so that they are dialled as all else is: by the same rules of TLS. Members
bound neither the streams nor the calls of a connection of their own, so nothing is held back for that here.
"""

import asyncio
import itertools
import struct
import weakref
from collections.abc import Sequence
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

import hpack

from raftkv.http import frames
from raftkv.peer.call import PING_SECONDS, PONG_SECONDS
from raftkv.peer.dial import Dial
from raftkv.status import Code, StatusError

MAX_ANSWER_BYTES = 512 << 20
"""What one answer may hold: as much as a message of a member that was let in."""

LAST_STREAM = 2**31 - 1
"""Behind this one a connection has no numbers left."""

_WINDOW_BYTES = 4 << 20
_HEADER_BYTES = 256 << 10
_PREFIX_BYTES = 5

Metadata = Sequence[tuple[str, str]]


class Asking:
    """Asks at URLs; a connection is made when it is needed, and kept."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._lines: dict[str, _Line] = {}
        self._made: weakref.WeakSet[_Line] = weakref.WeakSet()
        """Those too that only end what they have begun."""
        self._making: dict[str, asyncio.Lock] = {}
        self._closed = False

    async def ask(self, url: str, path: str, request: bytes, metadata: Metadata = (), *, timeout: float) -> bytes:
        """The answer to one question; `timeout` in seconds.

        Raises:
            StatusError: what was answered is an error.
            OSError: there is no answer, or one that is no use.
        """
        try:
            async with asyncio.timeout(timeout):
                line = await self._line(url)
                limit = ("grpc-timeout", f"{max(int(timeout * 1000), 1)}m")
                return await line.ask(path, request, (limit, *metadata))
        except TimeoutError:
            raise ConnectionError(f"no answer within {timeout:g} s") from None

    async def _line(self, url: str) -> "_Line":
        # Those who ask meanwhile wait for the one connection.
        async with self._making.setdefault(url, asyncio.Lock()):
            line = self._lines.get(url)
            if line is None or not line.open:
                line = _Line(urlsplit(url))
                self._made.add(line)
                try:
                    await self._dial.connect(url, line)
                    if self._closed:
                        raise ConnectionError("closed here")
                except BaseException:
                    line.close()
                    raise
                self._lines[url] = line
            return line

    def close(self) -> None:
        """Close all connections; questions under way end in ConnectionError."""
        self._closed = True
        for line in tuple(self._made):
            line.close()


class _Question:
    """What is left to say of a question, and what has been heard of its answer."""

    __slots__ = ("answer", "future", "head", "left", "status", "window")

    def __init__(self, head: bytes, request: bytes, window: int, future: "asyncio.Future[bytes]") -> None:
        self.head = head
        """The frames that open its stream, until they are sent."""
        self.left = memoryview(b"\0" + len(request).to_bytes(4, "big") + request)
        self.window = window
        self.answer = bytearray()
        self.status: dict[str, str] = {}
        self.future = future

    def end(self, problem: str) -> None:
        """Settle it: by the status that came, or else by what went wrong."""
        if self.future.done():
            return
        status = self.status.get("grpc-status", "")
        if not status.isdecimal():
            http = self.status.get(":status", "200")
            self.future.set_exception(ConnectionError(problem if http == "200" else f"HTTP status {http}"))
        elif status != "0":
            code = Code(int(status)) if int(status) in set(Code) else Code.UNKNOWN
            self.future.set_exception(StatusError(code, unquote(self.status.get("grpc-message", ""))))
        elif len(self.answer) < _PREFIX_BYTES or self.answer[0] or self._said() != len(self.answer):
            self.future.set_exception(ConnectionError("the answer is not one message"))
        else:
            self.future.set_result(bytes(memoryview(self.answer)[_PREFIX_BYTES:]))

    def _said(self) -> int:
        return _PREFIX_BYTES + int.from_bytes(self.answer[1:_PREFIX_BYTES], "big")


class _Line(asyncio.Protocol):
    """One connection, and the questions on it.

    Invariants:
    1. `_questions` holds, by stream, those that are not settled, `_unsent` those of them with something left to say; a
       future is settled once.
    2. Once `open` is false nothing is asked any more; without questions the connection is closed then.
    """

    def __init__(self, parts: SplitResult) -> None:
        self._loop = asyncio.get_running_loop()
        self._scheme, self._authority = parts.scheme, parts.netloc
        self.open = True
        self._questions: dict[int, _Question] = {}
        self._unsent: dict[int, _Question] = {}
        self._numbers = itertools.count(1, 2)
        self._transport: asyncio.Transport | None = None
        self._decoder = hpack.Decoder()
        self._received = b""
        self._block: tuple[int, int, bytes] | None = None
        self._window = self._initial_window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.FRAME_BYTES
        self._greeted = False
        self._timer: asyncio.TimerHandle | None = None
        self._silent = False
        """Whether nothing came since it was last looked."""

    async def ask(self, path: str, request: bytes, metadata: Metadata) -> bytes:
        """As `Asking.ask`, without a limit of time."""
        if not self.open:
            raise ConnectionError("the connection was lost")
        stream = next(self._numbers)
        self.open = stream < LAST_STREAM
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
        head = frames.header_frames(block, stream, 0)
        question = _Question(head, request, self._initial_window, self._loop.create_future())
        self._questions[stream] = self._unsent[stream] = question
        self._send()
        try:
            return await question.future
        finally:
            if self._forget(stream) is not None:
                self._reset(stream, question)
            self._close_if_over()

    def close(self) -> None:
        """End all questions, and the connection."""
        self._end("closed here")

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the HTTP/2 connection."""
        # Not every loop's transports inherit from asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        if not self.open:
            transport.abort()
            return
        wanted = frames.settings(((frames.ENABLE_PUSH, 0), (frames.INITIAL_WINDOW_SIZE, _WINDOW_BYTES)))
        wider = frames.number(frames.WINDOW_UPDATE, 0, _WINDOW_BYTES)
        transport.write(frames.PREFACE + wanted + wider)
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)

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
                start = end
        except (ValueError, IndexError, struct.error, hpack.HPACKError) as error:
            self._end(f"what listens there does not speak HTTP/2: {error}")
        self._received = received[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        """End what was asked and has no answer."""
        self._end("the connection was lost" if exc is None else f"the connection was lost: {exc}")

    # Frames that come

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._take_data(flags, stream, payload)
        elif kind in (frames.HEADERS, frames.CONTINUATION):
            self._take_headers(kind, flags, stream, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big") & frames.MAX_WINDOW)
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._take_settings(payload)
        elif kind == frames.PING:
            self._take_ping(flags, payload)
        elif kind == frames.RST_STREAM:
            self._settle(stream, f"the call was reset with HTTP/2 error {int.from_bytes(payload, 'big')}")
        elif kind == frames.GOAWAY:
            self.open = False
            for late in [late for late in self._questions if late > int.from_bytes(payload[:4], "big")]:
                self._settle(late, "the member refuses calls")
            self._close_if_over()

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        question = self._questions.get(stream)
        if payload:
            streams = (0,) if question is None else (0, stream)
            self._put(b"".join(frames.number(frames.WINDOW_UPDATE, one, len(payload)) for one in streams))
        if question is None:
            return
        question.answer += _without_padding(flags, payload)
        if len(question.answer) > MAX_ANSWER_BYTES:
            self._reset(stream, question)
            self._settle(stream, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        if flags & frames.END_STREAM:
            self._settle(stream, "the call was ended")

    def _take_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            payload = _without_padding(flags, payload)[5 if flags & frames.PRIORITISED else 0 :]
            self._block = stream, flags, b""
        if self._block is None:
            raise ValueError("a continuation of nothing")
        stream, first, before = self._block
        self._block = stream, first, before + payload
        if len(self._block[2]) > _HEADER_BYTES:
            raise ValueError("headers larger than an answer has")
        if not flags & frames.END_HEADERS:
            return
        decoded = self._decoder.decode(self._block[2], raw=True)
        self._block = None
        if (question := self._questions.get(stream)) is not None:
            question.status.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in decoded)
        if first & frames.END_STREAM:
            self._settle(stream, "the call was ended")

    def _settle(self, stream: int, problem: str) -> None:
        question = self._forget(stream)
        if question is not None:
            if question.left:
                self._reset(stream, question)
            question.end(problem)

    def _forget(self, stream: int) -> _Question | None:
        self._unsent.pop(stream, None)
        return self._questions.pop(stream, None)

    def _take_settings(self, payload: bytes) -> None:
        for name, value in frames.SETTING.iter_unpack(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                for question in self._questions.values():
                    question.window += value - self._initial_window
                self._initial_window = value
            elif name == frames.MAX_FRAME_SIZE:
                self._frame_bytes = value
        self._greeted = True
        self._put(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._send()

    def _widen(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
        elif stream in self._questions:
            self._questions[stream].window += size
        self._send()

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self._put(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def _ping(self) -> None:
        self._put(frames.frame(frames.PING, 0, 0, bytes(8)))
        self._listen()

    def _listen(self) -> None:
        self._silent = True
        self._timer = self._loop.call_later(PONG_SECONDS, self._judge)

    def _judge(self) -> None:
        # The answer to a ping may be behind a long one to a question.
        if self._silent:
            self._end(f"no sign of life for {PONG_SECONDS:g} s")
        else:
            self._listen()

    # Frames that go

    def _put(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _reset(self, stream: int, question: _Question) -> None:
        if not question.head:
            self._put(frames.number(frames.RST_STREAM, stream, frames.ErrorCode.CANCEL))

    def _send(self) -> None:
        """Send what the windows allow, once it is known how wide they are."""
        if not self._greeted:
            return
        for stream, question in tuple(self._unsent.items()):
            # In one piece, so that the other side has a short question as a whole.
            pieces, question.head = [question.head], b""
            while question.left:
                size = min(len(question.left), self._window, question.window, self._frame_bytes)
                if size <= 0:
                    break
                data, question.left = question.left[:size], question.left[size:]
                self._window -= size
                question.window -= size
                pieces.append(frames.frame(frames.DATA, 0 if question.left else frames.END_STREAM, stream, data))
            if not question.left:
                del self._unsent[stream]
            if said := b"".join(pieces):
                self._put(said)

    # The end

    def _close_if_over(self) -> None:
        if not self.open and not self._questions:
            self._end("closed here")

    def _end(self, problem: str) -> None:
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in tuple(self._questions):
            self._settle(stream, problem)
        if self._transport is not None:
            self._transport.abort()


def _without_padding(flags: int, payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & frames.PADDED else payload
