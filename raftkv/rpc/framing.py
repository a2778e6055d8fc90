"""gRPC's length-prefixed messages, compression, timeouts and percent-encoding (gRPC over HTTP/2, PROTOCOL-HTTP2)."""

import struct
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import chain

from raftkv.status import Code, StatusError

_PREFIX = struct.Struct(">BI")
PREFIX_BYTES = _PREFIX.size
_GZIP = 31
PIECE_BYTES = 128 << 10
"""A larger body is sent in pieces of this size, or the host would send all of it before the connection's other streams,
and hold them up for as long as a slow client's window is closed."""
_SMALL_BYTES = 4 << 10
"""Less than this is sent with what follows."""
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Framed:
    """Any number of messages that carry their prefixes already, sent in one piece.

    `count` of them is for metrics: where a piece ends within a message it may belong to the piece before.
    """

    __slots__ = ("count", "data")

    def __init__(self, data: bytes, count: int = 1) -> None:
        self.data = data
        self.count = count


class Gathered:
    """A message whose pieces came in several turns of the loop; it is let go while it is sent."""

    __slots__ = ("bytes", "parts")

    def __init__(self, *pieces: bytes) -> None:
        self.bytes = 0
        self.parts: deque[Part] = deque()
        """What came together, with its size."""
        self.add(list(pieces))

    def add(self, pieces: list[bytes]) -> None:
        """Take what comes next; the list is kept."""
        size = sum(map(len, pieces))
        self.parts.append((pieces, size))
        self.bytes += size

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(pieces for pieces, _ in self.parts)


Part = tuple[list[bytes], int]
Answer = bytes | list[bytes] | Gathered
"""A message as handlers answer it: whole, or in pieces."""


