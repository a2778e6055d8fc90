"""etcdctl, with etcd's own client library, and raftctl follow three members while the leader is killed."""

import json
import re
import shutil
import sys
import threading
from base64 import b64decode
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from tests.cli.test_watch import BOUND_SECONDS, Running
from tests.support.processes import Cluster, cluster

Heard = tuple[int, bytes, bytes]
"""Revision, value and previous value of an event."""


class Follower(threading.Thread):
    """A program that watches, from a revision up to the one whose value is "end".

    etcd's library gives a watch up when the member it comes to has no leader. Then the program is started again behind
    the last event, as whoever uses it does.
    """

    def __init__(self, program: list[str], endpoints: str, first: int) -> None:
        super().__init__(daemon=True)
        self._command = [*program, "--endpoints", endpoints, "watch", "w/", "--prefix", "--prev-kv", "-w", "json"]
        self._first = first
        self.heard: list[Heard] = []
        self.begun = threading.Event()

    def run(self) -> None:
        while not self.heard or self.heard[-1][1] != b"end":
            following = self.heard[-1][0] + 1 if self.heard else self._first
            with Running([*self._command, "--rev", str(following)]) as running:
                assert running.process.stdout is not None
                for line in running.process.stdout:
                    self.heard += events(line)
                    self.begun.set()
                    if self.heard[-1][1] == b"end":
                        return


def events(line: bytes) -> list[Heard]:
    found = []
    for event in json.loads(line)["Events"] or ():
        kv, previous = event["kv"], event.get("prev_kv", {})
        found.append((kv["mod_revision"], b64decode(kv["value"]), b64decode(previous.get("value", ""))))
    return found


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
def test_no_event_is_lost_or_doubled_while_the_leader_is_killed(tmp_path: Path) -> None:
    """Twice; each change is heard exactly once, in order, with the previous value."""
    with cluster(tmp_path, 3) as running, running.client() as client:
        first = client.put("w/k", "begin").header.revision
        programs = (["etcdctl"], [sys.executable, "-m", "cli.raftctl"])
        followers = [Follower(program, running.endpoints, first) for program in programs]
        for follower in followers:
            follower.start()
            assert follower.begun.wait(BOUND_SECONDS)
        write_through_kills(running, client)
        last = client.put("w/k", "end").header.revision
        for follower in followers:
            follower.join(BOUND_SECONDS)
            assert not follower.is_alive()
    for follower in followers:
        assert [revision for revision, _, _ in follower.heard] == list(range(first, last + 1))
        values = [value for _, value, _ in follower.heard]
        assert [previous for _, _, previous in follower.heard] == [b"", *values[:-1]]
        assert all(re.fullmatch(rb"begin|end|\d/\d+", value) for value in values)


def write_through_kills(running: Cluster, client: Client) -> None:
    for kill in range(2):
        leader = running.leader()
        for number in range(40):
            if number == 20:
                leader.kill()
            try:
                client.put("w/k", f"{kill}/{number}")
            except ClientError:
                # Once or never: the two must only agree with the revisions there are.
                continue
        leader.start()
        running.wait_ready(leader)
