"""Debian's etcdctl changes the members of a raftkv cluster, and reads in etcd's words what is refused."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.raftctl import PATIENT
from tests.cluster.test_membership import FAST, until
from tests.support.processes import START_SECONDS, Cluster, Process, cluster

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")


def etcdctl(running: Cluster, *words: str) -> tuple[int, str, str]:
    """Exit status, output and the last line of complaint."""
    done = subprocess.run(
        ["etcdctl", f"--endpoints={running.members[0].endpoint}", *PATIENT, *words],
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done.returncode, done.stdout, done.stderr.strip().rpartition("\n")[2]


def insist(running: Cluster, *words: str) -> str:
    """Repeat what is refused until a learner has caught up."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        status, said, complaint = etcdctl(running, *words)
        if not status:
            return said
        assert "in sync with leader" in complaint, complaint
        assert time.monotonic() < deadline, complaint
        time.sleep(0.2)


def settings(printed: str) -> dict[str, str]:
    lines = (line.split("=", 1) for line in printed.splitlines() if line.startswith("ETCD_"))
    return {name: value.strip('"') for name, value in lines}


def test_etcdctl_adds_promotes_updates_and_removes(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, *FAST) as running:
        newcomer: Process = running.newcomer("m1", tmp_path, *FAST)
        status, said, complaint = etcdctl(
            running, "member", "add", "m1", f"--peer-urls={newcomer.peer_url}", "--learner"
        )
        assert status == 0, complaint
        with running.members[0].client() as client:
            listed = client.member_list()
        added = next(member.ID for member in listed.members if member.isLearner)
        own = next(member.ID for member in listed.members if not member.isLearner)
        cluster_id = listed.header.cluster_id
        assert said.splitlines()[0] == f"Member {added:16x} added to cluster {cluster_id:16x}"
        told = settings(said)
        assert told["ETCD_INITIAL_CLUSTER_STATE"] == "existing"
        assert told["ETCD_INITIAL_ADVERTISE_PEER_URLS"] == newcomer.peer_url
        newcomer.set_flag("--initial-cluster", told["ETCD_INITIAL_CLUSTER"])
        for words, refusal in (
            (("add", "m2", "--peer-urls=http://127.0.0.1:9", "--learner"), "too many learner members in cluster"),
            (("add", "m2", f"--peer-urls={newcomer.peer_url}"), "Peer URLs already exists"),
            (("promote", f"{added:x}"), "can only promote a learner member which is in sync with leader"),
            (("promote", f"{own:x}"), "can only promote a learner member"),
            (("promote", "1234"), "member not found"),
            (("remove", "1234"), "member not found"),
            (("update", "1234", "--peer-urls=http://127.0.0.1:9"), "member not found"),
            (("remove", f"{own:x}"), "re-configuration failed due to not enough started members"),
        ):
            status, _, complaint = etcdctl(running, "member", *words)
            assert (status, complaint) == (1, f"Error: etcdserver: {refusal}"), words
        newcomer.start()
        promoted = insist(running, "member", "promote", f"{added:x}")
        assert promoted == f"Member {added:16x} promoted in cluster {cluster_id:16x}\n"
        running.wait_ready(newcomer)
        _, said, _ = etcdctl(running, "member", "update", f"{added:x}", f"--peer-urls={newcomer.peer_url}")
        assert said == f"Member {added:16x} updated in cluster {cluster_id:16x}\n"
        until(lambda: "started, m1" in etcdctl(running, "member", "list")[1], "m1 never says its name")
        _, said, _ = etcdctl(running, "member", "remove", f"{added:x}")
        assert said == f"Member {added:16x} removed from cluster {cluster_id:16x}\n"
        assert newcomer.wait() == 0
        _, said, _ = etcdctl(running, "member", "list")
        assert said.count("\n") == 1
        assert said.startswith(f"{own:x}, started, m0, ")


def test_an_update_promotes_a_learner(tmp_path: Path) -> None:
    """etcd 3.4 lets a learner vote when its peer URL is updated; ours stays one."""
    with cluster(tmp_path, 1, *FAST) as running:
        etcdctl(running, "member", "add", "m1", "--peer-urls=http://127.0.0.1:9", "--learner")
        with running.members[0].client() as client:
            (learner,) = [member.ID for member in client.member_list().members if member.isLearner]
            etcdctl(running, "member", "update", f"{learner:x}", "--peer-urls=http://127.0.0.1:19")
            (member,) = [member for member in client.member_list().members if learner == member.ID]
            assert member.isLearner
            assert list(member.peerURLs) == ["http://127.0.0.1:19"]
            client.put("a sole voter", "still serves")
