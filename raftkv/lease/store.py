"""The replicated half of leases: which there are, and which keys are attached to each.

All of it follows from the log alone, so that every member has the same leases with the same keys. There is no clock
here: time ends a lease only as an entry that the leader proposes, and what is left of a lease is known only as the
leader last told it through the log.

A lease's record lies beside the keys, in the backend's flush of the same moment. Its keys are not recorded: the newest
version of every key names its lease.
"""

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from raftkv import errors
from raftkv.mvcc import LEASES, META, Backend, Store
from raftkv.mvcc import encoding as enc
from raftkv.pb import rpc_pb2

MAX_TTL_SECONDS = 9_000_000_000
"""etcd's bound."""

_ID = struct.Struct(">q")
_RECORD = struct.Struct(">qqQ")
_GRANTS = b"lease_grants"
_NUMBER = struct.Struct(">Q")


@dataclass(slots=True)
class Lease:
    """One lease. Times are whole seconds; `keys` is None until the first is attached.

    `serial` numbers the grants of a cluster: an id may be used again, a serial is not. The keys are those of a dict, as
    the garbage collector does not walk through a dict of bytes, and does through a set: for a hundred thousand leases
    that takes longer than a heartbeat may wait.
    """

    id: int
    ttl: int
    serial: int
    remaining: int = 0
    keys: dict[bytes, None] | None = None

    @property
    def known(self) -> int:
        """What a new leader must assume is left: the last checkpoint, or all of it."""
        return self.remaining or self.ttl


def fill_leases(backend: Backend, leases: Iterable[tuple[int, int, int]]) -> None:
    """Store leases from elsewhere (id, time to live, what is left) in a backend that has none and is not open yet."""
    grants = 0
    for grants, (lease_id, ttl, remaining) in enumerate(leases, 1):
        backend.put(LEASES, _ID.pack(lease_id), _RECORD.pack(ttl, remaining, grants))
    backend.put(META, _GRANTS, _NUMBER.pack(grants))


class Observer(Protocol):
    """Whoever keeps the time of leases hears what the log does to them."""

    def granted(self, lease: Lease) -> None: ...

    def revoked(self, lease_id: int) -> None: ...

    def checkpointed(self, lease: Lease) -> None: ...


class LeaseStore:
    """The leases of one member; attaches itself to the keyspace.

    Invariants:
    1. A key is in `keys` of exactly the lease that its newest version names, if there is that lease.
    2. What is durable is of the same moment as the keys.
    3. `grants` counts the leases ever granted.
    """

    def __init__(self, store: Store) -> None:
        """Load the leases of the backend and the keys attached to them."""
        self._store = store
        self._leases: dict[int, Lease] = {}
        self.grants = 0
        self.granted_here = self.revoked_here = self.expired_here = 0
        """How often this member applied each since it started."""
        self.observer: Observer | None = None
        store.leases = self
        self._load()

    def replace(self, other: "LeaseStore") -> None:
        """Take the leases of another store, which must not be used any more; the keyspace was replaced with it.

        Nobody keeps time here: a member that leads is never given the state of another.
        """
        self._leases, self.grants = other._leases, other.grants

    def _load(self) -> None:
        for packed, record in self._store.backend.scan(LEASES):
            (lease_id,) = _ID.unpack(packed)
            ttl, remaining, serial = _RECORD.unpack(record)
            self._leases[lease_id] = Lease(lease_id, ttl, serial, remaining)
        grants = self._store.get_meta(_GRANTS)
        self.grants = 0 if grants is None else _NUMBER.unpack(grants)[0]
        if self._leases:
            for chunk in self._store.select((b"", None)):
                kv = enc.decode_chunk(chunk)
                # etcd, too, goes on when a file it was given has a key whose lease is gone.
                if kv.lease in self._leases:
                    self.attach(kv.lease, kv.key)

    def _save(self, lease: Lease) -> None:
        self._store.backend.put(LEASES, _ID.pack(lease.id), _RECORD.pack(lease.ttl, lease.remaining, lease.serial))

    # Reads

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def leases(self) -> Mapping[int, Lease]:
        """All leases by id; not to be changed."""
        return self._leases

    def get(self, lease_id: int) -> Lease | None:
        """The lease, if there is one of this id."""
        return self._leases.get(lease_id)

    def keys_of(self, lease_id: int) -> Collection[bytes]:
        """The keys attached to a lease, in no order; none if there is no such lease."""
        lease = self._leases.get(lease_id)
        return () if lease is None or lease.keys is None else lease.keys

    def exists(self, lease_id: int) -> bool:
        return lease_id in self._leases

    # What the log does

    def grant(self, lease_id: int, ttl: int) -> Lease:
        """Make a lease.

        Raises:
            LeaseNotFound: the id is 0.
            LeaseTTLTooLarge, LeaseExist
        """
        if not lease_id:
            raise errors.LeaseNotFound
        if ttl > MAX_TTL_SECONDS:
            raise errors.LeaseTTLTooLarge
        if lease_id in self._leases:
            raise errors.LeaseExist
        self.grants += 1
        self.granted_here += 1
        self._store.set_meta(_GRANTS, _NUMBER.pack(self.grants))
        lease = self._leases[lease_id] = Lease(lease_id, ttl, self.grants)
        self._save(lease)
        if self.observer is not None:
            self.observer.granted(lease)
        return lease

    def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys, in key order and in one revision.

        Raises:
            LeaseNotFound
        """
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            raise errors.LeaseNotFound
        self.revoked_here += 1
        self._store.backend.delete(LEASES, _ID.pack(lease_id))
        if lease.keys:
            self._store.delete_keys(sorted(lease.keys))
        if self.observer is not None:
            self.observer.revoked(lease_id)

    def expire(self, lease_ids: Iterable[int], grants: int) -> None:
        """Revoke those of the leases that still exist, each in a revision of its own.

        `grants` is how many had been granted when this was decided: a lease that took an id anew since then stays.
        """
        for lease_id in lease_ids:
            lease = self._leases.get(lease_id)
            if lease is not None and lease.serial <= grants:
                self.expired_here += 1
                self.revoke(lease_id)

    def checkpoint(self, checkpoints: Iterable[rpc_pb2.LeaseCheckpoint], grants: int) -> None:
        """Remember what is left of leases (0: all of it); `grants` as for `expire`."""
        for told in checkpoints:
            lease = self._leases.get(told.ID)
            if lease is not None and lease.serial <= grants:
                lease.remaining = told.remaining_TTL
                self._save(lease)
                if self.observer is not None:
                    self.observer.checkpointed(lease)

    # What the keyspace does

    def attach(self, lease_id: int, key: bytes) -> None:
        lease = self._leases[lease_id]
        if lease.keys is None:
            lease.keys = {}
        lease.keys[key] = None

    def detach(self, lease_id: int, key: bytes) -> None:
        # A lease being revoked is gone already.
        lease = self._leases.get(lease_id)
        if lease is not None and lease.keys is not None:
            lease.keys.pop(key, None)
