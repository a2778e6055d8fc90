"""Real servers for tests of clients, by kind: etcd where it is installed, and raftkv."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from tests.support.processes import START_SECONDS, cluster, free_ports

ETCD = pytest.param("etcd", marks=pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed"))
KINDS = [ETCD, "raftkv"]


@contextlib.contextmanager
def serve(kind: str, directory: Path) -> Iterator[str]:
    """One member of this kind with an empty store; yields its endpoint (host:port)."""
    if kind == "etcd":
        with _etcd(directory) as endpoint:
            yield endpoint
    else:
        with cluster(directory, 1) as running:
            yield running.endpoints


@contextlib.contextmanager
def _etcd(directory: Path) -> Iterator[str]:
    client_port, peer_port = free_ports(2)
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    command = ["etcd", "--data-dir", str(directory / "etcd"), "--name", "m0"]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"m0={peer}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        with Client(client, timeout=1.0) as probe:
            while True:
                try:
                    probe.range("ready")
                    break
                except ClientError:
                    assert time.monotonic() < deadline, "etcd does not start"
                    assert process.poll() is None, "etcd ended"
        yield f"127.0.0.1:{client_port}"
    finally:
        process.kill()
        process.wait()
