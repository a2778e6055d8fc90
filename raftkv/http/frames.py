"""The frames of HTTP/2 (RFC 9113), and header blocks as this side writes them (RFC 7541)."""

import struct
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache

from raftkv.http.asgi import Headers

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITISED = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5
MAX_HEADER_LIST_SIZE = 6

DEFAULT_WINDOW = 65_535
DEFAULT_TABLE_BYTES = 4096
FRAME_BYTES = 16_384
"""The largest payload that every side takes; neither this one nor, towards it, the other uses a larger one."""
MAX_FRAME_BYTES = (1 << 24) - 1
MAX_WINDOW = (1 << 31) - 1
STREAM_MASK = MAX_WINDOW

_REMEMBERED_BYTES = 256

HEAD = struct.Struct(">BHBBI")
"""Size of the payload (its upper 8 bits, its lower 16), type, flags, stream."""
SETTING = struct.Struct(">HI")


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ProtocolError(Exception):
    """The other side broke the protocol in a way that ends the connection, or one stream of it."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """Make one frame."""
    size = len(payload)
    return b"".join((HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream), payload))


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """Make a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*value) for value in values))


def number(kind: int, stream: int, value: int) -> bytes:
    """Make a frame whose payload is one number: RST_STREAM or WINDOW_UPDATE."""
    return HEAD.pack(0, 4, kind, 0, stream) + value.to_bytes(4, "big")


def goaway(last_stream: int, code: ErrorCode, text: str = "") -> bytes:
    """Make the frame after which streams above `last_stream` were never begun."""
    return frame(GOAWAY, 0, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode())


def header_frames(block: bytes, stream: int, flags: int) -> bytes:
    """Make a HEADERS frame, followed by CONTINUATION for what one frame cannot hold."""
    if len(block) <= FRAME_BYTES:
        return HEAD.pack(0, len(block), HEADERS, flags | END_HEADERS, stream) + block
    pieces = [block[start : start + FRAME_BYTES] for start in range(0, len(block), FRAME_BYTES)]
    frames = [frame(HEADERS, flags, stream, pieces[0])]
    frames += [frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream, pieces[-1]))
    return b"".join(frames)


def header_block(headers: Headers) -> bytes:
    """Encode headers without Huffman's code and without the dynamic table: equal ones are equal on each connection."""
    if sum([len(value) for _, value in headers]) < _REMEMBERED_BYTES:
        return constant_block(headers)
    return _encode(headers)


@lru_cache(maxsize=1024)
def constant_block(headers: Headers) -> bytes:
    """Encode headers that are few, small and not of a client's choice: they are remembered."""
    return _encode(headers)


def _encode(headers: Headers) -> bytes:
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def _string(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    size -= 127
    prefix = bytearray(b"\x7f")
    while size >= 128:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data
