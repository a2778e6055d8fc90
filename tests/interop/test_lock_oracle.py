"""The Lock and Election services, step by step on raftkv and on a real etcd: the same answers, errors and waits."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from raftkv.client import AsyncClient
from raftkv.pb import v3election_pb2 as election
from raftkv.pb import v3lock_pb2 as lock
from tests.cli.servers import KINDS, serve, wait_ready
from tests.support.processes import Process, free_ports

LOCK, ELECTION = "/v3lockpb.Lock/", "/v3electionpb.Election/"
BOUND_SECONDS = 120.0
NAME, A, B, C = b"name", 0xA1, 0xB2, 0xC3
ANSWERS = {
    "Lock": lock.LockResponse,
    "Unlock": lock.UnlockResponse,
    "Campaign": election.CampaignResponse,
    "Proclaim": election.ProclaimResponse,
    "Leader": election.LeaderResponse,
    "Observe": election.LeaderResponse,
    "Resign": election.ResignResponse,
}


class Caller:
    """Calls a server's methods by name, and takes notes of the answers."""

    def __init__(self, channel: grpc.aio.Channel, client: AsyncClient) -> None:
        self.channel = channel
        self.client = client
        self.notes: list[str] = []

    def call(self, path: str, request: Message) -> "asyncio.Task[Message]":
        """Begin a call; its answer carries no ids, since servers differ in them."""
        method = self.channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=ANSWERS[path.rpartition("/")[2]].FromString,
        )

        async def run() -> Message:
            answer: Message = await method(request, timeout=BOUND_SECONDS)
            return settled(answer)

        return asyncio.ensure_future(run())

    async def note(self, answer: Awaitable[Message]) -> None:
        """Write down an answer, or the error."""
        try:
            self.notes.append(str(await answer))
        except grpc.aio.AioRpcError as error:
            self.notes.append(f"{error.code().name}: {error.details()}")

    async def waits(self, key: bytes) -> None:
        """Wait until a key is in the queue."""
        while await self.client.get(key) is None:
            await asyncio.sleep(0.02)

    def lock(self, lease: int, name: bytes = NAME) -> "asyncio.Task[Message]":
        return self.call(LOCK + "Lock", lock.LockRequest(name=name, lease=lease))

    def unlock(self, key: bytes) -> "asyncio.Task[Message]":
        return self.call(LOCK + "Unlock", lock.UnlockRequest(key=key))

    def campaign(self, lease: int, value: bytes) -> "asyncio.Task[Message]":
        return self.call(ELECTION + "Campaign", election.CampaignRequest(name=NAME, lease=lease, value=value))

    def proclaim(self, key: election.LeaderKey, value: bytes) -> "asyncio.Task[Message]":
        return self.call(ELECTION + "Proclaim", election.ProclaimRequest(leader=key, value=value))

    def resign(self, key: election.LeaderKey) -> "asyncio.Task[Message]":
        return self.call(ELECTION + "Resign", election.ResignRequest(leader=key))

    def leader(self, name: bytes = NAME) -> "asyncio.Task[Message]":
        return self.call(ELECTION + "Leader", election.LeaderRequest(name=name))


def settled(answer: Message) -> Message:
    header = answer.header  # type: ignore[attr-defined]
    header.cluster_id = header.member_id = header.raft_term = 0
    return answer


@asynccontextmanager
async def caller(endpoint: str) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(endpoint) as channel, AsyncClient(endpoint) as client:
        for lease in (A, B, C):
            await client.lease_grant(600, lease)
        yield Caller(channel, client)


async def locking(on: Caller) -> None:
    await on.note(on.lock(99))
    await on.note(on.lock(A))
    await on.note(on.lock(A))
    second = on.lock(B)
    await on.waits(b"name/b2")
    third = on.lock(C)
    await on.waits(b"name/c3")
    assert not second.done()
    await on.note(on.unlock(b"name/a1"))
    await on.note(second)
    assert not third.done()
    # The second goes with its lease.
    await on.client.lease_revoke(B)
    await on.note(third)
    await on.note(on.unlock(b"name/b2"))
    await on.note(on.unlock(b"name/c3"))
    await on.note(on.lock(C, b""))
    await on.note(on.unlock(b""))


async def electing(on: Caller) -> None:
    await on.note(on.leader())
    await on.note(on.campaign(99, b"nobody"))
    await on.note(on.campaign(A, b"first"))
    await on.note(on.leader())
    second = on.campaign(B, b"second")
    await on.waits(b"name/b2")
    kv = await on.client.get("name/a1")
    assert kv is not None
    key = election.LeaderKey(name=NAME, key=kv.key, rev=kv.create_revision, lease=A)
    await on.note(on.proclaim(key, b"again"))
    await on.note(on.leader())
    await on.note(on.campaign(A, b"a third time"))
    await on.note(on.leader())
    assert not second.done()
    await on.note(on.resign(key))
    await on.note(second)
    await on.note(on.leader())
    await on.note(on.proclaim(key, b"too late"))
    await on.note(on.resign(key))
    await on.note(on.call(ELECTION + "Proclaim", election.ProclaimRequest(value=b"x")))
    await on.note(on.call(ELECTION + "Resign", election.ResignRequest()))
    nameless = election.LeaderKey(name=NAME, lease=A)
    await on.note(on.proclaim(nameless, b"x"))
    await on.note(on.resign(nameless))
    await on.note(on.leader(b"other"))


