"""A member's store as a file: taken while writes go on, checked, looked into."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftkv.client.requests import HASH_KV
from raftkv.pb import rpc_pb2
from tests.support.processes import Cluster, cluster

RAFTCTL = [sys.executable, "-m", "cli.raftctl"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A member with 400 records of 10 kB, some of them given up, and some more since."""
    with cluster(tmp_path_factory.mktemp("cluster"), 1) as running:
        with running.client() as client:
            for number in range(400):
                client.put(f"key{number % 40}", bytes([number % 256]) * 10_000)
            client.compact(300, physical=True)
            client.delete("key1", prefix=True)
        yield running


def run(*words: str, program: list[str] = RAFTCTL) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*program, "--command-timeout", "60s", *words], capture_output=True, timeout=120, check=False)


def test_a_backup_holds_what_the_member_holds(one: Cluster, tmp_path: Path) -> None:
    path = str(tmp_path / "s.db")
    with one.client() as client:
        told = client.call(HASH_KV, rpc_pb2.HashKVRequest())
    saved = run("--endpoints", one.endpoints, "snapshot", "save", path)
    assert saved.stdout == f"Snapshot saved at {path}\n".encode(), saved.stderr
    status = json.loads(run("snapshot", "status", path, "-w", "json").stdout)
    assert (status["hash"], status["revision"]) == (told.hash, told.header.revision)
    assert status["totalSize"] + 32 == (tmp_path / "s.db").stat().st_size
    assert (tmp_path / "s.db").stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.db"]
    # Nothing is left on the member's disk either.
    assert list((one.members[0].data / "snapshot.sending").iterdir()) == []


def test_a_backup_is_of_one_moment_while_writes_go_on(one: Cluster, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with one.client() as client:
            while not stop.is_set():
                client.put("busy", "x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        path = str(tmp_path / "s.db")
        assert run("--endpoints", one.endpoints, "snapshot", "save", path).returncode == 0
    finally:
        stop.set()
        writer.join()
    status = json.loads(run("snapshot", "status", path, "-w", "json").stdout)
    with one.client() as client:
        at_that_moment = client.call(HASH_KV, rpc_pb2.HashKVRequest(revision=status["revision"]))
    assert at_that_moment.hash == status["hash"]


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[:-1],
    lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    lambda data: b"",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(one: Cluster, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "s.db"
    run("--endpoints", one.endpoints, "snapshot", "save", str(path))
    path.write_bytes(damage(path.read_bytes()))
    done = run("snapshot", "status", str(path))
    assert done.returncode == 1
    assert b"damaged, incomplete or no snapshot" in done.stderr


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="no etcdctl to compare with")
def test_etcdctl_saves_the_same(one: Cluster, tmp_path: Path) -> None:
    etcdctl = ["env", "ETCDCTL_API=3", "etcdctl"]
    ours, theirs = (str(tmp_path / name) for name in ("ours", "theirs"))
    assert run("--endpoints", one.endpoints, "snapshot", "save", theirs, program=etcdctl).returncode == 0
    run("--endpoints", one.endpoints, "snapshot", "save", ours)
    said = [run("snapshot", "status", path, "-w", form) for path in (ours, theirs) for form in ("json", "table")]
    assert [one.stdout for one in said[:2]] == [one.stdout for one in said[2:]]
    assert all(one.returncode == 0 for one in said)


def test_no_backup_no_file(tmp_path: Path) -> None:
    done = run("--endpoints", "127.0.0.1:1", "--dial-timeout", "300ms", "snapshot", "save", str(tmp_path / "s.db"))
    assert done.returncode == 5
    assert list(tmp_path.iterdir()) == []
