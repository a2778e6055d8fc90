"""How renewals, questions and expiry go through members, with consensus in the hands of the test."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

import pytest
from google.protobuf.message import DecodeError

from raftkv import errors
from raftkv.lease import LeaseStore
from raftkv.lease.lessor import LOOK_LEASES
from raftkv.mvcc import Store
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import log_pb2, peer_pb2, rpc_pb2
from raftkv.raft import Entry, EntryKind, RaftNode, Role
from raftkv.server.apply import Applier
from raftkv.server.headers import Headers
from raftkv.server.leases import PEER_RENEW, SLICE_KEYS, Leases
from raftkv.server.membership import Membership
from raftkv.server.proposals import LEASE_GRANT, PUT, Operation, Proposals, encode_proposal
from raftkv.status import StatusError
from tests.support import virtual

ELECTION = 1.0
TIMEOUT = 7.0


@dataclass
class Node:
    """What `Leases` looks at of a Raft node."""

    id: int
    term: int = 0
    role: Role = Role.FOLLOWER
    leader: int = 0


class Waiting:
    """The calls that wait on one member for their proposals."""

    def __init__(self) -> None:
        self.calls: dict[int, asyncio.Future[list[bytes]]] = {}

    def resolve(self, proposal_id: int, response: list[bytes]) -> None:
        call = self.calls.pop(proposal_id, None)
        if call is not None and not call.done():
            call.set_result(response)

    def reject(self, proposal_id: int, error: StatusError) -> None:
        call = self.calls.pop(proposal_id, None)
        if call is not None and not call.done():
            call.set_exception(error)

    def term_applied(self, term: int) -> None: ...


class Member:
    """A member: everything about leases is real, Raft is `Group`."""

    def __init__(self, group: "Group", member_id: int) -> None:
        self.group = group
        self.node = Node(member_id)
        self.store = Store(MemoryBackend())
        self.waiting = Waiting()
        leases = LeaseStore(self.store)
        proposals = cast(Proposals, self.waiting)
        self.applier = Applier(self.store, leases, Membership(self.store), proposals, Headers(1, member_id))
        self.reads: list[asyncio.Future[None]] = []
        self.leases = Leases(
            cast(RaftNode, self.node),
            leases,
            propose=self.propose,
            linearizable=self.linearizable,
            call_peer=group.call_peer,
            election_seconds=ELECTION,
            timeout_seconds=TIMEOUT,
            clock=lambda: asyncio.get_running_loop().time() + group.turn_seconds,
        )

    def propose(self, operation: Operation, request: bytes) -> "asyncio.Future[list[bytes]]":
        if self.group.refuses:
            raise errors.RequestTooManyRequests
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        proposal_id = self.group.next_id()
        self.waiting.calls[proposal_id] = future
        self.group.proposed(encode_proposal(proposal_id, operation, request))
        return future

    def linearizable(self) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reads.append(future)
        self.group.read_asked(self)
        return future

    def catch_up(self) -> None:
        self.applier.apply(self.group.log[self.applier.index :])
        self.leases.observe(self.applier.term)


class Group:
    """Three members and a log. By default what is proposed is committed and what is asked is confirmed at once."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.term = 0
        self._id = 0
        self.commits = True
        self.confirms = True
        self.refuses = False
        self.garbled = b""
        self.turn_seconds = 0.0
        """How far real time is ahead of the loop's, which stands still during a turn."""
        self.queue: list[bytes] = []
        self.calls: list[tuple[int, str]] = []
        self.cut: set[int] = set()
        self.lagging: set[int] = set()
        self.members = {member_id: Member(self, member_id) for member_id in (1, 2, 3)}
        self.elect(1)

    def next_id(self) -> int:
        self._id += 1
        return self._id

    def elect(self, leader: int, *, unaware: tuple[int, ...] = ()) -> None:
        """A new term; the unaware go on as before."""
        self.term += 1
        self.leader = leader
        self._append(b"")
        for member in self.members.values():
            if member.node.id not in unaware:
                member.node.term, member.node.leader = self.term, leader
                member.node.role = Role.LEADER if member.node.id == leader else Role.FOLLOWER
                member.catch_up()

    def _append(self, data: bytes) -> None:
        self.log.append(Entry(self.term, len(self.log) + 1, EntryKind.NORMAL, data))

    def proposed(self, framed: bytes) -> None:
        self.queue.append(framed)
        if self.commits:
            asyncio.get_running_loop().call_soon(self.commit)

    def commit(self) -> None:
        """Commit what waits, in the term of now; everybody who knows this term applies it."""
        for framed in self.queue:
            self._append(framed)
        self.queue.clear()
        for member in self.members.values():
            if member.node.term == self.term and member.node.id not in self.lagging:
                member.catch_up()

    def read_asked(self, member: Member) -> None:
        if self.confirms:
            asyncio.get_running_loop().call_soon(self.confirm, member)

    def confirm(self, member: Member) -> None:
        """Let the reads of a member go; one that has not heard of the leader gets no answer."""
        if member.node.term == self.term:
            member.catch_up()
            reads, member.reads = member.reads, []
            for read in reads:
                if not read.done():
                    read.set_result(None)

    async def call_peer(self, peer: int, path: str, request: bytes, timeout: float) -> bytes:
        self.calls.append((peer, path))
        if peer in self.cut:
            await asyncio.sleep(timeout)
            raise ConnectionError("no answer")
        if self.garbled:
            return self.garbled
        leases = self.members[peer].leases
        if path == PEER_RENEW:
            ids = peer_pb2.LeaseRenewRequest.FromString(request).ids
            return peer_pb2.LeaseRenewResponse(ttls=await leases.renew_here(ids)).SerializeToString()
        return await leases.time_to_live_here(rpc_pb2.LeaseTimeToLiveRequest.FromString(request))

    # Operations

    async def grant(self, lease_id: int, ttl: int) -> None:
        request = rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl)
        await self.members[self.leader].propose(LEASE_GRANT, request.SerializeToString())

    async def put(self, key: bytes, lease_id: int) -> None:
        request = rpc_pb2.PutRequest(key=key, lease=lease_id)
        await self.members[self.leader].propose(PUT, request.SerializeToString())

    def remaining(self, lease_id: int) -> float:
        leases = self.members[self.leader].leases
        lease = leases.store.get(lease_id)
        assert lease is not None
        return leases.lessor.remaining(lease)

    async def run(self, seconds: float) -> None:
        """Let time pass; every member ticks."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            for member in self.members.values():
                member.leases.tick()
            await asyncio.sleep(0.1)


def scenario(test: Callable[[Group], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test in virtual time with a group of its own."""

    def run() -> None:
        async def main() -> None:
            await test(Group())

        virtual.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@scenario
