"""Writes small bbolt files, sound ones and others, for a reader to be tried on."""

import struct
from collections.abc import Sequence

from raftkv.bbolt.pages import fnv1a

PAGE = 4096
Items = Sequence[tuple[bytes, bytes]]


def meta(transaction: int, root: int, high_water: int, *, page_bytes: int = PAGE, place: int = 0) -> bytes:
    """A meta page, valid."""
    body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, page_bytes, 0, root, 0, 2, high_water, transaction)
    page = struct.pack("<QHHI", place, 0x04, 0, 0) + body + struct.pack("<Q", fnv1a(body))
    return page.ljust(page_bytes, b"\0")


def leaf(
    page_id: int, elements: Sequence[tuple[int, bytes, bytes]], *, page_bytes: int = PAGE, pad: bool = True
) -> bytes:
    """A leaf page of (flags, key, value), with as many pages more as it takes."""
    place, heads, data = len(elements) * 16, b"", b""
    for number, (flags, key, value) in enumerate(elements):
        heads += struct.pack("<IIII", flags, place - number * 16 + len(data), len(key), len(value))
        data += key + value
    size = 16 + len(heads) + len(data)
    overflow = (size - 1) // page_bytes if pad else 0
    page = struct.pack("<QHHI", page_id, 0x02, len(elements), overflow) + heads + data
    return page.ljust((overflow + 1) * page_bytes, b"\0") if pad else page


def branch(page_id: int, children: Sequence[tuple[bytes, int]], *, page_bytes: int = PAGE) -> bytes:
    """A branch page of (first key, page)."""
    place, heads, data = len(children) * 16, b"", b""
    for number, (key, child) in enumerate(children):
        heads += struct.pack("<IIQ", place - number * 16 + len(data), len(key), child)
        data += key
    page = struct.pack("<QHHI", page_id, 0x01, len(children), 0) + heads + data
    return page.ljust(page_bytes, b"\0")


def bucket(root: int, inline: bytes = b"") -> bytes:
    """The value of an element that is a bucket."""
    return struct.pack("<QQ", root, 0) + inline


def inline_bucket(items: Items) -> bytes:
    """A bucket small enough to have no page of its own."""
    return bucket(0, leaf(0, [(0, key, value) for key, value in items], pad=False))


class Builder:
    """A file page by page; page 2 is an empty free list."""

    def __init__(self, page_bytes: int = PAGE) -> None:
        self.page_bytes = page_bytes
        free = struct.pack("<QHHI", 2, 0x10, 0, 0).ljust(page_bytes, b"\0")
        self._pages = bytearray(2 * page_bytes) + free

    @property
    def next_page(self) -> int:
        return len(self._pages) // self.page_bytes

    def leaf(self, elements: Sequence[tuple[int, bytes, bytes]]) -> int:
        place = self.next_page
        self._pages += leaf(place, elements, page_bytes=self.page_bytes)
        return place

    def branch(self, children: Sequence[tuple[bytes, int]]) -> int:
        place = self.next_page
        self._pages += branch(place, children, page_bytes=self.page_bytes)
        return place

    def bucket(self, items: Items, per_leaf: int = 10) -> bytes:
        """A bucket of two levels."""
        parts = [items[at : at + per_leaf] for at in range(0, len(items), per_leaf)]
        children = [(part[0][0], self.leaf([(0, key, value) for key, value in part])) for part in parts]
        return bucket(self.branch(children) if len(children) > 1 else children[0][1])

    def file(self, root: int, transactions: tuple[int, int] = (4, 5)) -> bytes:
        """The whole file."""
        size, end = self.page_bytes, self.next_page
        metas = [meta(txid, root, end, page_bytes=size, place=place) for place, txid in enumerate(transactions)]
        return b"".join(metas) + bytes(self._pages[2 * size :])
