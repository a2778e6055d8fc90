"""How large a member's store may become before it raises NOSPACE."""

from raftkv.mvcc import Backend

DEFAULT_BYTES = 2 << 30


class Quota:
    """The bound on one member's store; etcd's rule and costs.

    Counted is the size on disk, which only defragmentation lowers, or what is in use and pending if that is more.
    """

    __slots__ = ("_backend", "bytes")

    def __init__(self, backend: Backend, quota_bytes: int) -> None:
        """0: the default of 2 GiB; less: no bound."""
        self._backend = backend
        self.bytes = quota_bytes or DEFAULT_BYTES

    def admits(self, cost_bytes: int) -> bool:
        """Whether a request may take this much more; what takes nothing always may."""
        return self.bytes < 0 or not cost_bytes or self._backend.charged_bytes + cost_bytes < self.bytes
