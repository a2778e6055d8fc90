"""etcd and raftkv as clusters of processes, on ports the kernel chose, with the flags and defaults they share."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.wire import Connection
from raftkv.pb import rpc_pb2 as pb

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build" / "compiled" if os.environ.get("COMPILED") else ROOT
"""Whose raftkv is measured: the sources, or what `make compiled` has made of them."""

PACKAGES = {"etcd": "etcd-server", "h2load": "nghttp2-client"}
"""Where Debian has the programs that are needed."""
START_SECONDS = 30.0
SETTLE_SECONDS = 3.0
SETTLE_WINDOW_SECONDS = 0.2
IDLE_SHARE = 0.1
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
READY = pb.RangeRequest(key=b"/", count_only=True)


class EngineError(Exception):
    """A cluster does not start, has no leader, or lost a process."""


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured: its name, the command that starts a member, and the directory in which that is called."""

    name: str
    command: tuple[str, ...]
    directory: Path = ROOT


def sources(name: str, tree: Path) -> Contender:
    """Return the raftkv whose sources are in a directory."""
    return Contender(name, (sys.executable, "-m", "raftkv"), tree)


ETCD, RAFTKV = Contender("etcd", ("etcd",)), sources("raftkv", TREE)
CONTENDERS = (ETCD, RAFTKV)
"""In the order in which they are driven."""


def process_cpu_seconds(process: int) -> float:
    """Return the processor time a process used so far."""
    # The name in parentheses may hold spaces: fields are counted behind it.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


class Member:
    """One process."""

    def __init__(self, command: list[str], directory: Path, endpoint: str, log: Path) -> None:
        self.endpoint = endpoint
        self._command = command
        self._directory = directory
        self._log = log
        self._start()

    def _start(self) -> None:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self._directory, stdout=output, stderr=output, start_new_session=True
            )
        self.connection = Connection(self.endpoint)

    def restart(self) -> float:
        """Kill it and start it again; the seconds until it answers a linearizable read."""
        self.stop()
        begin = time.monotonic()
        self._start()
        self.wait_ready()
        return time.monotonic() - begin

    def wait_ready(self) -> None:
        """Return when the member answers a linearizable read."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connection.range(READY)
                return
            except grpc.RpcError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = self._log.read_text(errors="replace")[-2000:]
                    raise EngineError(f"{self.endpoint} does not start\n{tail}") from error
                time.sleep(0.05)

    def resident_bytes(self) -> int:
        """Return the memory it holds (VmRSS), mapped files included."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Return the processor time used so far."""
        return process_cpu_seconds(self._process.pid)

    def stop(self) -> None:
        """Kill it, as a crash does."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


class Engine:
    """A cluster of one contender; `kind` is its name."""

    def __init__(self, kind: str, members: list[Member]) -> None:
        self.kind = kind
        self.members = members

    def leader(self) -> Member:
        """Return the member that says it leads.

        Raises:
            EngineError: none does, for long.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for member in self.members:
                with contextlib.suppress(grpc.RpcError):
                    status = member.connection.status()
                    if status.leader == status.header.member_id:
                        return member
            time.sleep(0.05)
        raise EngineError(f"{self.kind} has no leader")

    def term(self) -> int:
        """Return the Raft term of the leader: it grows with every election. Raises what `leader` does."""
        return int(self.leader().connection.status().raftTerm)

    def cpu_seconds(self) -> float:
        """Return the processor time all members used so far."""
        return sum(member.cpu_seconds() for member in self.members)

    def settle(self) -> None:
        """Wait until work left over from a load (commits, compaction, garbage) is done, or for `SETTLE_SECONDS`."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(SETTLE_WINDOW_SECONDS)
            if self.cpu_seconds() - before <= SETTLE_WINDOW_SECONDS * IDLE_SHARE:
                return


def missing(packages: dict[str, str] = PACKAGES) -> str | None:
    """Return which of these programs is not installed and where it comes from, or None."""
    absent = [f"{program} (Debian: {package})" for program, package in packages.items() if not shutil.which(program)]
    return " and ".join(absent) or None


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


@contextlib.contextmanager
def running(contender: Contender, size: int, directory: Path) -> Iterator[Engine]:
    """Start a cluster with an empty store in this directory; no process of it is left afterwards."""
    directory.mkdir(parents=True)
    ports = _free_ports(2 * size)
    client, peer = ([f"http://127.0.0.1:{port}" for port in half] for half in (ports[:size], ports[size:]))
    initial = ",".join(f"m{number}={url}" for number, url in enumerate(peer))
    with contextlib.ExitStack() as stack:
        members = []
        for number in range(size):
            command = [
                *(*contender.command, "--name", f"m{number}", "--data-dir", str(directory / f"m{number}")),
                *("--listen-client-urls", client[number], "--advertise-client-urls", client[number]),
                *("--listen-peer-urls", peer[number], "--initial-advertise-peer-urls", peer[number]),
                *("--initial-cluster", initial),
            ]
            endpoint = client[number].removeprefix("http://")
            member = Member(command, contender.directory, endpoint, directory / f"m{number}.log")
            stack.callback(member.stop)
            members.append(member)
        for member in members:
            member.wait_ready()
        yield Engine(contender.name, members)
