"""Locks and elections on a member whose log is in the hands of the test."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftkv import errors
from raftkv.api import turns
from raftkv.api.election import ElectionService
from raftkv.api.guard import Limits
from raftkv.api.lease import LeaseService
from raftkv.api.lock import EXPIRED, LockService
from raftkv.auth import Caller
from raftkv.lease import LeaseStore
from raftkv.mvcc import Store
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from raftkv.raft import Entry, EntryKind
from raftkv.rpc import Context
from raftkv.server import proposals as p
from raftkv.server.apply import Applier
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.server.server import Server
from raftkv.status import StatusError
from raftkv.watch import Hub, WatchStream

BOUND_SECONDS = 90.0
CONTEXT = Context([], None, None)
A, B = 0xA, 0xB


class Node:
    term = 1


class Member:
    """What the services use of a server; what is proposed waits for `commit`, which applies it in one go."""

    node = Node()

    def __init__(self, max_watch_bytes: int = 1 << 62) -> None:
        self.headers = Headers(1, 1)
        self.rng = random.Random(1)
        loop = asyncio.get_running_loop()
        self.proposals = p.Proposals(loop, 1, random.Random(1), timeout_seconds=7.0)
        self.store = Store(MemoryBackend())
        self.hub = Hub(
            self.store,
            lambda revision: self.headers.encode(revision, 1),
            rng=random.Random(7),
            max_bytes=max_watch_bytes,
        )
        self.applier = self._applier(self.store)
        self.auth = self.applier.auth
        self.proposed = asyncio.Event()
        self.quota = 1 << 30
        self.leases = SimpleNamespace(min_ttl_seconds=2, store=SimpleNamespace(exists=lambda lease_id: False))

    def _applier(self, store: Store) -> Applier:
        return Applier(store, LeaseStore(store), Membership(store), self.proposals, self.headers)

    def propose(
        self, operation: p.Operation, request: bytes, caller: Caller | None = None
    ) -> "asyncio.Future[list[bytes]]":
        self.proposed.set()
        return self.proposals.add(operation, request, caller)

    async def admit(self, cost_bytes: int) -> None:
        if cost_bytes > self.quota:
            raise errors.NoSpace

    async def linearizable(self) -> None:
        """All that was committed is applied."""

    def commit(self) -> None:
        batches: list[bytes] = []
        self.proposals.hand_over(1, 1 << 20, batches.append)
        self.applier.apply([Entry(1, self.applier.index + 1, EntryKind.NORMAL, batches[0])])
        self.hub.distribute()
        self.proposed.clear()

    async def do(self, operation: p.Operation, request: Any) -> None:
        future = self.propose(operation, request.SerializeToString())
        self.commit()
        await future

    def be_given(self, store: Store) -> None:
        """A snapshot takes the place of what this member had."""
        self.store = store
        self.hub.become(store)
        self.applier = self._applier(store)

    def crowd(self, most: int) -> None:
        """Let the watchers of clients hold as much as they may. Who does not wait, but tries for ever, is stopped."""
        client = self.hub.open(lambda: None)
        while not self.hub.crowded:
            client.create(rpc_pb2.WatchCreateRequest(key=b"k"))
            client.take()
        tries = itertools.count(1)
        unwatched = self.hub.open

        def opened(ready: Callable[[], None]) -> WatchStream:
            assert next(tries) <= most, "it tries again and again, and nobody else has a turn"
            return unwatched(ready)

        self.hub.open = opened  # type: ignore[method-assign]

    def server(self) -> Server:
        return cast(Server, self)


def bounded(main: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            await main

    asyncio.run(within())


def scenario(test: Callable[[Member], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            async with asyncio.timeout(BOUND_SECONDS):
                await test(Member())

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def begin(member: Member, call: AsyncIterator[bytes]) -> "asyncio.Task[bytes]":
    """Start a call and wait until it has proposed something."""

    async def first() -> bytes:
        return await anext(call)

    task = asyncio.ensure_future(first())
    await member.proposed.wait()
    return task


async def begin_unary(member: Member, call: Coroutine[Any, Any, list[bytes]]) -> "asyncio.Task[list[bytes]]":
    task = asyncio.create_task(call)
    await member.proposed.wait()
    return task


async def two_in_line(member: Member) -> tuple[v3lock_pb2.LockResponse, "asyncio.Task[list[bytes]]"]:
    """What holder A of a lock was told, and B's call, which waits."""
    service = LockService(member.server(), Limits())
    for lease_id in (A, B):
        await member.do(p.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=60))
    first = await begin(member, service.lock(v3lock_pb2.LockRequest(name=b"n", lease=A).SerializeToString(), CONTEXT))
    member.commit()
    held = v3lock_pb2.LockResponse.FromString(await first)
    second = await begin(member, service.lock(v3lock_pb2.LockRequest(name=b"n", lease=B).SerializeToString(), CONTEXT))
    return held, second


