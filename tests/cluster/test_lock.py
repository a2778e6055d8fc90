"""Locks on real members: never held twice, though the leader is killed in between."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import AsyncClient, Client, LeaseLost, Lock, OutcomeUnknown
from raftkv.pb import rpc_pb2
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


async def work(endpoints: list[str], first: int, holders: Holders, rounds: int) -> None:
    """Hold the lock some times and do fenced work, beginning at some member."""
    async with AsyncClient([*endpoints[first:], *endpoints[:first]], timeout=20.0) as client:
        for _ in range(rounds):
            async with client.lock("lock", ttl=8) as lock:
                holders.enter(lock.token)
                try:
                    fenced = rpc_pb2.TxnRequest()
                    fenced.compare.add(key=lock.key, target=rpc_pb2.Compare.CREATE, create_revision=lock.token)
                    fenced.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"work", value=b"done"))
                    with contextlib.suppress(OutcomeUnknown):
                        assert (await client.txn(fenced)).succeeded
                    await asyncio.sleep(0.05)
                    lock.check()
                finally:
                    holders.inside -= 1


def test_the_lock_service_never_lets_two_in(three: Cluster) -> None:
    async def main() -> None:
        holders = Holders()
        endpoints = [member.endpoint for member in three.members]
        workers = [asyncio.create_task(work(endpoints, place % 3, holders, 4)) for place in range(4)]
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


def check_for(held: Lock, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        held.check()
        time.sleep(0.05)


def test_a_lock_waits_as_long_as_it_is_told_and_tells_when_it_is_lost(three: Cluster) -> None:
    with Client(three.endpoints) as first, Client(three.endpoints) as second, first.lock("waited", ttl=6) as held:
        with pytest.raises(TimeoutError), second.lock("waited", timeout=0.5):
            raise AssertionError("the lock is held twice")
        assert second.range("waited/", prefix=True).count == 1
        kv = second.get(held.key)
        assert kv is not None
        assert kv.create_revision == held.token
        held.check()
        second.lease_revoke(kv.lease)
        with second.lock("waited", timeout=20.0) as next_held:
            assert next_held.token > held.token
        with pytest.raises(LeaseLost):
            check_for(held, seconds=30)