async def test_a_renewal_is_promised_only_after_leadership_was_confirmed(group: Group) -> None:
    await group.grant(7, 10)
    group.confirms = False
    renewal = group.members[1].leases.renew(7)
    await group.run(2)
    assert not renewal.done()
    group.confirm(group.members[1])
    assert await renewal == 10


@scenario
async def test_a_renewal_right_after_the_grant_found_no_lease_at_a_leader_that_applies_late(group: Group) -> None:
    """etcd 13932: whoever was asked for the lease had it before the leader."""
    group.lagging = {1}
    request = rpc_pb2.LeaseGrantRequest(ID=7, TTL=10)
    await group.members[2].propose(LEASE_GRANT, request.SerializeToString())
    assert group.members[1].leases.store.get(7) is None
    assert await group.members[2].leases.renew(7) == 10


@scenario
async def test_a_renewal_counts_from_when_it_was_asked_for(group: Group) -> None:
    await group.grant(7, 10)
    await group.run(4)
    group.confirms = False
    renewal = group.members[1].leases.renew(7)
    await group.run(3)
    group.confirm(group.members[1])
    await renewal
    assert group.remaining(7) == pytest.approx(7, abs=0.5)


@scenario
async def test_a_renewal_counts_from_its_moment_within_a_long_turn_of_the_loop(group: Group) -> None:
    await group.grant(7, 2)
    await group.run(1)
    group.turn_seconds = 0.9
    renewal = group.members[1].leases.renew(7)
    assert await renewal == 2
    assert group.remaining(7) == pytest.approx(2, abs=0.01)
    # The loop's time has caught up.
    group.turn_seconds = 0.0
    await asyncio.sleep(0.9)
    await group.run(1.8)
    assert group.members[1].leases.store.exists(7)


@scenario
async def test_renewed_leases_that_come_up_together_are_looked_at_in_slices(group: Group) -> None:
    leader = group.members[1].leases
    for lease_id in range(1, 4 * LOOK_LEASES):
        await group.grant(lease_id, 20)
    await group.grant(1 << 30, 20)
    await group.run(10)
    for lease_id in range(1, 4 * LOOK_LEASES):
        leader.lessor.renew(lease_id)
    await group.run(10.15)
    assert not leader.store.exists(1 << 30)
    assert len(leader.store) == 4 * LOOK_LEASES - 1


