"""As much HTTP/2 as a load generator needs: requests with a header per method, written by hand, and frames read back.

The windows it grants are the largest there are, so that whatever a server sends in a run of seconds needs no answer.
What it sends keeps to the server's window for the connection; one request fits into any stream's.
"""

import socket
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from hpack import Encoder, NeverIndexedHeaderTuple

from benchmarks.wire import frame

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
HEAD_BYTES = 9
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW_SIZE = 4
WINDOW_DEFAULT = 65_535
WINDOW_MAX = 2**31 - 1
RECEIVE_BYTES = 1 << 18


class Frame(NamedTuple):
    """One frame that was received."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def split(data: bytes) -> Iterator[tuple[Frame, int]]:
    """Yield each whole frame in `data`, and where it ends."""
    position = 0
    while position + HEAD_BYTES <= len(data):
        end = position + HEAD_BYTES + int.from_bytes(data[position : position + 3], "big")
        if end > len(data):
            return
        stream = int.from_bytes(data[position + 5 : position + HEAD_BYTES], "big")
        yield Frame(data[position + 3], data[position + 4], stream, data[position + HEAD_BYTES : end]), end
        position = end


def _block(endpoint: str, path: str) -> bytes:
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", endpoint)]
    pairs += [("content-type", "application/grpc"), ("te", "trailers")]
    # Never indexed: the block depends on no table and serves every request.
    return Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in pairs])


class Connection:
    """A connection to one member; paths: of the methods it calls. Sockets' errors are raised as they are."""

    def __init__(self, endpoint: str, *paths: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._blocks = [_block(endpoint, path) for path in paths]
        self._window = WINDOW_DEFAULT
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._next_stream = 1
        self.rest = b""
        """What was received behind the last whole frame."""
        settings = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + WINDOW_MAX.to_bytes(4, "big")
        enlarge = (WINDOW_MAX - WINDOW_DEFAULT).to_bytes(4, "big")
        self.socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, enlarge))

    def request(self, messages: list[bytes], *, last: bool) -> int:
        """Begin a call with these messages and return its stream; last: no more will follow."""
        stream = self.queue(messages, last=last)
        self.flush()
        return stream

    def queue(self, messages: list[bytes], *, last: bool, method: int = 0) -> int:
        """Have a call begin with the next `flush`; method: its place among the paths."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        body = b"".join(map(frame, messages))
        head = _frame(HEADERS, END_HEADERS, stream, self._blocks[method])
        self._waiting.append((len(body), head + _frame(DATA, END_STREAM * last, stream, body)))
        return stream

    def flush(self) -> None:
        """Send what waits, as far as the server's window lets it, in one piece."""
        allowed = []
        while self._waiting and self._waiting[0][0] <= self._window:
            size, sent = self._waiting.popleft()
            self._window -= size
            allowed.append(sent)
        if allowed:
            self.socket.sendall(b"".join(allowed))

    def receive(self) -> list[Frame]:
        """Wait for bytes and return the frames that are whole, apart from those about the connection.

        Raises:
            ConnectionError: the server hung up or is about to.
        """
        received = self.socket.recv(RECEIVE_BYTES)
        if not received:
            raise ConnectionError("the server hung up")
        data = self.rest + received
        frames, whole = [], 0
        for one, end in split(data):
            whole = end
            if one.stream == 0:
                self._control(one)
            else:
                frames.append(one)
        self.rest = data[whole:]
        return frames

    def _control(self, one: Frame) -> None:
        if one.kind == WINDOW_UPDATE:
            self._window += int.from_bytes(one.payload, "big")
            self.flush()
        elif one.kind in (SETTINGS, PING) and not one.flags & ACK:
            self.socket.sendall(_frame(one.kind, ACK, 0, one.payload if one.kind == PING else b""))
        elif one.kind == GOAWAY:
            raise ConnectionError("the server said GOAWAY")

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
