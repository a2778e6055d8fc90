"""A bbolt file as buckets of keys.

The tree is walked without recursion and without a page twice, so a file cannot make the walk endless. Keys must come in
ascending order: a reader that relies on order is not misled. The file is read, not mapped: one that becomes shorter
meanwhile is an error, not a signal.
"""

import os
from collections.abc import Iterator

from raftkv.bbolt import pages
from raftkv.bbolt.pages import DamagedFile, Element, Meta

_PAGE_SIZES = [1 << bits for bits in range(9, 25)]


class Database:
    """An open file.

    Raises, each method: DamagedFile, and OSError if the file cannot be read.
    """

    def __init__(self, path: str, size_bytes: int | None = None) -> None:
        """Open a file, of which the first `size_bytes` count (None: all)."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._size_bytes = os.fstat(self._fd).st_size if size_bytes is None else size_bytes
            self._meta = self._newest_meta()
            if self._meta.high_water * self._meta.page_bytes > self._size_bytes:
                raise DamagedFile(
                    f"it should have {self._meta.high_water} pages of {self._meta.page_bytes} bytes, and has "
                    f"{self._size_bytes} bytes: it is truncated"
                )
        except BaseException:
            os.close(self._fd)
            raise
        self.root = Bucket(self, self._meta.root, None, "the root bucket")

    @property
    def size_bytes(self) -> int:
        """Size of the pages that exist."""
        return self._meta.high_water * self._meta.page_bytes

    def close(self) -> None:
        """Close the file; buckets of it cannot be used any more."""
        os.close(self._fd)

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _newest_meta(self) -> Meta:
        """The valid meta page of the later transaction: pages 0 and 1 are written in turn."""
        first = pages.decode_meta(self._read(0, pages.HEADER.size + pages.META_BYTES))
        sizes = [first.page_bytes] if first else _PAGE_SIZES
        found = [first] if first else []
        for size in sizes:
            second = pages.decode_meta(self._read(size, pages.HEADER.size + pages.META_BYTES))
            if second is not None and second.page_bytes == size:
                found.append(second)
        if not found:
            raise DamagedFile("neither meta page is valid: it is damaged, or no bbolt file")
        return max(found, key=lambda meta: meta.transaction)

    def page(self, page_id: int) -> tuple[int, int, bytes]:
        """Kind (`BRANCH` or `LEAF`), number of elements and bytes of a page."""
        size = self._meta.page_bytes
        if not 2 <= page_id < self._meta.high_water:
            raise DamagedFile(f"page {page_id} is referred to and does not exist")
        head = self._read(page_id * size, size)
        found, flags, count, overflow = pages.HEADER.unpack_from(head)
        if found != page_id:
            raise DamagedFile(f"page {page_id} says that it is page {found}")
        if page_id + overflow >= self._meta.high_water:
            raise DamagedFile(f"page {page_id} reaches beyond the end")
        if flags not in (pages.BRANCH, pages.LEAF):
            raise DamagedFile(f"page {page_id} is of kind {flags:#x}, where keys should be")
        whole = head + self._read((page_id + 1) * size, overflow * size) if overflow else head
        if len(whole) != (overflow + 1) * size:
            raise DamagedFile(f"page {page_id} is truncated")
        return flags, count, whole

    def _read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._size_bytes - offset))
        parts = []
        while length and (data := os.pread(self._fd, length, offset)):
            parts.append(data)
            offset, length = offset + len(data), length - len(data)
        return b"".join(parts)


class Bucket:
    """Keys with values, and buckets by name, in ascending order."""

    def __init__(self, database: Database, root: int, inline: bytes | None, where: str) -> None:
        """A bucket of `Database.root` or `bucket`; `inline` is its page if it has one of its own."""
        self._database = database
        self._root = root
        self._inline = inline
        self._where = where

    def elements(self) -> Iterator[Element]:
        """Keys and buckets.

        Raises:
            DamagedFile: what came before was well-formed.
        """
        last: bytes | None = None
        for where, page, count in self._leaves():
            for element in pages.leaf(page, count, where):
                if last is not None and element.key <= last:
                    raise DamagedFile(f"{where} has keys out of order")
                last = element.key
                yield element

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys with their values; see `elements`."""
        return ((key, value) for is_bucket, key, value in self.elements() if not is_bucket)

    def bucket(self, name: bytes) -> "Bucket | None":
        """The bucket of a name in this one."""
        return next((self._open(element) for element in self.elements() if element.key == name), None)

    def buckets(self) -> Iterator[tuple[bytes, "Bucket"]]:
        """The buckets in this one."""
        return ((element.key, self._open(element)) for element in self.elements() if element.is_bucket)

    def _open(self, element: Element) -> "Bucket":
        where = f"bucket {element.key!r}"
        if not element.is_bucket or len(element.value) < pages.BUCKET_HEADER.size:
            raise DamagedFile(f"{where} is none")
        root, _ = pages.BUCKET_HEADER.unpack_from(element.value)
        inline = None if root else element.value[pages.BUCKET_HEADER.size :]
        return Bucket(self._database, root, inline, where)

    def _leaves(self) -> Iterator[tuple[str, bytes, int]]:
        """Name, bytes and number of elements of each leaf page, from left to right."""
        if self._inline is not None:
            yield self._inline_leaf(self._inline)
            return
        seen: set[int] = set()
        waiting = [self._root]
        while waiting:
            page_id = waiting.pop()
            if page_id in seen:
                raise DamagedFile(f"page {page_id} is in {self._where} twice")
            seen.add(page_id)
            kind, count, page = self._database.page(page_id)
            where = f"page {page_id} of {self._where}"
            if kind == pages.LEAF:
                yield where, page, count
                continue
            children = [child for _, child in pages.branch(page, count, where)]
            waiting += reversed(children)

    def _inline_leaf(self, page: bytes) -> tuple[str, bytes, int]:
        if len(page) < pages.HEADER.size:
            raise DamagedFile(f"{self._where} has no page")
        _, flags, count, overflow = pages.HEADER.unpack_from(page)
        if flags != pages.LEAF or overflow:
            raise DamagedFile(f"{self._where} has something else where its page should be")
        return f"the page of {self._where}", page, count
