"""Nothing acknowledged is lost: real members, real disks, kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format

from raftkv.pb.kv_pb2 import KeyValue
from tests.support.objects import Writers
from tests.support.processes import Cluster, Process, cluster, in_one_of

HANDING = "handing leadership over to "


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 3) as running:
        yield running


def read_all(member: Process) -> dict[bytes, KeyValue]:
    """Everything under /registry as one member has it, through our own client."""
    with member.client() as client:
        return {kv.key: kv for kv in client.range("/registry/", prefix=True).kvs}


def read_all_with(program: list[str], member: Process) -> dict[bytes, KeyValue]:
    """The same through a command line, as its JSON has it."""
    command = [*program, "--endpoints", member.endpoint, "--command-timeout", "90s", "--dial-timeout", "30s"]
    command += ["get", "/registry", "--prefix", "-w", "json"]
    done = subprocess.run(command, capture_output=True, timeout=180, check=True, env={**os.environ, "ETCDCTL_API": "3"})
    found = [json_format.ParseDict(kv, KeyValue()) for kv in json.loads(done.stdout)["kvs"]]
    return {kv.key: kv for kv in found}


def check_agreement(running: Cluster) -> dict[bytes, KeyValue]:
    """All members have the same keys with the same values, revisions, versions and leases; what they have."""
    contents = []
    for member in running.members:
        running.wait_ready(member)
        contents.append(read_all(member))
    for other in contents[1:]:
        assert_equal(other, contents[0])
    return contents[0]


def assert_equal(found: dict[bytes, KeyValue], expected: dict[bytes, KeyValue]) -> None:
    assert found.keys() == expected.keys()
    differing = [key for key, kv in found.items() if kv != expected[key]]
    assert not differing, f"{len(differing)} keys differ, such as {differing[0]!r}"


def check_writes(contents: dict[bytes, KeyValue], writers: Writers) -> None:
    """What was acknowledged is there as it was acknowledged; the rest is there whole or not at all."""
    for key, written in writers.written.items():
        found = contents.get(key)
        assert found or not written.revision, f"{key!r} was acknowledged and is lost"
        if found:
            assert found.value == written.value
            assert 1 <= found.version <= written.attempts
            assert found.mod_revision >= written.revision
            if written.attempts == 1 and written.revision:
                assert found.mod_revision == found.create_revision == written.revision


def test_10000_objects_survive_three_kills_of_the_leader(three: Cluster) -> None:
    writers = Writers([member.endpoint for member in three.members], 10_000)
    for killed in range(3):
        writers.wait(2_500 * (killed + 1))
        leader = three.leader()
        leader.kill()
        writers.wait(writers.acknowledged + 500)
        leader.start()
    writers.finish(300)
    assert writers.acknowledged == 10_000
    contents = check_agreement(three)
    check_writes(contents, writers)
    assert len(contents) == 10_000
    # The same by the command lines; etcdctl where Debian has one.
    programs = [[sys.executable, "-m", "cli.raftctl"], *([["etcdctl"]] if shutil.which("etcdctl") else [])]
    for program in programs:
        for member in three.members:
            assert_equal(read_all_with(program, member), contents)


def test_acknowledged_objects_survive_a_power_cut_of_all_members(three: Cluster) -> None:
    writers = Writers([member.endpoint for member in three.members], 20_000)
    writers.wait(1_500)
    three.kill()
    writers.end()
    three.start()
    contents = check_agreement(three)
    check_writes(contents, writers)
    assert len(contents) >= 1_500


@pytest.mark.alone
def test_writes_go_on_within_two_election_timeouts_of_the_leaders_death(three: Cluster) -> None:
    with three.client() as client:
        client.put("before", "1")

    def waited() -> None:
        leader = three.leader()
        leader.kill()
        # A proposal made without a leader waits for one: the call is answered when the new leader has committed it.
        with three.client() as client:
            started = time.monotonic()
            client.put("after", "1")
            seconds = time.monotonic() - started
            assert client.get("before") is not None
        leader.start()
        three.wait_ready(leader)
        # Two election timeouts of one second; the bound of the test is generous, for a machine that does other things.
        assert seconds < 6.0
        print(f"writes went on after {seconds:.2f} s")

    in_one_of(3, waited)


def test_sigterm_hands_leadership_over_and_exits_with_0(three: Cluster) -> None:
    leader = three.leader()
    leader.signal(signal.SIGTERM)
    assert leader.wait() == 0, leader.log()
    assert three.leader() is not leader
    with three.client() as client:
        client.put("after", "1")


def test_leadership_is_not_handed_to_a_member_that_is_gone(three: Cluster) -> None:
    def handed(leader: Process) -> None:
        before = leader.log().count(HANDING)
        # Equal logs: without knowing better it would be the one with the lower id.
        gone, other = sorted(three.living(leader), key=lambda member: member.member_id)
        three.kill_and_miss(gone)
        leader.stop()
        told = leader.log().split(HANDING)[before + 1 :]
        gone.start()
        leader.start()
        for member in three.members:
            three.wait_ready(member)
        assert [words.split()[0] for words in told] == [f"{other.member_id:x}"]

    three.steadily(handed)


def test_a_killed_member_catches_up_when_it_comes_back(three: Cluster) -> None:
    follower = next(member for member in three.members if member is not three.leader())
    follower.kill()
    with three.client() as client:
        for number in range(300):
            client.put(f"key-{number}", b"v" * 2_000)
    follower.start()
    three.wait_ready(follower)
    with follower.client() as client:
        response = client.range("key-", prefix=True)
    assert response.count == 300
