"""Data directories made by `raftctl snapshot restore`, and members that run on them."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from raftkv.client import Client, ClientError
from raftkv.pb import kv_pb2, rpc_pb2
from tests.cli import zygote
from tests.support.processes import START_SECONDS, Cluster


def raftctl(*words: str) -> subprocess.CompletedProcess[bytes]:
    done = zygote.raftctl(*words)
    return subprocess.CompletedProcess(words, done.status, done.stdout, done.stderr.encode())


def restore_flags(running: Cluster, place: int, token: str = "restored") -> list[str]:
    """The flags of a restore for one of a cluster's members."""
    settings = dict(zip(running.members[place].arguments[::2], running.members[place].arguments[1::2], strict=True))
    names = ("--name", "--data-dir", "--initial-cluster", "--initial-advertise-peer-urls")
    return [word for name in names for word in (name, settings[name])] + ["--initial-cluster-token", token]


@contextlib.contextmanager
def restored(directory: Path, size: int, file: Path, *flags: str, guarded: bool = False) -> Iterator[Cluster]:
    """A running cluster whose members were all restored from one file; `guarded`: with auth on."""
    directory.mkdir(exist_ok=True)
    running = Cluster(directory, size)
    for place in range(size):
        done = raftctl("snapshot", "restore", str(file), *restore_flags(running, place), *flags)
        assert done.returncode == 0, done.stderr
    try:
        if guarded:
            start_guarded(running)
        else:
            running.start()
        yield running
    finally:
        running.kill()


def start_guarded(running: Cluster) -> None:
    """Start members that ask who one is, and wait until they do."""
    for member in running.members:
        member.start()
    deadline = time.monotonic() + START_SECONDS
    for member in running.members:
        with member.client(timeout=5.0, dial_timeout=5.0) as client:
            while True:
                try:
                    client.range("ready")
                except ClientError as error:
                    if "user name is empty" in str(error):
                        break
                assert time.monotonic() < deadline, member.log()
                time.sleep(0.05)


def everything(client: Client, revision: int = 0) -> list[kv_pb2.KeyValue]:
    """All keys at a revision, with all that is known of them, page by page."""
    request = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", revision=revision)
    return [kv for page in client.pages(request) for kv in page.kvs]


def changes(client: Client, first: int, last: int) -> list[bytes]:
    """Every event from one revision to another as a watcher is told it, with the previous values."""
    found: list[bytes] = []
    with client.watch("\0", "\0", start_revision=first, prev_kv=True) as watch:
        for response in watch:
            found += [event.SerializeToString(deterministic=True) for event in response.events]
            if response.events and response.events[-1].kv.mod_revision >= last:
                return found
    raise AssertionError("the watch has ended")
