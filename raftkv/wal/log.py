"""Writing the log in groups, and opening it after whatever happened.

`encode` runs on the event loop and only makes bytes; `write` runs in a thread, one at a time, and ends when the disk
has them. A group becomes acknowledged when `write` returns; the next group is written only after that. Hence, on open:

- no marker behind the damage: the last write was torn and never acknowledged. It is cut.
- a marker of a *later* group behind the damage: the damaged group was acknowledged. Refuse.
- only the damaged group's own marker: torn when a sector of the group still holds the zeros it held before the
  write (sectors reach a disk in any order); otherwise every sector arrived and bits changed later. Refuse.
"""

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raftkv.disk import Disk, File
from raftkv.wal import format as fmt
from raftkv.wal.format import CorruptLog, Record, RecordType, SegmentHeader, WalError

SEGMENT_BYTES = 64 << 20
SHORT_SHARE = 16
"""A segment is smaller by this where the disk has no space for a whole one."""


class EntryLike(Protocol):
    """What a log entry must have."""

    @property
    def term(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def kind(self) -> int: ...
    @property
    def data(self) -> bytes: ...


@dataclass(slots=True)
class Group:
    """Encoded records that become durable together, without their marker: its place is known when it is written."""

    records: bytes
    start_chain: int
    end_chain: int
    last_index: int
    hard_state: tuple[int, int, int]
    snapshot: tuple[int, int, bytes]


@dataclass(slots=True)
class WalContents:
    """What an opened log holds. `entries` are (term, index, kind, data); `repaired` says what was cut, if anything."""

    identity: bytes
    hard_state: tuple[int, int, int] = (0, 0, 0)
    entries: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    snapshot: tuple[int, int, bytes] = (0, 0, b"")
    repaired: str | None = None

    def add(self, record: Record) -> int:
        """Take a record in order of writing: a rewritten index drops what is behind it, a snapshot what it covers.

        The index of the entry that it is, or 0.
        """
        if record.type is RecordType.STATE:
            self.hard_state = fmt.decode_state(record.payload)
        elif record.type is RecordType.SNAPSHOT:
            self.snapshot = fmt.decode_snapshot(record.payload)
            if self.entries:
                del self.entries[: max(0, self.snapshot[0] + 1 - self.entries[0][1])]
        elif record.type is RecordType.RESTORE:
            self.snapshot = fmt.decode_snapshot(record.payload)
            self.entries.clear()
        elif record.type is RecordType.ENTRY:
            entry = fmt.decode_entry(record.payload)
            if self.entries and entry[1] <= self.entries[-1][1]:
                del self.entries[max(0, entry[1] - self.entries[0][1]) :]
            self.entries.append(entry)
            return entry[1]
        return 0


@dataclass(slots=True)
class _Segment:
    path: str
    sequence: int
    last_index: int


class Log(Protocol):
    """What a member asks of its open log; `Wal` says what each does."""

    def encode(
        self,
        hard_state: tuple[int, int, int] | None,
        entries: Iterable[EntryLike],
        *,
        snapshot: tuple[int, int, bytes] | None = None,
        restored: bool = False,
    ) -> Group: ...

    def write(self, groups: Sequence[Group]) -> None: ...

    def release(self, index: int) -> None: ...


class Wal:
    """The log of one member, open for appending.

    Invariants:
    1. Everything before `_position` of the last segment is durable; everything behind it is zero.
    2. `_chain` is the chain value after the last group encoded, `_written_chain` after the last one written.
    3. After an error in `write` every later call raises.
    """

    def __init__(self, disk: Disk, directory: str, identity: bytes, segment_bytes: int) -> None:
        """Use `create` or `open`."""
        self._disk = disk
        self._directory = directory
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._file: File | None = None
        self._size = 0
        self._position = 0
        self._chain = 0
        self._hard_state = (0, 0, 0)
        self._written_state = (0, 0, 0)
        self._snapshot: tuple[int, int, bytes] = (0, 0, b"")
        self._written_snapshot = self._snapshot
        self._failed: BaseException | None = None
        self._unsettled: tuple[int, bytes] | None = None

    @classmethod
    def create(cls, disk: Disk, directory: str, identity: bytes, segment_bytes: int = SEGMENT_BYTES) -> "Wal":
        """Start a new log in a directory that has none; `identity` comes back on every open.

        Raises:
            OSError: the disk is full or not writable.
        """
        wal = cls(disk, directory, identity, segment_bytes)
        disk.make_directory(directory)
        for name in disk.list(directory):
            if name.endswith(".tmp"):
                disk.remove(f"{directory}/{name}")
        wal._rotate(0, 0)
        return wal

    @classmethod
    def open(cls, disk: Disk, directory: str, segment_bytes: int = SEGMENT_BYTES) -> "tuple[Wal, WalContents]":
        """Read the log and tell a torn tail from damage; nothing changes before `settle`, which must come next.

        Raises:
            CorruptLog: acknowledged records are damaged; nothing was changed.
            OSError: a file cannot be read.
        """
        wal = cls(disk, directory, b"", segment_bytes)
        return wal, wal._load()

    def settle(self) -> None:
        """Make what `open` found durable and cut the torn tail. Call it before anyone relies on what was found. Blocks.

        The last group was read, but perhaps only from the system's cache: its writer may have died before the fsync, or
        of an fsync that failed, after which the cache counts as clean. So it is written once more, and synced, and so
        are zeros over the tail, which must not be taken for records when later ones have grown up to it.

        Raises:
            OSError: the disk refuses; the log cannot be used.
        """
        if self._unsettled is not None:
            assert self._file is not None, "the log is closed"
            self._file.write(*self._unsettled)
            self._file.sync()
            self._disk.sync_directory(self._directory)
            self._unsettled = None

    def encode(
        self,
        hard_state: tuple[int, int, int] | None,
        entries: Iterable[EntryLike],
        *,
        snapshot: tuple[int, int, bytes] | None = None,
        restored: bool = False,
    ) -> Group:
        """Encode what must become durable together. Groups must be written in the order of encoding.

        A snapshot stands for the log up to its index; one that was `restored` came from elsewhere and replaces all
        entries before it, those of higher indexes too.
        """
        start = chain = self._chain
        parts = []
        if hard_state is not None:
            self._hard_state = hard_state
            record, chain = fmt.encode_record(RecordType.STATE, fmt.encode_state(*hard_state), chain)
            parts.append(record)
        if snapshot is not None:
            self._snapshot = snapshot
            kind = RecordType.RESTORE if restored else RecordType.SNAPSHOT
            record, chain = fmt.encode_record(kind, fmt.encode_snapshot(*snapshot), chain)
            parts.append(record)
        last_index = 0
        for entry in entries:
            last_index = max(last_index, entry.index)
            payload = fmt.encode_entry(entry.term, entry.index, entry.kind, entry.data)
            record, chain = fmt.encode_record(RecordType.ENTRY, payload, chain)
            parts.append(record)
        # The marker's crc depends on its place, which the writer knows: the chain goes on from the last record.
        self._chain = chain
        return Group(b"".join(parts), start, chain, last_index, self._hard_state, self._snapshot)

    def write(self, groups: Sequence[Group]) -> None:
        """Make groups durable with one write and one fdatasync. Blocks: call it in a thread, one call at a time.

        Raises:
            WalError: the disk failed, now or earlier; nothing can be acknowledged any more.
        """
        if self._failed is not None:
            raise WalError(f"the log failed earlier: {self._failed}")
        if self._unsettled is not None:
            raise WalError("the log was opened and not settled")
        try:
            self._write(groups)
        except OSError as error:
            self._failed = error
            raise WalError(f"cannot write the log in {self._directory}: {error.strerror or error}") from error

    def _write(self, groups: Sequence[Group]) -> None:
        records = b"".join(group.records for group in groups)
        needed = len(records) + fmt.MARKER_BYTES
        if self._position + needed > self._size:
            self._rotate(groups[0].start_chain, needed)
        marker, _ = fmt.encode_marker(self._position, groups[-1].end_chain)
        assert self._file is not None, "the log is closed"
        self._file.write(self._position, records + marker)
        self._file.sync()
        self._position += needed
        self._written_state = groups[-1].hard_state
        self._written_snapshot = groups[-1].snapshot
        segment = self._segments[-1]
        segment.last_index = max(segment.last_index, *(group.last_index for group in groups))

    def release(self, index: int) -> None:
        """Remove segments that hold nothing behind `index`; the last one stays. Blocks, in the thread of `write`.

        A snapshot record of `index` or later must be durable: without it the entries that stay have no beginning.
        """
        while len(self._segments) > 1 and self._segments[0].last_index <= index:
            self._disk.remove(self._segments.pop(0).path)
            # Each before the next: removals may reach the disk in any order, and a gap would look like a lost segment.
            self._disk.sync_directory(self._directory)

    def close(self) -> None:
        """Close the file; what was written is durable already."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self, chain: int, needed: int) -> None:
        """Start a segment under a temporary name: it exists for a reader only when its header is durable."""
        sequence = self._segments[-1].sequence + 1 if self._segments else 0
        header = fmt.encode_header(
            SegmentHeader(
                sequence=sequence,
                chain=chain,
                hard_state=self._written_state,
                snapshot_index=self._written_snapshot[0],
                snapshot_term=self._written_snapshot[1],
                conf_state=self._written_snapshot[2],
                identity=self._identity,
            )
        )
        path = f"{self._directory}/{_name(sequence)}"
        file, size = self._allocate(path + ".tmp", len(header) + needed)
        file.write(0, header)
        file.sync()
        self._disk.rename(path + ".tmp", path)
        self._disk.sync_directory(self._directory)
        self.close()
        self._file, self._size, self._position = file, size, len(header)
        self._segments.append(_Segment(path, sequence, 0))

    def _allocate(self, path: str, needed: int) -> tuple[File, int]:
        size = max(self._segment_bytes, needed)
        try:
            return self._disk.create(path, size), size
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._segments:
                # A log that has no room to begin with had better not begin.
                raise
        # What makes space again, deletions and compaction, has to be logged too.
        size = max(self._segment_bytes // SHORT_SHARE, needed)
        return self._disk.create(path, size), size

    # Opening

    def _load(self) -> WalContents:
        names = [name for name in self._disk.list(self._directory) if name.endswith(".wal")]
        contents: WalContents | None = None
        chain = 0
        for name in names:
            path = f"{self._directory}/{name}"
            data = self._disk.read(path)
            header, offset = fmt.decode_header(path, data)
            if name != (own := _name(header.sequence)):
                raise CorruptLog(path, 0, f"this is segment {header.sequence}, which is called {own}")
            if contents is None:
                contents = self._begin(header)
                chain = header.chain
            if header.sequence != (self._segments[-1].sequence + 1 if self._segments else header.sequence):
                raise CorruptLog(path, 0, f"segment {self._segments[-1].sequence + 1} is missing before this one")
            if header.chain != chain:
                raise CorruptLog(path, 0, "the segment does not continue the one before it")
            self._segments.append(_Segment(path, header.sequence, 0))
            chain = self._load_segment(path, data, offset, chain, contents, last=name == names[-1])
        if contents is None:
            raise FileNotFoundError(f"{self._directory} holds no log")
        self._chain = chain
        self._hard_state = self._written_state = contents.hard_state
        self._snapshot = self._written_snapshot = contents.snapshot
        return contents

    def _begin(self, header: SegmentHeader) -> WalContents:
        self._identity = header.identity
        snapshot = (header.snapshot_index, header.snapshot_term, header.conf_state)
        return WalContents(identity=header.identity, hard_state=header.hard_state, snapshot=snapshot)

    def _load_segment(
        self, path: str, data: bytes, offset: int, chain: int, contents: WalContents, *, last: bool
    ) -> int:
        """Take the groups of one segment; the chain value after the last complete one."""
        segment = self._segments[-1]
        last_group_start = group_start = offset
        group_chain = chain
        group: list[Record] = []
        while (record := fmt.read_record(data, offset, chain)) is not None:
            offset = record.end
            if record.type is RecordType.MARKER:
                for member in group:
                    index = contents.add(member)
                    if index > segment.last_index:
                        segment.last_index = index
                group, last_group_start, group_start, group_chain = [], group_start, offset, chain
            else:
                group.append(record)
                chain = record.crc
        if last:
            contents.repaired = end_of_log(path, data, group_start, offset)
            self._file, self._size, self._position = self._disk.open(path), len(data), group_start
            tail = 0 if contents.repaired is None else len(data.rstrip(b"\0")) - group_start
            self._unsettled = last_group_start, data[last_group_start:group_start] + bytes(tail)
        elif offset != group_start or any(fmt.markers(data, offset)):
            raise CorruptLog(path, offset, "a record is damaged")
        return group_chain


def _name(sequence: int) -> str:
    return f"{sequence:016x}.wal"


def end_of_log(path: str, data: bytes, group_start: int, damage: int) -> str | None:
    """Decide what the first unreadable byte of the last segment means; None for the plain end of the log.

    Raises:
        CorruptLog: acknowledged records are damaged.
    """
    # A header whose padding is cut off ends behind the file.
    if data.endswith(bytes(max(0, len(data) - group_start))):
        return None
    own_marker = False
    for place, start in fmt.markers(data, damage):
        if start != group_start:
            raise CorruptLog(path, damage, "a record is damaged")
        own_marker = True
        end = place + fmt.MARKER_BYTES
    if own_marker and not _has_unwritten_sector(data, group_start, end):
        raise CorruptLog(path, damage, "a record is damaged")
    return f"{path}: cut an unfinished write at byte {group_start}"


def _has_unwritten_sector(data: bytes, start: int, end: int) -> bool:
    """Whether a sector of a group, or the part of its first sector that it begins in, holds nothing but zeros."""
    sectors = range(start - start % fmt.SECTOR_BYTES, end, fmt.SECTOR_BYTES)
    return any(not data[max(start, at) : min(end, at + fmt.SECTOR_BYTES)].strip(b"\0") for at in sectors)
