"""Tables in memory, for a store that is filled, read and given up."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from raftkv.mvcc.backend import RECORD, REVISIONS, TABLES


class MemoryBackend:
    """A `Backend` without a file: nothing is durable, nothing pending, and there is no file to copy."""

    pending_bytes = size_bytes = size_in_use_bytes = charged_bytes = 0

    def __init__(self) -> None:
        self._tables: dict[bytes, dict[bytes, bytes]] = {table: {} for table in TABLES}

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self._tables[table][key] = value

    def put_revisions(self, records: Mapping[bytes, bytes]) -> None:
        self._tables[REVISIONS].update(records)

    def delete(self, table: bytes, key: bytes) -> None:
        self._tables[table].pop(key, None)

    def get(self, table: bytes, key: bytes) -> bytes | None:
        return self._tables[table].get(key)

    def scan(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(self._tables[table].items()))

    def revisions(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        records = sorted(self._tables[REVISIONS].items())
        return iter(records[bisect_left(records, (first, b"")) :])

    def history(self) -> Iterator[bytes]:
        return (RECORD.pack(key, len(value)) + value for key, value in self.scan(REVISIONS))

    def begin_flush(self) -> None:
        return None

    def end_flush(self, flush: object) -> None:
        return None

    def copy_to(self, directory: str) -> None:
        raise OSError("a store in memory has no file")

    def copy_aside(self, scratch: str) -> object:
        raise OSError("a store in memory has no file")

    def adopt(self, copied: object, place: str) -> Callable[[], None]:
        raise OSError("a store in memory has no file")

    def abandon(self, copied: object) -> None:
        return None

    def close(self) -> None:
        self._tables.clear()
