"""Nothing acknowledged is lost: real members, real disks, kill -9."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from raftkv.pb.kv_pb2 import KeyValue
from tests.support.processes import Cluster, cluster


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 3) as running:
        yield running


class Writer(threading.Thread):
    """Puts objects shaped like Kubernetes' through all members, each once, and remembers what was acknowledged."""

    def __init__(self, running: Cluster, number: int, keys: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[bytes, bytes] = {}
        self.unknown: dict[bytes, bytes] = {}
        self._client = Client(running.endpoints, timeout=10.0)
        self._rng = random.Random(number)
        self._keys = keys
        self._ended = threading.Event()

    def run(self) -> None:
        for key in self._keys:
            if self._ended.is_set():
                break
            size = self._rng.choices((200, 1_000, 10_000, 100_000), (60, 30, 9, 1))[0]
            value = b"k8s\0" + self._rng.randbytes(size)
            try:
                self._client.put(key, value)
            except ClientError:
                self.unknown[key] = value
            else:
                self.acknowledged[key] = value
        self._client.close()

    def end(self) -> None:
        self._ended.set()
        self.join(30)


def object_keys(count: int, writers: int) -> list[list[bytes]]:
    kinds = ("pods", "leases", "events")
    keys = [f"/registry/{kinds[n % 3]}/namespace-{n % 20}/object-{n:05d}".encode() for n in range(count)]
    return [keys[number::writers] for number in range(writers)]


def start_writers(running: Cluster, count: int) -> list[Writer]:
    writers = [Writer(running, number, keys) for number, keys in enumerate(object_keys(count, 8))]
    for writer in writers:
        writer.start()
    return writers


def acknowledged(writers: list[Writer]) -> int:
    return sum(len(writer.acknowledged) for writer in writers)


def wait_acknowledged(writers: list[Writer], count: int) -> None:
    deadline = time.monotonic() + 60
    while acknowledged(writers) < count:
        assert time.monotonic() < deadline, "writes do not get through"
        time.sleep(0.01)


def check_everything(running: Cluster, writers: list[Writer]) -> int:
    """Every member has every acknowledged value, and all members agree key by key; how many keys there are."""
    contents = []
    for member in running.members:
        running.wait_ready(member)
        with Client(member.endpoint, timeout=30.0) as client:
            contents.append({kv.key: kv for kv in client.range("/registry/", prefix=True).kvs})
    for other in contents[1:]:
        assert other == contents[0]
    check_writes(contents[0], writers)
    return len(contents[0])


def check_writes(contents: dict[bytes, KeyValue], writers: list[Writer]) -> None:
    """Every acknowledged value is there, once written; an unknown one is there whole or not at all."""
    for writer in writers:
        for key, value in writer.acknowledged.items():
            assert key in contents, f"{key!r} was acknowledged and is lost"
            assert (contents[key].value, contents[key].version) == (value, 1)
        for key, value in writer.unknown.items():
            assert key not in contents or contents[key].value == value


def test_acknowledged_keys_survive_three_kills_of_the_leader(three: Cluster) -> None:
    writers = start_writers(three, 3_000)
    for round_number in range(3):
        wait_acknowledged(writers, 400 * (round_number + 1))
        leader = three.leader()
        leader.kill()
        before = acknowledged(writers)
        wait_acknowledged(writers, before + 50)
        leader.start()
    for writer in writers:
        writer.join(90)
        assert not writer.is_alive()
    assert acknowledged(writers) > 2_000
    assert check_everything(three, writers) > 2_000


def test_acknowledged_keys_survive_a_power_cut_of_all_members(three: Cluster) -> None:
    writers = start_writers(three, 20_000)
    wait_acknowledged(writers, 500)
    three.kill()
    for writer in writers:
        writer.end()
    three.start()
    assert check_everything(three, writers) >= 500


def test_writes_go_on_within_two_election_timeouts_of_the_leaders_death(three: Cluster) -> None:
    with Client([m.endpoint for m in three.members], timeout=10.0) as client:
        client.put("before", "1")
    leader = three.leader()
    rest = [member.endpoint for member in three.members if member is not leader]
    leader.kill()
    # A proposal made without a leader waits for one: the call is answered when the new leader has committed it.
    with Client(rest, timeout=10.0) as client:
        started = time.monotonic()
        client.put("after", "1")
        waited = time.monotonic() - started
        assert client.get("before") is not None
    # Two election timeouts of one second; the bound of the test is generous, for a machine that does other things.
    assert waited < 6.0
    print(f"writes went on after {waited:.2f} s")


def test_sigterm_hands_leadership_over_and_exits_with_0(three: Cluster) -> None:
    leader = three.leader()
    leader.signal(signal.SIGTERM)
    assert leader.wait() == 0, leader.log()
    assert three.leader() is not leader
    rest = [member.endpoint for member in three.members if member is not leader]
    with Client(rest, timeout=5.0) as client:
        client.put("after", "1")


def test_a_killed_member_catches_up_when_it_comes_back(three: Cluster) -> None:
    follower = next(member for member in three.members if member is not three.leader())
    follower.kill()
    rest = [member.endpoint for member in three.members if member is not follower]
    with Client(rest, timeout=10.0) as client:
        for number in range(300):
            client.put(f"key-{number}", b"v" * 2_000)
    follower.start()
    three.wait_ready(follower)
    with Client(follower.endpoint) as client:
        response = client.range("key-", prefix=True)
    assert response.count == 300