class Large:
    """What is more than one piece for the host, most often a message with its prefix.

    It is never joined as a whole: each piece is joined when it is sent, and each part forgotten when it has left.
    """

    __slots__ = ("_bytes", "_parts")

    def __init__(self, parts: deque[Part], size: int) -> None:
        """`size` is that of all parts together."""
        self._parts = parts
        self._bytes = size

    def __len__(self) -> int:
        return self._bytes

    def pieces(self) -> Iterator[bytes]:
        """All of it, once, in pieces of about `PIECE_BYTES`; what is much larger is cut."""
        parts = self._parts
        small: list[bytes] = []
        while parts:
            part, size = parts.popleft()
            if small or size < _SMALL_BYTES:
                part, small = [*small, *part], []
            if size < _SMALL_BYTES and parts:
                small = part
                continue
            # To look at the size of each would take as long as to join them.
            step = max(1, PIECE_BYTES * len(part) // max(size, 1))
            for begin in range(0, len(part), step):
                piece = part[begin] if step == 1 else b"".join(part[begin : begin + step])
                if len(piece) <= 2 * PIECE_BYTES:
                    yield piece
                else:
                    yield from (piece[at : at + PIECE_BYTES] for at in range(0, len(piece), PIECE_BYTES))


def frame(message: bytes | list[bytes], max_bytes: int) -> bytes:
    """Prefix a message, given whole or in pieces, with its length; never compressed.

    Raises:
        StatusError: RESOURCE_EXHAUSTED, when it is larger than `max_bytes`.
    """
    size = len(message) if isinstance(message, bytes) else sum(map(len, message))
    prefix = _prefix(size, max_bytes)
    return prefix + message if isinstance(message, bytes) else b"".join((prefix, *message))


def frame_answer(message: Answer, max_bytes: int) -> bytes | Large:
    """The same for an answer of any kind: one that is too large for a piece is not joined yet.

    Raises:
        StatusError: as `frame`.
    """
    if isinstance(message, bytes):
        size = len(message)
    elif isinstance(message, list):
        size = sum(map(len, message))
    else:
        size = message.bytes
    prefix = _prefix(size, max_bytes)
    if PREFIX_BYTES + size > PIECE_BYTES:
        if isinstance(message, Gathered):
            parts = message.parts
        else:
            parts = deque([([message] if isinstance(message, bytes) else message, size)])
        parts.appendleft(([prefix], PREFIX_BYTES))
        return Large(parts, PREFIX_BYTES + size)
    if isinstance(message, bytes):
        return prefix + message
    return b"".join((prefix, *message))


def _prefix(size: int, max_bytes: int) -> bytes:
    if size > max_bytes:
        text = f"grpc: trying to send message larger than max ({size} vs. {max_bytes})"
        raise StatusError(Code.RESOURCE_EXHAUSTED, text)
    return _PREFIX.pack(0, size)


def whole_message(body: bytes, max_bytes: int) -> bytes | None:
    """The message of a body that is one plain frame, nothing more and nothing less: nearly every unary request."""
    size = len(body) - PREFIX_BYTES
    if body[:1] == b"\0" and int.from_bytes(body[1:PREFIX_BYTES], "big") == size <= max_bytes:
        return body[PREFIX_BYTES:]
    return None


class Deframer:
    """Cuts a body into messages as its bytes arrive, in pieces of any size.

    Raises (from `feed` and `finish`):
        StatusError: RESOURCE_EXHAUSTED for a message larger than allowed, found before it is buffered;
            INTERNAL for a malformed or unfinished one.
    """

    __slots__ = ("_buffer", "_encoding", "_max_bytes")

    def __init__(self, encoding: bytes, max_bytes: int) -> None:
        self._buffer = bytearray()
        self._encoding = encoding
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; the messages that are complete now."""
        buffer = self._buffer
        if not buffer and (message := whole_message(data, self._max_bytes)) is not None:
            return [message]
        buffer += data
        messages = []
        offset = 0
        while len(buffer) - offset >= PREFIX_BYTES:
            compressed, length = _PREFIX.unpack_from(buffer, offset)
            if length > self._max_bytes:
                raise _too_large("received message larger", length, self._max_bytes)
            end = offset + PREFIX_BYTES + length
            if end > len(buffer):
                break
            message = bytes(memoryview(buffer)[offset + PREFIX_BYTES : end])
            messages.append(self._inflate(message, compressed) if compressed else message)
            offset = end
        del buffer[:offset]
        return messages

    @property
    def inflates(self) -> bool:
        """Whether messages may be compressed, and be much larger than what arrives."""
        return self._encoding not in (b"", b"identity")

    @property
    def waiting_bytes(self) -> int:
        """How much of a message that is not complete has arrived."""
        return len(self._buffer)

    def finish(self) -> None:
        """The body has ended; an unfinished message is an error."""
        if self._buffer:
            raise StatusError(Code.INTERNAL, "grpc: the stream ended inside a message")

    def _inflate(self, message: bytes, flag: int) -> bytes:
        if flag != 1:
            raise StatusError(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
        if self._encoding in (b"", b"identity"):
            raise StatusError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        inflater = zlib.decompressobj(_GZIP)
        try:
            plain = inflater.decompress(message, self._max_bytes + 1)
        except zlib.error as error:
            raise StatusError(Code.INTERNAL, f"grpc: failed to decompress the message: {error}") from error
        if len(plain) > self._max_bytes:
            raise _too_large("received message after decompression larger", len(plain), self._max_bytes)
        if not inflater.eof or inflater.unused_data:
            problem = "more follows its end" if inflater.eof else "it ends early"
            raise StatusError(Code.INTERNAL, f"grpc: failed to decompress the message: {problem}")
        return plain


def _too_large(what: str, size: int, max_bytes: int) -> StatusError:
    return StatusError(Code.RESOURCE_EXHAUSTED, f"grpc: {what} than max ({size} vs. {max_bytes})")


def parse_timeout(value: bytes) -> float:
    """Seconds of a grpc-timeout header.

    Raises:
        StatusError: INTERNAL, for a malformed one.
    """
    text = value.decode("latin-1")
    digits, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        raise StatusError(Code.INTERNAL, f"malformed grpc-timeout: {text!r}")
    return int(digits) * _UNITS[unit]


def percent_encode(message: str) -> bytes:
    """Encode a status message for the grpc-message header."""
    # A lone surrogate, which UTF-8 cannot hold, would make the error report fail in turn.
    data = message.encode("utf-8", "replace")
    if b"%" not in data and data.isascii() and message.isprintable():
        return data
    return b"".join(bytes([byte]) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in data)
