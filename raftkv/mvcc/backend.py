"""Durable tables behind an overlay: LMDB may lag the log, and never leads it.

Changes gather in memory and are visible at once. `begin_flush` freezes them between two applied entries; a thread
writes them in one LMDB transaction with a synced commit; `end_flush` forgets what LMDB now has. A crash in between
leaves the state of an earlier flush, whole: keys, members and applied index are of one moment.

Revisions only ever grow at the end and are removed by compaction, so they are stored many to a value, in blocks: LMDB's
binding gives up the interpreter lock at each single put, and a busy event loop takes a whole switch interval to hand it
back.
"""

import errno
import os
import shutil
import struct
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Protocol

import lmdb

from raftkv.failpoints import failpoint

META = b"meta"
REVISIONS = b"revisions"
LEASES = b"leases"
AUTH = b"auth"
TABLES = (META, REVISIONS, LEASES, AUTH)

_FILE = "data.mdb"
MAP_BYTES = 64 << 30
BLOCK_BYTES = 64 << 10
CACHED_BLOCKS = 64
"""How many blocks are kept decoded, the ones used last: some 6 MB."""
RECORD = struct.Struct(">12sI")
"""What stands before a record: its key and its length."""
_NO_SPACE = os.strerror(errno.ENOSPC)
"""How LMDB's error ends then; its binding has no class for it."""
_BEHIND_ALL = b"\xff" * 13

Overlay = dict[bytes, dict[bytes, bytes | None]]
"""Table to key to new value; None is a deletion."""


WATCHERS: list[Callable[[str, lmdb.Environment], None]] = []
"""Hear of every environment: where a process is only simulated, nobody closes what its end would close."""


class Flush(Protocol):
    """Changes frozen at one moment."""

    def write(self) -> None:
        """Write them durably. Blocks: call it in a thread.

        Raises:
            OSError: with ENOSPC, there is no space; nothing has changed, and the same may be written later.
        """


