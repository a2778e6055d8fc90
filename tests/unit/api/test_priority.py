"""Who goes first: large ranges hold up a renewal, a revoke or a peer's message by one slice, however many there are."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftkv.api import slices
from raftkv.api.guard import Limits
from raftkv.api.kv import GATHERERS, KVService
from raftkv.api.slices import Slices
from raftkv.mvcc import Store
from raftkv.mvcc.ranges import Part
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2 as pb
from raftkv.rpc import Context, Gathered
from raftkv.server.server import Server

KEYS = 3000
SLICE_BYTES = 1 << 14
ALL = pb.RangeRequest(key=b"\0", range_end=b"\0")


class World:
    """A service whose store counts the pieces of work it is asked for."""

    def __init__(self) -> None:
        store = Store(MemoryBackend())
        for number in range(KEYS):
            store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v" * 100))
        self._store = store
        self.pieces = 0
        self.most = 0
        times = {True: SimpleNamespace(observe=lambda _: None), False: SimpleNamespace(observe=lambda _: None)}
        slow = SimpleNamespace(clock=lambda: 0.0, ranged=lambda *_: None)
        counting: Any = SimpleNamespace(
            revision=store.revision,
            range_slices=self._range_slices,
            range_stream=self._range_stream,
            read_txn=self._read_txn,
            count=store.count,
        )
        server: Any = SimpleNamespace(
            store=counting,
            auth=SimpleNamespace(enabled=False),
            linearizable=self._linearizable,
            header=lambda: b"\x0a\x00",
            slow=slow,
            times=SimpleNamespace(ranges=times),
        )
        self.service = KVService(cast(Server, server), Limits(max_request_bytes=SLICE_BYTES))

    async def _linearizable(self) -> None:
        """Nothing is waited for."""

    def _range_slices(self, request: pb.RangeRequest, max_keys: int) -> Iterator[tuple[list[bytes], bool]]:
        for found in self._store.range_slices(request, max_keys):
            self.pieces += 1
            yield found

    def _range_stream(self, request: pb.RangeRequest, max_bytes: int) -> Iterator[Part]:
        for part in self._store.range_stream(request, max_bytes):
            self.pieces += 1
            yield part

    def _read_txn(self, request: pb.TxnRequest) -> bytes:
        self.pieces += 1
        return self._store.read_txn(request)

    async def stream(self) -> int:
        return len([part async for part in self.service.range_stream(ALL.SerializeToString(), context())])

    async def whole(self) -> int:
        answer = await self.service.range(ALL.SerializeToString(), context())
        assert isinstance(answer, Gathered)
        body = b"".join(answer)
        assert len(body) == answer.bytes
        return len(pb.RangeResponse.FromString(body).kvs)

    async def in_a_transaction(self) -> int:
        nested = pb.TxnRequest(success=[pb.RequestOp(request_range=ALL)])
        request = pb.TxnRequest(failure=[pb.RequestOp(request_txn=nested)])
        return len(await self.service.txn(request.SerializeToString(), context()))

    async def during(self, work: "asyncio.Future[Any]") -> list[int]:
        """How many pieces were read when, in each turn of the loop, a peer's message and a renewal could be served."""
        seen = [self.pieces]
        while not work.done():
            await asyncio.sleep(0)
            seen.append(self.pieces)
        return seen


def context() -> Context:
    return Context([], None, None)


@pytest.mark.parametrize("readers", [1, 20])
def test_between_two_slices_of_streamed_ranges_everybody_else_has_a_turn(readers: int) -> None:
    async def scenario() -> None:
        world = World()
        work = asyncio.gather(*[world.stream() for _ in range(readers)])
        seen = await world.during(work)
        parts = (await work)[0]
        assert parts > 10, "that was a large range"
        assert world.pieces == readers * parts
        assert max(after - before for before, after in pairwise(seen)) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("ask", "pieces"), [(World.whole, 2), (World.in_a_transaction, 1)])
def test_large_ranges_at_one_moment_are_read_one_in_a_turn(
    ask: Callable[[World], Coroutine[Any, Any, int]], pieces: int
) -> None:
    async def scenario() -> None:
        world = World()
        work = asyncio.gather(*[ask(world) for _ in range(20)])
        seen = await world.during(work)
        assert world.pieces == 20 * pieces
        assert max(after - before for before, after in pairwise(seen)) == 1

    asyncio.run(scenario())


def test_few_gather_at_once_and_all_in_the_end() -> None:
    """What is being gathered is in no count of bytes yet, and each write tells it to all who gather."""

    async def scenario() -> None:
        world = World()
        work = asyncio.gather(*[world.whole() for _ in range(20)])
        gathering = []
        while not work.done():
            await asyncio.sleep(0)
            gathering.append(len(world._store._gatherings))
        assert max(gathering) == GATHERERS
        assert await work == [KEYS] * 20

    asyncio.run(scenario())


def test_who_waits_while_the_revision_that_was_asked_for_grows_old_is_answered_as_of_then() -> None:
    async def scenario() -> None:
        world = World()
        store = world._store
        world.service._store = store
        request = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=store.revision)
        expected = pb.RangeResponse.FromString(b"".join(store.range(request)))
        before = [asyncio.create_task(world.whole()) for _ in range(2 * GATHERERS)]
        asked = asyncio.ensure_future(world.service.range(request.SerializeToString(), context()))
        await asyncio.sleep(0)
        store.put(pb.PutRequest(key=b"later"))
        store.delete_range(pb.DeleteRangeRequest(key=b"k000000"))
        answer = pb.RangeResponse.FromString(b"".join(await asked))
        assert (answer.kvs, answer.count) == (expected.kvs, expected.count)
        await asyncio.gather(*before)

    asyncio.run(scenario())


def test_small_ranges_do_not_wait_for_large_ones() -> None:
    world = World()
    for request, large in (
        (ALL, True),
        (pb.RangeRequest(key=b"\0", range_end=b"\0", limit=slices.LARGE_KEYS + 1), True),
        (pb.RangeRequest(key=b"\0", range_end=b"\0", limit=10), False),
        (pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True), False),
        (pb.RangeRequest(key=b"k000001", range_end=b"k000099"), False),
        (pb.RangeRequest(key=b"k000001", range_end=b"k000099", revision=2), True),
        (pb.RangeRequest(key=b"k000001", range_end=b"k000099", revision=2, limit=500), False),
        (pb.RangeRequest(key=b"k000001", revision=2), False),
    ):
        assert world.service._is_large(request) == large
    page = pb.RangeRequest(key=b"\0", range_end=b"\0", limit=500)
    assert world.service._is_large(*[page] * 5)
    assert not world.service._is_large(*[page] * 4)


def test_who_gives_up_takes_no_turn() -> None:
    async def scenario() -> None:
        turns = Slices()
        order: list[int] = []

        async def worker(number: int) -> None:
            await turns.turn()
            order.append(number)

        workers = [asyncio.create_task(worker(number)) for number in range(5)]
        await asyncio.sleep(0)
        for number in (0, 2, 4):
            workers[number].cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert order == [1, 3]
        await turns.turn()

    asyncio.run(asyncio.wait_for(scenario(), 90))
