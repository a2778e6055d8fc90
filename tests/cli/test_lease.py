"""raftctl lease on a lease that both tools know: what etcdctl says of it, raftctl says too."""

import json
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from raftkv.client import Client
from tests.cli.raftctl import BOUND_SECONDS, environment, etcdctl
from tests.cli.servers import serve
from tests.cli.zygote import raftctl

LEASE = 0x7B00000000001234
FORMS = ("simple", "json", "fields", "protobuf")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve("raftkv", tmp_path_factory.mktemp("lease")) as live:
        yield live


@pytest.fixture
def lease(endpoint: str) -> Iterator[str]:
    """A lease with a key, the only one there is."""
    with Client(endpoint) as client:
        client.lease_grant(1000, LEASE)
        client.put(b'k "1"', "v", lease=LEASE)
        yield f"{LEASE:x}"
        if client.lease_time_to_live(LEASE).TTL >= 0:
            client.lease_revoke(LEASE)


def seconds_apart(text: bytes) -> bytes:
    """What is left changes while we ask."""
    return re.sub(rb'(remaining\(|"ttl":|"TTL" : )99\d', rb"\\1T", text)


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("line", ["timetolive {}", "timetolive --keys {}", "list", "keep-alive --once {}"])
def test_says_what_etcdctl_says(line: str, form: str, lease: str, endpoint: str) -> None:
    words = ["--endpoints", endpoint, "lease", *line.format(lease).split(), "-w", form]
    theirs, ours = etcdctl(*words), raftctl(*words)
    assert ours.status == theirs.status == 0
    assert seconds_apart(ours.stdout) == seconds_apart(theirs.stdout)


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
@pytest.mark.parametrize("form", ["simple", "json", "fields"])
def test_revokes_as_etcdctl_does(form: str, endpoint: str) -> None:
    said = []
    with Client(endpoint) as client:
        for tool in (etcdctl, raftctl):
            client.lease_grant(1000, LEASE)
            said.append(tool("--endpoints", endpoint, "lease", "revoke", f"{LEASE:x}", "-w", form))
            assert client.lease_time_to_live(LEASE).TTL == -1
    assert said[0].stdout == said[1].stdout
    assert said[0].status == said[1].status == 0


def test_keeps_a_lease_alive_until_it_is_revoked(endpoint: str) -> None:
    with Client(endpoint) as client:
        client.lease_grant(6, LEASE)
        command = [sys.executable, "-m", "cli.raftctl", "--endpoints", endpoint, "lease", "keep-alive", f"{LEASE:x}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as running:
            try:
                assert running.stdout is not None
                # It has the lease's time from its first line on, however long its start takes.
                while not select.select([running.stdout], [], [], 0.2)[0]:
                    client.lease_keep_alive_once(LEASE)
                for _ in range(4):
                    assert running.stdout.readline() == b"lease %016x keepalived with TTL(6)\n" % LEASE
                client.lease_revoke(LEASE)
                assert running.stdout.readline() == b"lease %016x expired or revoked.\n" % LEASE
                assert running.wait(BOUND_SECONDS) == 0
            finally:
                running.kill()


def test_stops_at_once_when_interrupted(endpoint: str) -> None:
    with Client(endpoint) as client:
        client.lease_grant(60, LEASE)
        command = [sys.executable, "-m", "cli.raftctl", "--endpoints", endpoint, "lease", "keep-alive", f"{LEASE:x}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as running:
            try:
                assert running.stdout is not None
                assert b"keepalived" in running.stdout.readline()
                running.send_signal(signal.SIGINT)
                assert running.wait(BOUND_SECONDS) == 130
            finally:
                running.kill()
        assert client.lease_time_to_live(LEASE).TTL > 0
        client.lease_revoke(LEASE)


def test_puts_with_a_lease(lease: str, endpoint: str) -> None:
    assert raftctl("--endpoints", endpoint, "put", "--lease", lease, "more", "1").stdout == b"OK\n"
    told = raftctl("--endpoints", endpoint, "lease", "timetolive", lease, "--keys", "-w", "json")
    assert len(json.loads(told.stdout)["keys"]) == 2
    assert raftctl("--endpoints", endpoint, "get", "more", "-w", "fields").stdout.endswith(
        b'"Lease" : %d\n"More" : false\n"Count" : 1\n' % LEASE
    )
