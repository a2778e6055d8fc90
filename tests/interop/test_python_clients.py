"""python-etcd3 and aetcd, from PyPI, watch, keep leases and lock on three members while the leader is killed.

Each runs in a program of its own (etcd3_session.py, aetcd_failover.py). Both are driven at once: the cluster and the
kill are the same for them, and so is the lock, for they agree on what a lock is.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftkv.client import OutcomeUnknown
from tests.support.processes import Cluster, cluster

PROGRAMS = {"etcd3": "etcd3_session.py", "aetcd": "aetcd_failover.py"}
BOUND_SECONDS = 240.0
TTL_SECONDS = 8
HOLDS = 2 * 2 * 5
"""Programs, workers, rounds."""


class Session:
    """A program with one of the clients. It answers to nothing but what is installed."""

    def __init__(self, program: str, directory: Path, part: str, ports: str, argument: object) -> None:
        self._output, self._errors = directory / f"{program}.out", directory / f"{program}.err"
        command = [sys.executable, "-I", str(Path(__file__).with_name(PROGRAMS[program])), part, ports, str(argument)]
        environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "GRPC_VERBOSITY": "NONE"}
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=errors, env=environment
            )

    def lines(self, kind: str) -> list[list[str]]:
        """What it has said of this kind."""
        said = [line.split(" ") for line in self._output.read_text().split("\n")[:-1]]
        return [words[1:] for words in said if words[0] == kind]

    def errors(self) -> str:
        return self._errors.read_text()

    def let_go(self) -> None:
        """Close its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self) -> None:
        assert self.process.wait(BOUND_SECONDS) == 0, self.errors()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.let_go()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), 3) as running:
        yield running


@contextlib.contextmanager
def sessions(three: Cluster, directory: Path, part: str, argument: object) -> Iterator[list[Session]]:
    """Both programs, which know the leader as the first member."""
    leader = three.leader()
    members = [leader, *(member for member in three.members if member is not leader)]
    ports = ",".join(member.endpoint.rpartition(":")[2] for member in members)
    with contextlib.ExitStack() as stack:
        running = []
        for program in PROGRAMS:
            running.append(Session(program, directory, part, ports, argument))
            stack.callback(running[-1].stop)
        yield running


def wait_until(true: Callable[[], bool], running: list[Session]) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while not true():
        assert time.monotonic() < deadline, [session.errors() for session in running]
        assert all(session.process.poll() in (None, 0) for session in running), [one.errors() for one in running]
        time.sleep(0.05)


def test_no_event_is_lost_or_doubled(three: Cluster, tmp_path: Path) -> None:
    with three.client() as client:
        first = client.put("w/k", "begin").header.revision
        with sessions(three, tmp_path, "follow", first) as running:
            wait_until(lambda: all(len(session.lines("event")) >= 3 for session in running), running)
            for number in range(60):
                if number in (20, 40):
                    leader = three.leader()
                    leader.kill()
                with contextlib.suppress(OutcomeUnknown):
                    # Once or never: what is heard must agree with the revisions there are.
                    client.put("w/k", str(number))
                if number in (30, 50):
                    leader.start()
                    three.wait_ready(leader)
            last = client.put("w/k", "end").header.revision
            for session in running:
                session.finish()
    for session in running:
        assert session.lines("resumed"), "the kill was noticed"
        for watcher in "012":
            heard = [words[1:] for words in session.lines("event") if words[0] == watcher]
            assert [int(revision) for revision, _, _ in heard] == list(range(first, last + 1))
            values = [value for _, value, _ in heard]
            assert [previous for _, _, previous in heard] == ["", *values[:-1]]
            assert all(re.fullmatch(r"begin|end|\d+", value) for value in values)


def test_a_lease_kept_alive_outlives_the_leader_and_ends_in_its_time(three: Cluster, tmp_path: Path) -> None:
    with sessions(three, tmp_path, "lease", TTL_SECONDS) as running:
        wait_until(lambda: all(session.lines("held") for session in running), running)
        leader = three.leader()
        leader.kill()
        three.leader()
        leader.start()
        three.wait_ready(leader)
        for session in running:
            session.let_go()
        for session in running:
            session.finish()


def test_the_lock_is_never_held_twice(three: Cluster, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    with sessions(three, tmp_path, "lock", journal) as running:
        wait_until(lambda: journal.read_text().count("out") >= 4, running)
        leader = three.leader()
        leader.kill()
        leader.start()
        for session in running:
            session.finish()
    lines = journal.read_text().splitlines()
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert left == entered.replace("in ", "out "), lines
        assert entered.startswith("in "), lines
    assert {line.rpartition(" ")[2] for line in lines} == set(PROGRAMS)
    assert len(lines) >= 2 * HOLDS
