"""The bytes of pages (bbolt's file format, version 2).

    page     id u64 · flags u16 · count u16 · overflow u32, then `count` elements, then keys and values
    meta     magic u32 · version u32 · page size u32 · flags u32 · root bucket (page u64, sequence u64) ·
             free list u64 · high water u64 · transaction u64 · FNV-1a of what stands before u64
    branch   element: pos u32 · key size u32 · page u64
    leaf     element: flags u32 · pos u32 · key size u32 · value size u32; flag 1: the value is a bucket
    bucket   root page u64 · sequence u64; root page 0: its only page follows, inline

Everything is little endian. `pos` counts from the element itself. A page with overflow goes on in as many pages more.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

BRANCH, LEAF, META = 0x01, 0x02, 0x04
BUCKET = 0x01
"""The flag of an element that is a bucket."""

HEADER = struct.Struct("<QHHI")
BUCKET_HEADER = struct.Struct("<QQ")
META_BYTES = 64
PAGE_BYTES_MIN, PAGE_BYTES_MAX = 512, 1 << 24

_META = struct.Struct("<IIIIQQQQQQ")
_BRANCH = struct.Struct("<IIQ")
_LEAF = struct.Struct("<IIII")
_MAGIC = 0xED0CDAED
_VERSION = 2
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


class DamagedFile(Exception):
    """The file is not what bbolt writes; the message says what and where."""


class Meta(NamedTuple):
    """What a meta page says: the state of the file after one transaction."""

    page_bytes: int
    root: int
    high_water: int
    """Pages from here on do not exist."""
    transaction: int


class Element(NamedTuple):
    """A key of a leaf with its value, or a bucket."""

    is_bucket: bool
    key: bytes
    value: bytes


def fnv1a(data: bytes) -> int:
    """The FNV-1a hash of 64 bits.

    >>> f"{fnv1a(b'foobar'):x}"
    '85944171f73967e8'
    """
    found = _FNV_OFFSET
    for byte in data:
        found = (found ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return found


def decode_meta(page: bytes) -> Meta | None:
    """The content of a meta page; None if it is none, or damaged."""
    if len(page) < HEADER.size + META_BYTES or not HEADER.unpack_from(page)[1] & META:
        return None
    magic, version, page_bytes, _, root, _, _, high_water, transaction, checksum = _META.unpack_from(page, HEADER.size)
    if (magic, version) != (_MAGIC, _VERSION) or checksum != fnv1a(page[HEADER.size : HEADER.size + META_BYTES - 8]):
        return None
    if not PAGE_BYTES_MIN <= page_bytes <= PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
        return None
    return Meta(page_bytes, root, high_water, transaction)


def branch(page: bytes, count: int, where: str) -> Iterator[tuple[bytes, int]]:
    """First key and page of each child of a branch page.

    Raises:
        DamagedFile: an element reaches out of the page or into another.
    """
    free = _elements_end(page, count, _BRANCH.size, where)
    for place in range(HEADER.size, HEADER.size + count * _BRANCH.size, _BRANCH.size):
        pos, key_size, child = _BRANCH.unpack_from(page, place)
        start, free = place + pos, _within(page, place + pos, key_size, free, where)
        yield page[start : start + key_size], child


def leaf(page: bytes, count: int, where: str) -> Iterator[Element]:
    """The elements of a leaf page.

    Raises:
        DamagedFile: an element reaches out of the page or into another, or is of an unknown kind.
    """
    free = _elements_end(page, count, _LEAF.size, where)
    for place in range(HEADER.size, HEADER.size + count * _LEAF.size, _LEAF.size):
        flags, pos, key_size, value_size = _LEAF.unpack_from(page, place)
        if flags not in (0, BUCKET):
            raise DamagedFile(f"{where} has an element of unknown kind {flags:#x}")
        start, free = place + pos, _within(page, place + pos, key_size + value_size, free, where)
        yield Element(bool(flags), page[start : start + key_size], page[start + key_size : free])


def _elements_end(page: bytes, count: int, size: int, where: str) -> int:
    end = HEADER.size + count * size
    if end > len(page):
        raise DamagedFile(f"{where} has no room for its {count} elements")
    return end


def _within(page: bytes, start: int, size: int, free: int, where: str) -> int:
    """Where the data of an element end. They lie behind those of the one before: no byte is read twice."""
    if start < free or start + size > len(page):
        raise DamagedFile(f"{where} has an element outside of its place")
    return start + size
