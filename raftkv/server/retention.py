"""How much of the log is kept: enough for followers that lag a little, and no more.

What the store holds durably the log need not hold as well. It is given up in steps, so that the work is rare, and not
to the end: a follower that was away for a moment is served entries, which is cheaper than the whole store.
"""

from collections.abc import Callable

from raftkv.raft import RaftNode, SnapshotMetadata

LOG_BYTES = 128 << 20
"""The log is compacted when it has grown by this much, however few entries that are."""
KEPT_BYTES = 32 << 20
HELD_BYTES = 512 << 20


class Retention:
    """Decides when and how far a member's log is compacted."""

    __slots__ = ("_catch_up_entries", "_grown_bytes", "_hold", "_node", "_short", "_snapshot_count")

    def __init__(
        self,
        node: RaftNode,
        *,
        snapshot_count: int,
        catch_up_entries: int,
        hold: Callable[[], bool],
        short: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compact when there are `snapshot_count` entries more than the `catch_up_entries` that stay.

        While `hold()` is true the log is kept, for a follower that is being given a snapshot, up to `HELD_BYTES`.
        While `short()` is true the disk is nearly full: nothing but the entries that stay is kept.
        """
        self._hold = hold
        self._short = short
        self._node = node
        self._snapshot_count = snapshot_count
        self._catch_up_entries = catch_up_entries
        self._grown_bytes = 0

    def logged(self, size_bytes: int) -> None:
        """Note that the log has grown."""
        self._grown_bytes += size_bytes

    def point(self, durable_index: int) -> SnapshotMetadata | None:
        """Where to compact to, now that the store holds everything up to `durable_index` durably; None: not yet."""
        node = self._node
        entries = durable_index - node.snapshot_index
        if entries <= 0:
            return None
        few = entries < self._snapshot_count + self._catch_up_entries and self._grown_bytes < LOG_BYTES
        if few and not (self._short() and entries > self._catch_up_entries):
            return None
        if self._hold() and self._grown_bytes < HELD_BYTES:
            return None
        point = node.snapshot_point(durable_index, max_entries=self._catch_up_entries, max_bytes=KEPT_BYTES)
        if point.index <= node.snapshot_index:
            return None
        self._grown_bytes = 0
        return point
