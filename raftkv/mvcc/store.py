"""The multi-version store: newest versions in memory, history in the backend.

A revision is (main, sub): one main revision per request that writes, one sub per change inside it, from 0. The newest
version of every live key is kept in key order as an encoded chunk, so a range is a join of stored bytes and a count is
a subtraction. Keys that have more than their one live version retained (older ones, or a tombstone) stand in
`_history` with their revisions; everything else about the past is in the backend's revision table. That table alone
rebuilds the rest.

Writes come from the log, in order, and are functions of state and request alone: an error is raised before anything
has changed, so that all members agree.
"""

import contextlib
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

from raftkv import errors
from raftkv.mvcc import encoding as enc
from raftkv.mvcc.backend import META, REVISIONS, Backend, Flush
from raftkv.mvcc.counts import Counts
from raftkv.mvcc.gathering import Gathering
from raftkv.mvcc.history import Record
from raftkv.mvcc.interval import Interval, interval
from raftkv.mvcc.leases import Leases, NoLeases
from raftkv.mvcc.ranges import Part, answer_range, gather_range, stream_range
from raftkv.mvcc.table import Parts, Table
from raftkv.mvcc.turnover import Turnover
from raftkv.mvcc.txn import Txn
from raftkv.pb import rpc_pb2

REVISION = struct.Struct(">QI")
NUMBER = struct.Struct(">Q")
CURRENT = b"revision"
COMPACTED = b"compacted"
DELETED = b"d"
"""First byte of a tombstone's record; a put's record is its chunk, which never begins so."""

KEYS_AHEAD = 100
VERSIONS_PER_STEP = 10
"""What compaction looks at and removes before others may have a turn."""
SLICE_KEYS = 4096
PAST_KEYS_MAX = 128
"""Old versions that one slice fetches at most: each is a look into the backend."""


Version = tuple[int, int, bool]
"""One retained version of a key: main, sub, and whether it is a tombstone."""
Versions = tuple[Version, ...] | list[Version]
"""Of one key. Few are a plain tuple: the garbage collector forgets tuples of numbers, and of such tuples, when it has
seen them once. A million deleted keys would else be three million objects to walk through, in one turn of the loop."""
FEW_VERSIONS = 8


@dataclass(slots=True)
class Change:
    """One key's change; `chunk` is the new version (key and mod revision alone for a deletion), `previous` the old."""

    deleted: bool
    key: bytes
    chunk: bytes
    previous: bytes | None


