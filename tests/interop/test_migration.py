"""A real etcd, its snapshot, and what raftkv makes of it: everything a client can ask is compared."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from raftkv.client import Client, Refused, WatchCompacted
from raftkv.client import requests as rpc
from raftkv.pb import kv_pb2
from raftkv.pb import rpc_pb2 as pb
from tests.cli.raftctl import PATIENT
from tests.cli.zygote import Zygote
from tests.interop.test_mvcc_oracle import started_etcd_endpoint
from tests.support.processes import Cluster
from tests.support.restoring import changes, everything, raftctl, restored

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="no etcd to compare with")

KEYS = 10_000
LEASES = (0x1001, 0x1002, 0x1003)
REVOKED = 0x1004
TTL = 5_000


class Source(NamedTuple):
    """A snapshot of an etcd, and what that said of itself."""

    file: Path
    revision: int
    compacted: int
    past: dict[int, list[kv_pb2.KeyValue]]
    events: list[bytes]
    leases: list[pb.LeaseTimeToLiveResponse]


def put(key: int, value: bytes, lease: int = 0) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=b"/registry/k%05d" % key, value=value, lease=lease))


def delete(key: int) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"/registry/k%05d" % key))


def fill(client: Client, rng: random.Random) -> int:
    """Ten thousand keys and their history; the revision to which it was compacted."""
    for lease in (*LEASES, REVOKED):
        client.lease_grant(TTL + lease, lease)
    for first in range(0, KEYS, 100):
        ops = [put(key, rng.randbytes(rng.randrange(300))) for key in range(first, first + 100)]
        client.txn(pb.TxnRequest(success=ops))
    change(client, rng, 60)
    compacted = client.status().header.revision
    change(client, rng, 60)
    client.lease_revoke(REVOKED)
    for number in range(3):
        # Larger than a page, and than many.
        client.put(f"/large/{number}", rng.randbytes(5_000 << (4 * number)))
    client.compact(compacted, physical=True)
    return compacted


def change(client: Client, rng: random.Random, txns: int) -> None:
    """Updates, deletions and new beginnings, some in one revision; some keys have leases."""
    for _ in range(txns):
        keys = rng.sample(range(KEYS), 60)
        lease = rng.choice((0, 0, *LEASES, REVOKED))
        ops = [delete(key) if rng.random() < 0.2 else put(key, rng.randbytes(20), lease) for key in keys]
        client.txn(pb.TxnRequest(success=ops))
        client.put(b"/registry/k%05d" % rng.choice(keys), b"once more")
        client.delete(b"/registry/k%05d" % rng.choice(keys))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    directory = tmp_path_factory.mktemp("etcd")
    with started_etcd_endpoint(directory) as endpoint, Client(endpoint, timeout=60.0) as client:
        compacted = fill(client, random.Random(4))
        revision = client.status().header.revision
        revisions = [compacted, compacted + 1, (compacted + revision) // 2, revision - 1, revision]
        past = {one: everything(client, one) for one in revisions}
        events = changes(client, compacted, revision)
        leases = [client.lease_time_to_live(lease, keys=True) for lease in (*LEASES, REVOKED)]
        file = save(endpoint, directory)
    assert len(past[revision]) > KEYS * 0.8
    return Source(file, revision, compacted, past, events, leases)


def save(endpoint: str, directory: Path) -> Path:
    etcdctl(endpoint, "snapshot", "save", str(directory / "etcd.db"))
    return directory / "etcd.db"


def etcdctl(endpoint: str, *words: str) -> bytes:
    command = ["etcdctl", "--endpoints", endpoint, *PATIENT, *words]
    done = subprocess.run(command, capture_output=True, timeout=180, check=True, env={**os.environ, "ETCDCTL_API": "3"})
    return done.stdout


@pytest.fixture(scope="module")
def migrated(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with restored(tmp_path_factory.mktemp("raftkv"), 1, source.file, "--from-etcd") as running:
        yield running


@pytest.fixture(scope="module")
def moved(migrated: Cluster) -> Iterator[Client]:
    with migrated.client() as client:
        yield client


def test_every_key_is_the_same_at_every_revision(source: Source, moved: Client) -> None:
    """Key, value, version, lease, create and mod revision."""
    for revision, expected in source.past.items():
        assert everything(moved, revision) == expected, revision
    assert everything(moved) == source.past[source.revision]
    assert moved.status().header.revision == source.revision


def test_what_was_compacted_is_compacted(source: Source, moved: Client) -> None:
    with pytest.raises(Refused, match="required revision has been compacted"):
        moved.range("\0", "\0", revision=source.compacted - 1)
    with pytest.raises(WatchCompacted) as refusal:
        changes(moved, source.compacted - 1, source.revision)
    assert refusal.value.compact_revision == source.compacted
    with pytest.raises(Refused, match="required revision has been compacted"):
        moved.compact(source.compacted)


def test_a_watch_is_told_what_etcd_told(source: Source, moved: Client) -> None:
    assert len(source.events) > 1_000
    assert changes(moved, source.compacted, source.revision) == source.events


def test_leases_have_their_keys_and_their_time(source: Source, moved: Client) -> None:
    for expected in source.leases:
        found = moved.lease_time_to_live(expected.ID, keys=True)
        assert (found.grantedTTL, list(found.keys)) == (expected.grantedTTL, sorted(expected.keys))
        assert (found.TTL > 0) == (expected.TTL > 0)
    assert sum(len(one.keys) for one in source.leases) > 100
    assert {one.ID for one in moved.leases().leases} == set(LEASES)


def test_history_goes_on(source: Source, tmp_path: Path) -> None:
    """The next write has the next revision, a key goes on with its version, and a lease takes its keys along."""
    with (
        restored(tmp_path, 1, source.file, "--from-etcd") as running,
        running.client() as client,
    ):
        before = source.past[source.revision][-1]
        assert client.put(before.key, "new").header.revision == source.revision + 1
        after = client.get(before.key)
        assert after is not None
        assert (after.version, after.create_revision) == (before.version + 1, before.create_revision)
        attached = list(source.leases[0].keys)
        client.lease_revoke(LEASES[0])
        assert all(client.get(key) is None for key in attached)
        running.members[0].kill()
        running.members[0].start()
        running.wait_ready(running.members[0])
        assert client.status().header.revision == source.revision + 2


def test_three_members(source: Source, tmp_path: Path) -> None:
    with restored(tmp_path, 3, source.file, "--from-etcd") as running:
        hashes = set()
        for member in running.members:
            with member.client() as client:
                assert everything(client) == source.past[source.revision]
                answer = client.call(rpc.HASH_KV, pb.HashKVRequest())
                hashes.add((answer.hash, answer.compact_revision))
        assert len(hashes) == 1


# The file itself


def test_status_is_etcdctls(source: Source) -> None:
    for form in ("json", "table"):
        theirs = etcdctl("127.0.0.1:1", "snapshot", "status", str(source.file), "-w", form)
        assert raftctl("snapshot", "read-etcd", str(source.file), "status", "-w", form).stdout == theirs
    assert raftctl("snapshot", "read-etcd", str(source.file)).stdout == etcdctl(
        "127.0.0.1:1", "snapshot", "status", str(source.file)
    )


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


GETS = [
    ("/registry/k00", "--prefix"),
    ("/registry/k00", "--prefix", "--keys-only", "--limit", "7"),
    ("/registry/k01", "--prefix", "--sort-by", "MODIFY", "--order", "DESCEND", "--limit", "3"),
    ("/registry/k00100", "/registry/k00200", "--count-only"),
    ("/large/2", "--print-value-only"),
    ("/large/2", "--hex"),
    ("/registry/k09990", "--from-key", "-w", "json"),
    ("/registry/k00042", "-w", "fields"),
    ("nothing",),
]


@pytest.mark.parametrize("words", GETS, ids=lambda words: " ".join(words))
def test_the_file_answers_as_a_server_does(
    source: Source, migrated: Cluster, words: tuple[str, ...], zygote: Zygote
) -> None:
    revision = ("--rev", str(source.revision - 50))
    served = zygote.raftctl("get", *words, *revision, "--endpoints", migrated.endpoints)
    read = zygote.raftctl("snapshot", "read-etcd", str(source.file), "get", *words, *revision)
    assert read.status == served.status == 0, read.stderr
    assert without_header(read.stdout) == without_header(served.stdout)


def without_header(printed: bytes) -> object:
    """A file knows nothing of members and terms."""
    if printed.startswith(b"{"):
        answer = json.loads(printed)
        answer["header"] = {"revision": answer["header"]["revision"]}
        return answer
    return [line for line in printed.splitlines() if not line.startswith((b'"ClusterID', b'"MemberID', b'"RaftTerm'))]


def test_the_file_refuses_revisions_as_a_server_does(source: Source) -> None:
    for revision, problem in ((source.compacted - 1, "has been compacted"), (source.revision + 1, "is a future")):
        done = raftctl("snapshot", "read-etcd", str(source.file), "get", "a", "--rev", str(revision))
        assert done.returncode == 1
        assert problem in done.stderr.decode()


def test_a_copy_of_a_running_store_needs_the_check_skipped(source: Source, tmp_path: Path) -> None:
    copied = tmp_path / "db"
    copied.write_bytes(source.file.read_bytes()[:-32])
    refused = raftctl("snapshot", "read-etcd", str(copied))
    assert refused.returncode == 1
    assert b"expected sha256 at the end" in refused.stderr
    taken = raftctl("snapshot", "read-etcd", "--skip-hash-check", str(copied))
    assert taken.stdout == raftctl("snapshot", "read-etcd", str(source.file)).stdout


def test_users_keep_their_passwords_and_rights(tmp_path: Path) -> None:
    with started_etcd_endpoint(tmp_path) as endpoint:
        for words in (
            ("put", "/open/a", "1"),
            ("put", "/secret/a", "2"),
            ("user", "add", "root:s3cret"),
            ("user", "add", "reader:s3cret-word"),
            ("role", "add", "reading"),
            ("role", "grant-permission", "reading", "read", "/open/", "--prefix=true"),
            ("user", "grant-role", "reader", "reading"),
            ("auth", "enable"),
            ("--user", "root:s3cret", "snapshot", "save", str(tmp_path / "s")),
        ):
            etcdctl(endpoint, *words)
    with restored(tmp_path / "r", 1, tmp_path / "s", "--from-etcd", guarded=True) as running:
        endpoint = running.endpoints
        assert b"root\n" in etcdctl(endpoint, "--user", "root:s3cret", "user", "list")
        assert etcdctl(endpoint, "--user", "reader:s3cret-word", "get", "/open/a") == b"/open/a\n1\n"
        for words in (
            ("get", "/open/a"),
            ("--user", "reader:s3cret-wrong", "get", "/open/a"),
            ("--user", "reader:s3cret-word", "get", "/secret/a"),
        ):
            with pytest.raises(subprocess.CalledProcessError):
                etcdctl(endpoint, *words)
