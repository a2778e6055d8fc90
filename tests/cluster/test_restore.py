"""From a backup to a cluster that serves it, by the command line alone."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import Client, WatchCompacted
from raftkv.client.requests import HASH_KV
from raftkv.pb import kv_pb2, rpc_pb2
from tests.cli.zygote import Zygote
from tests.cluster.test_membership import add
from tests.support.processes import START_SECONDS, Cluster, cluster, wait_log
from tests.support.restoring import changes, everything, raftctl, restore_flags, restored

KEYS = 2_000
LARGE = 100_000
LEASE = 77


class Saved:
    """A backup, and what its member said when it was taken."""

    def __init__(self, directory: Path, keys: int) -> None:
        self.file = directory / "backup.db"
        with cluster(directory, 1) as running, running.client() as client:
            fill(client, keys)
            self.revision = client.status().header.revision
            self.compacted = self.revision - 60
            client.compact(self.compacted, physical=True)
            self.keys = everything(client)
            self.before = everything(client, self.compacted)
            self.events = changes(client, self.compacted, self.revision)
            self.hash = client.call(HASH_KV, rpc_pb2.HashKVRequest()).hash
            self.cluster_id = client.status().header.cluster_id
            done = raftctl("--endpoints", running.endpoints, "snapshot", "save", str(self.file))
            assert done.returncode == 0, done.stderr
            self.attached = list(client.lease_time_to_live(LEASE, keys=True).keys)


def fill(client: Client, keys: int) -> None:
    client.lease_grant(5_000, LEASE)
    for first in range(0, keys, 100):
        ops = [
            rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"/k/%06d" % key, value=b"value %d" % key))
            for key in range(first, first + 100)
        ]
        client.txn(rpc_pb2.TxnRequest(success=ops))
    for key in range(0, 300, 3):
        client.put(b"/k/%06d" % key, "again", lease=LEASE if key % 2 else 0)
        if key % 9 == 0:
            client.delete(b"/k/%06d" % key)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved"), KEYS)


def check(running: Cluster, saved: Saved) -> None:
    """Every member has all that was saved, and together they go on."""
    members = set()
    for member in running.members:
        with member.client() as client:
            assert everything(client) == saved.keys
            assert everything(client, saved.compacted) == saved.before
            assert changes(client, saved.compacted, saved.revision) == saved.events
            assert client.call(HASH_KV, rpc_pb2.HashKVRequest()).hash == saved.hash
            found = client.lease_time_to_live(LEASE, keys=True)
            assert (found.grantedTTL, list(found.keys)) == (5_000, saved.attached)
            assert found.TTL > 0
            header = client.status().header
            assert header.cluster_id != saved.cluster_id
            members.add(header.member_id)
    assert len(members) == len(running.members)
    with running.client() as client:
        assert client.put("/k/000001", "after").header.revision == saved.revision + 1
        kv = client.get("/k/000001")
        assert kv is not None
        assert (kv.version, kv.value) == (2, b"after")


@pytest.mark.parametrize("size", [1, 3])
def test_a_restored_cluster_has_what_was_saved(saved: Saved, tmp_path: Path, size: int) -> None:
    assert len(saved.attached) > 20
    with restored(tmp_path, size, saved.file) as running:
        check(running, saved)
        # Also when what was restored is read from its own log.
        for member in running.members:
            member.kill()
        running.start()
        with running.client() as client:
            assert client.put("/k/000001", "and again").header.revision == saved.revision + 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [1, 3])
def test_a_hundred_thousand_keys(tmp_path: Path, size: int) -> None:
    directory = tmp_path / "saved"
    directory.mkdir()
    saved = Saved(directory, LARGE)
    assert len(saved.keys) > LARGE - 100
    started = time.monotonic()
    with restored(tmp_path / "restored", size, saved.file) as running:
        serving = time.monotonic() - started
        check(running, saved)
    megabytes = saved.file.stat().st_size / 1e6
    print(f"{len(saved.keys)} keys, {megabytes:.1f} MB, restored and served by {size} after {serving:.1f} s")


def test_a_member_that_was_not_restored_is_refused(saved: Saved, tmp_path: Path) -> None:
    """Its vote would be for an empty store."""
    running = Cluster(tmp_path, 3)
    for place in range(2):
        done = raftctl("snapshot", "restore", str(saved.file), *restore_flags(running, place, "etcd-cluster"))
        assert done.returncode == 0, done.stderr
    try:
        for member in running.members:
            member.start()
        assert running.members[2].wait() != 0
        assert "it has forgotten its votes" in running.members[2].log()
        running.wait_ready(running.members[0])
    finally:
        running.kill()


def test_a_restored_member_that_lags_is_sent_the_store(saved: Saved, tmp_path: Path) -> None:
    running = Cluster(tmp_path, 3, "--snapshot-count", "20", "--snapshot-catchup-entries", "5")
    for place in range(3):
        assert raftctl("snapshot", "restore", str(saved.file), *restore_flags(running, place)).returncode == 0
    try:
        for member in running.members[:2]:
            member.start()
        running.wait_ready(running.members[0])
        with running.members[0].client() as client:
            for number in range(100):
                client.put("/late", str(number))
            expected = everything(client)
        running.members[2].start()
        running.wait_ready(running.members[2])
        with running.members[2].client() as client:
            assert everything(client) == expected
    finally:
        running.kill()


def test_a_member_added_later_is_given_what_was_restored(saved: Saved, tmp_path: Path) -> None:
    """The log does not say what was restored: it begins behind an entry that stands for it."""
    with restored(tmp_path, 1, saved.file) as running, running.client() as client:
        newcomer, _ = add(running, client, "m1")
        running.wait_ready(newcomer)
        assert "goes on from a snapshot" in newcomer.log()
        with newcomer.client() as theirs:
            assert everything(theirs) == saved.keys
            assert changes(theirs, saved.compacted, saved.revision) == saved.events


def test_watchers_of_the_old_cluster_are_told_to_begin_anew(saved: Saved, tmp_path: Path) -> None:
    bump = ("--bump-revision", "1000000", "--mark-compacted")
    with restored(tmp_path, 1, saved.file, *bump) as running, running.client() as client:
        revision = saved.revision + 1_000_000
        assert client.status().header.revision == revision
        assert everything(client) == saved.keys
        for first in (saved.compacted, saved.revision, saved.revision + 500, revision - 1):
            with (
                pytest.raises(WatchCompacted) as refusal,
                client.watch("/k/", prefix=True, start_revision=first) as old,
            ):
                next(old)
            assert refusal.value.compact_revision == revision
        with client.watch("/k/", prefix=True, start_revision=revision + 1) as watch:
            client.put("/k/new", "1")
            assert [event.kv.mod_revision for event in next(watch).events] == [revision + 1]
        kv = client.get("/k/000001")
        assert kv is not None
        assert kv.mod_revision <= saved.revision
        client.put("/k/000001", "2")
        assert [one.version for one in everything(client) if one.key == b"/k/000001"] == [2]
        running.members[0].kill()
        running.members[0].start()
        running.wait_ready(running.members[0])
        assert client.status().header.revision == revision + 2


def test_without_a_bump_a_watch_goes_on_where_it_was(saved: Saved, tmp_path: Path) -> None:
    with restored(tmp_path, 1, saved.file) as running, running.client() as client:
        with client.watch("/k/", prefix=True, start_revision=saved.revision + 1) as watch:
            client.put("/k/new", "1")
            found: list[kv_pb2.Event] = list(next(watch).events)
        assert [event.kv.mod_revision for event in found] == [saved.revision + 1]


# Refusals


def damaged(data: bytes) -> bytes:
    return data[:5_000] + bytes([data[5_000] ^ 1]) + data[5_001:]


NAMES = ("good", "damaged", "cut", "bare", "short", "text", "empty")


@pytest.fixture
def files(saved: Saved, tmp_path: Path) -> Path:
    data = saved.file.read_bytes()
    short = data[: len(data) - 32 - 4096]
    contents = (data, damaged(data), data[:-4096], data[:-32], short, b"hello", b"")
    for name, content in zip(NAMES, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("x")
    return tmp_path


REFUSALS = [
    (["damaged"], "expected sha256 at the end"),
    (["cut"], "expected sha256 at the end"),
    (["bare"], "expected sha256 at the end"),
    (["text"], "expected sha256 at the end"),
    (["empty"], "expected sha256 at the end"),
    (["nothing"], "no such file or directory"),
    (["short", "--skip-hash-check"], "is incomplete"),
    (["text", "--skip-hash-check"], "is no snapshot of raftkv"),
    (["empty", "--skip-hash-check"], "is no snapshot of raftkv"),
    (["good", "--from-etcd"], "is no snapshot of etcd"),
    (["good", "--data-dir", "used"], "holds other files"),
    (["good", "--data-dir", "text"], "not a directory"),
    (["good", "--name", "x", "--initial-cluster", "y=http://h:1"], 'couldn\'t find local name "x"'),
    (["good", "--initial-cluster", "default=http://h:1"], "missing from --initial-advertise-peer-urls"),
    (["good", "--initial-cluster", "default"], "is not of the form"),
    (["good", "--initial-cluster", "default=ftp://h:1"], "URL scheme must be http"),
    (["good", "--bump-revision", "5"], "--mark-compacted is required"),
    (["good", "--mark-compacted"], "--mark-compacted is required"),
    (["good", "--bump-revision", str((1 << 63) - 5), "--mark-compacted"], "is too large"),
    (["good", "--bump-revision", "-1", "--mark-compacted"], "invalid argument"),
    (["good", "--wal-dir", "elsewhere"], "--wal-dir is not supported"),
    (["good", "bare"], "requires exactly one argument"),
    ([], "requires exactly one argument"),
]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


@pytest.mark.parametrize(("words", "problem"), REFUSALS, ids=[" ".join(words) or "nothing" for words, _ in REFUSALS])
def test_a_refusal_leaves_everything_as_it_was(files: Path, words: list[str], problem: str, zygote: Zygote) -> None:
    before = sorted((path.name, path.stat().st_size) for path in files.rglob("*"))
    found = [str(files / word) if word in (*NAMES, "used", "nothing") else word for word in words]
    directory = [] if "--data-dir" in words else ["--data-dir", str(files / "d")]
    done = zygote.raftctl("snapshot", "restore", *found, *directory)
    assert done.status in (1, 128)
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((path.name, path.stat().st_size) for path in files.rglob("*")) == before


def test_a_directory_is_restored_once(saved: Saved, tmp_path: Path) -> None:
    words = ("snapshot", "restore", str(saved.file), "--data-dir", str(tmp_path / "d"))
    assert raftctl(*words).returncode == 0
    again = raftctl(*words)
    assert b"exists and is not empty" in again.stderr
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["heard", "store", "wal"]


def test_a_file_without_its_hash_is_taken_when_told(files: Path, saved: Saved) -> None:
    done = raftctl("snapshot", "restore", "--skip-hash-check", str(files / "bare"), "--data-dir", str(files / "d"))
    assert done.returncode == 0, done.stderr
    assert f"Restored {len(saved.keys)} keys at revision {saved.revision} ".encode() in done.stdout


def test_the_same_ids_are_worth_a_note(saved: Saved, tmp_path: Path) -> None:
    running = Cluster(tmp_path, 1)
    flags = restore_flags(running, 0, "etcd-cluster")
    file = tmp_path / "again.db"
    assert raftctl("snapshot", "restore", str(saved.file), *flags).stderr == b""
    running.start()
    try:
        raftctl("--endpoints", running.endpoints, "snapshot", "save", str(file))
    finally:
        running.kill()
    flags[3] = str(tmp_path / "other")
    done = raftctl("snapshot", "restore", str(file), *flags)
    assert done.returncode == 0
    assert b"Note: the new cluster has members with ids of the one that was saved" in done.stderr


def test_a_restore_that_was_killed_is_no_member(saved: Saved, tmp_path: Path) -> None:
    """What it left is refused by a start and by another restore, whichever of the parts are in place."""
    running = Cluster(tmp_path, 1)
    member = running.members[0]
    assert raftctl("snapshot", "restore", str(saved.file), *restore_flags(running, 0)).returncode == 0
    (member.data / "restoring").mkdir()
    for part, words in (("wal", "the log is missing"), ("store", "holds other files")):
        (member.data / part).rename(member.data / "restoring" / part)
        member.start()
        try:
            assert member.wait() != 0
            wait_log(member, words)
        finally:
            member.kill()
        again = raftctl("snapshot", "restore", str(saved.file), *restore_flags(running, 0))
        assert again.returncode == 1


# Progress


def on_a_terminal(*words: str) -> tuple[int, str]:
    """Run raftctl with stderr on a terminal; what that shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "cli.raftctl", *words], stdout=subprocess.DEVNULL, stderr=theirs
    ) as run:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:
            # How a terminal's other end says that nobody writes any more.
            pass
        finally:
            os.close(ours)
        return run.wait(START_SECONDS), shown.decode()


