"""Locks on real members: never held twice, though the leader is killed in between."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from raftkv.client import AsyncClient, ClientError
from raftkv.pb import rpc_pb2, v3lock_pb2
from tests.support.processes import Cluster, cluster

BOUND_SECONDS = 90.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("lock"), 3) as running:
        yield running


class Holders:
    """Who holds the lock, and every fencing token in the order in which it was held."""

    def __init__(self) -> None:
        self.inside = 0
        self.tokens: list[int] = []

    def enter(self, token: int) -> None:
        assert not self.inside, "the lock is held twice"
        assert not self.tokens or token > self.tokens[-1], "a fencing token went back"
        self.inside += 1
        self.tokens.append(token)


async def hold_once(client: AsyncClient, channel: grpc.aio.Channel, holders: Holders) -> None:
    """Lock at one member, do some fenced work, unlock; raises when the member cannot be asked."""
    lock = channel.unary_unary(
        "/v3lockpb.Lock/Lock",
        request_serializer=v3lock_pb2.LockRequest.SerializeToString,
        response_deserializer=v3lock_pb2.LockResponse.FromString,
    )
    async with client.lease(8) as lease:
        granted = await lock(v3lock_pb2.LockRequest(name=b"lock", lease=lease.id), timeout=BOUND_SECONDS)
        kv = await client.get(granted.key)
        assert kv is not None
        holders.enter(kv.create_revision)
        try:
            fenced = rpc_pb2.TxnRequest()
            fenced.compare.add(key=granted.key, target=rpc_pb2.Compare.CREATE, create_revision=kv.create_revision)
            fenced.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"work", value=b"done"))
            assert (await client.txn(fenced)).succeeded
            await asyncio.sleep(0.05)
            lease.check()
        finally:
            holders.inside -= 1


async def work(endpoints: list[str], first: int, holders: Holders, rounds: int) -> None:
    """Hold the lock some times; when a member is gone, ask the next."""
    async with AsyncClient(endpoints, timeout=20.0) as client:
        place, held = first, 0
        while held < rounds:
            async with grpc.aio.insecure_channel(endpoints[place % len(endpoints)]) as channel:
                try:
                    await hold_once(client, channel, holders)
                    held += 1
                except (grpc.aio.AioRpcError, ClientError):
                    place += 1
                    await asyncio.sleep(0.1)


def test_the_lock_service_never_lets_two_in(three: Cluster) -> None:
    async def main() -> None:
        holders = Holders()
        endpoints = [member.endpoint for member in three.members]
        workers = [asyncio.create_task(work(endpoints, place, holders, 4)) for place in range(4)]
        while len(holders.tokens) < 6:
            await asyncio.sleep(0.05)
            assert not any(worker.done() for worker in workers)
        leader = await asyncio.to_thread(three.leader)
        leader.kill()
        leader.start()
        async with asyncio.timeout(BOUND_SECONDS):
            await asyncio.gather(*workers)
        assert len(holders.tokens) == 16

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
        for process in running:
            process.wait(max(1.0, deadline - time.monotonic()))
    finally:
        for process in running:
            process.kill()
            process.wait()
    lines = journal.read_text().split()
    assert lines == ["in", "out"] * (len(lines) // 2)
    assert len(lines) == 16
