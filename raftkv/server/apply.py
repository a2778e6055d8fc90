"""Applying committed entries: the one place where the replicated state changes.

Everything here is a function of the log alone, so that all members agree. An operation that fails, fails alike
everywhere and changes nothing. The applied index is stored with what the entry changed, in one flush: a crash can
neither skip an entry nor apply it twice.
"""

import math
import struct
import time
from collections.abc import Callable, Iterable, Sequence

from raftkv.auth import AuthStore
from raftkv.auth.rules import Rules
from raftkv.lease import LeaseStore
from raftkv.mvcc import META, Backend, Store
from raftkv.mvcc.encoding import varint
from raftkv.mvcc.interval import interval
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import ConfState, Entry, EntryKind
from raftkv.server.alarms import Alarms
from raftkv.server.auth_operations import auth_operations
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.server.proposals import Proposals
from raftkv.server.times import Times
from raftkv.status import StatusError

_APPLIED = b"applied"
LONG_KEYS = 5000
"""Keys whose deletion in one revision, which stands in one turn of the loop, takes tens of milliseconds."""
_DELETING = frozenset({"delete_range", "lease_revoke", "lease_expiry"})
_APPLIED_FORMAT = struct.Struct(">QQ")


def applied_position(backend: Backend) -> tuple[int, int]:
    """Index and term of the last entry whose effects the store holds."""
    encoded = backend.get(META, _APPLIED)
    if encoded is None:
        return 0, 0
    index, term = _APPLIED_FORMAT.unpack(encoded)
    return index, term


def set_applied_position(store: Store, index: int, term: int) -> None:
    """Note, with the next flush, that the store holds the effects of the log up to an entry."""
    store.set_meta(_APPLIED, _APPLIED_FORMAT.pack(index, term))