def test_progress_is_shown_on_a_terminal_only(saved: Saved, tmp_path: Path) -> None:
    status, shown = on_a_terminal("snapshot", "restore", str(saved.file), "--data-dir", str(tmp_path / "d"))
    assert status == 0
    assert "checking [========================] 100 % " in shown
    assert "writing [========================] 100 % " in shown
    assert shown.endswith("\r\n")
    quiet = raftctl("snapshot", "restore", str(saved.file), "--data-dir", str(tmp_path / "e"))
    assert quiet.stderr == b""


def test_progress_of_a_file_that_is_saved_or_looked_into(saved: Saved, tmp_path: Path) -> None:
    checking = "checking [========================] 100 % "
    status, shown = on_a_terminal("snapshot", "status", str(saved.file))
    assert (status, checking in shown) == (0, True), shown
    running = Cluster(tmp_path, 1)
    running.start()
    try:
        status, shown = on_a_terminal("--endpoints", running.endpoints, "snapshot", "save", str(tmp_path / "again.db"))
        assert status == 0
        assert 0 <= shown.find("receiving [=====") < shown.find(checking)
        status, shown = on_a_terminal("--endpoints", running.endpoints, "check", "perf", "--duration", "200ms")
        assert status in (0, 1)
        assert "putting [========================] 100 % 30 of 30" in shown
    finally:
        running.kill()
