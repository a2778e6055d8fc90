"""One HTTP/2 connection of a client (RFC 9113), which hands each request to an ASGI application.

Everything happens in the event loop, in the turn that brings it: no thread and no queue lies between the socket and
the application.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from raftkv.http import frames
from raftkv.http.asgi import CERTIFICATE_USER, DIRECT, ASGIApp, TakeAtOnce
from raftkv.http.closing import Ending
from raftkv.http.frames import ErrorCode, ProtocolError
from raftkv.http.load import Load
from raftkv.http.patience import FrameWatch, PingWatch
from raftkv.http.requests import HeaderReader, Malformed, Request
from raftkv.http.sending import Sender
from raftkv.http.stream import Stream
from raftkv.http.turns import PART, is_gone

logger = logging.getLogger(__name__)

STREAM_WINDOW_BYTES = 4 << 20
"""How much of a request is taken before the application reads it."""
CONNECTION_WINDOW_BYTES = 16 * STREAM_WINDOW_BYTES
"""The same for all streams of a connection. Were it no larger, one request that nobody reads would hold all others."""
MAX_STREAMS = (1 << 32) - 1
MAX_BLOCK_BYTES = 256 << 10
MAX_BLOCK_FRAMES = 128
"""Sixteen would do for the largest block; a flood of tiny ones costs far more here than where it comes from."""
TURN_WORK = 128
"""What one connection may have done in the turn of the loop that brings it, or others would wait for it: a block of
headers counts as one, and as one more for every 64 bytes. The rest is taken later, see `Turns`."""
FIRST_WORK = 16
"""The same for what comes first. A client that comes back for each flood is a new connection each time."""
WORK_FRAMES = 2.5
"""So many frames, however small, count as a block of headers as well."""
_SETTINGS_BYTES = 1 << 10
"""So much of a frame of settings counts as a block of headers."""


class Connection(Sender):
    """The server's side of a connection.

    Invariants:
    1. `_streams` has those whose response is not complete; each other one is forgotten.
    2. `_running` has those whose application has not returned.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_concurrent_streams: int,
        forget: Callable[["Connection"], None],
        user: str = "",
        load: Load | None = None,
        ping_seconds: float = 0.0,
    ) -> None:
        """`forget` is called when the connection is over, and the application has returned from all its requests.

        `user` is whom the client's certificate names, `ping_seconds` how far apart its pings must be.
        """
        super().__init__(load or Load())
        self._app = app
        self._take_at_once: TakeAtOnce | None = getattr(app, "take", None)
        self._max_streams = max_concurrent_streams
        self._forget = forget
        self._client: tuple[str, int] | None = None
        self._user = user
        self._greeted = False
        self._leaving = False
        self._lost = False
        self._ending: Ending | None = None
        self._received = b""
        self._reads = 0
        """How many of them completed a frame."""
        self._frames = FrameWatch(self._incomplete, self._too_slow)
        self._pings = PingWatch(ping_seconds)
        self._work = 0
        self._reader = HeaderReader({})
        self._block = bytearray()
        self._block_of = 0
        self._block_flags = 0
        self._block_frames = 0
        self._last_stream = 0
        self._last_begun = 0
        """The last stream that the application may have seen, as GOAWAY names it."""
        self._running: set[Stream] = set()
        self._begun: list[tuple[Stream, Request]] = []
        self._receivable = CONNECTION_WINDOW_BYTES
        self._owed = 0

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Speak first."""
        # Not every loop's transports inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._client = address(transport, "peername")
        known = {"client": self._client, "server": address(transport, "sockname"), CERTIFICATE_USER: self._user}
        self._reader = HeaderReader(known)
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
        if not self._closed:
            self._received = self._received + data if self._received else data
            if not self._resting:
                self.load.turns.begun += self._turn(TURN_WORK if self._greeted else FIRST_WORK)

    def _go_on(self) -> int:
        """Take more of what was received; how much work that was."""
        if self._closed:
            return 0
        assert self._transport is not None
        if is_gone(self._transport):
            self._closed = True
            self._received = b""
            self._drop_all()
            self._transport.close()
            return 0
        return self._turn(PART)

    def _turn(self, work: int) -> int:
        """Take what was received, but not more than so much work; how much it was."""
        self._corked = True
        self._work = work
        received = self._received
        try:
            self._received = rest = self._take_all(received)
            if len(rest) != len(received):
                self._reads += 1
            if rest or self._block_of:
                self._frames.incomplete()
            self.follow_window()
        except ProtocolError as error:
            self._fail(error)
        self._begin()
        self._corked = False
        self._write_out()
        done = work - self._work
        if self._resting or self._work <= 0:
            self._rest()
        return done

    def _incomplete(self) -> tuple[int, int] | None:
        """See `FrameWatch`; while nothing is read, nothing can be completed."""
        if self._closed or self._full or self._resting or not (self._received or self._block_of):
            return None
        return self._reads, self._block_of

    def _too_slow(self) -> None:
        self._fail(ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "a frame or a block of headers that does not end"))

    def _rest(self) -> None:
        """Go on when it is our turn if there is more, and read nothing until then."""
        resting = self._work <= 0 and not self._closed
        if resting:
            self.load.turns.wait(self._go_on)
        if resting != self._resting:
            self._resting = resting
            self.heed()

    def eof_received(self) -> None:
        """A client that closes its half is gone: the transport closes, too."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End every request."""
        self._closed = self._lost = True
        self._received = b""
        if self._ending is not None:
            self._ending.over()
        self._frames.stop()
        self.stop_waiting()
        self._out.clear()
        self._ready.clear()
        self._drop_all()
        if not self._running:
            self._forget(self)

    # Frames that come

    def _take_all(self, data: bytes) -> bytes:
        """Take every whole frame, or as many as a turn's work; the rest."""
        start, size = 0, len(data)
        if not self._greeted:
            start = len(frames.PREFACE)
            if not data.startswith(frames.PREFACE[:size]):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
            if size < start + frames.HEAD.size:
                return data
            if data[start + 3] != frames.SETTINGS:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client begins with its settings")
            self._greeted = True
        unpack, left = frames.HEAD.unpack_from, int(self._work * WORK_FRAMES)
        while size - start >= frames.HEAD.size:
            high, low, kind, flags, stream = unpack(data, start)
            if high or low > frames.FRAME_BYTES:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a frame larger than was allowed")
            body = start + frames.HEAD.size
            if body + low > size:
                break
            start = body + low
            self._take(kind, flags, stream & frames.STREAM_MASK, data[body:start])
            left -= 1
            if not left:
                self._work = 0
            if self._work <= 0:
                break
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
        elif kind == frames.RST_STREAM:
            self._take_reset(stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._take_continuation(flags, stream_id, payload)
        else:
            self._take_other(kind, flags, stream_id, payload)

    def _take_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind > frames.CONTINUATION:
            return
        if (kind == frames.PRIORITY) != bool(stream_id) or kind == frames.PUSH_PROMISE:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a frame that clients do not send on this stream")
        if kind == frames.PING:
            _check_size(len(payload) == 8)
            if not flags & frames.ACK:
                if self._pings.too_many(self._loop.time(), (self._last_begun, self.sent_bytes())):
                    raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
                self.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.SETTINGS:
            self._take_settings(flags, payload)
        elif kind == frames.PRIORITY:
            _check_size(len(payload) == 5)
        else:
            _check_size(len(payload) >= 8)
            # The client closes the connection when it has its answers.
            self.leave()

    def _take_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receivable -= size
        if self._receivable < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more was sent than the connection's window allows")
        data = _unpadded(payload) if flags & frames.PADDED else payload
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_begun(stream_id)
            self._give_back(size)
            return
        stream.receivable -= size
        missing = stream.missing
        if missing is not None:
            stream.missing = missing = missing - len(data)
        if stream.request_ended:
            self._reset(stream, ErrorCode.STREAM_CLOSED, size)
        elif stream.receivable < 0:
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR, size)
        elif missing is not None and (missing < 0 or (missing and flags & frames.END_STREAM)):
            self._reset(stream, ErrorCode.PROTOCOL_ERROR, size)
        else:
            if len(data) < size:
                self.read(stream, size - len(data))
            stream.arrived(data)
            if flags & frames.END_STREAM:
                stream.end_request()

    def _check_begun(self, stream_id: int) -> None:
        if stream_id > self._last_stream or not stream_id & 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a frame of a stream that was not begun")

    def _take_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = _unpadded(payload)
        if flags & frames.PRIORITISED:
            _check_size(len(payload) >= 5)
            payload = payload[5:]
        if not stream_id & 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "clients begin streams of odd numbers")
        if flags & frames.END_HEADERS:
            self._take_block(flags, stream_id, payload)
        else:
            self._block += payload
            self._block_of, self._block_flags, self._block_frames = stream_id, flags, 1

    def _take_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != self._block_of or not stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        self._block += payload
        self._block_frames += 1
        endless = self._block_frames > MAX_BLOCK_FRAMES or (not payload and not flags & frames.END_HEADERS)
        if endless or len(self._block) > MAX_BLOCK_BYTES:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "headers without end")
        if flags & frames.END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._block_of = 0
            self._take_block(self._block_flags, stream_id, block)

    def _take_block(self, flags: int, stream_id: int, block: bytes) -> None:
        self._work -= 1 + len(block) // 64
        if stream_id <= self._last_stream:
            self._take_trailers(flags, stream_id, block)
            return
        self._last_stream = stream_id
        try:
            request = self._reader.request(block)
        except Malformed:
            self.write(frames.number(frames.RST_STREAM, stream_id, ErrorCode.PROTOCOL_ERROR))
            return
        if self._leaving:
            # What the GOAWAY said: never begun. The client asks elsewhere.
            return
        if len(self._streams) + len(self._running) >= 2 * self._max_streams or len(self._streams) >= self._max_streams:
            self.write(frames.number(frames.RST_STREAM, stream_id, ErrorCode.REFUSED_STREAM))
            return
        self._last_begun = stream_id
        stream = Stream(self, stream_id, STREAM_WINDOW_BYTES, request)
        self._streams[stream_id] = stream
        self._begun.append((stream, request))
        if flags & frames.END_STREAM:
            self._end_request(stream)

    def _take_trailers(self, flags: int, stream_id: int, block: bytes) -> None:
        """Take the end of a request; of one that is over already the block still changes the decoder's table."""
        sound = self._reader.trailers(block)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.request_ended:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
        elif sound and flags & frames.END_STREAM:
            self._end_request(stream)
        else:
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)

    def _end_request(self, stream: Stream) -> None:
        if stream.missing:
            # It said that it would be longer.
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.end_request()

    def _take_window(self, stream_id: int, payload: bytes) -> None:
        size = _number(payload) & frames.STREAM_MASK
        if stream_id == 0:
            if not size:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a window that does not grow")
            self.grant_all(size)
            return
        self._check_begun(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not size:
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif not self.grant(stream, size):
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR)

    def _take_settings(self, flags: int, payload: bytes) -> None:
        _check_size(not (payload if flags & frames.ACK else len(payload) % frames.SETTING.size))
        if flags & frames.ACK:
            return
        self._work -= len(payload) // _SETTINGS_BYTES
        for name, value in frames.SETTING.iter_unpack(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                self.set_initial_window(value)
            elif name == frames.HEADER_TABLE_SIZE:
                if value < frames.DEFAULT_TABLE_BYTES:
                    # The next header block has to confirm it; a table of no size at all is never too large.
                    self._prefix = b"\x20"
            elif (name == frames.ENABLE_PUSH and value > 1) or (
                name == frames.MAX_FRAME_SIZE and not frames.FRAME_BYTES <= value <= frames.MAX_FRAME_BYTES
            ):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a setting that cannot be")
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _take_reset(self, stream_id: int, payload: bytes) -> None:
        _number(payload)
        self._check_begun(stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)

    # Requests

    def _begin(self) -> None:
        """Run the application for requests that began; one that was reset in the same breath never runs."""
        begun, self._begun = self._begun, []
        take = self._take_at_once
        for stream, request in begun:
            if stream.closed:
                continue
            self._running.add(stream)
            scope = request.scope
            if take is None or not stream.request_ended or not take(scope, stream):
                extensions = {**scope["extensions"], DIRECT: stream}
                call = self._app({**scope, "extensions": extensions}, stream.receive, stream.send)
                self.run(stream, call)  # type: ignore[arg-type]

    def run(self, stream: Stream, call: Coroutine[Any, Any, None]) -> None:
        """Run the application for a request, or the rest of it."""
        task = stream.task = self._loop.create_task(call)
        task.add_done_callback(partial(self._returned, stream))

    def _returned(self, stream: Stream, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not (stream.closed and isinstance(error, OSError)):
            logger.error("a request failed", exc_info=error)
        self.over(stream)

    def over(self, stream: Stream) -> None:
        """Note that the application is done with a request, and answer if it did not."""
        self._running.discard(stream)
        # Else stream, task, and the stack of an error would hold each other, and wait for the collector.
        stream.task = None
        if not stream.complete:
            if stream.started:
                self._reset(stream, ErrorCode.INTERNAL_ERROR)
            else:
                stream.fail()
        if self._lost and not self._running:
            self._forget(self)
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
        self._finish(stream)
        if not (self._streams or self._corked):
            # Nobody else's answer can join this one.
            self._write_out()

    def give_up(self, stream: Stream) -> None:
        """End an answer that the client does not take."""
        self._reset(stream, ErrorCode.CANCEL)

    def _reset(self, stream: Stream, code: ErrorCode, unread: int = 0) -> None:
        """End a request; `unread` is what was just received of it and is not kept."""
        self.write(frames.number(frames.RST_STREAM, stream.id, code))
        self._give_back(unread)
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        """End a request whose client is gone."""
        self._finish(stream)
        if stream.task is not None:
            stream.task.cancel()

    def _drop_all(self) -> None:
        for stream in tuple(self._streams.values()):
            self._drop(stream)

    def _finish(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        if stream.unread:
            self._give_back(stream.unread)
        stream.close()
        if self._leaving:
            self._loop.call_soon(self._leave_if_idle)

    # The end

    def leave(self) -> None:
        """Say that no request is begun any more, and close when those under way are answered."""
        if not self._leaving and not self._closed:
            self._leaving = True
            self.write(frames.goaway(self._last_begun, ErrorCode.NO_ERROR))
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
        self.write(frames.goaway(self._last_begun, error.code, str(error)))
        self._close()

    def _close(self) -> None:
        assert self._transport is not None
        self._write_out()
        self._closed = True
        self._received = b""
        self._work = 0
        self._drop_all()
        self._ending = Ending(self._transport)


def _unpadded(payload: bytes) -> bytes:
    _check_size(bool(payload))
    padding = payload[0]
    if padding >= len(payload):
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - padding]


def _number(payload: bytes) -> int:
    _check_size(len(payload) == 4)
    return int.from_bytes(payload, "big")


def _check_size(holds: bool) -> None:
    if not holds:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a frame of another size")


def address(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    """One end of a connection, as ASGI wants it; None when there is none, as with Unix sockets."""
    name = transport.get_extra_info(which)
    return name[:2] if isinstance(name, tuple) else None
