"""The log in memory, and how far it has come: handed to disk, durable, committed, applied.

      first                handed                last
        |-------durable------|-----to persist-----|
        |---applied---|---committed---|

The log before `first` is represented by a snapshot point (index and term). Durable and committed are independent: an
entry may be committed by others before it is durable here, and is then not yet applied here.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from .errors import InvariantViolation
from .messages import Entry

_TERM = attrgetter("term")


class RaftLog:
    """Entries since the snapshot point.

    Invariants:
    1. `_entries[k].index == snapshot_index + 1 + k`, terms never decrease.
    2. `applied <= commit <= last_index` and `durable <= handed <= last_index`.
    3. What is at or below `commit` never changes.
    4. `_writes` holds, per write handed out and not yet durable, the last index of it that still stands.
    """

    __slots__ = (
        "_entries",
        "_writes",
        "applied",
        "commit",
        "durable",
        "handed",
        "handed_to_apply",
        "held",
        "snapshot_index",
        "snapshot_term",
    )

    def __init__(
        self, entries: Sequence[Entry], *, snapshot_index: int, snapshot_term: int, commit: int, applied: int
    ) -> None:
        self.snapshot_index = snapshot_index
        self.snapshot_term = snapshot_term
        self._entries = list(entries)
        self._writes: deque[int] = deque()
        term = snapshot_term
        for place, entry in enumerate(self._entries, snapshot_index + 1):
            if entry.index != place or entry.term < term:
                raise InvariantViolation(f"entry {entry.index} of term {entry.term} where {place} of {term} belongs")
            term = entry.term
        last = self.last_index
        if not snapshot_index <= applied <= commit <= last:
            raise InvariantViolation(
                f"snapshot {snapshot_index}, applied {applied}, commit {commit}, last {last} are out of order"
            )
        self.commit = commit
        self.applied = self.handed_to_apply = applied
        self.durable = self.handed = last
        self.held = False
        """Whether nothing is handed over to be applied: a leader committed a change of the members, and did not make it
        durable yet that it is."""

    @property
    def last_index(self) -> int:
        return self.snapshot_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.snapshot_term

    def term(self, index: int) -> int | None:
        """Term of the entry at `index`; None where the log does not know it."""
        place = index - self.snapshot_index
        if place == 0:
            return self.snapshot_term
        if 0 < place <= len(self._entries):
            return self._entries[place - 1].term
        return None

    def slice(self, lo: int, hi: int, max_bytes: int | None = None) -> list[Entry]:
        """Entries of [lo, hi); at least one, then as many as fit `max_bytes` of data."""
        entries = self._entries[lo - self.snapshot_index - 1 : hi - self.snapshot_index - 1]
        if max_bytes is None:
            return entries
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry.data)
            if size > max_bytes and count:
                return entries[:count]
        return entries

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends like this may lead us (thesis 3.6.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def append(self, entries: Sequence[Entry]) -> None:
        """Append a leader's own new entries."""
        self._entries.extend(entries)

    def merge(self, entries: Sequence[Entry]) -> None:
        """Take a leader's entries that follow on a matching one (thesis 3.5).

        Entries that are here already are left alone: only a real conflict truncates. A message that was overtaken by
        a longer one must not shorten the log.
        """
        for position, entry in enumerate(entries):
            if entry.index <= self.last_index:
                if self.term(entry.index) == entry.term:
                    continue
                self._truncate(entry.index)
            elif entry.index != self.last_index + 1:
                raise InvariantViolation(f"entry {entry.index} after {self.last_index}")
            self._entries.extend(entries[position:])
            return

    def _truncate(self, index: int) -> None:
        if index <= self.commit:
            raise InvariantViolation(f"entry {index} conflicts but {self.commit} is committed")
        del self._entries[index - self.snapshot_index - 1 :]
        self.handed = min(self.handed, index - 1)
        self.durable = min(self.durable, index - 1)
        self._cut_writes(index - 1)

    def _cut_writes(self, standing: int) -> None:
        """Note that of the writes under way only entries up to `standing` will outlast the next write."""
        self._writes = deque(min(last, standing) for last in self._writes)

    def take_to_persist(self) -> list[Entry]:
        """Hand over what has not been handed to disk yet."""
        entries = self._entries[self.handed - self.snapshot_index :]
        self.handed = self.last_index
        if entries:
            self._writes.append(self.last_index)
        return entries

    def persisted(self) -> None:
        """The oldest write under way is durable.

        What was replaced after it was handed out does not count, not even when the same entry has returned since: the
        write in between will undo it first.
        """
        self.durable = max(self.durable, self._writes.popleft())

    def owes(self) -> bool:
        """Whether something is to be persisted or applied."""
        if self.handed < self.snapshot_index + len(self._entries):
            return True
        # Asked for with every message: not by `min`.
        return not self.held and (self.commit if self.commit < self.durable else self.durable) > self.handed_to_apply

    def take_to_apply(self, max_bytes: int) -> list[Entry]:
        """Hand over entries that are committed and durable here, in order, each once; none while `held`."""
        limit = min(self.commit, self.durable)
        if self.held or limit <= self.handed_to_apply:
            return []
        entries = self.slice(self.handed_to_apply + 1, limit + 1, max_bytes)
        self.handed_to_apply = entries[-1].index
        return entries

    def applied_to(self, index: int) -> None:
        if index <= self.snapshot_index:
            # A snapshot overtook what was being applied.
            return
        if not self.applied <= index <= self.handed_to_apply:
            raise InvariantViolation(f"applied {index}, not in [{self.applied}, {self.handed_to_apply}]")
        self.applied = index

    def commit_to(self, index: int) -> None:
        if index <= self.commit:
            return
        if index > self.last_index:
            raise InvariantViolation(f"commit {index} beyond last index {self.last_index}")
        self.commit = index

    def newest_not_after(self, index: int, term: int) -> tuple[int, int]:
        """The newest (index, term) at or below `index` whose term is at most `term`: where two logs may still agree.

        At or below the snapshot point the answer is that point.
        """
        prefix = max(0, min(index, self.last_index) - self.snapshot_index)
        count = bisect_right(self._entries, term, hi=prefix, key=_TERM)
        if not count:
            return self.snapshot_index, self.snapshot_term
        return self.snapshot_index + count, self._entries[count - 1].term

    def retained_from(self, index: int, *, max_entries: int, max_bytes: int) -> int:
        """How far to compact so that of the entries up to `index` at most so many, and so many bytes, stay."""
        size = 0
        lowest = max(self.snapshot_index, index - max_entries)
        while index > lowest:
            size += len(self._entries[index - self.snapshot_index - 1].data)
            if size > max_bytes:
                break
            index -= 1
        return index

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which must be applied."""
        if index > self.applied:
            raise InvariantViolation(f"compact to {index} beyond applied {self.applied}")
        if index <= self.snapshot_index:
            return
        term = self.term(index)
        assert term is not None
        del self._entries[: index - self.snapshot_index]
        self.snapshot_index, self.snapshot_term = index, term

    def restore(self, index: int, term: int) -> None:
        """Replace everything by a snapshot point."""
        self._entries = []
        self._cut_writes(0)
        self.snapshot_index, self.snapshot_term = index, term
        self.commit = self.applied = self.handed_to_apply = self.handed = self.durable = index
