"""gRPC's length-prefixed messages, compression, timeouts and percent-encoding (gRPC over HTTP/2, PROTOCOL-HTTP2)."""

import struct
import zlib

from raftkv.status import Code, StatusError

_PREFIX = struct.Struct(">BI")
PREFIX_BYTES = _PREFIX.size
_GZIP = 31
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Framed:
    """Any number of messages that carry their prefixes already, sent in one piece.

    `count` of them is for metrics: where a piece ends within a message it may belong to the piece before.
    """

    __slots__ = ("count", "data")

    def __init__(self, data: bytes, count: int = 1) -> None:
        self.data = data
        self.count = count


def frame(message: bytes | list[bytes], max_bytes: int) -> bytes:
    """Prefix a message, given whole or in pieces, with its length; never compressed.

    Raises:
        StatusError: RESOURCE_EXHAUSTED, when it is larger than `max_bytes`.
    """
    size = len(message) if isinstance(message, bytes) else sum(map(len, message))
    if size > max_bytes:
        text = f"grpc: trying to send message larger than max ({size} vs. {max_bytes})"
        raise StatusError(Code.RESOURCE_EXHAUSTED, text)
    prefix = _PREFIX.pack(0, size)
    return prefix + message if isinstance(message, bytes) else b"".join((prefix, *message))


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