@scenario
async def test_checkpoints_that_were_refused_are_told_later(group: Group) -> None:
    await group.grant(7, 100)
    group.refuses = True
    await group.run(51)
    group.refuses = False
    # Nothing is in the log that a renewal would have to take back.
    assert group.members[1].leases.lessor.renew(7) is False
    length = len(group.log)
    await group.run(90)
    marks = [log_pb2.Batch.FromString(entry.data).proposals[0] for entry in group.log[length:]]
    assert [told.remaining_TTL for one in marks for told in one.lease_checkpoints.checkpoints] == [50, 25, 13]


@scenario
async def test_a_leader_replaced_unawares_promises_nothing(group: Group) -> None:
    await group.grant(7, 10)
    group.elect(2, unaware=(1,))
    old = group.members[1]
    renewal = old.leases.renew(7)
    await group.run(3)
    assert not renewal.done()
    # It learns of its successor; a read that it forwards is confirmed; the renewal goes there as well.
    old.node.term, old.node.leader, old.node.role = group.term, 2, Role.FOLLOWER
    before = group.remaining(7)
    group.confirm(old)
    assert await renewal == 10
    assert group.remaining(7) > before


@scenario
async def test_a_leader_replaced_unawares_learns_that_the_lease_is_gone(group: Group) -> None:
    await group.grant(7, 3)
    group.elect(2, unaware=(1,))
    old = group.members[1]
    renewal = old.leases.renew(7)
    group.cut.add(1)
    await group.run(5.5)
    assert group.members[2].leases.store.get(7) is None
    assert old.leases.store.get(7) is not None
    old.node.term, old.node.leader, old.node.role = group.term, 2, Role.FOLLOWER
    group.confirm(old)
    assert await renewal == 0


@scenario
async def test_without_an_answer_the_call_ends(group: Group) -> None:
    await group.grant(7, 30)
    group.elect(2, unaware=(1,))
    started = asyncio.get_running_loop().time()
    with pytest.raises(errors.Timeout):
        await group.members[1].leases.renew(7)
    assert asyncio.get_running_loop().time() - started == pytest.approx(TIMEOUT)


@scenario
async def test_without_a_leader_the_call_says_so(group: Group) -> None:
    for member in group.members.values():
        member.node.leader, member.node.role = 0, Role.FOLLOWER
    with pytest.raises(errors.NoLeader):
        await group.members[3].leases.renew(7)
    with pytest.raises(errors.NoLeader):
        await group.members[3].leases.time_to_live(rpc_pb2.LeaseTimeToLiveRequest(ID=7))


@scenario
async def test_renewals_of_a_follower_travel_together(group: Group) -> None:
    for lease_id in range(1, 101):
        await group.grant(lease_id, 10)
    await group.run(3)
    leases = group.members[2].leases
    answers = await asyncio.gather(*(leases.renew(lease_id) for lease_id in range(1, 103)))
    assert answers == [10] * 100 + [0, 0]
    assert len(group.calls) == 1
    assert group.remaining(50) == pytest.approx(10, abs=0.3)


@scenario
async def test_an_answer_that_makes_no_sense_leaves_nobody_waiting(group: Group) -> None:
    await group.grant(7, 10)
    for group.garbled in (b"\xff", peer_pb2.LeaseRenewResponse(ttls=[1, 2]).SerializeToString()):
        with pytest.raises((ValueError, DecodeError)):
            await asyncio.wait_for(group.members[2].leases.renew(7), 20)


@scenario
async def test_a_renewal_follows_the_leader_from_member_to_member(group: Group) -> None:
    await group.grant(7, 20)
    group.cut.add(1)
    renewal = group.members[2].leases.renew(7)
    await group.run(1)
    group.elect(3)
    assert await renewal == 20
    assert [peer for peer, _ in group.calls] == [1, 3]


@scenario
async def test_a_leader_just_elected_waits_for_its_first_entry(group: Group) -> None:
    await group.grant(7, 20)
    follower = group.members[2]
    # Elected, but its own entry is not applied yet.
    group.term += 1
    group.leader = 2
    group._append(b"")
    for member in group.members.values():
        member.node.term, member.node.leader = group.term, 2
        member.node.role = Role.LEADER if member is follower else Role.FOLLOWER
    assert not follower.leases.lessor.term
    assert await follower.leases.renew(7) == 20
    assert follower.leases.lessor.term == group.term


