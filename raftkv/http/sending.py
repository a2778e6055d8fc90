"""The half of an HTTP/2 connection that sends: windows, the streams that wait for them, what leaves in one write."""

import asyncio
from collections import deque

from raftkv.http import frames, patience
from raftkv.http.frames import ErrorCode, ProtocolError
from raftkv.http.load import Load
from raftkv.http.stream import Stream

MAX_CONTROL_BYTES = 1 << 20
"""While more than this waits for a client that does not read, nothing is read from it either: answers to pings and
refusals have no window, and would pile up."""
_WRITE_BYTES = 64 << 10


class Sender(asyncio.Protocol):
    """Sends what streams have to say, as windows and the socket allow. Small frames of one turn leave in one write.

    Invariant: `_ready` has, in turn, every stream with something unsent and an open window of its own. They wait for
    nothing but the connection's window or its socket.
    """

    def __init__(self, load: Load) -> None:
        """Begin with the windows of a client that has not said anything; `load` counts what waits for it."""
        self._loop = asyncio.get_running_loop()
        self.load = load
        self._untaken: dict[Stream, int] = {}
        """Answers that are complete and wait for their windows, and how much of each did when it was last looked at."""
        self._look_timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._streams: dict[int, Stream] = {}
        self._window = self._initial_window = self._granted = frames.DEFAULT_WINDOW
        self._grown = False
        self._prefix = b""
        self._paused = False
        self._full = False
        self._resting = False
        self._ready: deque[Stream] = deque()
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._flushing = False
        self._corked = False

    # The socket

    def pause_writing(self) -> None:
        """Note that the socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        if self._full:
            self._full = False
            self.heed()
        self._pump()

    def heed(self) -> None:
        """Read from the client, or do not, as things are."""
        assert self._transport is not None
        if not self._transport.is_closing():
            if self._full or self._resting:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # Windows

    def set_initial_window(self, size: int) -> None:
        """Let every stream's window grow or shrink with the client's setting; `follow_window` must come after.

        Raises:
            ProtocolError: no window is so large.
        """
        if size > frames.MAX_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window that cannot be")
        self._grown = self._grown or size > self._initial_window
        self._initial_window = size

    def follow_window(self) -> None:
        """Let streams go on whose window grew with the setting; once for any number of changes, for it asks them all.

        Raises:
            ProtocolError: a window grew too large.
        """
        if self._grown:
            self._grown = False
            for stream in self._streams.values():
                if self._initial_window + stream.credit > frames.MAX_WINDOW:
                    raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window that cannot be")
                self._queue(stream)
            self._pump()

    def grant(self, stream: Stream, size: int) -> bool:
        """Open a stream's window by so much; False when it would be too large."""
        if self._initial_window + stream.credit + size > frames.MAX_WINDOW:
            return False
        stream.credit += size
        self._queue(stream)
        self._pump()
        return True

    def grant_all(self, size: int) -> None:
        """Open the connection's window by so much.

        Raises:
            ProtocolError: it would be too large.
        """
        self._window += size
        self._granted += size
        if self._window > frames.MAX_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a window that cannot be")
        self._pump()

    def room(self, stream: Stream) -> int:
        """How much of a response the windows and the socket let through now."""
        return 0 if self._paused else min(self._window, self._initial_window + stream.credit)

    def claim(self, stream: Stream, size: int) -> bool:
        """Whether a frame of so much data may leave now; if so, it counts as sent."""
        if (
            size > self._window
            or size > self._initial_window + stream.credit
            or size > frames.FRAME_BYTES
            or self._paused
            or stream.unsent
        ):
            return False
        self._window -= size
        stream.credit -= size
        return True

    def sent_bytes(self) -> int:
        """How much of responses was sent: what was granted and is not there any more."""
        return self._granted - self._window

    # Frames

    def block_prefix(self) -> bytes:
        """What the next header block must begin with."""
        prefix, self._prefix = self._prefix, b""
        return prefix

    def write(self, data: bytes) -> None:
        """Send a frame that no window holds."""
        if self._closed:
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if self._paused and not self._full:
            self._bound()
        self._flush_soon()

    def _bound(self) -> None:
        assert self._transport is not None
        if self._out_bytes + self._transport.get_write_buffer_size() > MAX_CONTROL_BYTES:
            self._full = True
            self.heed()

    def send(self, stream: Stream, data: bytes) -> None:
        """Send a piece of a response, as far as windows and the socket allow; the rest is kept."""
        size = len(data)
        if self.claim(stream, size):
            self._out.append(frames.HEAD.pack(0, size, frames.DATA, 0, stream.id))
            self.write(data)
            return
        stream.unsent.append(memoryview(data))
        stream.unsent_bytes += size
        self.load.bytes += size
        self._queue(stream)
        self._pump()

    def _queue(self, stream: Stream) -> None:
        if stream.unsent and not stream.queued and self._initial_window + stream.credit > 0:
            stream.queued = True
            self._ready.append(stream)

    def _pump(self) -> None:
        """Send what waits, a frame of each stream in turn."""
        ready = self._ready
        while ready and self._window > 0 and not self._paused:
            stream = ready.popleft()
            stream.queued = False
            # Since it was queued it may have been reset, or its window may have shrunk.
            if stream.unsent and self._initial_window + stream.credit > 0:
                self._send_frame(stream)
                self._queue(stream)
                stream.sent()

    def _send_frame(self, stream: Stream) -> None:
        piece = stream.unsent[0]
        size = min(len(piece), self._window, self._initial_window + stream.credit, frames.FRAME_BYTES)
        if size == len(piece):
            stream.unsent.popleft()
        else:
            stream.unsent[0] = piece[size:]
            piece = piece[:size]
        self._window -= size
        stream.credit -= size
        stream.unsent_bytes -= size
        self.load.bytes -= size
        self._out.append(frames.HEAD.pack(0, size, frames.DATA, 0, stream.id))
        self._out.append(piece)
        self._out_bytes += size
        if self._out_bytes >= _WRITE_BYTES:
            self._write_out()
        else:
            self._flush_soon()

    # Clients that take nothing

    def await_taking(self, stream: Stream) -> None:
        """Give an answer up that is complete if the client takes nothing of it for too long."""
        self._untaken[stream] = stream.unsent_bytes
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(patience.ANSWER_SECONDS, self._look_at_untaken)

    def _look_at_untaken(self) -> None:
        self._look_timer = None
        untaken, self._untaken = self._untaken, {}
        for stream, before in untaken.items():
            if stream.unsent_bytes == before and stream.unsent:
                self.give_up(stream)
            elif stream.unsent:
                self.await_taking(stream)

    def stop_waiting(self) -> None:
        """The connection is over."""
        self._untaken.clear()
        if self._look_timer is not None:
            self._look_timer.cancel()

    def give_up(self, stream: Stream) -> None:
        """End an answer that the client does not take."""
        raise NotImplementedError

    # What leaves

    def _flush_soon(self) -> None:
        if not self._flushing and not self._corked:
            self._flushing = True
            self._loop.call_soon(self._flush)

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
