"""Locks on real members: never held twice, though the leader is killed in between."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from raftkv.client import AsyncClient, ClientError, LeaseLost, Lock, OutcomeUnknown
from raftkv.pb import rpc_pb2, v3lock_pb2
from tests.support.processes import Cluster, cluster

BOUND_SECONDS = 300.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("lock"), 3) as running:
        yield running


class Holders:
    """Who holds the lock, and every fencing token in the order in which it was held."""

    def __init__(self) -> None:
        self.inside = False
        self.tokens: list[int] = []

    @contextlib.contextmanager
    def inside_with(self, token: int) -> Iterator[None]:
        assert not self.inside, "the lock is held twice"
        assert not self.tokens or token > self.tokens[-1], "a fencing token went back"
        self.tokens.append(token)
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


async def fenced_work(client: AsyncClient, key: bytes, token: int) -> None:
    """Write what only the holder of this token may write."""
    request = rpc_pb2.TxnRequest()
    request.compare.add(key=key, target=rpc_pb2.Compare.CREATE, create_revision=token)
    request.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"work", value=b"done"))
    with contextlib.suppress(OutcomeUnknown):
        assert (await client.txn(request)).succeeded
    await asyncio.sleep(0.05)


async def hold_by_service(client: AsyncClient, endpoint: str, holders: Holders) -> None:
    """Take the lock by the Lock service of one member."""
    async with grpc.aio.insecure_channel(endpoint) as channel, client.lease(8) as lease:
        lock = channel.unary_unary(
            "/v3lockpb.Lock/Lock",
            request_serializer=v3lock_pb2.LockRequest.SerializeToString,
            response_deserializer=v3lock_pb2.LockResponse.FromString,
        )
        granted = await lock(v3lock_pb2.LockRequest(name=b"served", lease=lease.id), timeout=BOUND_SECONDS)
        kv = await client.get(granted.key)
        assert kv is not None
        with holders.inside_with(kv.create_revision):
            await fenced_work(client, granted.key, kv.create_revision)
            lease.check()


async def hold_by_client(client: AsyncClient, endpoint: str, holders: Holders) -> None:
    """Take the lock by the client's own recipe, at whatever member answers."""
    async with client.lock("lock", ttl=8) as lock:
        with holders.inside_with(lock.token):
            await fenced_work(client, lock.key, lock.token)
            lock.check()


Hold = Callable[[AsyncClient, str, Holders], Awaitable[None]]


async def work(hold: Hold, endpoints: list[str], place: int, holders: Holders) -> None:
    """Hold the lock four times; when a member is gone, ask the next."""
    async with AsyncClient([*endpoints[place:], *endpoints[:place]], timeout=20.0) as client:
        held = 0
        while held < 4:
            try:
                await hold(client, endpoints[place % len(endpoints)], holders)
                held += 1
            except (grpc.aio.AioRpcError, ClientError):
                place += 1
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("hold", [hold_by_service, hold_by_client])
def test_a_lock_never_lets_two_in(hold: Hold, three: Cluster) -> None:
    async def main() -> None:
        holders = Holders()
        endpoints = [member.endpoint for member in three.members]
        workers = [asyncio.create_task(work(hold, endpoints, place % 3, holders)) for place in range(4)]
        while len(holders.tokens) < 6:
            await asyncio.sleep(0.05)
            for worker in workers:
                # One that failed says how.
                assert not worker.done() or worker.exception() is None
        leader = await asyncio.to_thread(three.leader)
        leader.kill()
        leader.start()
        async with asyncio.timeout(BOUND_SECONDS):
            await asyncio.gather(*workers)
        assert len(holders.tokens) >= 16
        await asyncio.to_thread(three.wait_ready, leader)

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
def test_etcdctl_lock_never_lets_two_in(three: Cluster, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    script = f"echo in >> {journal}; sleep 0.3; echo out >> {journal}"
    command = ["etcdctl", "--endpoints", three.endpoints, "lock", "etcdctl-lock", "--", "sh", "-c", script]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(8)
    ]
    try:
        deadline = time.monotonic() + BOUND_SECONDS
        while journal.read_text().count("out") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        leader = three.leader()
        leader.kill()
        leader.start()
        three.wait_ready(leader)
        for process in running:
            process.wait(max(1.0, deadline - time.monotonic()))
    finally:
        for process in running:
            process.kill()
            process.wait()
    lines = journal.read_text().split()
    assert lines == ["in", "out"] * (len(lines) // 2)
    assert len(lines) == 16


def check_for(held: Lock, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        held.check()
        time.sleep(0.05)


def test_a_lock_waits_as_long_as_it_is_told_and_tells_when_it_is_lost(three: Cluster) -> None:
    with three.client() as first, three.client() as second, first.lock("waited", ttl=6) as held:
        with pytest.raises(TimeoutError), second.lock("waited", timeout=0.5):
            raise AssertionError("the lock is held twice")
        assert second.range("waited/", prefix=True).count == 1
        kv = second.get(held.key)
        assert kv is not None
        assert kv.create_revision == held.token
        held.check()
        second.lease_revoke(kv.lease)
        with second.lock("waited", timeout=BOUND_SECONDS) as next_held:
            assert next_held.token > held.token
        with pytest.raises(LeaseLost):
            check_for(held, seconds=BOUND_SECONDS)
