"""What the keyspace asks of, and tells to, the store of leases."""

from typing import Protocol


class Leases(Protocol):
    """Follows which keys are attached to which lease. A key is attached to the lease its newest version names."""

    def __len__(self) -> int:
        """How many leases there are; while there are none, no key has one."""

    def exists(self, lease_id: int) -> bool:
        """Whether a put may name this lease."""

    def attach(self, lease_id: int, key: bytes) -> None:
        """A new version of the key names this lease."""

    def detach(self, lease_id: int, key: bytes) -> None:
        """The key is gone, or names another lease now."""


class NoLeases:
    """A keyspace without leases."""

    def __len__(self) -> int:
        return 0

    def exists(self, lease_id: int) -> bool:
        return False

    def attach(self, lease_id: int, key: bytes) -> None:
        raise RuntimeError(f"key {key!r} names lease {lease_id:x}, and there are no leases")

    def detach(self, lease_id: int, key: bytes) -> None:
        raise RuntimeError(f"key {key!r} named lease {lease_id:x}, and there are no leases")
