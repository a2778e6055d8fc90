"""raftctl on three members, and etcdctl beside it: what both say of all of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import secrets
from tests.support.processes import Cluster, Process, cluster

RAFTCTL = [sys.executable, "-m", "cli.raftctl"]
TOOLS = [RAFTCTL, pytest.param(["etcdctl"], marks=pytest.mark.skipif(not shutil.which("etcdctl"), reason="no etcdctl"))]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), 3) as running:
        with running.client() as client:
            for number in range(100):
                client.put(f"key{number % 10}", bytes(5_000))
        for member in running.members:
            running.wait_ready(member)
        yield running


def run(tool: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    # Generous, for a machine that others use too.
    command = [*tool, "--command-timeout", "60s", *words]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    secrets.look(tool[-1], done.stderr)
    return done


def run_on_all(tool: list[str], three: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on all members, one of which names the others."""
    return run(tool, "--endpoints", three.members[0].endpoint, *words, "--cluster")


def ids(running: Cluster) -> dict[int, Process]:
    found = {}
    for member in running.members:
        with member.client() as client:
            found[client.status().header.member_id] = member
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_the_status_of_all_members_is_told_by_one(three: Cluster, tool: list[str]) -> None:
    done = run_on_all(tool, three, "endpoint", "status", "-w", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    members = ids(three)
    assert {one["Status"]["header"]["member_id"] for one in told} == members.keys()
    for one in told:
        assert one["Endpoint"] == f"http://{members[one['Status']['header']['member_id']].endpoint}"
        assert one["Status"]["leader"] in members
        assert one["Status"]["dbSize"] > 0


@pytest.mark.parametrize("tool", TOOLS)
def test_all_members_are_healthy(three: Cluster, tool: list[str]) -> None:
    done = run_on_all(tool, three, "endpoint", "health")
    assert done.returncode == 0, done.stderr
    # etcdctl 3.4 says so on stderr.
    said = sorted(re.sub(r"took = .*", "took", line) for line in (done.stdout + done.stderr).splitlines())
    expected = [
        f"http://{member.endpoint} is healthy: successfully committed proposal: took" for member in three.members
    ]
    assert said == sorted(expected)


@pytest.mark.parametrize("tool", TOOLS)
def test_all_members_hash_alike(three: Cluster, tool: list[str]) -> None:
    done = run_on_all(tool, three, "endpoint", "hashkv", "-w", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 3
    assert len({one["HashKV"]["hash"] for one in told}) == 1
    lines = run(tool, "--endpoints", three.endpoints, "endpoint", "hashkv").stdout.splitlines()
    assert lines == [f"{member.endpoint}, {told[0]['HashKV']['hash']}" for member in three.members]


@pytest.mark.parametrize("tool", TOOLS)
def test_leadership_is_moved(three: Cluster, tool: list[str]) -> None:
    three.steadily(lambda leader: move_leadership(three, leader, tool))


def move_leadership(three: Cluster, leader: Process, tool: list[str]) -> None:
    members = ids(three)
    source = next(number for number, member in members.items() if member is leader)
    target = next(number for number in members if number != source)
    done = run(tool, "--endpoints", three.endpoints, "move-leader", f"{target:x}")
    assert (done.returncode, done.stdout) == (0, f"Leadership transferred from {source:x} to {target:x}\n"), done.stderr
    assert three.leader() is members[target]
    # The leader is not among these.
    done = run(tool, "--endpoints", leader.endpoint, "move-leader", f"{source:x}")
    assert (done.returncode, done.stdout) == (128, "")
    assert done.stderr.splitlines()[-1] == f"Error: no leader endpoint given at [{leader.endpoint}]"


@pytest.mark.parametrize("tool", TOOLS)
def test_history_is_removed_and_its_space_given_back_on_all_members(three: Cluster, tool: list[str]) -> None:
    with three.client() as client:
        revision = client.put("key0", bytes(5_000)).header.revision
    done = run(tool, "--endpoints", three.endpoints, "compaction", "--physical", str(revision))
    assert (done.returncode, done.stdout) == (0, f"compacted revision {revision}\n"), done.stderr
    done = run_on_all(tool, three, "defrag")
    assert done.returncode == 0, done.stderr
    finished = [f"Finished defragmenting etcd member[http://{member.endpoint}]" for member in three.members]
    assert sorted(done.stdout.splitlines()) == sorted(finished)
    if tool is RAFTCTL:
        gained = re.findall(r"^http://(\S+): (.+) before, (.+) now$", done.stderr, re.MULTILINE)
        assert {endpoint for endpoint, _, _ in gained} == {member.endpoint for member in three.members}


def test_a_member_that_is_down_is_named_and_the_others_are_served(three: Cluster) -> None:
    lost = next(member for member in three.members if member is not three.leader())
    others = [member for member in three.members if member is not lost]
    lost.kill()
    try:
        first = ["--endpoints", others[0].endpoint, "--dial-timeout", "5s"]
        done = run(RAFTCTL, *first, "defrag", "--cluster")
        assert done.returncode == 1
        assert sorted(done.stdout.splitlines()) == sorted(
            f"Finished defragmenting etcd member[http://{member.endpoint}]" for member in others
        )
        assert f"Failed to defragment etcd member[http://{lost.endpoint}]" in done.stderr
        done = run(RAFTCTL, *first, "endpoint", "status", "--cluster", "-w", "json")
        assert done.returncode == 1
        assert len(json.loads(done.stdout)) == 2
        assert f"Failed to get the status of endpoint http://{lost.endpoint}" in done.stderr
        done = run(RAFTCTL, *first, "endpoint", "health", "--cluster")
        assert done.returncode == 1
        assert f"http://{lost.endpoint} is unhealthy" in done.stdout + done.stderr
    finally:
        lost.start()
        three.wait_ready(lost)
