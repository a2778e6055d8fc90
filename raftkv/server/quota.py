"""How large a member's store may become before it raises NOSPACE."""

from raftkv.mvcc import Store

DEFAULT_BYTES = 2 << 30


class Quota:
    """The bound on one member's store; etcd's rule and costs.

    Counted is the size on disk, which only defragmentation lowers, or what is in use and pending if that is more.
    """

    __slots__ = ("_store", "bytes")

    def __init__(self, store: Store, quota_bytes: int) -> None:
        """0: the default of 2 GiB; less: no bound."""
        self._store = store
        self.bytes = quota_bytes or DEFAULT_BYTES

    def admits(self, cost_bytes: int) -> bool:
        """Whether a request may take this much more; what takes nothing always may."""
        return self.bytes < 0 or not cost_bytes or self._store.backend.charged_bytes + cost_bytes < self.bytes