@scenario
async def test_a_turn_that_came_to_a_lease_that_is_gone_already_is_no_turn(member: Member) -> None:
    """A member that applies much at once may see nobody before a caller whose own lease has ended, too."""
    _, second = await two_in_line(member)
    for lease_id in (A, B):
        member.propose(p.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease_id).SerializeToString())
    member.commit()
    with pytest.raises(StatusError, match=EXPIRED):
        await second


@scenario
async def test_a_lock_is_told_the_revision_at_which_nobody_is_before_it(member: Member) -> None:
    """Who was before it may leave between its entry and the answer: a seed was told the revision of the entry."""
    held, second = await two_in_line(member)
    assert held.header.revision == member.store.revision
    member.propose(p.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=held.key).SerializeToString())
    member.commit()
    assert v3lock_pb2.LockResponse.FromString(await second).header.revision == held.header.revision + 2


@scenario
async def test_observing_goes_on_when_the_history_it_needs_is_gone(member: Member) -> None:
    def elect(value: bytes) -> rpc_pb2.PutRequest:
        return rpc_pb2.PutRequest(key=b"n/a", value=value)

    service = ElectionService(member.server(), Limits())
    await member.do(p.PUT, elect(b"first"))
    heard = service.observe(v3election_pb2.LeaderRequest(name=b"n").SerializeToString(), CONTEXT)
    assert b"first" in await anext(heard)
    next_one = asyncio.ensure_future(cast("asyncio.Future[bytes]", anext(heard)))
    await asyncio.sleep(0)
    further = Store(MemoryBackend())
    for number in range(5):
        further.put(elect(b"second" if number == 4 else b"missed"))
    further.compact(5)
    member.be_given(further)
    member.hub.catch_up()
    assert b"second" in await next_one
    next_one = asyncio.ensure_future(cast("asyncio.Future[bytes]", anext(heard)))
    await asyncio.sleep(0)
    await member.do(p.PUT, elect(b"third"))
    assert b"third" in await next_one
    await heard.aclose()  # type: ignore[attr-defined]
    assert member.hub.count().streams == 0


@scenario
async def test_a_full_store_takes_neither_leases_nor_places(member: Member) -> None:
    await member.do(p.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=A, TTL=60))
    member.quota = 10
    key = v3election_pb2.LeaderKey(key=b"n/a", rev=1)
    lock, election = LockService(member.server(), Limits()), ElectionService(member.server(), Limits())
    with pytest.raises(errors.NoSpace):
        await LeaseService(member.server()).grant(rpc_pb2.LeaseGrantRequest(TTL=60).SerializeToString(), CONTEXT)
    for call in (
        anext(lock.lock(v3lock_pb2.LockRequest(lease=A).SerializeToString(), CONTEXT)),
        anext(election.campaign(v3election_pb2.CampaignRequest(lease=A).SerializeToString(), CONTEXT)),
        election.proclaim(v3election_pb2.ProclaimRequest(leader=key, value=b"v").SerializeToString(), CONTEXT),
    ):
        with pytest.raises(StatusError, match="database space exceeded"):
            await call
    resigned = await begin_unary(
        member, election.resign(v3election_pb2.ResignRequest(leader=key).SerializeToString(), CONTEXT)
    )
    member.commit()
    assert await resigned


@scenario
async def test_what_is_too_large_for_the_log_is_refused(member: Member) -> None:
    limits = Limits(max_request_bytes=1000)
    large = bytes(1000)
    lock, election = LockService(member.server(), limits), ElectionService(member.server(), limits)
    key = v3election_pb2.LeaderKey(key=large)
    for call in (
        anext(lock.lock(v3lock_pb2.LockRequest(name=large, lease=A).SerializeToString(), CONTEXT)),
        lock.unlock(v3lock_pb2.UnlockRequest(key=large).SerializeToString(), CONTEXT),
        anext(election.campaign(v3election_pb2.CampaignRequest(value=large, lease=A).SerializeToString(), CONTEXT)),
        election.proclaim(v3election_pb2.ProclaimRequest(value=large).SerializeToString(), CONTEXT),
        election.resign(v3election_pb2.ResignRequest(leader=key).SerializeToString(), CONTEXT),
    ):
        with pytest.raises(StatusError, match="request is too large"):
            await call


