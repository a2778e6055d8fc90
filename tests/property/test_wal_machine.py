"""The log on a disk that does its worst: what was acknowledged is there, in order, and nothing else."""

import contextlib
import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raftkv.raft import Entry, EntryKind
from raftkv.simulation.disk import FaultyDisk, PowerCut
from raftkv.wal import CorruptLog, Wal, WalContents, WalError

SEGMENT = 2 << 10
DIRECTORY = "data/wal"
SIZES = (0, 1, 30, 200, 450, 512, 700, 3000)
CUTS = st.sampled_from((None, None, None, 0, 1, 1, 2))
"""After how many more operations of the disk the power fails; mostly it does not."""


@dataclass
class Log:
    """What a reader must find."""

    entries: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    hard_state: tuple[int, int, int] = (0, 0, 0)
    snapshot: tuple[int, int, bytes] = (0, 0, b"")

    def with_group(self, hard_state: tuple[int, int, int] | None, entries: list[Entry]) -> "Log":
        log = list(self.entries)
        for entry in entries:
            log = [old for old in log if old[1] < entry.index]
            log.append((entry.term, entry.index, int(entry.kind), entry.data))
        return Log(log, hard_state or self.hard_state, self.snapshot)

    def compacted(self, snapshot: tuple[int, int, bytes]) -> "Log":
        return Log([entry for entry in self.entries if entry[1] > snapshot[0]], self.hard_state, snapshot)


