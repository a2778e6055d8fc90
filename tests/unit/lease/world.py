"""Members that apply one log, each with its own clock of leases: consensus reduced to a list.

What is real: the store, the leases, the lessor, and the applier with its rule about terms. `World` decides who leads,
what is committed in which term, and what time it is.
"""

from collections.abc import Sequence
from typing import cast

from raftkv.lease import LeaseStore, Lessor
from raftkv.mvcc import Store
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import Entry, EntryKind
from raftkv.server.apply import Applier
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.server.proposals import Proposals
from raftkv.status import StatusError

SLACK = 1.0


class Answers:
    """Takes the applier's answers; the last one counts."""

    def __init__(self) -> None:
        self.error: StatusError | None = None

    def resolve(self, proposal_id: int, response: list[bytes]) -> None:
        self.error = None

    def reject(self, proposal_id: int, error: StatusError) -> None:
        self.error = error

    def term_applied(self, term: int) -> None: ...


class Member:
    """One member's leases; `time` is its own monotonic clock."""

    def __init__(self) -> None:
        self.time = 0.0
        self.store = Store(MemoryBackend())
        self.leases = LeaseStore(self.store)
        self.answers = Answers()
        proposals = cast(Proposals, self.answers)
        self.applier = Applier(self.store, self.leases, Membership(self.store), proposals, Headers(1, 1))
        self.lessor = Lessor(self.leases, clock=lambda: self.time, slack_seconds=SLACK)

    def apply(self, entries: Sequence[Entry]) -> StatusError | None:
        """Apply entries; the error of the last, if it was refused."""
        self.applier.apply(entries)
        return self.answers.error


class World:
    """Members, a committed log and a leader; a new leader applies everything before it is primary."""

    def __init__(self, size: int = 3) -> None:
        self.members = [Member() for _ in range(size)]
        self.log: list[Entry] = []
        self.term = 0
        self.leader = self.members[0]
        self.elect(0)

    @property
    def now(self) -> float:
        return self.members[0].time

    def sleep(self, seconds: float) -> None:
        for member in self.members:
            member.time += seconds

    def catch_up(self, member: Member) -> StatusError | None:
        return member.apply(self.log[member.applier.index :])

    def elect(self, place: int, *, take_up: bool = True) -> None:
        """A new term; the old leader is not told."""
        self.term += 1
        self.leader = self.members[place]
        self.commit(None)
        self.leader.lessor.promote(self.term)
        while take_up and self.leader.lessor.take_up(2):
            pass

    def commit(self, proposal: log_pb2.Proposal | None) -> StatusError | None:
        """Commit in the current term, applied by the leader at once and by others when they catch up."""
        data = b"" if proposal is None else log_pb2.Batch(proposals=[proposal]).SerializeToString()
        self.log.append(Entry(self.term, len(self.log) + 1, EntryKind.NORMAL, data))
        return self.catch_up(self.leader)

    # Operations

    def grant(self, lease_id: int, ttl: int) -> StatusError | None:
        request = rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl)
        return self.commit(log_pb2.Proposal(id=1, lease_grant=request))

    def revoke(self, lease_id: int) -> StatusError | None:
        return self.commit(log_pb2.Proposal(id=1, lease_revoke=rpc_pb2.LeaseRevokeRequest(ID=lease_id)))

    def put(self, key: bytes, lease_id: int) -> StatusError | None:
        return self.commit(log_pb2.Proposal(id=1, put=rpc_pb2.PutRequest(key=key, value=b"v", lease=lease_id)))

    def delete(self, key: bytes, end: bytes = b"") -> StatusError | None:
        request = rpc_pb2.DeleteRangeRequest(key=key, range_end=end)
        return self.commit(log_pb2.Proposal(id=1, delete_range=request))

    # What a member's lessor proposes

    @staticmethod
    def expiry(member: Member, max_keys: int = 100) -> log_pb2.Proposal | None:
        ids = member.lessor.take_expired(max_keys)
        told = log_pb2.LeaseExpiry(term=member.lessor.term, grants=member.leases.grants, ids=ids)
        return log_pb2.Proposal(id=1, lease_expiry=told) if ids else None

    @staticmethod
    def checkpoints(member: Member, marks: Sequence[tuple[int, int]] | None = None) -> log_pb2.Proposal | None:
        if marks is None:
            marks = member.lessor.take_checkpoints(100)
        told = log_pb2.LeaseCheckpoints(term=member.lessor.term, grants=member.leases.grants)
        for lease_id, left in marks:
            told.checkpoints.add(ID=lease_id, remaining_TTL=left)
        return log_pb2.Proposal(id=1, lease_checkpoints=told) if marks else None

    def tick(self) -> None:
        """Let the leader expire and checkpoint what is due."""
        for proposal in (self.expiry(self.leader), self.checkpoints(self.leader)):
            if proposal is not None:
                self.commit(proposal)

    def renew(self, lease_id: int) -> None:
        """Renew at the leader, with what must be in the log before the renewal may be promised."""
        if self.leader.lessor.renew(lease_id):
            self.commit(self.checkpoints(self.leader, [(lease_id, 0)]))

    def run(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass in ticks."""
        end = self.now + seconds
        while self.now < end:
            self.sleep(step)
            self.tick()

    def exists(self, lease_id: int) -> bool:
        return self.leader.leases.exists(lease_id)

    def keys(self, lease_id: int) -> list[bytes]:
        lease = self.leader.leases.get(lease_id)
        return sorted(lease.keys or ()) if lease is not None else []