class Store:
    """The keyspace of one member.

    Invariants:
    1. `revision` never decreases, whatever crashes or is compacted.
    2. A key of `_history` has its retained versions there, oldest first, the newest included.
    3. Reads at or above `compacted_revision` see the same before, during and after physical compaction.
    """

    def __init__(self, backend: Backend) -> None:
        """Load the newest versions and the history index from the backend."""
        self.backend = backend
        self.counts = Counts()
        self.leases: Leases = NoLeases()
        self.on_commit: Callable[[int, Sequence[Change]], None] | None = None
        self._newest: Table[bytes] = Table()
        self._history: Table[Versions] = Table()
        self._subs: Parts[int] = Parts()
        self._turnover = Turnover()
        self._compaction: Iterator[None] | None = None
        self._gatherings: list[Gathering] = []
        self.revision = 1
        self.compacted_revision = -1
        self._load()

    def _load(self) -> None:
        self.revision = self._number(CURRENT, 1)
        self.compacted_revision = self._number(COMPACTED, -1)
        newest: dict[bytes, bytes] = {}
        history: dict[bytes, Versions] = {}
        for packed, record in self.backend.scan(REVISIONS):
            main, sub = REVISION.unpack(packed)
            deleted = record.startswith(DELETED)
            key = record[1:] if deleted else enc.chunk_key(record)
            if main > self.compacted_revision and (deleted or key not in newest):
                self._turnover.note(main, key, born=not deleted)
            versions = history.get(key)
            if versions is not None:
                history[key] = _with(versions, (main, sub, deleted))
            elif key in newest:
                first = (enc.chunk_mod_revision(newest[key]), self._subs.pop(key, 0), False)
                history[key] = (first, (main, sub, deleted))
            elif deleted:
                history[key] = ((main, sub, True),)
            elif sub:
                self._subs[key] = sub
            if deleted:
                newest.pop(key, None)
            else:
                newest[key] = record
        self._newest.update(newest)
        self._history.update(history)
        if self.compacted_revision > 0:
            self._compaction = self._compact_history()

    def replace(self, other: "Store") -> None:
        """Become what another store is, a later one of the same cluster; whoever holds this one goes on with it.

        The other must not be used any more; the backend of before is the caller's to close.
        """
        if other.revision < self.revision:
            raise RuntimeError(f"a store at revision {other.revision} cannot replace one at {self.revision}")
        self.backend = other.backend
        self.revision, self.compacted_revision = other.revision, other.compacted_revision
        self._newest, self._history, self._subs = other._newest, other._history, other._subs
        self._turnover = other._turnover
        # Whoever gathers goes on in what this was.
        self._gatherings = []
        self._compaction = self._compact_history() if self.compacted_revision > 0 else None

    def _number(self, name: bytes, default: int) -> int:
        packed = self.backend.get(META, name)
        return default if packed is None else int(NUMBER.unpack(packed)[0])

    # Meta and flushing

    def get_meta(self, name: bytes) -> bytes | None:
        """A value stored beside the keys."""
        return self.backend.get(META, name)

    def set_meta(self, name: bytes, value: bytes) -> None:
        """Store a value that belongs to the same moment as the keys."""
        self.backend.put(META, name, value)

    def begin_flush(self) -> Flush | None:
        """Freeze everything pending, with the revision it stands for."""
        self.set_meta(CURRENT, NUMBER.pack(self.revision))
        return self.backend.begin_flush()

    # Writes

    def put(self, request: rpc_pb2.PutRequest) -> bytes:
        """Put one key; the body of the PutResponse.

        Raises:
            LeaseNotFound, KeyNotFound: with nothing changed.
        """
        self.check_put(request)
        writer = Writer(self)
        previous = writer.put(request)
        writer.commit()
        return previous if request.prev_kv and previous is not None else b""

    def delete_range(self, request: rpc_pb2.DeleteRangeRequest) -> bytes:
        """Delete an interval; the body of the DeleteRangeResponse."""
        writer = Writer(self)
        body = writer.delete_range(request)
        writer.commit()
        return body

    def delete_keys(self, keys: Sequence[bytes]) -> None:
        """Delete these keys, which live, in this order and in one revision; none: no new revision."""
        writer = Writer(self)
        writer.delete(keys)
        writer.commit()

    def txn(self, request: rpc_pb2.TxnRequest) -> bytes:
        """Run a transaction; the body of the TxnResponse.

        Raises:
            LeaseNotFound, KeyNotFound, Compacted, FutureRev: in the branch that would run, with nothing changed.
        """
        self.counts.txns += 1
        return Txn(self, request).run()

    def check_put(self, request: rpc_pb2.PutRequest) -> None:
        """Raises: KeyNotFound, LeaseNotFound; in etcd's order."""
        if (request.ignore_value or request.ignore_lease) and request.key not in self._newest:
            raise errors.KeyNotFound
        if request.lease and not self.leases.exists(request.lease):
            raise errors.LeaseNotFound

    def check_revision(self, revision: int) -> None:
        """Raises: FutureRev, Compacted; a revision of 0 or less is the newest."""
        if revision > self.revision:
            raise errors.FutureRev
        if 0 < revision < self.compacted_revision:
            raise errors.Compacted

    # Reads

    def newest(self, key: bytes) -> bytes | None:
        """The chunk of the key's newest version."""
        return self._newest.get(key)

    def count(self, span: Interval) -> int:
        """How many live keys the interval holds."""
        low, high = self._places(span)
        return high - low

    def keys(self, span: Interval) -> list[bytes]:
        """The live keys of the interval, in order."""
        low, high = self._places(span)
        return list(self._newest.islice(low, high))

    def select(self, span: Interval, limit: int = 0) -> list[bytes]:
        """Chunks of the live keys of the interval, in key order, at most `limit` (0: all)."""
        low, high = self._places(span)
        if limit and limit < high - low:
            high = low + limit
        return self._newest.values_between(low, high)

    def _places(self, span: Interval) -> tuple[int, int]:
        first, end = span
        newest = self._newest
        low = newest.bisect_left(first)
        high = len(newest) if end is None else newest.bisect_left(end)
        return low, max(low, high)

    def count_at(self, span: Interval, revision: int) -> int:
        """How many keys lived in the interval at a revision."""
        return self.count(span) - self._turnover.balance_since(revision, span)

    def select_at(self, span: Interval, revision: int, limit: int = 0) -> list[bytes]:
        """Chunks of the keys that lived in the interval at an old revision, in key order, at most `limit` (0: all)."""
        chunks: list[bytes] = []
        first: bytes | None = span[0]
        while first is not None and not 0 < limit <= len(chunks):
            found, first = self.slice_at((first, span[1]), revision, limit + PAST_KEYS_MAX if limit else SLICE_KEYS)
            chunks += found
        return chunks[:limit] if limit else chunks

    def slice_at(self, span: Interval, revision: int, max_keys: int) -> tuple[list[bytes], bytes | None]:
        """Look at no more than the interval's first `max_keys` keys, at a revision that is not compacted.

        Chunks of those that lived then, in key order, and where the rest of the interval begins; None: nowhere.
        """
        live = list(islice(self._irange(self._newest, span), max_keys))
        max_past = min(max_keys, PAST_KEYS_MAX)
        past = list(islice(self._irange(self._history, span), max_past))
        bounds = [keys[-1] for keys, full in ((live, max_keys), (past, max_past)) if len(keys) == full]
        keys = sorted({*live, *past}) if past else live
        cut = min(bisect_right(keys, min(bounds)) if bounds else len(keys), max_keys)
        rest = keys[cut - 1] + b"\0" if bounds or cut < len(keys) else None
        del keys[cut:]
        # A live key with a single version lived at the revision, as it is, unless it was born since.
        born, history, newest = self._born_since(revision, live), self._history, self._newest
        chunks = [self._version_at(key, revision) if key in history else newest[key] for key in keys if key not in born]
        return [chunk for chunk in chunks if chunk is not None], rest

    def _born_since(self, revision: int, live: list[bytes]) -> set[bytes]:
        """The keys of `live` that have a single version, of a later revision."""
        newest, history = self._newest, self._history
        if self._turnover.size_behind(revision) <= len(live):
            return {key for key in self._turnover.born_since(revision) if key not in history}
        return {key for key in live if key not in history and enc.chunk_mod_revision(newest[key]) > revision}

    @staticmethod
    def _irange(keys: Table[bytes] | Table[Versions], span: Interval) -> Iterator[bytes]:
        first, end = span
        if end is not None and end <= first:
            return iter(())
        return iter(keys.irange(first, end, inclusive=(True, False)))

    def _version_at(self, key: bytes, revision: int) -> bytes | None:
        versions = self._history[key]
        place = bisect_right(versions, (revision, 1 << 32))
        if not place:
            return None
        main, sub, deleted = versions[place - 1]
        if deleted:
            return None
        if place == len(versions):
            return self.newest(key)
        return self.backend.get(REVISIONS, REVISION.pack(main, sub))

    def range(self, request: rpc_pb2.RangeRequest) -> list[bytes]:
        """The pieces of a RangeResponse's body.

        Raises:
            FutureRev, Compacted
        """
        self.counts.ranges += 1
        return answer_range(self, request, self.revision)

    def range_slices(self, request: rpc_pb2.RangeRequest, max_keys: int) -> Generator[tuple[list[bytes], bool]]:
        """The same in slices of about so many keys, for requests that `ranges.is_gathered`; to be closed.

        All are of the moment of the first one, though the store moves on between them.

        Raises:
            FutureRev
        """
        self.counts.ranges += 1
        return gather_range(self, request, max_keys)

    @contextlib.contextmanager
    def gather(self, span: Interval) -> Iterator[Gathering]:
        """Read the interval as it is now, a slice at a time, until the end of the block."""
        gathering = Gathering(self._newest, span)
        self._gatherings.append(gathering)
        try:
            yield gathering
        finally:
            if gathering in self._gatherings:
                self._gatherings.remove(gathering)

    def range_stream(self, request: rpc_pb2.RangeRequest, max_bytes: int) -> Iterator[Part]:
        """The same answer in parts, at one revision though the store moves on between them; see `stream_range`.

        Raises:
            FutureRev, Compacted: also between parts, when compaction overtakes the reader.
        """
        self.counts.ranges += 1
        return stream_range(self, request, max_bytes)

    def read_txn(self, request: rpc_pb2.TxnRequest) -> bytes:
        """Run a transaction that only reads; the body of the TxnResponse.

        Raises:
            Compacted, FutureRev
        """
        self.counts.txns += 1
        return Txn(self, request).run()

    # History

    def changes_from(self, first: int) -> Generator[Record]:
        """Every change from revision `first` on, in order. The store must not change while this is iterated."""
        for packed, record in self.backend.revisions(REVISION.pack(first, 0)):
            main, sub = REVISION.unpack(packed)
            if record.startswith(DELETED):
                key = record[1:]
                yield Record(main, sub, True, key, enc.encode_tombstone(key, main))
            else:
                yield Record(main, sub, False, enc.chunk_key(record), record)

    def version_before(self, key: bytes, main: int, sub: int) -> bytes | None:
        """The chunk that a change at or above the compacted revision replaced; None if the key was not there."""
        versions = self._history.get(key)
        if versions is None:
            return None
        place = bisect_left(versions, (main, sub)) - 1
        if place < 0:
            return None
        main_before, sub_before, deleted = versions[place]
        return None if deleted else self.backend.get(REVISIONS, REVISION.pack(main_before, sub_before))

    # Compaction

    def compact(self, revision: int) -> None:
        """Give up history below `revision`; `compaction_step` removes it.

        Raises:
            Compacted, FutureRev
        """
        if revision <= self.compacted_revision:
            raise errors.Compacted
        if revision > self.revision:
            raise errors.FutureRev
        self.compacted_revision = revision
        self._turnover.forget(revision)
        self.set_meta(COMPACTED, NUMBER.pack(revision))
        self._compaction = self._compact_history()

    @property
    def compacting(self) -> bool:
        """Whether history that was given up is still being removed."""
        return self._compaction is not None

    def compaction_step(self, max_keys: int = 100) -> bool:
        """Remove the history of some keys, the work of a millisecond; whether work remains."""
        if self._compaction is None:
            return False
        for _ in range(max_keys):
            if next(self._compaction, self) is self:
                self._compaction = None
                return False
        return True

    def _compact_history(self) -> Iterator[None]:
        """A step of it is a key, or `VERSIONS_PER_STEP` of one that has more."""
        first: bytes | None = b""
        while first is not None:
            # Keys may come meanwhile, and none goes but here.
            keys = list(islice(self._history.irange(first), KEYS_AHEAD))
            for key in keys:
                yield from self._compact_key(key)
                yield
            first = keys[-1] + b"\0" if keys else None

    def _compact_key(self, key: bytes) -> Iterator[None]:
        """Keep every change at or above the compacted revision, and the version that stood before the first of them.

        Reads at the compacted revision may see that version, and watchers from there on are told it as the value that
        the change replaced.
        """
        versions = self._history[key]
        keep = bisect_left(versions, (self.compacted_revision, 0)) - 1
        if keep >= 0 and versions[keep][2]:
            keep += 1
        keep = max(keep, 0)
        for place, (main, sub, _) in enumerate(islice(versions, keep), 1):
            self.backend.delete(REVISIONS, REVISION.pack(main, sub))
            if not place % VERSIONS_PER_STEP:
                # Nobody asks for these any more, and who comes back to the key takes them for gone as well.
                yield
        self.counts.compacted += keep
        # There may be newer ones by now.
        kept = self._history[key][keep:]
        if len(kept) > 1 or (kept and kept[0][2]):
            self._history[key] = tuple(kept) if len(kept) <= FEW_VERSIONS else kept
            return
        del self._history[key]
        if kept and kept[0][1]:
            self._subs[key] = kept[0][1]

    # For the writer

    def record_put(self, key: bytes, chunk: bytes, main: int, sub: int) -> None:
        """Store a new version."""
        newest = self._newest.get(key)
        if self._gatherings:
            self._tell_gatherings(key, newest)
        if newest is None:
            self._turnover.note(main, key, born=True)
        if newest is not None or key in self._history:
            self._remember(key, newest, (main, sub, False))
        elif sub:
            self._subs[key] = sub
        self._newest[key] = chunk
        self.backend.put(REVISIONS, REVISION.pack(main, sub), chunk)

    def record_deletes(self, keys: Sequence[bytes], main: int, first_sub: int) -> list[bytes]:
        """Store tombstones of keys that live; the chunks they had.

        All of them stand in one turn of the loop, for they share a revision: a hundred thousand must not take longer
        than an election.
        """
        chunks = list(map(self._newest.pop, keys))
        records = {}
        for sub, (key, chunk) in enumerate(zip(keys, chunks, strict=True), first_sub):
            if self._gatherings:
                self._tell_gatherings(key, chunk)
            self._remember(key, chunk, (main, sub, True))
            records[REVISION.pack(main, sub)] = DELETED + key
        self._turnover.note_deaths(main, keys)
        self.backend.put_revisions(records)
        return chunks

    def _tell_gatherings(self, key: bytes, chunk: bytes | None) -> None:
        for gathering in self._gatherings:
            gathering.note(key, chunk)

    def _remember(self, key: bytes, newest: bytes | None, version: Version) -> None:
        versions = self._history.get(key)
        if versions is None:
            assert newest is not None, "a key without history has a live version"
            first = (enc.chunk_mod_revision(newest), self._subs.pop(key, 0), False)
            self._history[key] = (first, version)
        elif (more := _with(versions, version)) is not versions:
            self._history[key] = more


