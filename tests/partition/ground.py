"""A cluster whose network can be cut, the time that passes meanwhile, and what its scenarios ask of it."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from raftkv.client import Client, ClientError
from tests.partition.namespaces import CLIENTS, Namespaces
from tests.partition.proxies import Proxies
from tests.support.processes import Cluster, Process

HEARTBEAT_MS, ELECTION_MS = 50, 500
ELECTION_SECONDS = ELECTION_MS / 1000
PATIENCE_SECONDS = 120.0
"""Bounds what has to happen some time; nothing is decided by how long it takes."""


class Network(Protocol):
    """What joins members and clients. Places are numbers of members, or `CLIENTS`."""

    kind: str

    def members(self, directory: Path, *flags: str) -> list[Process]: ...
    def cut(self, source: int, target: int) -> None: ...
    def heal(self) -> None: ...
    def close(self) -> None: ...


def network(size: int) -> Network:
    """Namespaces where they are permitted; RAFTKV_PARTITION=proxies asks for the other kind."""
    if os.environ.get("RAFTKV_PARTITION") != "proxies" and all(map(shutil.which, ("ip", "iptables", "setpriv"))):
        with contextlib.suppress(OSError):
            return Namespaces(size)
    return Proxies(size)


def until(true: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


class Ground(Cluster):
    """The cluster and its network."""

    def __init__(self, directory: Path, size: int) -> None:
        self.network = network(size)
        flags = ("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS))
        # The checks replay the whole log: none of it is given up for a snapshot.
        self.members = self.network.members(directory, *flags, "--snapshot-count", "10000000")
        self.endpoints = ",".join(member.endpoint for member in self.members)
        self.credentials = {"user": "", "password": ""}
        self.faults: list[tuple[int, str]] = []
        """When (ns) each fault began, and which."""

    @property
    def numbers(self) -> range:
        return range(len(self.members))

    def leading(self) -> int:
        """The number of the leader."""
        return self.members.index(self.leader())

    def others(self, *without: int) -> list[int]:
        return [number for number in self.numbers if number not in without]

    def wait_other_leader(self, old: int) -> int:
        """Wait until those without `old` are led by one of themselves."""
        rest = [self.members[number] for number in self.others(old)]
        leader = self._led_by(rest)
        return self.members.index(leader)

    def _led_by(self, members: list[Process]) -> Process:
        """The one of these that says it leads and that a majority of the whole cluster follows."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            followed: dict[int, int] = {}
            own: dict[int, Process] = {}
            for member in members:
                with contextlib.suppress(ClientError), Client(member.endpoint, timeout=0.5) as client:
                    status = client.status()
                    own[status.header.member_id] = member
                    followed[status.leader] = followed.get(status.leader, 0) + 1
            for leader, votes in followed.items():
                if leader in own and votes * 2 > len(self.members):
                    return own[leader]
            time.sleep(0.05)
        raise AssertionError("no leader among " + ", ".join(member.name for member in members))

    # Faults

    def note(self, fault: str) -> None:
        self.faults.append((time.monotonic_ns(), fault))

    def cut(self, source: int, target: int) -> None:
        """Cut one direction."""
        self.note(f"cut {source} -> {target}")
        self.network.cut(source, target)

    def separate(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Cut both directions between two groups."""
        other = list(other)
        for first in one:
            for second in other:
                self.cut(first, second)
                self.cut(second, first)

    def separate_clients(self, number: int) -> None:
        """Cut the clients off from a member."""
        self.separate([CLIENTS], [number])

    def heal(self) -> None:
        self.note("heal")
        self.network.heal()

    def kill_member(self, number: int) -> None:
        self.note(f"kill {number}")
        self.members[number].kill()

    def pause(self, number: int) -> None:
        self.note(f"pause {number}")
        self.members[number].signal(signal.SIGSTOP)

    def wake(self, number: int) -> None:
        self.note(f"wake {number}")
        self.members[number].signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all members in good order."""
        for member in self.members:
            member.signal(signal.SIGTERM)
        for member in self.members:
            member.wait()


@contextlib.contextmanager
def ground(directory: Path, size: int) -> Iterator[Ground]:
    """A running cluster; no process, namespace, rule or proxy of it is left afterwards."""
    with terminated_in_order():
        made = Ground(directory, size)
        try:
            made.start()
            yield made
        finally:
            try:
                made.kill()
            finally:
                made.network.close()


@contextlib.contextmanager
def terminated_in_order() -> Iterator[None]:
    """Clean up on SIGTERM, too, as on Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
