"""A cluster whose network can be cut, the time that passes meanwhile, and what its scenarios ask of it."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from raftkv.client import Client, ClientError
from tests.partition.disks import Ext4, Small
from tests.partition.messages import Messages, Weather
from tests.partition.namespaces import CLIENTS, Namespaces
from tests.partition.proxies import Proxies
from tests.support.processes import Cluster, Process, stopped

HEARTBEAT_MS, ELECTION_MS = 50, 500
ELECTION_SECONDS = ELECTION_MS / 1000
PATIENCE_SECONDS = 120.0
"""Bounds what has to happen some time; nothing is decided by how long it takes."""
WHOLE_LOG = "10000000"
"""A --snapshot-count that is never reached: the checks replay the log from its beginning."""


class Network(Protocol):
    """What joins members and clients. Places are numbers of members, or `CLIENTS`."""

    @property
    def kind(self) -> str: ...
    def members(self, directory: Path, *flags: str) -> list[Process]: ...
    def cut(self, source: int, target: int) -> None: ...
    def lose(self, share: float) -> None: ...
    def heal(self) -> None: ...
    def close(self) -> None: ...


def network(size: int, delay_seconds: float = 0.0, weather: Weather | None = None) -> Network:
    """Namespaces where they are permitted, and no delay is wanted; RAFTKV_PARTITION=proxies asks for the other kind.

    With `weather` it carries messages, as RAFTKV_PARTITION_SEED says, or a seed of its own.
    """
    if weather is not None:
        return Messages(size, os.environ.get("RAFTKV_PARTITION_SEED") or str(random.getrandbits(32)), weather)
    if delay_seconds:
        slow = Proxies(size, "proxies")
        slow.delay(delay_seconds)
        return slow
    if os.environ.get("RAFTKV_PARTITION") != "proxies" and all(map(shutil.which, ("ip", "iptables", "setpriv"))):
        with contextlib.suppress(OSError):
            return Namespaces(size)
    return Proxies(size, "proxies, for want of namespaces")


@contextlib.contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let work go on in a thread of its own until the end of the block, which the event tells it."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def until(true: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS, pause: float = 0.05) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)


class Ground(Cluster):
    """The cluster and its network.

    Invariant: a member's number is its place in `members` and in the network, also when it is a member no more.
    """

    def __init__(self, directory: Path, size: int, network: Network) -> None:
        self.network = network
        flags = ("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS))
        *self.members, self._newcomer = network.members(
            directory, *flags, "--snapshot-count", WHOLE_LOG, "--snapshot-catchup-entries", "5"
        )
        self.endpoints = ",".join(member.endpoint for member in self.members)
        self.credentials = {"user": "", "password": ""}
        self.removed: set[int] = set()
        self.paused: set[int] = set()
        self.ext4: Ext4 | None = None
        self.small: Small | None = None
        self.faults: list[tuple[int, str]] = []
        """When (ns) each fault began, and which."""
        self.circumstances: list[str] = []
        """How this machine lets it be done, where there are several ways."""

    @property
    def numbers(self) -> list[int]:
        """Numbers of all that are members."""
        return [number for number in range(len(self.members)) if number not in self.removed]

    @property
    def present(self) -> list[Process]:
        """All that are members."""
        return [self.members[number] for number in self.numbers]

    def leading(self) -> int:
        """The number of the leader."""
        return self.members.index(self.leader_of(self.present))

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
                if leader in own and votes * 2 > len(self.present):
                    return own[leader]
            time.sleep(0.05)
        raise AssertionError("no leader among " + ", ".join(member.name for member in members))

    def newcomer_joins(self, known: str) -> int:
        """Start the process that was added as a member; `known` is its --initial-cluster. Its number."""
        self._newcomer.set_flag("--initial-cluster", known)
        self._newcomer.arguments += ["--initial-cluster-state", "existing"]
        self.members.append(self._newcomer)
        self.note(f"start {len(self.members) - 1}")
        self._newcomer.start()
        return len(self.members) - 1

    @property
    def newcomer(self) -> Process:  # type: ignore[override]
        """The process that is no member yet."""
        return self._newcomer

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

    def isolate(self, number: int) -> None:
        """Cut a member off from all others."""
        self.separate([number], self.others(number))

    def separate_clients(self, number: int) -> None:
        """Cut the clients off from a member."""
        self.separate([CLIENTS], [number])

    def heal(self) -> None:
        self.note("heal")
        self.network.heal()

    def kill_member(self, number: int) -> None:
        self.note(f"kill {number}")
        self.members[number].kill()

    def start_member(self, number: int) -> None:
        """Start it, and wait until it serves."""
        self.note(f"start {number}")
        self.members[number].start()
        self.wait_ready(self.members[number])

    def pause(self, number: int) -> None:
        self.note(f"pause {number}")
        self.paused.add(number)
        self.members[number].signal(signal.SIGSTOP)

    def wake(self, number: int) -> None:
        self.note(f"wake {number}")
        self.paused.discard(number)
        self.members[number].signal(signal.SIGCONT)

    def move_disk(self, number: int, place: Path) -> None:
        """Let a member that has not started yet keep its data elsewhere."""
        member = self.members[number]
        member.data = place / member.name
        member.set_flag("--data-dir", str(member.data))

    def cut_power(self) -> None:
        """All members lose their power at once: what they did not sync is lost."""
        assert self.ext4 is not None
        for number in self.numbers:
            self.pause(number)
        # A pause takes effect when a system call has ended.
        until(lambda: all(stopped(member.pid) for member in self.present), "all members stand still")
        self.note("power cut")
        left = self.ext4.copy()
        for number in self.numbers:
            self.members[number].kill()
        self.paused.clear()
        self.ext4.replace(left)

    def stop(self) -> None:
        """End all members in good order; none may have ended by itself (I24)."""
        ended = [member.name for member in self.present if not member.running()]
        assert not ended, f"I24: ended by themselves: {ended}"
        for member in self.members:
            member.signal(signal.SIGTERM)
        for member in self.members:
            member.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """Leave no process, mount, namespace, rule or proxy."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.network.close)
            for disk in filter(None, (self.ext4, self.small)):
                stack.callback(disk.close)
            stack.callback(self.kill)


@contextlib.contextmanager
def ground(
    directory: Path,
    size: int,
    prepare: Callable[[Ground, Path], None] = lambda *_: None,
    delay_seconds: float = 0.0,
    weather: Weather | None = None,
) -> Iterator[Ground]:
    """A running cluster that `prepare` has changed before its start; nothing of it is left afterwards."""
    with terminated_in_order():
        made = Ground(directory, size, network(size, delay_seconds, weather))
        try:
            prepare(made, directory)
            made.start()
            yield made
        finally:
            made.close()


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