class Applier:
    """Applies entries to the store and answers the calls that proposed them.

    Invariants:
    1. `index` and `term` are those of the last applied entry, in memory and in what the store will flush.
    2. Entries are applied in index order without gaps.
    """

    def __init__(
        self, store: Store, leases: LeaseStore, membership: Membership, proposals: Proposals, headers: Headers
    ) -> None:
        self._store = store
        self._leases = leases
        self._membership = membership
        self._proposals = proposals
        self._headers = headers
        self.alarms = Alarms(store)
        self.auth = AuthStore(store)
        self.rules = Rules(self.auth, leases.keys_of)
        self._auth_operations = auth_operations(self.auth)
        self.on_log_in: Callable[[log_pb2.LogIn, int], str] = lambda request, index: ""
        self.load()
        self.on_compaction: Callable[[], None] = lambda: None
        self.clock: Callable[[], float] = time.perf_counter
        self.times = Times()
        self.granted_ttl: Callable[[float], None] = lambda seconds: None
        self.log_begins: Callable[[], int] = lambda: 0
        self.on_conf_state: Callable[[ConfState, int], None] = lambda conf_state, index: None
        """Takes the configuration that is in force from the entry at this index on."""
        self.on_conf_change: Callable[[log_pb2.ConfChange, StatusError | None], None] = lambda change, error: None
        """Takes a change that was applied, or refused with this error."""
        self._operations: dict[str, Callable[[log_pb2.Proposal], list[bytes]]] = {
            "put": self._put,
            "delete_range": self._delete_range,
            "txn": self._txn,
            "compaction": self._compaction,
            "lease_grant": self._lease_grant,
            "lease_revoke": self._lease_revoke,
            "lease_expiry": self._lease_expiry,
            "lease_checkpoints": self._lease_checkpoints,
            "alarm": self._alarm,
            "member_attributes": self._member_attributes,
            "log_in": self._log_in,
            **dict.fromkeys(self._auth_operations, self._auth_operation),
        }

    def load(self) -> None:
        """Take what the store holds now."""
        self.index, self.term = applied_position(self._store.backend)
        self.alarms.load()
        self.auth.load()

    def apply(self, entries: Sequence[Entry], *, work: float = math.inf, until_long: bool = False) -> int:
        """Apply committed entries in order, until so much `work` is done; how many.

        Work is counted in operations and in keys they change. `until_long`: only those before the first entry that
        deletes `LONG_KEYS` at once.

        Raises:
            RuntimeError: an entry does not follow the last one, or holds something unknown; the member must stop.
        """
        applied = operations = 0
        counts = self._store.counts
        changed = counts.puts + counts.deletes
        for entry in entries:
            if operations + counts.puts + counts.deletes - changed >= work:
                break
            if entry.index != self.index + 1:
                raise RuntimeError(f"entry {entry.index} to apply after {self.index}")
            changes_members = entry.kind is EntryKind.CONF_CHANGE
            data = b"" if changes_members else entry.data
            proposals = log_pb2.Batch.FromString(data).proposals if data else ()
            names = [proposal.WhichOneof("operation") for proposal in proposals]
            if until_long and not _DELETING.isdisjoint(names) and self._are_long(proposals):
                break
            if entry.term > self.term:
                self._proposals.term_applied(entry.term)
            self.index, self.term = entry.index, entry.term
            if changes_members:
                self._apply_conf_change(entry)
            else:
                self._apply_batch(proposals, names)
            applied += 1
            operations += len(names)
        if applied:
            set_applied_position(self._store, self.index, self.term)
        return applied

    def _are_long(self, proposals: Iterable[log_pb2.Proposal]) -> bool:
        """Whether some of these delete so much that heartbeats have to wait."""
        size = 0
        for proposal in proposals:
            if proposal.HasField("lease_revoke"):
                lease = self._leases.get(proposal.lease_revoke.ID)
                size += len(lease.keys or ()) if lease is not None else 0
            elif proposal.HasField("lease_expiry"):
                ended = map(self._leases.get, proposal.lease_expiry.ids)
                size += sum(len(lease.keys or ()) for lease in ended if lease is not None)
            elif proposal.HasField("delete_range"):
                size += self._store.count(interval(proposal.delete_range.key, proposal.delete_range.range_end))
        return size >= LONG_KEYS

    def _apply_batch(self, proposals: Iterable[log_pb2.Proposal], names: Iterable[str | None]) -> None:
        operations = self._operations
        clock, times = self.clock, self.times.applied
        started = clock()
        for proposal, name in zip(proposals, names, strict=True):
            if name is None:
                raise RuntimeError(f"entry {self.index} holds an operation this version does not know")
            try:
                if self.auth.enabled:
                    self.rules.check_proposal(name, proposal)
                self.alarms.check(name, proposal)
                response = operations[name](proposal)
            except StatusError as error:
                ok = False
                self._proposals.reject(proposal.id, error)
            else:
                ok = True
                self._proposals.resolve(proposal.id, response)
            ended = clock()
            times[name, ok].observe(ended - started)
            started = ended

    def _apply_conf_change(self, entry: Entry) -> None:
        change = log_pb2.ConfChange.FromString(entry.data) if entry.data else None
        error: StatusError | None = None
        try:
            conf_state = self._membership.apply(change, entry.index, log_begins=self.log_begins())
        except StatusError as refused:
            error = refused
        else:
            self.on_conf_state(conf_state, entry.index)
        if change is not None:
            self.on_conf_change(change, error)

    def _respond(self, body: bytes) -> list[bytes]:
        return [self._headers.encode(self._store.revision, self.term), body]

    def _put(self, proposal: log_pb2.Proposal) -> list[bytes]:
        return self._respond(self._store.put(proposal.put))

    def _delete_range(self, proposal: log_pb2.Proposal) -> list[bytes]:
        return self._respond(self._store.delete_range(proposal.delete_range))

    def _txn(self, proposal: log_pb2.Proposal) -> list[bytes]:
        return self._respond(self._store.txn(proposal.txn))

    def _compaction(self, proposal: log_pb2.Proposal) -> list[bytes]:
        request: rpc_pb2.CompactionRequest = proposal.compaction
        self._store.compact(request.revision)
        self.on_compaction()
        return self._respond(b"")

    def _lease_grant(self, proposal: log_pb2.Proposal) -> list[bytes]:
        request: rpc_pb2.LeaseGrantRequest = proposal.lease_grant
        lease = self._leases.grant(request.ID, request.TTL)
        self.granted_ttl(lease.ttl)
        return self._respond(b"\x10" + varint(lease.id) + b"\x18" + varint(lease.ttl))

    def _lease_revoke(self, proposal: log_pb2.Proposal) -> list[bytes]:
        self._leases.revoke(proposal.lease_revoke.ID)
        return self._respond(b"")

    def _lease_expiry(self, proposal: log_pb2.Proposal) -> list[bytes]:
        told = proposal.lease_expiry
        if told.term == self.term:
            self._leases.expire(told.ids, told.grants)
        return self._respond(b"")

    def _lease_checkpoints(self, proposal: log_pb2.Proposal) -> list[bytes]:
        told = proposal.lease_checkpoints
        if told.term == self.term:
            self._leases.checkpoint(told.checkpoints, told.grants)
        return self._respond(b"")

    def _alarm(self, proposal: log_pb2.Proposal) -> list[bytes]:
        about = self.alarms.apply(proposal.alarm)
        return self._respond(rpc_pb2.AlarmResponse(alarms=about).SerializeToString())

    def _member_attributes(self, proposal: log_pb2.Proposal) -> list[bytes]:
        self._membership.publish(proposal.member_attributes)
        return self._respond(b"")

    def _auth_operation(self, proposal: log_pb2.Proposal) -> list[bytes]:
        self._auth_operations[proposal.WhichOneof("operation") or ""](proposal)
        return self._respond(b"")

    def _log_in(self, proposal: log_pb2.Proposal) -> list[bytes]:
        return self._respond(self.on_log_in(proposal.log_in, self.index).encode())
