"""Locks and elections of the clients, on etcd and raftkv: who is on, who waits, and what ends the waiting."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from raftkv.client import AsyncClient, Client, LeaseLost, TurnLost
from raftkv.client.electing import Candidates
from raftkv.pb import kv_pb2, rpc_pb2
from tests.cli.servers import KINDS, serve

BOUND_SECONDS = 90.0
T = TypeVar("T")


@pytest.fixture(scope="module", params=KINDS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.param, tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint


def run(main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(BOUND_SECONDS):
            return await main

    return asyncio.run(bounded())


@asynccontextmanager
async def begun(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator["asyncio.Task[T]"]:
    """A task that does not outlive the test."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def queued(client: AsyncClient, name: str, count: int) -> list[kv_pb2.KeyValue]:
    """Wait until so many stand in the queue; they, the oldest first."""
    while len(kvs := (await client.range(f"{name}/", prefix=True)).kvs) != count:
        await asyncio.sleep(0.02)
    return sorted(kvs, key=lambda kv: kv.create_revision)


def test_a_lock_has_etcds_key_and_is_released(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client:
            async with client.lock("plain") as lock:
                kv = await client.get(lock.key)
                assert kv is not None
                assert (lock.key, kv.lease, kv.value) == (b"plain/%x" % lock.lease.id, lock.lease.id, b"")
                assert lock.token == kv.create_revision == lock.revision
                lock.check()
            assert await client.get(lock.key) is None
            assert lock.lease.id not in {lease.ID for lease in (await client.leases()).leases}

    run(main())


def test_turns_go_by_age_and_tokens_grow(live: str) -> None:
    async def main() -> None:
        order: list[int] = []
        tokens: list[int] = []

        async def hold(number: int) -> None:
            async with client.lock("order") as lock:
                order.append(number)
                tokens.append(lock.token)
                # Gives up the turn to who is not to have it, if there is a fault.
                await client.get("order")
                assert order[-1] == number

        async with AsyncClient(live) as client:
            tasks = []
            async with client.lock("order"):
                for number in range(5):
                    tasks.append(asyncio.create_task(hold(number)))
                    await queued(client, "order", number + 2)
                assert not order
            await asyncio.gather(*tasks)
        assert order == list(range(5))
        assert tokens == sorted(set(tokens))

    run(main())


def test_what_is_guarded_fails_once_the_lock_is_not_held(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client:
            async with client.lock("guard") as lock:
                request = rpc_pb2.TxnRequest(compare=[lock.held()])
                assert (await client.txn(request)).succeeded
            assert not (await client.txn(request)).succeeded

    run(main())


def test_whoever_gives_up_waiting_leaves_the_queue(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client, client.lock("give-up"):
            for seconds in (0, 0.3):
                with pytest.raises(TimeoutError):
                    async with client.lock("give-up", timeout=seconds):
                        pytest.fail("held twice")
                assert len(await queued(client, "give-up", 1)) == 1
            async with begun(client.lock("give-up").__aenter__()) as waiting:
                await queued(client, "give-up", 2)
                waiting.cancel()
                await queued(client, "give-up", 1)

    run(main())


def test_a_free_lock_needs_no_time(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client, client.lock("free", timeout=0) as lock:
            lock.check()

    run(main())


@pytest.mark.parametrize("what", ["lease", "key"])
def test_whoever_loses_the_place_while_waiting_never_holds_the_lock(what: str, live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client:
            first = await client.lock("loser").__aenter__()
            second, third = client.lock("loser"), client.lock("loser")
            async with begun(second.__aenter__()) as loses:
                _, own = await queued(client, "loser", 2)
                async with begun(third.__aenter__()) as waits:
                    await queued(client, "loser", 3)
                    await (client.lease_revoke(own.lease) if what == "lease" else client.delete(own.key))
                    await queued(client, "loser", 2)
                    await first.__aexit__()
                    with pytest.raises((LeaseLost, TurnLost)):
                        await loses
                    await waits
                    await third.__aexit__()

    run(main())


def test_a_lease_that_is_lost_ends_the_waiting(live: str) -> None:
    async def main() -> None:
        async with (
            AsyncClient(live) as client,
            client.lock("long"),
            begun(client.lock("long", ttl=2).__aenter__()) as waiting,
        ):
            _, own = await queued(client, "long", 2)
            await client.lease_revoke(own.lease)
            with pytest.raises(LeaseLost):
                await waiting

    run(main())


def test_whoever_loses_the_lease_is_told(live: str) -> None:
    async def main() -> None:
        told: list[int] = []
        async with (
            AsyncClient(live) as client,
            client.lock("told", ttl=2, on_lost=lambda lock: told.append(lock.token)) as lock,
        ):
            await client.lease_revoke(lock.lease.id)
            await lock.lost.wait()
            with pytest.raises(LeaseLost):
                lock.check()
            assert told == [lock.token]

    run(main())


class Forgetful(AsyncClient):
    """Behind its first look at a queue, history is compacted before it can be followed from there."""

    looks = 0

    async def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        answer = await super().txn(request)
        if not request.compare:
            await self._forget()
        return answer

    async def range(self, *arguments: Any, **options: Any) -> rpc_pb2.RangeResponse:
        answer = await super().range(*arguments, **options)
        await self._forget()
        return answer

    async def _forget(self) -> None:
        self.looks += 1
        if self.looks == 1:
            await self.put("forget", "this")
            await self.compact((await self.put("forget", "that")).header.revision)


def test_waiting_survives_compaction(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client, Forgetful(live) as forgetful, client.lock("old"):
            waiter = forgetful.lock("old")
            async with begun(waiter.__aenter__()) as waiting:
                while forgetful.looks < 2:
                    await asyncio.sleep(0.02)
                first, _ = await queued(client, "old", 2)
                assert not waiting.done()
                await client.delete(first.key)
                await waiting
                await waiter.__aexit__()

    run(main())


def test_observing_survives_compaction(live: str) -> None:
    async def main() -> None:
        async with Forgetful(live) as client, client.election("kept") as election:
            await election.campaign("a")
            observed = client.election("kept").observe()
            assert (await anext(observed)).kv.value == b"a"
            async with begun(anext(observed)) as news:
                while client.looks < 2:
                    await asyncio.sleep(0.02)
                await election.proclaim("b")
                assert (await news).kv.value == b"b"
            await observed.aclose()

    run(main())


def test_a_leader_campaigns_proclaims_and_resigns(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client, client.election("post") as first, client.election("post") as second:
            assert await first.leader() is None
            await first.campaign("a")
            with pytest.raises(TimeoutError):
                await second.campaign("b", timeout=0)
            leader = await second.leader()
            assert leader is not None
            assert (leader.key, leader.value, leader.create_revision) == (first.key, b"a", first.token)
            await first.proclaim("a2")
            await first.campaign("a3")
            leader = await second.leader()
            assert leader is not None
            assert (leader.value, leader.create_revision) == (b"a3", first.token)
            async with begun(second.campaign("b")) as standing:
                await queued(client, "post", 2)
                held = first.held()
                await first.resign()
                await standing
            assert second.token > leader.create_revision
            assert not (await client.txn(rpc_pb2.TxnRequest(compare=[held]))).succeeded
            await client.delete(second.key)
            with pytest.raises(TurnLost):
                await second.proclaim("too late")

    run(main())


def test_observers_hear_of_every_leader_in_order(live: str) -> None:
    async def main() -> None:
        async with AsyncClient(live) as client:
            observed = client.election("seen").observe()
            expected = []
            for number in range(5):
                async with client.election("seen") as election:
                    await election.campaign(f"{number}")
                    if not number:
                        # From now on it is observed; the rest happens while nobody listens.
                        assert (await anext(observed)).kv.value == b"0"
                    await election.proclaim(f"{number} again")
                    expected += [b"%d" % number, b"%d again" % number]
            heard = [b"0"] + [(await anext(observed)).kv.value for _ in expected[1:]]
            assert heard == expected
            await observed.aclose()

    run(main())


def event(key: str, revision: int, created: int = 0) -> kv_pb2.Event:
    kv = kv_pb2.KeyValue(key=key.encode(), create_revision=created, mod_revision=revision)
    return kv_pb2.Event(type=kv_pb2.Event.PUT if created else kv_pb2.Event.DELETE, kv=kv)


def test_of_the_changes_of_one_revision_the_outcome_counts() -> None:
    candidates = Candidates()
    assert not list(candidates.begin([]))
    told = [
        (kv.key, kv.mod_revision)
        for kv in candidates.take(
            [
                *(event("a", 5, created=5), event("b", 6, created=6)),
                *(event("a", 7), event("b", 7), event("c", 7, created=7)),
                *(event("c", 8, created=7), event("c", 9), event("d", 10, created=10)),
            ]
        )
    ]
    assert told == [(b"a", 5), (b"c", 7), (b"c", 8), (b"d", 10)]


def test_a_leader_is_not_told_again_when_history_is_read_anew() -> None:
    candidates = Candidates()
    first = event("a", 5, created=5).kv
    assert list(candidates.begin([first])) == [first]
    assert not list(candidates.begin([first, event("b", 6, created=6).kv]))
    assert [kv.key for kv in candidates.take([event("a", 7)])] == [b"b"]


def test_threads_take_turns(live: str) -> None:
    inside: list[int] = []
    tokens: list[int] = []

    def hold(number: int) -> None:
        with Client(live) as client:
            for _ in range(3):
                with client.lock("threads") as lock:
                    inside.append(number)
                    tokens.append(lock.token)
                    lock.check()
                    assert inside == [number]
                    inside.remove(number)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_SECONDS)
    assert len(tokens) == 12
    assert tokens == sorted(set(tokens))


def test_threads_elect(live: str) -> None:
    with Client(live) as client, client.election("sync") as election:
        observed = election.observe()
        election.campaign("me")
        assert next(observed).kv.value == b"me"
        election.proclaim("still me")
        assert next(observed).kv.value == b"still me"
        leader = election.leader()
        assert leader is not None
        assert (leader.key, leader.create_revision) == (election.key, election.token)
        assert client.txn(rpc_pb2.TxnRequest(compare=[election.held()])).succeeded
        assert not election.lost
        election.check()
        with pytest.raises(TimeoutError):
            client.election("sync").campaign("you", timeout=0)
        observed.close()


def test_a_thread_is_told_that_its_lock_is_lost(live: str) -> None:
    told = threading.Event()
    with Client(live) as client, client.lock("thread-loss", ttl=2, on_lost=lambda _: told.set()) as lock:
        kv = client.get(lock.key)
        assert kv is not None
        client.lease_revoke(kv.lease)
        assert lock.wait_lost(BOUND_SECONDS)
        assert lock.lost
        assert told.wait(BOUND_SECONDS)
        with pytest.raises(LeaseLost):
            lock.check()


class Interrupted(BaseException):
    """What a signal's handler raises."""


def test_an_interrupted_thread_leaves_nothing_behind(live: str) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    def signal_when_queued() -> None:
        while other.range("interrupted/", prefix=True).count != 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with Client(live) as other, other.lock("interrupted"):
            thread = threading.Thread(target=signal_when_queued)
            thread.start()
            with pytest.raises(Interrupted), Client(live) as client, client.lock("interrupted"):
                pytest.fail("held twice")
            thread.join(BOUND_SECONDS)
            assert other.range("interrupted/", prefix=True).count == 1
    finally:
        signal.signal(signal.SIGUSR1, before)