def _with(versions: Versions, version: Version) -> Versions:
    """These and a newer one; a list is changed in place."""
    if isinstance(versions, list):
        versions.append(version)
        return versions
    return (*versions, version) if len(versions) < FEW_VERSIONS else [*versions, version]


class Writer:
    """The changes of one request; they share a main revision."""

    __slots__ = ("_changes", "_main", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._main = store.revision + 1
        self._changes: list[Change] = []

    @property
    def revision(self) -> int:
        """The revision an operation sees and reports: the new one as soon as something was written."""
        return self._main if self._changes else self._main - 1

    def put(self, request: rpc_pb2.PutRequest) -> bytes | None:
        """Put one key; the previous version's chunk."""
        store = self._store
        key, value, lease = request.key, request.value, request.lease
        previous = store.newest(key)
        create, version, old_lease = self._main, 1, 0
        if previous is not None:
            old = enc.decode_chunk(previous)
            create, version, old_lease = old.create_revision, old.version + 1, old.lease
            if request.ignore_value:
                value = old.value
            if request.ignore_lease:
                lease = old_lease
        if lease != old_lease:
            if old_lease:
                store.leases.detach(old_lease, key)
            if lease:
                store.leases.attach(lease, key)
        chunk = enc.encode_chunk(key, create, self._main, version, value, lease)
        store.record_put(key, chunk, self._main, len(self._changes))
        store.counts.puts += 1
        store.counts.put_bytes += len(key) + len(value)
        self._changes.append(Change(False, key, chunk, previous))
        return previous

    def delete_range(self, request: rpc_pb2.DeleteRangeRequest) -> bytes:
        """Delete an interval; the body of the DeleteRangeResponse."""
        keys = self._store.keys(interval(request.key, request.range_end))
        deleted = self.delete(keys) if keys else []
        body = enc.int_field(b"\x10", len(deleted))
        if request.prev_kv:
            body += b"".join(enc.FIELD_3 + chunk[1:] for chunk in deleted)
        return body

    def delete(self, keys: Sequence[bytes]) -> list[bytes]:
        """Delete keys that live; the chunks they had."""
        store = self._store
        chunks = store.record_deletes(keys, self._main, len(self._changes))
        if store.leases:
            for key, chunk in zip(keys, chunks, strict=True):
                if lease := enc.decode_chunk(chunk).lease:
                    store.leases.detach(lease, key)
        store.counts.deletes += len(keys)
        tombstones = enc.encode_tombstones(keys, self._main)
        self._changes += map(Change, repeat(True), keys, tombstones, chunks)
        return chunks

    def commit(self) -> None:
        """Make the new revision current, if anything changed."""
        if self._changes:
            self._store.revision = self._main
            if self._store.on_commit is not None:
                self._store.on_commit(self._main, self._changes)
