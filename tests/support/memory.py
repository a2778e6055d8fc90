"""A backend of dictionaries, for tests that are not about disks."""

from collections.abc import Iterator, Mapping

from raftkv.mvcc.backend import REVISIONS, TABLES


class MemoryBackend:
    """Everything is kept at once; there is nothing to flush."""

    def __init__(self) -> None:
        self._tables: dict[bytes, dict[bytes, bytes]] = {table: {} for table in TABLES}

    pending_bytes = size_bytes = size_in_use_bytes = charged_bytes = 0

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

    def begin_flush(self) -> None:
        return None

    def end_flush(self, flush: object) -> None:
        raise AssertionError("nothing was flushed")

    def close(self) -> None:
        return None
