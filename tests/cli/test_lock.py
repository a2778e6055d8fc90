"""raftctl lock and elect: what etcdctl does, the command's own exit status, and nothing left behind at any end."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from raftkv.client import Client
from tests.cli.raftctl import BOUND_SECONDS, Result, environment
from tests.cli.servers import serve
from tests.cli.zygote import raftctl

ETCDCTL, RAFTCTL = ("etcdctl",), (sys.executable, "-m", "cli.raftctl")

needs_etcdctl = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve("raftkv", tmp_path_factory.mktemp("lock")) as live:
        yield live


@pytest.fixture(scope="module")
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as made:
        yield made


class Running:
    """A command that runs until it is told to stop."""

    def __init__(self, endpoint: str, words: Sequence[str], tool: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [*tool, "--endpoints", endpoint, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(ETCDCTL_API="3"),
            process_group=0,
        )
        self.timer = threading.Timer(BOUND_SECONDS, self.kill)
        self.timer.start()

    def kill(self) -> None:
        """End it, and what it runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def line(self) -> bytes:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, number: signal.Signals | None = None) -> Result:
        """Tell it to stop, or wait until it does; how it ended."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        # Not communicate(): it knows nothing of what stands in the buffer behind the last line read.
        stdout, stderr = self.process.stdout.read(), self.process.stderr.read()
        return Result(self.process.wait(), stdout, stderr.decode())


@contextlib.contextmanager
def running(endpoint: str, *words: str, tool: Sequence[str] = RAFTCTL) -> Iterator[Running]:
    made = Running(endpoint, words, tool)
    try:
        yield made
    finally:
        made.timer.cancel()
        made.kill()
        made.process.communicate()


def queued(client: Client, name: str, count: int) -> None:
    """Wait until so many stand in the queue."""
    while client.range(f"{name}/", prefix=True).count != count:
        time.sleep(0.02)


def leases(client: Client) -> set[int]:
    return {lease.ID for lease in client.leases().leases}


def settled(text: bytes) -> bytes:
    """Ids and revisions differ from one holder to the next; and etcdctl counts some answers, but not all."""
    text = re.sub(rb',"count":1|"Count" : \d+\n', b"", text)
    text = re.sub(rb'"(key|lease|create_revision|mod_revision|revision)":("[^"]*"|\d+)', rb'"\1":X', text)
    text = re.sub(rb'"(Key|Lease|CreateRevision|ModRevision|Revision)" : ("[^"]*"|\d+)', rb'"\1" : X', text)
    return re.sub(rb"[0-9a-f]{10,16}", b"ID", text)


@needs_etcdctl
@pytest.mark.parametrize("form", ["simple", "json", "fields"])
@pytest.mark.parametrize("words", [["lock", "n"], ["elect", "n", "v 1"]])
def test_prints_what_etcdctl_prints(words: list[str], form: str, endpoint: str, client: Client) -> None:
    printed = []
    for tool in (ETCDCTL, RAFTCTL):
        with running(endpoint, *words, "-w", form, tool=tool) as holder:
            first = holder.line()
            ended = holder.end(signal.SIGINT)
        printed.append((ended.status, settled(first + ended.stdout)))
        assert client.range("n/", prefix=True).count == 0
    assert printed[0] == printed[1]
    assert printed[1][0] == 0


@needs_etcdctl
def test_observes_as_etcdctl_does(endpoint: str, client: Client) -> None:
    for form in ("simple", "json", "fields"):
        printed = []
        for tool in (ETCDCTL, RAFTCTL):
            name = f"seen-{form}"
            with (
                client.election(name) as election,
                running(endpoint, "elect", "-l", name, "-w", form, tool=tool) as ear,
            ):
                election.campaign("first")
                told = ear.line()
                election.proclaim("second")
                while b"second" not in told and b"c2Vjb25k" not in told:
                    told += ear.line()
                ended = ear.end(signal.SIGINT)
            printed.append((ended.status, settled(told + ended.stdout)))
        assert printed[0] == printed[1]
        assert printed[1][0] == 0


def test_exits_as_the_command_did(endpoint: str, client: Client) -> None:
    before = leases(client)
    script = 'test "$ETCD_LOCK_KEY" && test "$ETCD_LOCK_REV" -gt 0 && echo out && exit 7'
    done = raftctl("--endpoints", endpoint, "lock", "status", "--", "sh", "-c", script)
    assert done == Result(7, b"out\n", "Error: exit status 7\n")
    assert raftctl("--endpoints", endpoint, "lock", "status", "true").status == 0
    killed = raftctl("--endpoints", endpoint, "lock", "status", "--", "sh", "-c", "kill -9 $$")
    assert killed == Result(137, b"", "Error: signal: 9\n")
    missing = raftctl("--endpoints", endpoint, "lock", "status", "no-such-command")
    assert missing.status == 1
    assert missing.stderr == 'Error: exec: "no-such-command": executable file not found in $PATH\n'
    assert client.range("status/", prefix=True).count == 0
    assert leases(client) <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_waiting_leaves_the_queue(number: signal.Signals, endpoint: str, client: Client) -> None:
    before = leases(client)
    for words in (["lock", "queue"], ["lock", "queue", "true"], ["elect", "queue", "me"]):
        with client.lock("queue"), running(endpoint, *words) as waiting:
            queued(client, "queue", 2)
            assert waiting.end(number) == Result(1, b"", "Error: context canceled\n")
            queued(client, "queue", 1)
    assert leases(client) <= before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_runs_ends_before_the_lock_is_released(number: signal.Signals, endpoint: str, client: Client) -> None:
    script = "trap 'echo told; exit 3' TERM; echo runs; while :; do sleep 0.05; done"
    with running(endpoint, "lock", "runs", "--", "sh", "-c", script) as holder:
        assert holder.line() == b"runs\n"
        queued(client, "runs", 1)
        assert holder.end(number) == Result(3, b"told\n", "Error: exit status 3\n")
    assert client.range("runs/", prefix=True).count == 0


@pytest.mark.parametrize("words", [["lock", "table"], ["elect", "table", "me"], ["elect", "-l", "table"]])
def test_refuses_before_it_holds_what_it_could_not_print(words: list[str]) -> None:
    refused = raftctl("--endpoints", "localhost:1", *words, "-w", "table")
    assert refused == Result(4, b"", "Error: table not supported as output format\n")


def test_an_interrupt_is_left_to_the_command(endpoint: str, client: Client) -> None:
    """A terminal sends it to both."""
    with running(endpoint, "lock", "tty", "--", "sh", "-c", "echo runs; read line; exit 5") as holder:
        assert holder.line() == b"runs\n"
        assert holder.end(signal.SIGINT).status == 5
    assert client.range("tty/", prefix=True).count == 0


def test_what_runs_is_ended_when_the_lock_is_lost(endpoint: str, client: Client) -> None:
    with running(endpoint, "lock", "--ttl", "2", "lost", "--", "sh", "-c", "echo runs; exec sleep 60") as holder:
        assert holder.line() == b"runs\n"
        client.lease_revoke(client.range("lost/", prefix=True).kvs[0].lease)
        assert holder.end() == Result(1, b"", "Error: session expired\n")


def test_tells_that_it_holds_nothing_any_more(endpoint: str, client: Client) -> None:
    with running(endpoint, "lock", "--ttl", "2", "gone") as holder:
        assert holder.line().startswith(b"gone/")
        client.lease_revoke(client.range("gone/", prefix=True).kvs[0].lease)
        assert holder.end() == Result(1, b"\n", "Error: session expired\n")


def test_a_holder_that_is_killed_holds_no_longer_than_its_lease(endpoint: str, client: Client) -> None:
    with running(endpoint, "lock", "--ttl", "2", "killed") as holder:
        assert holder.line().startswith(b"killed/")
        holder.end(signal.SIGKILL)
        with client.lock("killed", timeout=BOUND_SECONDS / 2):
            queued(client, "killed", 1)


def test_leaders_follow_each_other(endpoint: str, client: Client) -> None:
    with (
        running(endpoint, "elect", "-l", "post") as ear,
        running(endpoint, "elect", "post", "one") as one,
    ):
        key = one.line()
        assert (one.line(), ear.line(), ear.line()) == (b"one\n", key, b"one\n")
        with running(endpoint, "elect", "post", "two") as two:
            queued(client, "post", 2)
            assert one.end(signal.SIGTERM) == Result(0, b"", "")
            key = two.line()
            assert (two.line(), ear.line(), ear.line()) == (b"two\n", key, b"two\n")
            assert two.end(signal.SIGINT).status == 0
        assert ear.end(signal.SIGTERM) == Result(0, b"", "")
    assert client.range("post/", prefix=True).count == 0
