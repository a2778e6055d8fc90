"""What a member's log holds durably, written down beside it: a second opinion on what the core believes of its disk."""

from collections.abc import Iterable, Sequence

from raftkv.wal import Wal, WalContents
from raftkv.wal.log import EntryLike, Group


class ObservedWal:
    """A log whose writes are noted when they have ended."""

    def __init__(self, wal: Wal, contents: WalContents | None) -> None:
        self._wal = wal
        self._encoded: dict[int, tuple[Group, list[tuple[int, int]]]] = {}
        self._terms = {index: term for term, index, _, _ in contents.entries} if contents is not None else {}
        self._last = max(self._terms, default=0)

    def encode(
        self,
        hard_state: tuple[int, int, int] | None,
        entries: Iterable[EntryLike],
        *,
        snapshot: tuple[int, int, bytes] | None = None,
        restored: bool = False,
    ) -> Group:
        """Encode as the log does, and remember which entries these were."""
        group = self._wal.encode(hard_state, entries, snapshot=snapshot, restored=restored)
        if entries:
            self._encoded[id(group)] = group, [(entry.index, entry.term) for entry in entries]
        return group

    def release(self, index: int) -> None:
        """Remove what the log removes."""
        self._wal.release(index)

    def write(self, groups: Sequence[Group]) -> None:
        """Write; what was written stands from then on, and nothing that was behind it."""
        self._wal.write(groups)
        for group in groups:
            _, entries = self._encoded.pop(id(group), (group, []))
            for index, term in entries:
                self._terms[index] = term
            if entries:
                self._last = entries[-1][0]

    def holds(self, index: int, term: int) -> bool:
        """Whether this entry is durable here."""
        return index <= self._last and self._terms.get(index) == term
