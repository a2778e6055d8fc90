"""A member whose disk runs full, on a file system of its own: it refuses, keeps what it has, and recovers."""

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from raftkv.client.requests import ALARM, DEFRAGMENT, HASH_KV
from raftkv.pb import rpc_pb2
from raftkv.status import Code
from tests.support.processes import START_SECONDS, Cluster, Process, cluster, wait_log

NO_SPACE = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
DISK_MIB = 256
VALUE = b"v" * 100_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a file system is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, left: int) -> None:
    """Let others use the disk up to what is left, in bytes."""
    with (disk / "ballast").open("ab") as ballast:
        while (size := min(1 << 20, free(disk) - left)) > 0:
            try:
                ballast.write(bytes(size))
                ballast.flush()
            except OSError as error:
                assert error.errno == errno.ENOSPC
                # What could not be written must not be tried again when the file is closed.
                with contextlib.suppress(OSError):
                    ballast.close()
                return


def put_until_refused(client: Client, prefix: str) -> dict[str, int]:
    """Revision of each put that was acknowledged before one was refused for want of space."""
    written = {}
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        key = f"{prefix}{len(written):04}"
        try:
            written[key] = client.put(key, VALUE).header.revision
        except ClientError as error:
            assert (error.code, error.message) == NO_SPACE
            return written
    raise AssertionError("never full")


def check(client: Client, written: dict[str, int]) -> None:
    """What was acknowledged is there, as it was acknowledged."""
    for prefix in {key[0] for key in written}:
        found = {kv.key.decode(): kv for kv in client.range(prefix, prefix=True).kvs}
        for key, revision in written.items():
            if key[0] == prefix:
                assert (found[key].mod_revision, found[key].value) == (revision, VALUE)


def alarms(client: Client) -> list[tuple[int, int]]:
    return [(one.memberID, one.alarm) for one in client.call(ALARM, rpc_pb2.AlarmRequest()).alarms]


def disarm(client: Client, member_id: int) -> None:
    action = rpc_pb2.AlarmRequest.DEACTIVATE
    client.call(ALARM, rpc_pb2.AlarmRequest(action=action, memberID=member_id, alarm=rpc_pb2.NOSPACE))


def restart(running: Cluster, member: Process) -> None:
    member.kill()
    member.start()
    running.wait_ready(member)


def test_a_nearly_full_disk_raises_the_alarm_and_what_makes_space_is_served(disk: Path) -> None:
    with cluster(disk, 1) as one, one.client() as client:
        (member,) = one.members
        member_id = client.status().header.member_id
        fill(disk, 80 << 20)
        written = put_until_refused(client, "k")
        assert len(written) > 20
        assert alarms(client) == [(member_id, rpc_pb2.NOSPACE)]
        # Reads, deletions and compaction are served, also after a crash.
        restart(one, member)
        check(client, written)
        deleted, _ = sorted(written.popitem() for _ in range(2))
        last = client.delete(deleted[0]).header.revision
        client.compact(last, physical=True)
        with pytest.raises(ClientError) as refused:
            client.put("k", "more")
        assert (refused.value.code, refused.value.message) == NO_SPACE
        # Without space the alarm comes back.
        disarm(client, member_id)
        deadline = time.monotonic() + START_SECONDS
        while not alarms(client):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (disk / "ballast").unlink()
        client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
        disarm(client, member_id)
        written["more"] = client.put("more", VALUE).header.revision
        check(client, written)
        before = client.call(HASH_KV, rpc_pb2.HashKVRequest())
        restart(one, member)
        after = client.call(HASH_KV, rpc_pb2.HashKVRequest())
        assert (after.hash, after.header.revision) == (before.hash, before.header.revision)


def test_others_who_fill_the_disk_to_the_last_byte_amid_writes_cost_nothing_that_was_acknowledged(disk: Path) -> None:
    with cluster(disk, 1) as one, one.client() as client:
        (member,) = one.members
        member_id = client.status().header.member_id
        written = {key: client.put(key, VALUE).header.revision for key in (f"a{number:04}" for number in range(50))}
        # Amid puts: what waits to be written to the store will find no space; the log has its space already.
        with ThreadPoolExecutor(1) as pool:
            putting = pool.submit(put_until_refused, client, "b")
            while client.range("b", prefix=True, count_only=True).count < 5:
                assert not putting.done()
            member.pause()
            fill(disk, 0)
            member.signal(signal.SIGCONT)
            written |= putting.result()
        wait_log(member, "cannot write the store")
        assert alarms(client) == [(member_id, rpc_pb2.NOSPACE)]
        check(client, written)
        with pytest.raises(ClientError) as refused:
            client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
        assert (refused.value.code, refused.value.message) == NO_SPACE
        restart(one, member)
        check(client, written)
        with pytest.raises(ClientError, match=r"No space left|database space exceeded"):
            list(client.snapshot())
        assert not [name for _, _, names in os.walk(member.data / "snapshot.sending") for name in names]
        (disk / "ballast").unlink()
        assert sum(len(piece.blob) for piece in client.snapshot()) > 50 * len(VALUE)
        disarm(client, member_id)
        written["c"] = client.put("c", VALUE).header.revision
        client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
        restart(one, member)
        check(client, written)


def test_a_follower_whose_disk_is_nearly_full_is_named_and_puts_are_refused_by_all(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "m1").symlink_to(disk, target_is_directory=True)
    with cluster(tmp_path, 3) as three:
        follower = three.members[1]
        with follower.client() as client:
            member_id = client.status().header.member_id
        with three.client(follower) as client:
            fill(disk, 20 << 20)
            written = put_until_refused(client, "k")
            assert alarms(client) == [(member_id, rpc_pb2.NOSPACE)]
            (disk / "ballast").unlink()
            disarm(client, member_id)
            written["more"] = client.put("more", VALUE).header.revision
            check(client, written)
        with follower.client() as client:
            check(client, written)
