"""Bytes of the log: records, markers, segment headers, and reading them back with suspicion.

    record   length u32 · type u8 · 3 zero bytes · crc u32 · payload · zeros up to a multiple of 8   (little endian)

`crc` is CRC-32C over length, type and payload, seeded with the crc of the record before it: a record in the wrong
place, or of another life of the file, does not verify. A header record (the first of a segment) is seeded with 0 and
carries the chain value to go on from, so a segment can be read alone.

A group of records is written and synced at once and ends with a marker. The marker can be verified on its own: it
carries its group's start and a checksum of itself, so a reader who meets damage can look for markers behind it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import google_crc32c

SECTOR_BYTES = 512
"""The unit in which a disk writes or does not."""

FORMAT_VERSION = 1

_HEADER = struct.Struct("<IB3xI")
_CHECKED = struct.Struct("<IB")
_STATE = struct.Struct("<QQQ")
_ENTRY = struct.Struct("<QQB")
_MARKER = struct.Struct("<8sQI")
_SEGMENT = struct.Struct("<IQI QQQ QQI")
_SNAPSHOT = struct.Struct("<QQ")
_MAGIC = b"rkvmark\x01"
HEADER_BYTES = _HEADER.size
MARKER_BYTES = HEADER_BYTES + _MARKER.size


class WalError(Exception):
    """The log cannot be written any more; the process must stop (a failed fsync is never retried)."""


class CorruptLog(Exception):
    """Acknowledged records are damaged. Nothing was changed; says where, and what to do."""

    def __init__(self, path: str, offset: int, problem: str) -> None:
        super().__init__(
            f"{path}: {problem} at byte {offset}, in records that were acknowledged. Nothing was changed. "
            "Do not delete the file: restore this member from a backup, or remove it and add it again"
        )
        self.path = path
        self.offset = offset


class RecordType(IntEnum):
    """What a record holds."""

    SEGMENT = 1
    STATE = 2
    ENTRY = 3
    MARKER = 4
    SNAPSHOT = 5
    RESTORE = 6


class Record(NamedTuple):
    """A verified record; offsets in bytes from the start of its segment."""

    offset: int
    end: int
    type: RecordType
    payload: bytes
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What a segment starts with: enough to read it without the segments before it."""

    sequence: int
    chain: int
    hard_state: tuple[int, int, int]
    snapshot_index: int
    snapshot_term: int
    conf_state: bytes
    identity: bytes


_SHORTEST: dict[int, int] = {
    RecordType.SEGMENT: _SEGMENT.size,
    RecordType.STATE: _STATE.size,
    RecordType.ENTRY: _ENTRY.size,
    RecordType.MARKER: _MARKER.size,
    RecordType.SNAPSHOT: _SNAPSHOT.size,
    RecordType.RESTORE: _SNAPSHOT.size,
}
"""The bytes that a payload of each type has at least."""
_TYPES = {int(kind): kind for kind in RecordType}


def checksum(chain: int, data: bytes) -> int:
    """CRC-32C of `data`, continuing from `chain`."""
    return int(google_crc32c.extend(chain, data))


def encode_record(kind: RecordType, payload: bytes, chain: int) -> tuple[bytes, int]:
    """Encode a record; its bytes, and the chain value after it."""
    length = len(payload)
    crc = checksum(chain, _CHECKED.pack(length, kind) + payload)
    return b"".join((_HEADER.pack(length, kind, crc), payload, bytes(-(HEADER_BYTES + length) % 8))), crc


def encode_state(term: int, voted_for: int, commit: int) -> bytes:
    return _STATE.pack(term, voted_for, commit)


def decode_state(payload: bytes) -> tuple[int, int, int]:
    term, voted_for, commit = _STATE.unpack_from(payload)
    return term, voted_for, commit


def encode_entry(term: int, index: int, kind: int, data: bytes) -> bytes:
    return _ENTRY.pack(term, index, kind) + data


def decode_entry(payload: bytes) -> tuple[int, int, int, bytes]:
    term, index, kind = _ENTRY.unpack_from(payload)
    return term, index, kind, payload[_ENTRY.size :]


def encode_snapshot(index: int, term: int, conf_state: bytes) -> bytes:
    return _SNAPSHOT.pack(index, term) + conf_state


def decode_snapshot(payload: bytes) -> tuple[int, int, bytes]:
    index, term = _SNAPSHOT.unpack_from(payload)
    return index, term, payload[_SNAPSHOT.size :]


def encode_marker(group_start: int, chain: int) -> tuple[bytes, int]:
    """Encode the marker of the group that starts at this offset of its segment."""
    body = _MARKER.pack(_MAGIC, group_start, 0)[:16]
    payload = body + struct.pack("<I", checksum(0, body))
    return encode_record(RecordType.MARKER, payload, chain)


def encode_header(header: SegmentHeader) -> bytes:
    """Encode a segment's first record."""
    payload = _SEGMENT.pack(
        FORMAT_VERSION,
        header.sequence,
        header.chain,
        *header.hard_state,
        header.snapshot_index,
        header.snapshot_term,
        len(header.conf_state),
    )
    return encode_record(RecordType.SEGMENT, payload + header.conf_state + header.identity, 0)[0]


def decode_header(path: str, data: bytes) -> tuple[SegmentHeader, int]:
    """Decode a segment's first record; the header, and the offset behind it.

    Raises:
        CorruptLog: it does not verify, or is of a version this raftkv does not read.
    """
    record = read_record(data, 0, 0)
    if record is None or record.type is not RecordType.SEGMENT:
        raise CorruptLog(path, 0, "the segment header is damaged")
    version, sequence, chain, term, voted_for, commit, index, snapshot_term, conf_bytes = _SEGMENT.unpack_from(
        record.payload
    )
    if version != FORMAT_VERSION:
        raise CorruptLog(path, 0, f"format version {version} is not {FORMAT_VERSION}")
    rest = record.payload[_SEGMENT.size :]
    header = SegmentHeader(
        sequence=sequence,
        chain=chain,
        hard_state=(term, voted_for, commit),
        snapshot_index=index,
        snapshot_term=snapshot_term,
        conf_state=rest[:conf_bytes],
        identity=rest[conf_bytes:],
    )
    return header, record.end


def read_record(data: bytes, offset: int, chain: int) -> Record | None:
    """Read and verify the record at `offset`; None when there is no valid one."""
    if offset + HEADER_BYTES > len(data):
        return None
    length, kind, crc = _HEADER.unpack_from(data, offset)
    start = offset + HEADER_BYTES
    shortest = _SHORTEST.get(kind)
    if shortest is None or length < shortest or start + length > len(data):
        return None
    payload = data[start : start + length]
    if checksum(chain, _CHECKED.pack(length, kind) + payload) != crc:
        return None
    return Record(offset, start + length + -(HEADER_BYTES + length) % 8, _TYPES[kind], payload, crc)


def markers(data: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Find markers at or behind `offset` that verify on their own: (offset of the record, start of its group)."""
    place = data.find(_MAGIC, offset)
    while place >= 0:
        payload = data[place : place + _MARKER.size]
        if len(payload) == _MARKER.size:
            _, group_start, crc = _MARKER.unpack(payload)
            # A value may hold the magic; it cannot well hold the checksum of a place before its own.
            if checksum(0, payload[:16]) == crc and group_start <= place:
                yield place - HEADER_BYTES, group_start
        place = data.find(_MAGIC, place + 1)