@scenario
async def test_a_new_leader_keeps_no_time_before_it_knows_what_was_promised(group: Group) -> None:
    """The take-back of a checkpoint is committed, and the next leader applies it only after its election."""
    await group.grant(7, 40)
    await group.run(25)
    group.lagging.add(2)
    assert await group.members[1].leases.renew(7) == 40
    follower = group.members[2]
    lease = follower.leases.store.get(7)
    assert lease is not None
    assert lease.remaining
    group.term += 1
    group.leader = 2
    follower.node.term, follower.node.role, follower.node.leader = group.term, Role.LEADER, 2
    follower.leases.observe(follower.applier.term)
    group._append(b"")
    for entry in group.log[follower.applier.index :]:
        follower.applier.apply([entry])
        follower.leases.observe(follower.applier.term)
    assert group.remaining(7) >= 40


@scenario
async def test_a_renewal_after_a_checkpoint_waits_for_the_log(group: Group) -> None:
    await group.grant(7, 40)
    await group.run(25)
    lease = group.members[1].leases.store.get(7)
    assert lease is not None
    assert lease.remaining
    group.commits = False
    renewal = group.members[1].leases.renew(7)
    await group.run(1)
    assert not renewal.done()
    group.commit()
    assert await renewal == 40
    assert not lease.remaining
    for member in group.members.values():
        copy = member.leases.store.get(7)
        assert copy is not None
        assert copy.known == 40


@scenario
async def test_a_renewal_of_an_expiring_lease_waits_for_its_fate(group: Group) -> None:
    await group.grant(7, 2)
    await group.run(1.8)
    group.commits = False
    await group.run(0.5)
    assert group.members[1].leases.lessor.is_expiring(7)
    renewal = group.members[1].leases.renew(7)
    await group.run(1)
    assert not renewal.done()
    group.commit()
    assert await renewal == 0


@scenario
async def test_a_lease_whose_expiry_is_void_is_renewed_by_the_next_leader(group: Group) -> None:
    await group.grant(7, 2)
    await group.run(1.8)
    group.commits = False
    await group.run(0.5)
    renewal = group.members[1].leases.renew(7)
    group.elect(2)
    # The old leader's decision arrives in the new term.
    group.commits = True
    group.commit()
    assert await renewal == 2
    assert group.remaining(7) > 1.5


@scenario
async def test_many_leases_expire_in_slices_one_at_a_time(group: Group) -> None:
    for lease_id in range(1, 201):
        await group.grant(lease_id, 2)
        for number in range(10):
            await group.put(b"%d/%d" % (lease_id, number), lease_id)
    await group.put(b"stays", 0)
    length = len(group.log)
    group.commits = False
    await group.run(3.5)
    assert len(group.queue) == 1
    group.commits = True
    group.commit()
    await group.run(0.5)
    slices = [log_pb2.Batch.FromString(entry.data).proposals[0].lease_expiry for entry in group.log[length:]]
    assert sum(len(one.ids) for one in slices) == 200
    assert max(len(one.ids) for one in slices) <= SLICE_KEYS // 11
    for member in group.members.values():
        assert not member.leases.store
        assert member.store.count((b"", None)) == 1


@scenario
async def test_what_is_left_is_asked_of_the_leader(group: Group) -> None:
    await group.grant(7, 10)
    await group.put(b"b", 7)
    await group.put(b"a", 7)
    await group.run(2.5)

    async def ask(lease_id: int, *, keys: bool) -> rpc_pb2.LeaseTimeToLiveResponse:
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        return rpc_pb2.LeaseTimeToLiveResponse.FromString(await group.members[3].leases.time_to_live(request))

    expected = rpc_pb2.LeaseTimeToLiveResponse(ID=7, TTL=7, grantedTTL=10)
    assert await ask(7, keys=False) == expected
    expected.keys[:] = [b"a", b"b"]
    assert await ask(7, keys=True) == expected
    assert await ask(8, keys=True) == rpc_pb2.LeaseTimeToLiveResponse(ID=8, TTL=-1)


@scenario
async def test_stopping_ends_renewals(group: Group) -> None:
    await group.grant(7, 10)
    group.confirms = False
    renewals = [group.members[1].leases.renew(7)]
    await group.run(0.3)
    renewals.append(group.members[1].leases.renew(7))
    group.members[1].leases.close()
    for renewal in renewals:
        with pytest.raises(errors.Stopped):
            await renewal


@pytest.mark.parametrize(("election", "seconds"), [(1.0, 2), (0.5, 1), (2.0, 3), (5.0, 8)])
def test_the_least_time_is_one_and_a_half_elections(election: float, seconds: int) -> None:
    async def main() -> int:
        leases = Leases(
            cast(RaftNode, Node(1)),
            LeaseStore(Store(MemoryBackend())),
            propose=cast(Any, None),
            linearizable=cast(Any, None),
            call_peer=cast(Any, None),
            election_seconds=election,
            timeout_seconds=TIMEOUT,
        )
        return leases.min_ttl_seconds

    assert virtual.run(main()) == seconds