class WalMachine(RuleBasedStateMachine):
    """Writes, faults and restarts in any order.

    `possible` are the logs that may be found at the next start, the shortest first: that of the last acknowledged
    write, and, when a write was cut short, that of the write.
    """

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.disk = FaultyDisk(seed)
        self.wal: Wal | None = Wal.create(self.disk, DIRECTORY, b"identity", SEGMENT)
        self.log = Log()
        self.possible = [self.log]
        self.released = 0
        self.term = 1

    @rule(
        data=st.data(),
        sizes=st.lists(st.lists(st.sampled_from(SIZES), max_size=3), min_size=1, max_size=3),
        rewrite=st.integers(0, 5),
        cut=CUTS,
    )
    @precondition(lambda self: self.wal is not None)
    def append(self, data: st.DataObject, sizes: list[list[int]], rewrite: int, cut: int | None) -> None:
        """Write some groups as one write; now and then the tail anew, as after a change of leader."""
        if cut is not None:
            self.disk.cut_power(after=cut)
        groups, log = [], self.log
        for group_sizes in sizes:
            last, floor = self._last(log), max(self.released, log.snapshot[0])
            if rewrite == 0 and last > floor:
                last, rewrite = data.draw(st.integers(floor, last - 1)), 1
                self.term += 1
            entries = [
                Entry(self.term, last + 1 + place, EntryKind.NORMAL, self.disk.rng.randbytes(size))
                for place, size in enumerate(group_sizes)
            ]
            state = (self.term, 7, len(log.entries)) if data.draw(st.booleans()) else None
            log = log.with_group(state, entries)
            assert self.wal is not None
            groups.append(self.wal.encode(state, entries))
        self._write(groups, log)

    def _last(self, log: Log) -> int:
        return log.entries[-1][1] if log.entries else max(self.released, log.snapshot[0])

    @rule(where=st.floats(0, 1), cut=CUTS)
    @precondition(lambda self: self.wal is not None and self.log.entries)
    def compact(self, where: float, cut: int | None) -> None:
        """Record that the store holds a part of the log."""
        if cut is not None:
            self.disk.cut_power(after=cut)
        term, index, _, _ = self.log.entries[int(where * (len(self.log.entries) - 1))]
        assert self.wal is not None
        snapshot = (index, term, b"members")
        self._write([self.wal.encode(None, (), snapshot=snapshot)], self.log.compacted(snapshot))

    @rule(data=st.data(), cut=CUTS)
    @precondition(lambda self: self.wal is not None)
    def restore(self, data: st.DataObject, cut: int | None) -> None:
        """A store from elsewhere replaces the log: entries of another history, behind it too, are void."""
        if cut is not None:
            self.disk.cut_power(after=cut)
        last, floor = self._last(self.log), max(self.released, self.log.snapshot[0])
        index = data.draw(st.integers(floor + 1, max(floor + 1, last + 2)))
        self.term += 1
        snapshot = (index, self.term, b"others")
        entries = [Entry(self.term, index + 1, EntryKind.NORMAL, b"behind it")] * data.draw(st.integers(0, 1))
        state = (self.term, 7, index)
        assert self.wal is not None
        group = self.wal.encode(state, entries, snapshot=snapshot, restored=True)
        self._write([group], Log([], state, snapshot).with_group(None, entries))

    def _write(self, groups: list[object], log: Log) -> None:
        assert self.wal is not None
        self.possible = [self.log, log]
        try:
            self.wal.write(groups)  # type: ignore[arg-type]
        except WalError:
            with pytest.raises(WalError, match="failed earlier"):
                self.wal.write(groups)  # type: ignore[arg-type]
            self.wal = None
        except PowerCut:
            self._crash()
        else:
            self.log = log
            self.possible = [log]

    @rule(
        operation=st.sampled_from(("write", "sync", "create", "rename", "sync_directory")),
        error=st.sampled_from((errno.EIO, errno.ENOSPC)),
        after=st.integers(0, 2),
    )
    def will_fail(self, operation: str, error: int, after: int) -> None:
        self.disk.fail(operation, error, after=after)

    @rule()
    def crash(self) -> None:
        self._crash()

    @rule()
    def kill(self) -> None:
        self.disk.kill()
        self.wal = None

    def _crash(self) -> None:
        self.disk.crash()
        self.wal = None

    @rule(where=st.floats(0, 1), cut=CUTS)
    @precondition(lambda self: self.wal is not None and self.log.entries)
    def release(self, where: float, cut: int | None) -> None:
        """Give up a part of the log; segments go, the last one stays."""
        if cut is not None:
            self.disk.cut_power(after=cut)
        assert self.wal is not None
        index = self.log.entries[int(where * (len(self.log.entries) - 1))][1]
        try:
            self.wal.release(index)
        except PowerCut:
            self._crash()
        except OSError:
            self.wal = None
        self.released = max(self.released, index)

    @rule(cut=CUTS)
    @precondition(lambda self: self.wal is None)
    def start(self, cut: int | None) -> None:
        """Open the log, perhaps in vain; what is found is one of the possible logs, and from then on it is the log."""
        if cut is not None:
            self.disk.cut_power(after=cut)
        try:
            wal, contents = Wal.open(self.disk, DIRECTORY, SEGMENT)
            wal.settle()
        except PowerCut:
            self._crash()
            return
        except OSError:
            self.disk.kill()
            return
        assert contents.identity == b"identity"
        for log in self.possible:
            if self._equal(contents, log):
                self.wal, self.log, self.possible = wal, log, [log]
                return
        raise AssertionError(f"found {contents}, possible {self.possible}")

    def _equal(self, contents: WalContents, log: Log) -> bool:
        """Whether the log was found; what is released may be gone, but not what lies behind it."""
        if (contents.hard_state, contents.snapshot) != (log.hard_state, log.snapshot):
            return False
        found = contents.entries
        behind = [entry for entry in log.entries if entry[1] > self.released]
        return found == log.entries[len(log.entries) - len(found) :] and len(found) >= len(behind)

    @rule(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    @precondition(lambda self: self.wal is None and len(self.possible) == 1)
    def bits_rot(self, where: float, bit: int) -> None:
        """Damage in what was acknowledged: refused and left as it is, or harmless; then it is undone."""
        self.disk.kill()
        # A segment that was being made when the power failed has another name, and nobody reads it.
        names = [name for name in self.disk.list(DIRECTORY) if name.endswith(".wal")]
        name = names[int(where * len(names))]
        path = f"{DIRECTORY}/{name}"
        before = self.disk.read(path)
        used = len(before.rstrip(b"\0"))
        at = int(where * len(names) % 1 * used)
        self.disk.flip(path, at, bit)
        damaged = self.disk.read(path)
        try:
            wal, contents = Wal.open(self.disk, DIRECTORY, SEGMENT)
            wal.settle()
        except CorruptLog as refused:
            assert self.disk.read(path) == damaged
            assert name in str(refused)
            self.disk.flip(path, at, bit)
            return
        if not self._equal(contents, self.log):
            # The very marker of the last group: it cannot be told from a write that was torn.
            assert contents.repaired
            assert name == names[-1]
            assert at >= used - 40
        self.disk.restore(path, before)

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.disk.crash()
            self.wal = None
            self.start(None)
            assert self.wal is not None


def written(seed: int, sizes: Sequence[int]) -> tuple[FaultyDisk, Wal]:
    disk = FaultyDisk(seed)
    wal = Wal.create(disk, DIRECTORY, b"identity", SEGMENT)
    for index, size in enumerate(sizes, 1):
        wal.write([wal.encode(None, [Entry(1, index, EntryKind.NORMAL, b"x" * size)])])
    return disk, wal


@pytest.mark.parametrize("seed", range(30))
def test_segments_half_removed_leave_no_gap(seed: int) -> None:
    disk, wal = written(seed, [3000] * 6)
    disk.cut_power(after=seed % 12)
    with contextlib.suppress(PowerCut):
        wal.release(5)
    disk.crash()
    _, contents = Wal.open(disk, DIRECTORY, SEGMENT)
    assert contents.entries[-1][1] == 6


def test_a_log_whose_snapshot_record_went_with_its_segment_still_knows_where_it_begins() -> None:
    disk, wal = written(1, [100] * 3)
    wal.write([wal.encode(None, (), snapshot=(3, 1, b"members"))])
    # The next segment begins before the second record is durable, and its header must not speak of that.
    groups = [wal.encode(None, [Entry(1, 4, EntryKind.NORMAL, bytes(3000))])]
    behind = wal.encode(None, (), snapshot=(4, 1, b"later"))
    wal.write(groups)
    wal.release(3)
    assert len(disk.list(DIRECTORY)) == 1
    disk.kill()
    wal, contents = Wal.open(disk, DIRECTORY, SEGMENT)
    assert contents.snapshot == (3, 1, b"members")
    assert [entry[1] for entry in contents.entries] == [4]
    assert behind.snapshot == (4, 1, b"later")


def test_entries_of_another_history_behind_a_restored_snapshot_are_void() -> None:
    disk, wal = written(1, [10] * 9)
    wal.write([wal.encode((2, 0, 5), (), snapshot=(5, 2, b"members"), restored=True)])
    disk.kill()
    wal, contents = Wal.open(disk, DIRECTORY, SEGMENT)
    assert contents.entries == []
    wal.settle()
    wal.write([wal.encode(None, [Entry(2, 6, EntryKind.NORMAL, b"")])])
    disk.kill()
    _, contents = Wal.open(disk, DIRECTORY, SEGMENT)
    assert [entry[:2] for entry in contents.entries] == [(2, 6)]
    assert contents.snapshot == (5, 2, b"members")


@pytest.mark.parametrize("size", range(0, 512, 8))
def test_a_small_write_torn_between_two_sectors_is_cut(size: int) -> None:
    """Its second sector with the marker arrives, its first, shared with the write before, does not."""
    for seed in range(6):
        disk, wal = written(seed, [size])
        disk.cut_power(after=1)
        with pytest.raises(PowerCut):
            wal.write([wal.encode(None, [Entry(1, 2, EntryKind.NORMAL, b"y" * 100)])])
        disk.crash()
        _, contents = Wal.open(disk, DIRECTORY, SEGMENT)
        assert [entry[1] for entry in contents.entries] in ([1], [1, 2])


LIMITS = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def test_the_log_keeps_what_it_acknowledged() -> None:
    run_state_machine_as_test(WalMachine, settings=settings(LIMITS, derandomize=True))


@pytest.mark.soak
def test_the_log_keeps_what_it_acknowledged_for_long() -> None:
    run_state_machine_as_test(WalMachine, settings=settings(LIMITS, max_examples=10_000))
