"""Wire bytes of key-values, framed once and used everywhere.

A *chunk* is a KeyValue as field 2 of a message: `0x12`, its length, its bytes. Field 2 is `kvs` of RangeResponse,
`prev_kv` of PutResponse and `kv` of Event; where field 3 is wanted (`prev_kvs` of DeleteRangeResponse, `prev_kv` of
Event) only the first byte differs.
"""

from collections.abc import Iterable

from raftkv.pb import kv_pb2

FIELD_2 = b"\x12"
FIELD_3 = b"\x1a"

_SMALL = [bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7]) for value in range(1 << 14)]
"""Integers of one and two bytes, ready made: lengths and versions."""


def varint(value: int) -> bytes:
    """Encode an integer as protobuf does; negative int64 values take ten bytes."""
    if 0 <= value < 1 << 14:
        return _SMALL[value]
    if 0 <= value < 1 << 28:
        # Most revisions there ever are.
        low, high = value & 127 | 128, value >> 7 & 127 | 128
        if value < 1 << 21:
            return bytes((low, high, value >> 14))
        return bytes((low, high, value >> 14 & 127 | 128, value >> 21))
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def int_field(tag: bytes, value: int) -> bytes:
    """A varint field, left out when 0."""
    return tag + varint(value) if value else b""


def bytes_field(tag: bytes, value: bytes) -> bytes:
    """A bytes or message field, written even when empty."""
    return tag + varint(len(value)) + value


def encode_chunk(key: bytes, create: int, mod: int, version: int, value: bytes, lease: int) -> bytes:
    """Encode a KeyValue as a chunk."""
    tail = b"\x10" + varint(create) + b"\x18" + varint(mod) + b"\x20" + varint(version)
    parts = [b"\x0a", varint(len(key)), key, tail]
    if value:
        parts += (b"\x2a", varint(len(value)), value)
    if lease:
        parts += (b"\x30", varint(lease))
    body = b"".join(parts)
    return b"".join((FIELD_2, varint(len(body)), body))


def encode_tombstone(key: bytes, mod: int) -> bytes:
    """Encode what a deletion leaves of a key as a chunk: the key and the revision at which it went."""
    body = b"".join((b"\x0a", varint(len(key)), key, b"\x18", varint(mod)))
    return bytes_field(FIELD_2, body)


def encode_tombstones(keys: Iterable[bytes], mod: int) -> list[bytes]:
    """Encode what many deletions of one revision leave."""
    tail = b"\x18" + varint(mod)
    heads: dict[int, bytes] = {}
    encoded = []
    for key in keys:
        size = len(key)
        head = heads.get(size)
        if head is None:
            before_key = b"\x0a" + varint(size)
            head = heads[size] = FIELD_2 + varint(len(before_key) + size + len(tail)) + before_key
        encoded.append(head + key + tail)
    return encoded


def decode_varint(data: bytes, offset: int) -> tuple[int, int]:
    """The integer at `offset`, and the offset behind it."""
    value = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7


def decode_chunk(chunk: bytes) -> kv_pb2.KeyValue:
    """The KeyValue of a chunk."""
    _, start = decode_varint(chunk, 1)
    return kv_pb2.KeyValue.FromString(chunk[start:])


def chunk_key(chunk: bytes) -> bytes:
    """The key of a chunk, without decoding the rest."""
    _, start = decode_varint(chunk, 1)
    length, start = decode_varint(chunk, start + 1)
    return chunk[start : start + length]


def chunk_mod_revision(chunk: bytes) -> int:
    """The mod revision of a chunk, without decoding the rest."""
    at = 2
    while chunk[at - 1] > 127:
        at += 1
    length, at = decode_varint(chunk, at + 1)
    # Behind the key, a tag, a varint and a tag: the create revision lies between.
    at += length + 1
    while chunk[at] > 127:
        at += 1
    return decode_varint(chunk, at + 2)[0]


def without_value(chunk: bytes) -> bytes:
    """The chunk with an empty value."""
    _, start = decode_varint(chunk, 1)
    length, at = decode_varint(chunk, start + 1)
    at += length
    # Three integers, each a tag and a varint: create and mod revision, version.
    for _ in range(3):
        at += 1
        while chunk[at] > 127:
            at += 1
        at += 1
    if chunk[at : at + 1] != b"\x2a":
        return chunk
    length, value = decode_varint(chunk, at + 1)
    body = chunk[start:at] + chunk[value + length :]
    return b"".join((FIELD_2, varint(len(body)), body))
