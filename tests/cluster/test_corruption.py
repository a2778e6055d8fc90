"""A member whose store was changed behind its back is found and named."""

import time
from pathlib import Path

import pytest

from raftkv.client.requests import ALARM, DEFRAGMENT
from raftkv.mvcc.backend import REVISIONS, LmdbBackend
from raftkv.pb import rpc_pb2
from raftkv.server.corruption import divergent, majority
from tests.cluster.test_membership import FAST, add, served, until
from tests.support.processes import START_SECONDS, Cluster, Process, cluster, wait_log

ONLY_LATER = ("--corrupt-check-time=500ms", "--experimental-initial-corrupt-check=false")
ONLY_AT_START = ("--corrupt-check-time=0",)
COMPARED = "compared with"


def test_who_differs_from_a_majority_is_named() -> None:
    voters = (1, 2, 3)
    assert divergent({1: 7, 2: 7, 3: 7}, voters) == set()
    assert divergent({1: 7, 2: 7, 3: 8}, voters) == {3}
    assert divergent({1: 8, 2: 7, 3: 7}, voters) == {1}
    assert divergent({1: 7, 2: 8}, voters) == {1, 2}
    # A learner has no say, and may differ.
    assert divergent({4: 7, 1: 7, 2: 8}, voters) == {1, 2, 4}
    assert divergent({4: 8, 1: 7, 2: 7}, voters) == {4}
    assert majority({1: 7, 2: 7}, voters) == 7
    assert majority({4: 7, 1: 7}, voters) is None


def write(three: Cluster) -> None:
    with three.client() as client:
        for number in range(10):
            client.put(f"key{number}", "value")
        assert not client.call(ALARM, rpc_pb2.AlarmRequest()).alarms


def flush(member: Process) -> int:
    """Bring all that was written to a member's disk; its id."""
    with member.client() as client:
        while client.status().header.revision < 11:
            time.sleep(0.02)
        client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
        return client.status().header.member_id


def change(member: Process) -> None:
    """Change one record in a store that nobody uses, as an error of disk or memory might."""
    backend = LmdbBackend(str(member.data / "store"))
    key, record = next((key, record) for key, record in backend.scan(REVISIONS) if b"value" in record)
    backend.delete(REVISIONS, key)
    _write(backend)
    backend.put(REVISIONS, key, record.replace(b"value", b"vaLue"))
    _write(backend)
    backend.close()


def _write(backend: LmdbBackend) -> None:
    flush = backend.begin_flush()
    assert flush is not None
    flush.write()
    backend.end_flush(flush)


def wait_alarms(three: Cluster) -> list[tuple[int, int]]:
    deadline = time.monotonic() + START_SECONDS
    with three.client() as client:
        while not (alarms := client.call(ALARM, rpc_pb2.AlarmRequest()).alarms):
            assert time.monotonic() < deadline, [member.log() for member in three.members]
            time.sleep(0.1)
    return [(one.memberID, one.alarm) for one in alarms]


@pytest.mark.parametrize("flags", [ONLY_LATER, ONLY_AT_START])
def test_a_changed_record_raises_an_alarm_of_its_member(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with cluster(tmp_path, 3, *flags) as three:
        write(three)
        victim = next(member for member in three.members if member is not three.leader())
        victim_id = flush(victim)
        victim.kill()
        change(victim)
        victim.start()
        three.wait_ready(victim)
        assert wait_alarms(three) == [(victim_id, rpc_pb2.CORRUPT)]


def test_a_learner_that_was_changed_is_named_though_it_has_no_say(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, *FAST, *ONLY_LATER) as one, one.client() as client:
        for number in range(12):
            client.put(f"key-{number}", "value")
        learner, learner_id = add(one, client, "m1", *ONLY_LATER, learner=True)
        with learner.client() as at_learner:
            until(lambda: served(at_learner, 12), f"the learner never serves\n{learner.log()}")
        learner.stop()
        change(learner)
        learner.start()
        assert wait_alarms(one) == [(learner_id, rpc_pb2.CORRUPT)]


def test_when_all_start_at_once_only_the_one_that_differs_is_named(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as three:
        write(three)
        ids = [flush(member) for member in three.members]
        three.kill()
        change(three.members[1])
        three.start()
        assert wait_alarms(three) == [(ids[1], rpc_pb2.CORRUPT)]


def test_members_that_agree_find_so_when_they_start(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as three:
        for member in three.members:
            wait_log(member, COMPARED)
        write(three)
        follower = next(member for member in three.members if member is not three.leader())
        # What it has in its log only is compared as well.
        follower.kill()
        follower.start()
        wait_log(follower, COMPARED, 2)
        with three.client() as client:
            assert not client.call(ALARM, rpc_pb2.AlarmRequest()).alarms
            client.put("all", "well")