@scenario
async def test_a_leader_key_without_a_key_is_refused(member: Member) -> None:
    """A transaction that no check has seen would store a key without a name, which nobody can read or delete."""
    election = ElectionService(member.server(), Limits())
    for leader in (v3election_pb2.LeaderKey(name=b"n", lease=A), v3election_pb2.LeaderKey(rev=5)):
        for call in (
            election.proclaim(v3election_pb2.ProclaimRequest(leader=leader, value=b"v").SerializeToString(), CONTEXT),
            election.resign(v3election_pb2.ResignRequest(leader=leader).SerializeToString(), CONTEXT),
        ):
            with pytest.raises(StatusError, match="etcdserver: key is not provided"):
                await call


@scenario
async def test_a_long_queue_leaves_the_loop_its_turns(member: Member) -> None:
    """So does a lock whose name is the prefix of whatever else there is."""
    for number in range(5 * turns.KEYS_PER_TURN):
        member.store.put(rpc_pb2.PutRequest(key=b"n/%05d" % (number * 7919 % 99991)))
    counted = 0

    async def count() -> None:
        nonlocal counted
        while True:
            counted += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    found = await turns.oldest(member.server(), b"n/")
    assert found is not None
    assert found.create_revision == 2
    assert counted >= 4
    counting.cancel()


@scenario
async def test_whoever_leaves_and_comes_back_while_we_look_is_behind_us(member: Member) -> None:
    """To wait for the end of that key would be to wait for ourselves."""
    _, second = await two_in_line(member)
    member.commit()
    for number in range(5 * turns.KEYS_PER_TURN):
        member.store.put(rpc_pb2.PutRequest(key=b"n/%05d" % number))
    # The second has begun to look, and finds the first where it stood.
    for _ in range(3):
        await asyncio.sleep(0)
    await member.do(p.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=b"n/a"))
    await member.do(p.PUT, rpc_pb2.PutRequest(key=b"n/a"))
    assert not second.done()
    assert v3lock_pb2.LockResponse.FromString(await second).key == b"n/b"


async def a_few_turns() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["lock", "campaign"])
def test_who_waits_for_a_turn_waits_while_clients_watch_as_much_as_they_may(kind: str) -> None:
    async def main() -> None:
        member = Member(max_watch_bytes=1000)
        locks, elections = LockService(member.server(), Limits()), ElectionService(member.server(), Limits())

        def call(lease_id: int) -> AsyncIterator[bytes]:
            if kind == "lock":
                return locks.lock(v3lock_pb2.LockRequest(name=b"n", lease=lease_id).SerializeToString(), CONTEXT)
            request = v3election_pb2.CampaignRequest(name=b"n", lease=lease_id)
            return elections.campaign(request.SerializeToString(), CONTEXT)

        for lease_id in (A, B):
            await member.do(p.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=60))
        first = await begin(member, call(A))
        member.commit()
        await first
        member.crowd(most=1)
        second = await begin(member, call(B))
        member.commit()
        await a_few_turns()
        assert not second.done()
        await member.do(p.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=A))
        assert await second

    bounded(main())


def test_who_observes_waits_while_clients_watch_as_much_as_they_may() -> None:
    async def main() -> None:
        member = Member(max_watch_bytes=1000)
        service = ElectionService(member.server(), Limits())
        member.crowd(most=4)
        observed = service.observe(v3election_pb2.LeaderRequest(name=b"n").SerializeToString(), CONTEXT)

        async def told() -> bytes:
            return v3election_pb2.LeaderResponse.FromString(await anext(observed)).kv.value

        for value in (b"one", b"two", b"three"):
            telling = asyncio.ensure_future(told())
            await a_few_turns()
            assert not telling.done()
            await member.do(p.PUT, rpc_pb2.PutRequest(key=b"n/a", value=value))
            assert await telling == value

    bounded(main())


def test_what_is_not_watched_for_another_reason_than_lost_history_is_an_error() -> None:
    async def main() -> None:
        member = Member()
        with (
            turns.Changes(member.server(), b"b", b"a", after=0) as changes,
            pytest.raises(StatusError, match="watcher range is empty"),
        ):
            await changes.next()

    bounded(main())
