"""Members as processes, on ports the kernel chose, stopped whatever happens.

Nothing here is decided by how fast the machine is. A test asks members through `Process.client` and `Cluster.client`,
which are patient and know no member that was stopped: a write through a connection that is about to break has an
unknown outcome. What a test does with the leader of a moment it does in `Cluster.steadily`.
"""

import collections
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from raftkv.client import Client, ClientError
from tests.support import secrets

START_SECONDS = 90.0
"""Bound on what takes a second or two, for a machine that does other things."""
CALL_SECONDS = 60.0
"""Bound on a call that takes a moment, for such a machine."""
ATTEMPTS = 5
"""How often something is tried that an election may spoil."""

Result = TypeVar("Result")

_held: "collections.deque[socket.socket]" = collections.deque(maxlen=200)
"""Sockets bound to the ports chosen last; more than one test uses."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, and that the kernel gives to nobody else meanwhile.

    A socket that is bound with SO_REUSEADDR and does not listen keeps a port from being chosen again, for a listener
    or for an outgoing connection; a server that sets the option as well, and every server does, can still bind it.
    So members find their ports free when they start again, whatever else this machine tests.
    """
    found = []
    for _ in range(count):
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        _held.append(holder)
        found.append(holder.getsockname()[1])
    return found


def stopped(pid: int) -> bool:
    """Whether every thread of a process stands still."""
    try:
        states = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/status")]
    except OSError:
        return False
    return all("State:\tT" in state or "State:\tt" in state for state in states)


def in_one_of(tries: int, attempt: Callable[[], Result]) -> Result:
    """What an attempt returns; it is made again for a machine that stalls, while a fault of ours spoils each one."""
    for _ in range(tries - 1):
        with contextlib.suppress(AssertionError):
            return attempt()
    return attempt()


def wait_listening(endpoint: str, deadline: float) -> None:
    """Wait until connections are taken; a client waits longer and longer between its attempts."""
    host, _, port = endpoint.rpartition(":")
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
            return
        time.sleep(0.02)


