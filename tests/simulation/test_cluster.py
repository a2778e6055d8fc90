"""Three servers in virtual time: they elect, replicate and lose nothing when the power fails everywhere."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from raftkv.pb import rpc_pb2
from raftkv.simulation.cluster import Cluster
from raftkv.simulation.options import Options

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(Options(seed=7))
    for number in range(3):
        cluster.start(number)
    yield cluster
    cluster.close()


def call(cluster: Cluster, member: int, path: str, request: bytes) -> bytes:
    """Call a member as a client does; in virtual time."""
    tasks: list[asyncio.Task[bytes]] = []

    def start() -> None:
        answer = cluster.caller(-1).call(member, partial(cluster.process, member), path, [request], 10.0)
        tasks.append(asyncio.get_running_loop().create_task(answer))

    cluster.clients.run_in(start)
    assert cluster.run_until(lambda: tasks[0].done(), 20.0, step=0.01)
    return tasks[0].result()


def put(cluster: Cluster, member: int, key: bytes, value: bytes) -> int:
    answer = call(cluster, member, PUT, rpc_pb2.PutRequest(key=key, value=value).SerializeToString())
    return rpc_pb2.PutResponse.FromString(answer).header.revision


def get(cluster: Cluster, member: int, key: bytes) -> bytes:
    answer = call(cluster, member, RANGE, rpc_pb2.RangeRequest(key=key).SerializeToString())
    return rpc_pb2.RangeResponse.FromString(answer).kvs[0].value


def test_a_leader_is_elected_and_all_members_serve_what_one_was_told(cluster: Cluster) -> None:
    assert cluster.run_until(lambda: cluster.leader() is not None, 5.0)
    assert put(cluster, 0, b"a", b"1") == 2
    assert put(cluster, 1, b"b", b"2") == 3
    assert [get(cluster, member, b"a") for member in range(3)] == [b"1"] * 3


def test_what_was_acknowledged_is_there_after_the_power_failed_everywhere(cluster: Cluster) -> None:
    for number in range(20):
        put(cluster, number % 3, b"key%d" % number, b"value%d" % number)
    for member in range(3):
        cluster.kill(member, power=True)
    cluster.run_for(1.0)
    for member in range(3):
        cluster.start(member)
    for number in range(20):
        assert get(cluster, 1, b"key%d" % number) == b"value%d" % number


@pytest.mark.parametrize("seed", range(30))
def test_writes_go_on_within_two_election_timeouts_of_the_leaders_death(seed: int) -> None:
    """Also after members have started at the very same moment: their ticks must not fall together."""
    options = Options(seed=seed)
    cluster = Cluster(options)
    try:
        for number in range(3):
            cluster.start(number)
        put(cluster, 0, b"a", b"1")
        leader = cluster.leader()
        assert leader is not None
        gone = leader.machine.number
        cluster.kill(gone, power=False)
        died = cluster.scheduler.now
        assert cluster.run_until(lambda: cluster.leader() is not None, 10.0, step=0.01)
        put(cluster, (gone + 1) % 3, b"a", b"2")
        waited_ms = (cluster.scheduler.now - died) / 1_000_000
        assert waited_ms <= 2 * options.heartbeat_ms * options.election_ticks
    finally:
        cluster.close()


def test_a_majority_goes_on_without_the_leader_and_the_leader_catches_up(cluster: Cluster) -> None:
    cluster.run_until(lambda: cluster.leader() is not None, 5.0)
    leader = cluster.leader()
    assert leader is not None
    gone = leader.machine.number
    cluster.kill(gone, power=False)
    other = (gone + 1) % 3
    put(cluster, other, b"a", b"1")
    cluster.start(gone)
    assert get(cluster, gone, b"a") == b"1"
    assert cluster.invariants.elections == 2


SCRIPT = """
from tests.simulation.test_cluster import Cluster, Options, put
cluster = Cluster(Options(seed=3))
for number in range(3):
    cluster.start(number)
for number in range(30):
    put(cluster, number % 3, b"k", b"%d" % number)
cluster.kill(0, power=True)
cluster.run_for(5.0)
print(cluster.scheduler.digest, cluster.scheduler.events)
cluster.close()
"""


def test_equal_seeds_are_equal_runs_under_any_hash_seed() -> None:
    outcomes = set()
    for hash_seed in ("1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        outcomes.add(done.stdout)
    assert len(outcomes) == 1
