"""The upkeep of three real members: leadership that is handed over, and hashes that agree."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import ClientError
from raftkv.client.requests import HASH_KV, MOVE_LEADER, Rpc
from raftkv.pb import rpc_pb2
from raftkv.status import Code
from tests.support.processes import START_SECONDS, Cluster, Process, cluster

HASH = Rpc("/etcdserverpb.Maintenance/Hash", rpc_pb2.HashRequest, rpc_pb2.HashResponse, read=True)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), 3) as running:
        yield running


def member_id(member: Process) -> int:
    with member.client() as client:
        return client.status().header.member_id


def move(member: Process, target: int) -> None:
    with member.client() as client:
        client.call(MOVE_LEADER, rpc_pb2.MoveLeaderRequest(targetID=target))


def hashes(three: Cluster, revision: int) -> list[rpc_pb2.HashKVResponse]:
    """Of every member, once each has applied the revision."""
    found = []
    for member in three.members:
        with member.client() as client:
            client.get("a linearizable read waits until all is applied here")
            assert client.status().header.revision >= revision
            found.append(client.call(HASH_KV, rpc_pb2.HashKVRequest(revision=revision)))
    return found


def test_leadership_moves_where_it_is_told_to(three: Cluster) -> None:
    def moved(leader: Process) -> None:
        target = next(member for member in three.members if member is not leader)
        move(leader, member_id(target))
        assert three.leader() is target
        with leader.client() as client:
            client.put("after", "the move")

    three.steadily(moved)


def test_a_follower_cannot_hand_leadership_over(three: Cluster) -> None:
    def refused(leader: Process) -> None:
        follower = next(member for member in three.members if member is not leader)
        assert problem_of(follower, member_id(follower)) == (Code.FAILED_PRECONDITION, "etcdserver: not leader")

    three.steadily(refused)


def problem_of(member: Process, target: int) -> tuple[Code, str] | None:
    try:
        move(member, target)
    except ClientError as error:
        return error.code, error.message
    return None


def test_leadership_goes_to_nobody_but_a_voter(three: Cluster) -> None:
    def refused(leader: Process) -> None:
        problem = problem_of(leader, 12345)
        assert problem is not None
        assert problem[1] == "etcdserver: bad leader transferee"

    three.steadily(refused)


def test_leadership_moved_to_the_leader_stays(three: Cluster) -> None:
    def moved(leader: Process) -> None:
        move(leader, member_id(leader))
        assert three.leader() is leader

    three.steadily(moved)


def test_status_tells_all_that_etcd_tells(three: Cluster) -> None:
    three.steadily(lambda leader: check_status(three, leader))


def check_status(three: Cluster, leader: Process) -> None:
    with leader.client() as client:
        client.put("status", "x")
    leader_id = member_id(leader)
    for member in three.members:
        with member.client() as client:
            client.get("status")
            found = client.status()
        assert (found.version, found.storageVersion) == ("3.6.0", "3.6.0")
        assert (found.leader, found.isLearner) == (leader_id, False)
        assert found.raftIndex >= found.raftAppliedIndex > 0
        assert found.raftTerm == found.header.raft_term > 0
        assert found.dbSize >= found.dbSizeInUse > 0
        assert found.dbSizeQuota == 2 << 30
        assert not found.errors
        assert found.HasField("downgradeInfo")
        assert not found.downgradeInfo.enabled


def test_the_hash_of_everything_is_equal_on_all_members_and_changes_with_a_write(three: Cluster) -> None:
    before = whole_hashes(three)
    assert len(before) == 1
    with three.client() as client:
        client.put("hashed", "now")
    after = whole_hashes(three)
    assert len(after) == 1
    assert after != before


def whole_hashes(three: Cluster) -> set[int]:
    found = set()
    for member in three.members:
        with member.client() as client:
            client.get("a linearizable read waits until all is applied here")
            found.add(client.call(HASH, rpc_pb2.HashRequest()).hash)
    return found


def test_members_hash_alike_at_every_revision_and_after_compaction_and_restart(three: Cluster) -> None:
    with three.client() as client:
        for number in range(30):
            client.put(f"key{number % 5}", f"value{number}" * 50)
            if number % 10 == 9:
                client.delete("key", prefix=True)
        last = client.put("last", "one").header.revision
    for revision in (last - 20, last):
        assert len({answer.hash for answer in hashes(three, revision)}) == 1
    with three.client() as client:
        client.compact(last - 10, physical=True)
    follower = next(member for member in three.members if member is not three.leader())
    follower.kill()
    follower.start()
    three.wait_ready(follower)
    found = hashes(three, last)
    assert len({answer.hash for answer in found}) == 1
    assert {(answer.compact_revision, answer.hash_revision) for answer in found} == {(last - 10, last)}


def test_history_is_given_up_after_its_time(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, "--auto-compaction-retention=1s") as one, one.client() as client:
        first = client.put("key", "old").header.revision
        client.put("key", "new")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                client.range("key", revision=first)
            except ClientError as error:
                assert error.code is Code.OUT_OF_RANGE
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found = client.get("key")
        assert found is not None
        assert found.value == b"new"
