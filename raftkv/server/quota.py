"""How large a member's store may become, and how little space its disk may have left, before it raises NOSPACE."""

from collections.abc import Callable

from raftkv.mvcc import Store

DEFAULT_BYTES = 2 << 30
RESERVE_BYTES = 64 << 20
"""Space on disk that puts must leave: for the log of what makes space again, for a flush, and for what others write."""


class Quota:
    """The bound on one member's store; etcd's rule and costs.

    Counted is the size on disk, which only defragmentation lowers, or what is in use and pending if that is more. A
    disk that is nearly full is a bound as well.
    """

    __slots__ = ("_free_bytes", "_measure", "_store", "bytes")

    def __init__(self, store: Store, quota_bytes: int, measure: Callable[[], int] | None = None) -> None:
        """0: the default of 2 GiB; less: no bound. `measure` tells the free space of the disk."""
        self._store = store
        self._measure = measure
        self._free_bytes: int | None = None
        self.bytes = quota_bytes or DEFAULT_BYTES

    def look(self) -> None:
        """Look how much space the disk has now."""
        if self._measure is not None:
            self._free_bytes = self._measure()

    @property
    def short(self) -> bool:
        """Whether the disk is nearly full."""
        return not self._fits(0)

    def admits(self, cost_bytes: int) -> bool:
        """Whether a request may take this much more; what takes nothing always may."""
        if not cost_bytes:
            return True
        charged = self._store.backend.charged_bytes
        if not (self.bytes < 0 or charged + cost_bytes < self.bytes):
            return False
        if self._fits(cost_bytes):
            return True
        # Space may have been made since the last look.
        self.look()
        return self._fits(cost_bytes)

    def _fits(self, cost_bytes: int) -> bool:
        free = self._free_bytes
        return free is None or free - self._store.backend.pending_bytes - cost_bytes > RESERVE_BYTES