async def notes(endpoint: str, scene: Callable[[Caller], Awaitable[None]]) -> list[str]:
    async with asyncio.timeout(BOUND_SECONDS), caller(endpoint) as on:
        await scene(on)
        return on.notes


@pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd to compare with")
@pytest.mark.parametrize("scene", [locking, electing])
def test_says_what_etcd_says(
    scene: Callable[[Caller], Awaitable[None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = []
    for kind in ("etcd", "raftkv"):
        with serve(kind, tmp_path_factory.mktemp(kind)) as endpoint:
            said.append(asyncio.run(notes(endpoint, scene)))
    assert said[1] == said[0]


@pytest.fixture(params=KINDS)
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.param, tmp_path_factory.mktemp("lock")) as live:
        yield live


def test_observers_hear_of_every_leader(endpoint: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(BOUND_SECONDS), caller(endpoint) as on:
            method = on.channel.unary_stream(
                ELECTION + "Observe",
                request_serializer=election.LeaderRequest.SerializeToString,
                response_deserializer=election.LeaderResponse.FromString,
            )
            heard = aiter(method(election.LeaderRequest(name=NAME)))
            await on.campaign(A, b"first")
            assert (await anext(heard)).kv.value == b"first"
            second = on.campaign(B, b"second")
            await on.waits(b"name/b2")
            kv = await on.client.get("name/a1")
            assert kv is not None
            key = election.LeaderKey(name=NAME, key=kv.key, rev=kv.create_revision, lease=A)
            await on.proclaim(key, b"again")
            assert (await anext(heard)).kv.value == b"again"
            await on.resign(key)
            await second
            assert (await anext(heard)).kv.value == b"second"
            # The last leader goes; whoever comes next is heard of.
            await on.client.lease_revoke(B)
            await on.campaign(C, b"third")
            assert (await anext(heard)).kv.value == b"third"

    asyncio.run(main())


def test_observers_hear_of_everything_that_is_said(endpoint: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(BOUND_SECONDS), caller(endpoint) as on:
            await on.campaign(A, b"first")
            kv = await on.client.get("name/a1")
            assert kv is not None
            key = election.LeaderKey(name=NAME, key=kv.key, rev=kv.create_revision, lease=A)
            method = on.channel.unary_stream(
                ELECTION + "Observe",
                request_serializer=election.LeaderRequest.SerializeToString,
                response_deserializer=election.LeaderResponse.FromString,
            )
            heard = aiter(method(election.LeaderRequest(name=NAME)))
            versions = [(await anext(heard)).kv.version]
            # At once, so that many are applied together.
            await asyncio.gather(*(on.proclaim(key, b"%d" % number) for number in range(50)))
            versions += [(await anext(heard)).kv.version for _ in range(50)]
            assert versions == list(range(1, 52))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["lock", "campaign"])
def test_a_turn_never_comes_to_a_lease_that_ended(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """etcd 3.4 grants it."""

    async def main(endpoint: str) -> None:
        async with asyncio.timeout(BOUND_SECONDS), caller(endpoint) as on:
            await (on.lock(A) if kind == "lock" else on.campaign(A, b"first"))
            second = on.lock(B) if kind == "lock" else on.campaign(B, b"second")
            await on.waits(b"name/b2")
            await on.client.lease_revoke(B)
            await on.client.delete("name/a1")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await second
            expected = {"lock": "mutex: session is expired", "campaign": "election: not leader"}[kind]
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNKNOWN, expected)

    with serve("raftkv", tmp_path_factory.mktemp("lock")) as endpoint:
        asyncio.run(main(endpoint))


def test_a_server_that_stops_lets_go_of_those_who_wait(tmp_path_factory: pytest.TempPathFactory) -> None:
    client_port, peer_port = free_ports(2)
    directory = tmp_path_factory.mktemp("lock")
    member = Process("m0", directory, client_port, peer_port, f"m0=http://127.0.0.1:{peer_port}")

    async def main() -> None:
        async with asyncio.timeout(BOUND_SECONDS), caller(member.endpoint) as on:
            await on.lock(A)
            second = on.lock(B)
            await on.waits(b"name/b2")
            member.signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await second
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE

    member.start()
    try:
        wait_ready(member.endpoint)
        asyncio.run(main())
        assert member.wait() == 0
    finally:
        member.kill()


def test_a_caller_that_gives_up_leaves_the_queue(endpoint: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(BOUND_SECONDS), caller(endpoint) as on:
            await on.lock(A)
            second = on.lock(B)
            await on.waits(b"name/b2")
            second.cancel()
            while await on.client.get("name/b2") is not None:
                await asyncio.sleep(0.05)
            third = on.lock(C)
            await on.waits(b"name/c3")
            await on.unlock(b"name/a1")
            await third

    asyncio.run(main())


def test_a_caller_without_a_lease_gets_one_of_a_minute(endpoint: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(BOUND_SECONDS), caller(endpoint) as on:
            answer = await on.lock(0)
            assert isinstance(answer, lock.LockResponse)
            kv = await on.client.get(answer.key)
            assert kv is not None
            assert answer.key == b"name/%x" % kv.lease
            assert (await on.client.lease_time_to_live(kv.lease)).grantedTTL == 60

    asyncio.run(main())
