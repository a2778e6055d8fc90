"""raftctl watch and etcdctl watch follow the same changes: what they print must be equal, byte for byte."""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from raftkv.client import Client
from tests.cli.raftctl import environment, etcdctl
from tests.cli.servers import serve
from tests.cli.zygote import raftctl

BOUND_SECONDS = 180.0
RAFTCTL = (sys.executable, "-m", "cli.raftctl")
SENTINEL = "w/~end"

needs_etcdctl = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a history of every kind of change, whose last is the sentinel."""
    with serve("raftkv", tmp_path_factory.mktemp("server")) as endpoint, Client(endpoint) as client:
        client.put("w/a", "1")
        client.put("w/a", "2")
        client.put("w/quoted", b'q"\\\x01\xff\n')
        client.put("other", "x")
        client.delete("w/a")
        client.delete("w/", prefix=True)
        client.put(SENTINEL, "x")
        yield endpoint


class Running:
    """A command whose output is read while it runs."""

    def __init__(self, command: Sequence[str], **variables: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(ETCDCTL_API="3", **variables),
        )
        self.timer = threading.Timer(BOUND_SECONDS, self.process.kill)
        self.timer.start()

    def until(self, pattern: bytes) -> bytes:
        """What it prints up to a match."""
        printed = b""
        stdout = self._pipe(self.process.stdout)
        while not re.search(pattern, printed):
            data = stdout.read1(4096)  # type: ignore[attr-defined]
            assert data, f"ended after {printed!r}: {self._pipe(self.process.stderr).read()!r}"
            printed += data
        return printed

    def say(self, line: str) -> None:
        stdin = self._pipe(self.process.stdin)
        stdin.write(line.encode() + b"\n")
        stdin.flush()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self.process.kill()
        self.process.communicate()


def both(live: str, *arguments: str, until: bytes) -> tuple[bytes, bytes]:
    with Running([*RAFTCTL, "--endpoints", live, *arguments]) as ours:
        found = ours.until(until)
    with Running(["etcdctl", "--endpoints", live, *arguments]) as theirs:
        return found, theirs.until(until)


@needs_etcdctl
@pytest.mark.parametrize(
    "line",
    [
        "w/ --prefix --rev 2",
        "--prefix --rev=2 --prev-kv w/",
        "w/ --prefix --rev 2 --hex",
        "w/a w0 --rev 1 --prev-kv",
        "w/ --prefix --rev 2 --prev-kv -w json",
        "w/ --prefix --rev 2 --prev-kv -w fields",
        "w/ --prefix --rev 2 -w protobuf",
    ],
)
def test_each_form_is_etcdctls(live: str, line: str) -> None:
    # Each form shows the sentinel's value in its own way, last.
    until = rb'"Lease" : 0\n$|~end\nx\n$|\\x65\\x6e\\x64\n\\x78\n$|"Created":false}\n$|~end[^~]*x'
    if "fields" in line:
        until = rb'~end"\n(.*\n)*"Lease" : 0\n'
    ours, theirs = both(live, "watch", *line.split(), until=until)
    assert ours == theirs


@needs_etcdctl
def test_a_command_gets_the_event_in_its_environment(live: str) -> None:
    script = 'env | grep ETCD_WATCH | sort; echo "$0 $1"'
    ours, theirs = both(
        live, *("watch", "w/", "--prefix", "--rev", "2", "--", "sh", "-c", script, "zero", "--one"),
        until=rb'~end"\n.*\n.*\nzero --one\n',
    )  # fmt: skip
    assert ours == theirs
    assert b'ETCD_WATCH_KEY="w/a"' in ours


@needs_etcdctl
def test_interactive_lines(live: str) -> None:
    printed = []
    for command in ([*RAFTCTL, "--endpoints", live], ["etcdctl", "--endpoints", live]):
        with Running([*command, "watch", "-i"]) as running:
            running.say("")
            running.say("nonsense")
            running.say("watch")
            running.say('watch "w/" --prefix --rev 2 --prev-kv')
            printed.append(running.until(rb"~end\nx\n"))
    assert printed[0] == printed[1]


@needs_etcdctl
def test_an_interactive_line_may_have_a_command(live: str) -> None:
    printed = []
    for command in ([*RAFTCTL, "--endpoints", live], ["etcdctl", "--endpoints", live]):
        with Running([*command, "watch", "-i"]) as running:
            running.say("watch w/ --prefix --rev 2 -- printenv ETCD_WATCH_KEY")
            printed.append(running.until(rb'"w/~end"\n'))
    assert printed[0] == printed[1]
    assert b'"w/a"\n' in printed[0]


@needs_etcdctl
@pytest.mark.parametrize(
    "line",
    [
        "watch",
        "watch k --",
        "watch -- echo",
        "watch a b --prefix",
        "watch b a --rev 1",
    ],
)
def test_refusals_are_etcdctls(live: str, line: str) -> None:
    ours = raftctl("--endpoints", live, *line.split())
    theirs = etcdctl("--endpoints", live, *line.split())
    first = [next(iter(re.findall("Error.*", result.stderr)), "") for result in (ours, theirs)]
    assert (ours.status, ours.stdout, first[0]) == (theirs.status, theirs.stdout, first[1])


def test_progress(live: str) -> None:
    """etcdctl 3.4 cannot."""
    with Running([*RAFTCTL, "--endpoints", live, "watch", "-i"]) as running:
        running.say("watch nothing --progress-notify")
        running.say("progress")
        assert re.fullmatch(rb"progress notify: \d+\n", running.until(rb"\n"))


def test_keys_may_come_from_the_environment(live: str) -> None:
    variables = {"RAFTCTL_WATCH_KEY": "w/a", "RAFTCTL_WATCH_RANGE_END": "w/b"}
    with Running([*RAFTCTL, "--endpoints", live, "watch", "--rev", "2"], **variables) as running:
        assert running.until(rb"DELETE\n.*\n\n") == b"PUT\nw/a\n1\nPUT\nw/a\n2\nDELETE\nw/a\n\n"
    assert raftctl("watch", "k", RAFTCTL_WATCH_KEY="k").status == 128
    assert raftctl("watch", RAFTCTL_WATCH_RANGE_END="k").status == 128


def test_a_command_that_fails_ends_the_watch(live: str) -> None:
    result = raftctl("--endpoints", live, *["watch", "w/a", "--rev", "2", "--", "sh", "-c"], "exit 7")
    assert (result.status, result.stderr) == (1, 'command ["sh" "-c" "exit 7"] error (exit status 7)\n')
    result = raftctl("--endpoints", live, *["watch", "w/a", "--rev", "2", "--", "nosuchcommand"])
    assert result.status == 1
    assert "not found" in result.stderr


@needs_etcdctl
def test_compacted_history(tmp_path: Path) -> None:
    with serve("raftkv", tmp_path) as endpoint, Client(endpoint) as client:
        for number in range(4):
            client.put("k", str(number))
        client.compact(4)
        for form in ("simple", "json", "fields"):
            arguments = ("--endpoints", endpoint, "watch", "k", "--rev", "2", "-w", form)
            ours, theirs = raftctl(*arguments), etcdctl(*arguments)
            assert ours.status == theirs.status == 5
            assert ours.stdout == theirs.stdout
            assert ours.stderr.splitlines() == [line for line in theirs.stderr.splitlines() if line[:1] != "{"]
