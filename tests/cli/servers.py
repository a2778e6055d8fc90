"""Real servers for tests of clients, by kind: etcd where it is installed, and raftkv."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from tests.support.certificates import Authority
from tests.support.processes import START_SECONDS, Process, free_ports, wait_listening

ETCD = pytest.param("etcd", marks=pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed"))
KINDS = [ETCD, "raftkv"]


Ports = tuple[int, int]
"""Those for clients and for peers."""


@contextlib.contextmanager
def serve(kind: str, directory: Path, ports: Ports | None = None, flags: Sequence[str] = ()) -> Iterator[str]:
    """One member of this kind with an empty store; yields its endpoint (host:port).

    Ids follow from the ports: two servers that ran one after the other on the same ports cannot be told apart.
    """
    client, peer = ports or free_ports(2)
    initial = f"m0=http://127.0.0.1:{peer}"
    directory.mkdir(exist_ok=True)
    if kind == "raftkv":
        member = Process("m0", directory, client, peer, initial, *flags)
        member.start()
        try:
            wait_ready(member.endpoint)
            yield member.endpoint
        finally:
            member.search_metrics()
            member.kill()
        return
    urls = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    command = ["etcd", "--data-dir", str(directory / "etcd"), "--name", "m0", "--initial-cluster", initial]
    command += ["--listen-client-urls", urls[0], "--advertise-client-urls", urls[0]]
    command += ["--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_ready(f"127.0.0.1:{client}")
        yield f"127.0.0.1:{client}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serve_tls(directory: Path, authority: Authority) -> Iterator[str]:
    """A member that speaks TLS, and only with whom this authority vouches for; yields its endpoint."""
    client, peer = free_ports(2)
    certificate, key = authority.issue("server")
    files = (*("--cert-file", str(certificate), "--key-file", str(key)), "--trusted-ca-file", str(authority.file))
    directory.mkdir()
    member = Process("m0", directory, client, peer, f"m0=http://127.0.0.1:{peer}", *files, "--client-cert-auth")
    for flag in ("--listen-client-urls", "--advertise-client-urls"):
        member.set_flag(flag, f"https://127.0.0.1:{client}")
    member.start()
    try:
        wait_listening(member.endpoint, time.monotonic() + START_SECONDS)
        yield member.endpoint
    finally:
        member.kill()


def wait_ready(endpoint: str) -> None:
    """Wait until a server answers a linearizable read."""
    deadline = time.monotonic() + START_SECONDS
    wait_listening(endpoint, deadline)
    with Client(endpoint, timeout=5.0, dial_timeout=5.0) as probe:
        while True:
            try:
                probe.range("ready")
                return
            except ClientError as error:
                assert time.monotonic() < deadline, f"the server does not start: {error}"