class Backend(Protocol):
    """Tables of bytes, ordered by key."""

    @property
    def pending_bytes(self) -> int:
        """Size of changes that no flush has taken yet."""

    @property
    def size_bytes(self) -> int:
        """Size of the store on disk."""

    @property
    def size_in_use_bytes(self) -> int:
        """The part of it that holds data."""

    @property
    def charged_bytes(self) -> int:
        """What a quota counts: the size on disk, or what is in use and pending if that is more."""

    def put(self, table: bytes, key: bytes, value: bytes) -> None: ...

    def put_revisions(self, records: Mapping[bytes, bytes]) -> None:
        """Put many revisions, in ascending order and behind all there are."""

    def delete(self, table: bytes, key: bytes) -> None: ...

    def get(self, table: bytes, key: bytes) -> bytes | None: ...

    def scan(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All of a table, by key; only while nothing is pending, that is, at start."""

    def revisions(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The revision table from key `first` on, by key, pending changes included; nothing may change meanwhile."""

    def history(self) -> Iterator[bytes]:
        """The revision table of this moment, pending changes included, for a thread: the store may move on meanwhile.

        Runs of whole records, in order; a record is a `RECORD` (key, length) and its value.
        """

    def begin_flush(self) -> Flush | None:
        """Freeze what is pending; None when there is nothing. One flush at a time."""

    def end_flush(self, flush: Flush) -> None:
        """Forget the frozen changes, which are durable now."""

    def copy_to(self, directory: str) -> None:
        """Write what is durable, of one moment, to a directory, compacted and not synced. Blocks: for threads."""

    def copy_aside(self, scratch: str) -> object:
        """Copy what is durable, without its gaps, to a new directory below `scratch`, synced. Blocks: for threads."""

    def adopt(self, copied: object, place: str) -> Callable[[], None]:
        """Go on with a copy, moved to `place`, the directory of what it was copied from; nothing was flushed meanwhile.

        What is returned blocks, and comes before the next flush.
        """

    def abandon(self, copied: object) -> None:
        """Remove a copy that is of no use any more. Blocks: for threads."""

    def close(self) -> None: ...


def _empty() -> Overlay:
    return {table: {} for table in TABLES}


class LmdbFlush:
    """Frozen changes on their way to LMDB."""

    def __init__(self, backend: "LmdbBackend", changes: Overlay) -> None:
        self._backend = backend
        self._changes = changes

    def write(self) -> None:
        self._backend.write(self._changes)


class LmdbBackend:
    """Tables in an LMDB environment: one per path and process, one writer, map size fixed at open.

    Invariants:
    1. The newest value of a key is in `_live`, else in `_frozen`, else in LMDB.
    2. `_frozen` is not empty exactly while a flush is under way.
    3. `_blocks` has what LMDB has, but for what the overlays hide.
    4. Revisions are put in ascending order: `_live_order` has those of `_live`, `_frozen_order` those of `_frozen`.
    """

    def __init__(self, path: str, *, map_bytes: int = MAP_BYTES) -> None:
        """Open or create the environment in directory `path`.

        Raises:
            lmdb.Error: it cannot be opened, or is not LMDB's.
        """
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._map_bytes = map_bytes
        self._env = self._open(path)
        self._tables = {table: self._env.open_db(table) for table in TABLES}
        self._live = _empty()
        self._live_order: list[bytes] = []
        self._frozen = _empty()
        self._frozen_order: list[bytes] = []
        self._pending_bytes = 0
        self._blocks: dict[bytes, dict[bytes, bytes]] = {}
        self._written_bytes = (self.size_bytes, self.size_in_use_bytes)

    def _open(self, path: str) -> lmdb.Environment:
        # The map is sparse: address space, not memory or disk. Reads are random, so no readahead.
        environment = lmdb.open(path, map_size=self._map_bytes, max_dbs=len(TABLES), readahead=False, mode=0o600)
        for hear in WATCHERS:
            hear(path, environment)
        return environment

    @property
    def pending_bytes(self) -> int:
        return self._pending_bytes

    @property
    def size_bytes(self) -> int:
        return (int(self._env.info()["last_pgno"]) + 1) * int(self._env.stat()["psize"])

    @property
    def size_in_use_bytes(self) -> int:
        pages = 0
        with self._env.begin() as txn:
            for table in self._tables.values():
                stat = txn.stat(table)
                pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * int(self._env.stat()["psize"])

    @property
    def charged_bytes(self) -> int:
        size, in_use = self._written_bytes
        return max(size, in_use + self._pending_bytes)

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self._live[table][key] = value
        if table == REVISIONS:
            self._live_order.append(key)
        self._pending_bytes += len(key) + len(value)

    def put_revisions(self, records: Mapping[bytes, bytes]) -> None:
        self._live[REVISIONS].update(records)
        self._live_order += records
        self._pending_bytes += sum(map(len, records)) + sum(map(len, records.values()))

    def delete(self, table: bytes, key: bytes) -> None:
        self._live[table][key] = None
        self._pending_bytes += len(key)

    def get(self, table: bytes, key: bytes) -> bytes | None:
        for overlay in (self._live, self._frozen):
            changes = overlay[table]
            if key in changes:
                return changes[key]
        with self._env.begin(db=self._tables[table]) as txn:
            if table == REVISIONS:
                return self._find(txn, key)
            value: bytes | None = txn.get(key)
            return value

    def _find(self, txn: lmdb.Transaction, key: bytes) -> bytes | None:
        with txn.cursor() as cursor:
            return self._block(cursor).get(key) if _seek(cursor, key) else None

    def _block(self, cursor: lmdb.Cursor) -> dict[bytes, bytes]:
        """The records of the block at the cursor; those beside a record are probably asked for soon."""
        place = bytes(cursor.key())
        block = self._blocks.pop(place, None)
        if block is None:
            block = dict(_records(bytes(cursor.value())))
            if len(self._blocks) >= CACHED_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        self._blocks[place] = block
        return block

    def scan(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._env.begin(db=self._tables[table]) as txn, txn.cursor() as cursor:
            if table != REVISIONS:
                yield from cursor
                return
            for _, block in cursor:
                yield from _records(bytes(block))
        # What was read stays in the process's memory as long as it is mapped, and is not needed any more.
        self._env.set_mapsize(self._map_bytes)

    def revisions(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        frozen, live = self._frozen[REVISIONS], self._live[REVISIONS]
        # A flush that is written and not yet ended has its records in LMDB as well: they are taken from here.
        pending = self._frozen_order or self._live_order
        if not pending or first < pending[0]:
            for key, value in self._stored(first):
                if key not in frozen and key not in live:
                    yield key, value
        for changes, order in ((frozen, self._frozen_order), (live, self._live_order)):
            for place in range(bisect_left(order, first), len(order)):
                key = order[place]
                found = changes[key]
                if found is not None and live.get(key, found) is not None:
                    yield key, found

    def _stored(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._env.begin(db=self._tables[REVISIONS]) as txn, txn.cursor() as cursor:
            if not _seek(cursor, first) and not cursor.first():
                return
            more = True
            while more:
                for key, value in self._block(cursor).items():
                    if key >= first:
                        yield key, value
                more = cursor.next()

    def history(self) -> Iterator[bytes]:
        changes = self._frozen[REVISIONS] | self._live[REVISIONS]
        return self._runs(self._env.begin(db=self._tables[REVISIONS]), changes)

    @staticmethod
    def _runs(txn: lmdb.Transaction, changes: dict[bytes, bytes | None]) -> Iterator[bytes]:
        hidden = sorted(changes)
        with txn, txn.cursor() as cursor:
            stored = ((bytes(first), bytes(block)) for first, block in cursor)
            for (first, block), (end, _) in pairwise(chain(stored, [(_BEHIND_ALL, b"")])):
                place = bisect_left(hidden, first)
                if place == len(hidden) or hidden[place] >= end:
                    yield block
                else:
                    yield _join((key, value) for key, value in _records(block) if key not in changes)
        yield _join((key, value) for key, value in changes.items() if value is not None)

    def begin_flush(self) -> Flush | None:
        if not any(self._live.values()):
            return None
        self._frozen, self._live = self._live, _empty()
        self._frozen_order, self._live_order = self._live_order, []
        self._pending_bytes = 0
        return LmdbFlush(self, self._frozen)

    def write(self, changes: Overlay) -> None:
        """Write frozen changes in one synced transaction.

        Raises:
            OSError: with ENOSPC; the transaction left nothing, and a later one writes all its pages anew.
            lmdb.Error: anything else.
        """
        try:
            self._write(changes)
        except lmdb.Error as error:
            if _NO_SPACE in str(error):
                raise OSError(errno.ENOSPC, _NO_SPACE) from error
            raise
        self._written_bytes = (self.size_bytes, self.size_in_use_bytes)

    def _write(self, changes: Overlay) -> None:
        with self._env.begin(write=True) as txn:
            for name, table in self._tables.items():
                items = changes[name].items()
                if name == REVISIONS:
                    self._remove(txn, _in_order(key for key, value in items if value is None))
                    for key, block in _blocks((key, value) for key, value in items if value is not None):
                        txn.put(key, block, db=table)
                    continue
                for key, value in items:
                    if value is None:
                        txn.delete(key, db=table)
                    else:
                        txn.put(key, value, db=table)

    def _remove(self, txn: lmdb.Transaction, keys: list[bytes]) -> None:
        """Rewrite the blocks that hold these records, without them."""
        table = self._tables[REVISIONS]
        with txn.cursor(db=table) as cursor:
            place = 0
            while place < len(keys):
                if not _seek(cursor, keys[place]):
                    place += 1
                    continue
                block, records = bytes(cursor.key()), bytes(cursor.value())
                end = bisect_left(keys, bytes(cursor.key()), place) if cursor.next() else len(keys)
                kept = _without(records, set(keys[place:end]))
                if kept:
                    txn.put(block, kept, db=table)
                else:
                    txn.delete(block, db=table)
                place = end

    def end_flush(self, flush: Flush) -> None:
        self._frozen = _empty()
        self._frozen_order = []
        self._blocks.clear()

    def copy_to(self, directory: str) -> None:
        self._env.copy(directory, compact=True)

    def copy_aside(self, scratch: str) -> lmdb.Environment:
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        directory = tempfile.mkdtemp(prefix="defragment-", dir=scratch)
        try:
            self.copy_to(directory)
            failpoint("defragment-copied")
            _sync(os.path.join(directory, _FILE))
            failpoint("defragment-synced")
            return self._open(directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def adopt(self, copied: object, place: str) -> Callable[[], None]:
        assert isinstance(copied, lmdb.Environment)
        directory = copied.path()
        os.rename(os.path.join(directory, _FILE), os.path.join(place, _FILE))
        failpoint("defragment-moved")
        old, self._env = self._env, copied
        self._tables = {table: copied.open_db(table) for table in TABLES}
        self._blocks.clear()
        self._written_bytes = (self.size_bytes, self.size_in_use_bytes)

        def settle() -> None:
            _sync(place)
            failpoint("defragment-durable")
            old.close()
            shutil.rmtree(directory, ignore_errors=True)

        return settle

    def abandon(self, copied: object) -> None:
        assert isinstance(copied, lmdb.Environment)
        directory = copied.path()
        copied.close()
        shutil.rmtree(directory, ignore_errors=True)

    def close(self) -> None:
        self._env.close()


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _blocks(records: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Gather records into blocks; a block's key is that of its first record."""
    parts: list[bytes] = []
    first, size = b"", 0
    for key, value in records:
        if not parts:
            first = key
        parts += (RECORD.pack(key, len(value)), value)
        size += RECORD.size + len(value)
        if size >= BLOCK_BYTES:
            yield first, b"".join(parts)
            parts, size = [], 0
    if parts:
        yield first, b"".join(parts)


def _in_order(keys: Iterable[bytes]) -> list[bytes]:
    """Keys of revisions in order.

    To sort a hundred thousand at once takes 50 ms without letting go of the interpreter lock, and the event loop stands
    still meanwhile. So they are spread over heaps of 256 revisions, by the leading bytes of their numbers.
    """
    spread: dict[bytes, dict[bytes, list[bytes]]] = {}
    for key in keys:
        spread.setdefault(key[:6], {}).setdefault(key[:7], []).append(key)
    ordered: list[bytes] = []
    for _, heaps in sorted(spread.items()):
        for _, heap in sorted(heaps.items()):
            ordered += sorted(heap)
    return ordered


def _without(records: bytes, gone: set[bytes]) -> bytes:
    """A block without some of its records."""
    view, kept = memoryview(records), []
    offset = begin = 0
    while offset < len(records):
        key, length = RECORD.unpack_from(records, offset)
        end = offset + RECORD.size + length
        if key in gone:
            kept.append(view[begin:offset])
            begin = end
        offset = end
    kept.append(view[begin:])
    return b"".join(kept)


def _join(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(RECORD.pack(key, len(value)) + value for key, value in records)


def _records(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 0
    while offset < len(block):
        key, length = RECORD.unpack_from(block, offset)
        start = offset + RECORD.size
        offset = start + length
        yield key, block[start:offset]


def _seek(cursor: lmdb.Cursor, key: bytes) -> bool:
    """Move to the block that would hold this record: the last one that begins at or before it."""
    if cursor.set_range(key):
        return bool(cursor.key() == key or cursor.prev())
    return bool(cursor.last())
