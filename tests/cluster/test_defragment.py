"""Space that is given back while a member goes on."""

import contextlib
import glob
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from raftkv.client.requests import DEFRAGMENT, HASH_KV, Rpc
from raftkv.pb import rpc_pb2
from tests.cluster.test_kill import check_agreement, check_writes
from tests.cluster.test_restore import on_a_terminal
from tests.support.objects import Writers
from tests.support.processes import START_SECONDS, Cluster, Process, cluster

RAFTCTL = [sys.executable, "-m", "cli.raftctl"]
DOWNGRADE = Rpc(
    "/etcdserverpb.Maintenance/Downgrade", rpc_pb2.DowngradeRequest, rpc_pb2.DowngradeResponse, False, False
)


def test_space_is_given_back_and_nothing_is_lost(tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as one, one.client() as client:
        for number in range(600):
            client.put(f"key{number % 3}", bytes([number % 256]) * 20_000)
        last = client.put("kept", random.Random(0).randbytes(1_000_000)).header.revision
        client.compact(last, physical=True)
        client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
        full = client.status().dbSize
        stop, written, meanwhile = threading.Event(), [], threading.Event()

        def write() -> None:
            with one.client() as writer:
                while not stop.is_set():
                    copies = copies_in_the_making(one.members[0])
                    written.append(writer.put("busy", f"{len(written)}").header.revision)
                    if copies & copies_in_the_making(one.members[0]):
                        meanwhile.set()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            # A put that begins and ends within one copy is not found each time.
            deadline = time.monotonic() + START_SECONDS
            while not meanwhile.is_set():
                assert time.monotonic() < deadline, f"none of {len(written)} puts was acknowledged during a copy"
                client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
            done = subprocess.run(
                [*RAFTCTL, "--command-timeout", "60s", "--endpoints", one.endpoints, "defrag"],
                capture_output=True,
                timeout=180,
            )
            for program in [["env", "ETCDCTL_API=3", "etcdctl"]] if shutil.which("etcdctl") else []:
                theirs = subprocess.run(
                    [*program, "--command-timeout", "60s", "--endpoints", one.endpoints, "defrag"],
                    capture_output=True,
                    timeout=60,
                )
                assert theirs.stdout == done.stdout
        finally:
            stop.set()
            thread.join()
        assert done.stdout == f"Finished defragmenting etcd member[{one.endpoints}]\n".encode(), done.stderr
        assert b" before, " in done.stderr
        size = (one.members[0].data / "store" / "data.mdb").stat().st_size
        assert size < 3_000_000, (size, full)
        assert list((one.members[0].data / "snapshot.sending").iterdir()) == []
        before = client.call(HASH_KV, rpc_pb2.HashKVRequest(revision=written[-1]))
        one.members[0].kill()
        one.members[0].start()
        one.wait_ready(one.members[0])
        after = client.call(HASH_KV, rpc_pb2.HashKVRequest(revision=written[-1]))
        assert (after.hash, after.compact_revision) == (before.hash, before.compact_revision)
        found = client.get("busy")
        assert found is not None
        assert found.mod_revision == written[-1]


def copies_in_the_making(member: Process) -> set[str]:
    """Files that have not taken the place of the store yet."""
    return set(glob.glob(str(member.data / "snapshot.sending" / "defragment-*" / "data.mdb")))


STEPS = ("defragment-copied", "defragment-synced", "defragment-moved", "defragment-durable")


def leftovers(member: Process) -> list[str]:
    scratch = member.data / "snapshot.sending"
    return [entry.name for entry in scratch.iterdir()] if scratch.exists() else []


def start_armed(one: Cluster, step: str | None) -> None:
    """Start the only member, to die at a step."""
    (member,) = one.members
    member.environment = {"RAFTKV_FAILPOINTS": f"{step}=exit"} if step else {}
    member.start()
    one.wait_ready(member)


def test_a_member_killed_at_each_step_comes_back_with_the_same_state(tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as one:
        (member,) = one.members
        with one.client() as client:
            for number in range(60):
                client.put(f"key{number % 3}", bytes([number]) * 20_000)
            lease = client.lease_grant(600).ID
            client.put("leased", "x", lease=lease)
            client.compact(40, physical=True)
            before = client.call(HASH_KV, rpc_pb2.HashKVRequest())
            applied = client.status().raftAppliedIndex
        member.kill()
        start_armed(one, STEPS[0])
        for step, following in zip(STEPS, (*STEPS[1:], None), strict=True):
            with Client(one.endpoints, timeout=20.0) as client, pytest.raises(ClientError):
                client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
            assert member.wait() == -signal.SIGKILL, step
            start_armed(one, following)
            assert leftovers(member) == [], step
            with one.client() as client:
                after = client.call(HASH_KV, rpc_pb2.HashKVRequest())
                assert (after.hash, after.compact_revision) == (before.hash, before.compact_revision), step
                # What was applied before is not applied again: the revision stays.
                assert after.header.revision == before.header.revision, step
                assert client.status().raftAppliedIndex >= applied, step
                assert [kv.key for kv in client.range("", prefix=True).kvs] == [b"key0", b"key1", b"key2", b"leased"]
        with one.client() as client:
            client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
            assert client.lease_revoke(lease)
            assert client.put("more", "x").header.revision == before.header.revision + 2


def test_a_member_killed_at_any_moment_of_a_defragmentation_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(6)
    with cluster(tmp_path, 1) as one:
        (member,) = one.members
        writers = Writers([member.endpoint], 100_000)
        writers.wait(300)
        for _ in range(4):
            writers.wait(writers.acknowledged + 100)
            defragmenting = threading.Thread(target=defragment_again_and_again, args=(member,))
            defragmenting.start()
            time.sleep(rng.random() / 5)
            member.kill()
            defragmenting.join()
            member.start()
            one.wait_ready(member)
            assert leftovers(member) == []
        writers.end()
        check_writes(check_agreement(one), writers)


def defragment_again_and_again(member: Process) -> None:
    with Client(member.endpoint, timeout=20.0) as client, contextlib.suppress(ClientError):
        while True:
            client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())


@pytest.mark.parametrize(
    ("action", "version", "message"),
    [
        ("VALIDATE", "3.5.0", "etcdserver: invalid downgrade target version"),
        ("ENABLE", "3.4", "etcdserver: invalid downgrade target version"),
        ("VALIDATE", "3.5.0-rc.1", "etcdserver: invalid downgrade target version"),
        ("ENABLE", "3.5.0+x", "etcdserver: invalid downgrade target version"),
        ("VALIDATE", "v3.5.0", "etcdserver: wrong downgrade target version format"),
        ("VALIDATE", "three", "etcdserver: wrong downgrade target version format"),
        ("CANCEL", "", "etcdserver: no inflight downgrade job"),
    ],
)
def test_there_is_nothing_to_downgrade_to(tmp_path: Path, action: str, version: str, message: str) -> None:
    with cluster(tmp_path, 1) as one, one.client() as client, pytest.raises(ClientError) as refused:
        client.call(DOWNGRADE, rpc_pb2.DowngradeRequest(action=action, version=version))
    assert refused.value.message == message


def test_a_terminal_is_told_at_which_member_long_work_is(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as three:
        endpoints = [member.endpoint for member in three.members]
        for doing, words in (("hashing", ("endpoint", "hashkv")), ("defragmenting", ("defrag",))):
            command = ("--endpoints", ",".join(endpoints), *words)
            status, shown = on_a_terminal(*command)
            assert status == 0
            bars = (" " * 24, "=" * 8 + " " * 16, "=" * 16 + " " * 8)
            for done, one in enumerate(endpoints):
                assert f"\r{doing} [{bars[done]}] {done + 1} of 3: {one}, 0 s\x1b[K" in shown
            # What was shown is gone when a result is printed.
            assert all(not part.startswith(doing) or "\n" not in part for part in shown.split("\r\x1b[K"))
            quiet = subprocess.run([*RAFTCTL, *command], capture_output=True, text=True, check=True)
            assert doing not in quiet.stderr