class Process:
    """One member; it may be killed and started again on the same data and ports."""

    def __init__(
        self,
        name: str,
        directory: Path,
        client: int,
        peer: int,
        initial: str,
        *flags: str,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix` is a command that starts the member in some other place, and becomes it."""
        self.name = name
        self.directory = directory
        self.endpoint = f"{host}:{client}"
        self.peer_url = f"http://{host}:{peer}"
        self.data = directory / name
        self._log = directory / f"{name}.log"
        self.arguments = [
            *("--name", name, "--data-dir", str(self.data)),
            *("--listen-client-urls", f"http://{host}:{client}"),
            *("--advertise-client-urls", f"http://{host}:{client}"),
            *("--listen-peer-urls", f"http://{host}:{peer}"),
            *("--initial-advertise-peer-urls", f"http://{host}:{peer}"),
            *("--initial-cluster", initial),
            *flags,
        ]
        self._prefix = prefix
        self.environment: dict[str, str] = {}
        self._stands_still = False
        self._searched: dict[Path, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def set_flag(self, flag: str, value: str) -> None:
        """Give a flag another value from the next start on."""
        self.arguments[self.arguments.index(flag) + 1] = value

    def flag(self, flag: str) -> str:
        """The value of a flag."""
        return self.arguments[self.arguments.index(flag) + 1]

    def client(self, **more: Any) -> Client:
        """A patient client of this member alone."""
        secrets.check_marked(more.get("password", ""))
        return Client(self.endpoint, **{"timeout": CALL_SECONDS, "dial_timeout": CALL_SECONDS, **more})

    @property
    def member_id(self) -> int:
        """Its id, as it says at its start."""
        return int(re.findall(rf"member {re.escape(self.name)} \(([0-9a-f]+)\)", self.log())[-1], 16)

    def start(self) -> None:
        self._stands_still = False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "raftkv", *self.arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    @property
    def pid(self) -> int:
        """Its process id; 0 before its first start."""
        return self._process.pid if self._process is not None else 0

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self._stands_still = number == signal.SIGSTOP

    def pause(self) -> None:
        """Let it stand still, and wait until it does: a pause takes effect when a system call has ended."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + START_SECONDS
        while not stopped(self.pid):
            assert time.monotonic() < deadline, f"{self.name} does not stand still"
            time.sleep(0.01)

    def wait(self, seconds: float = START_SECONDS) -> int:
        assert self._process is not None
        status = self._process.wait(seconds)
        self._search_logs()
        return status

    def stop(self) -> None:
        """Let it end in good order."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log()

    def kill(self) -> None:
        """Stop it as a crash would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._search_logs()

    def _search_logs(self) -> None:
        """Look for secrets in what it has logged since the last time."""
        audit = [Path(self.flag("--audit-log"))] if "--audit-log" in self.arguments else []
        for path in filter(Path.is_file, (self._log, *audit)):
            with path.open("rb") as log:
                size, searched = os.fstat(log.fileno()).st_size, self._searched.get(path, 0)
                log.seek(searched if searched <= size else 0)
                text = log.read()
                self._searched[path] = log.tell()
            secrets.look(f"{path.name} of {self.name}", text.decode(errors="replace"))

    def search_metrics(self) -> None:
        """Look for secrets in its metrics, where they can be had at once."""
        url = f"http://{self.endpoint}"
        if self.serving() and url.startswith("http://127.0.0.1:") and url in self.flag("--listen-client-urls"):
            problems = (OSError, http.client.HTTPException)
            with contextlib.suppress(*problems), urllib.request.urlopen(f"{url}/metrics", timeout=2.0) as answer:
                secrets.look(f"the metrics of {self.name}", answer.read().decode(errors="replace"))

    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def serving(self) -> bool:
        """Whether it lives and was not told to stand still."""
        return self.running() and not self._stands_still

    def connected(self, peer: int) -> bool:
        """Whether it has a stream to the member of this id."""
        with urllib.request.urlopen(f"http://{self.endpoint}/metrics", timeout=CALL_SECONDS) as answer:
            text = answer.read().decode()
        return re.search(rf'^etcd_network_active_peers{{.*Remote="{peer:x}".*}} 1', text, re.MULTILINE) is not None

    def resident_bytes(self) -> int:
        """Memory it holds now."""
        return self._memory("VmRSS:")

    def most_resident_bytes(self) -> int:
        """The most it ever held."""
        return self._memory("VmHWM:")

    def _memory(self, line: str) -> int:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return int(status.partition(line)[2].split()[0]) << 10

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class Cluster:
    """Members that form one cluster."""

    def __init__(self, directory: Path, size: int, *flags: str) -> None:
        ports = free_ports(2 * size)
        names = [f"m{number}" for number in range(size)]
        initial = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, peer in zip(names, ports[size:], strict=True))
        self.members = [
            Process(name, directory, client, peer, initial, *flags)
            for name, client, peer in zip(names, ports[:size], ports[size:], strict=True)
        ]
        self.endpoints = ",".join(member.endpoint for member in self.members)
        self.credentials = {"user": "", "password": ""}
        """Who asks whether members are ready, and which leads."""

    def living(self, *without: Process) -> list[Process]:
        """The members that can answer, but for some."""
        return [member for member in self.members if member.serving() and member not in without]

    def client(self, *without: Process, **more: Any) -> Client:
        """A patient client of the members that live now, but for some: name those that are going to be stopped."""
        secrets.check_marked(more.get("password", ""))
        endpoints = [member.endpoint for member in self.living(*without)]
        return Client(endpoints, **{"timeout": CALL_SECONDS, "dial_timeout": CALL_SECONDS, **more})

    def start(self) -> None:
        for member in self.members:
            member.start()
        for member in self.members:
            self.wait_ready(member)

    def wait_ready(self, member: Process) -> None:
        """Wait until a member serves linearizable reads."""
        deadline = time.monotonic() + START_SECONDS
        wait_listening(member.endpoint, deadline)
        with member.client(timeout=5.0, dial_timeout=5.0, **self.credentials) as client:
            while True:
                try:
                    client.range("ready")
                    return
                except ClientError as error:
                    if time.monotonic() > deadline:
                        raise AssertionError(f"{member.name} is not ready: {error}\n{member.log()}") from error
                    time.sleep(0.05)

    def leader(self) -> Process:
        """The member that leads, as a majority sees it."""
        return self.leader_of(self.members)

    def leader_of(self, members: "list[Process]") -> Process:
        """The member that leads, as a majority of these sees it."""
        return self._led(members)[0]

    def _led(self, members: "list[Process]") -> tuple[Process, int]:
        """The member that a majority of these takes for the leader, and the latest term that one of them knows."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            seen: list[int] = []
            own: dict[int, Process] = {}
            terms: list[int] = []
            for member in filter(Process.serving, members):
                asking = member.client(timeout=5.0, dial_timeout=5.0, **self.credentials)
                with contextlib.suppress(ClientError), asking as client:
                    status = client.status()
                    own[status.header.member_id] = member
                    seen.append(status.leader)
                    terms.append(status.raftTerm)
            for leader in set(seen) - {0}:
                if seen.count(leader) * 2 > len(members) and leader in own:
                    return own[leader], max(terms)
            time.sleep(0.05)
        raise AssertionError("no leader")

    def steadily(self, attempt: Callable[[Process], Result]) -> Result:
        """What an attempt returns that is told the leader; one that fails amid an election is made again."""
        tries = 0
        while True:
            leader, term = self._led(self.members)
            tries += 1
            try:
                return attempt(leader)
            except (AssertionError, ClientError):
                if tries == ATTEMPTS or self._led(self.members)[1] == term:
                    raise

    def kill_and_miss(self, lost: Process) -> None:
        """Kill a member, and wait until no other one has a stream to it."""
        member_id = lost.member_id
        lost.kill()
        deadline = time.monotonic() + START_SECONDS
        while any(member.connected(member_id) for member in self.living()):
            assert time.monotonic() < deadline, f"{lost.name} is gone, and not missed"
            time.sleep(0.02)

    def kill(self) -> None:
        for member in self.members:
            member.search_metrics()
        for member in self.members:
            member.kill()

    def newcomer(self, name: str, directory: Path, *flags: str) -> Process:
        """A process for a member that is added later; `join` gives it its --initial-cluster."""
        client, peer = free_ports(2)
        member = Process(name, directory, client, peer, "", "--initial-cluster-state", "existing", *flags)
        self.members.append(member)
        return member


def wait_log(member: Process, words: str, times: int = 1) -> None:
    """Wait until a member has logged these words so often."""
    deadline = time.monotonic() + START_SECONDS
    while member.log().count(words) < times:
        assert time.monotonic() < deadline, member.log()
        time.sleep(0.05)


@contextlib.contextmanager
def cluster(directory: Path, size: int, *flags: str) -> Iterator[Cluster]:
    """A running cluster; every process is gone afterwards."""
    running = Cluster(directory, size, *flags)
    try:
        running.start()
        yield running
    finally:
        running.kill()
