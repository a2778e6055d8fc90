"""Space that is given back while a member goes on."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raftkv.client import Client, ClientError
from raftkv.client.requests import DEFRAGMENT, HASH_KV, Rpc
from raftkv.pb import rpc_pb2
from tests.support.processes import cluster

RAFTCTL = [sys.executable, "-m", "cli.raftctl"]
DOWNGRADE = Rpc(
    "/etcdserverpb.Maintenance/Downgrade", rpc_pb2.DowngradeRequest, rpc_pb2.DowngradeResponse, False, False
)


def test_space_is_given_back_and_nothing_is_lost(tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as one, Client(one.endpoints, timeout=20.0) as client:
        for number in range(600):
            client.put(f"key{number % 3}", bytes([number % 256]) * 20_000)
        last = client.put("kept", "x").header.revision
        client.compact(last, physical=True)
        client.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
        full = client.status().dbSize
        stop, written = threading.Event(), []

        def write() -> None:
            with Client(one.endpoints) as writer:
                while not stop.is_set():
                    written.append(writer.put("busy", f"{len(written)}").header.revision)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            done = subprocess.run([*RAFTCTL, "--endpoints", one.endpoints, "defrag"], capture_output=True, timeout=60)
            for program in [["env", "ETCDCTL_API=3", "etcdctl"]] if shutil.which("etcdctl") else []:
                theirs = subprocess.run(
                    [*program, "--endpoints", one.endpoints, "defrag"], capture_output=True, timeout=60
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


@pytest.mark.parametrize(
    ("action", "version", "message"),
    [
        ("VALIDATE", "3.5.0", "etcdserver: invalid downgrade target version"),
        ("ENABLE", "3.4", "etcdserver: invalid downgrade target version"),
        ("VALIDATE", "three", "etcdserver: wrong downgrade target version format"),
        ("CANCEL", "", "etcdserver: no inflight downgrade job"),
    ],
)
def test_there_is_nothing_to_downgrade_to(tmp_path: Path, action: str, version: str, message: str) -> None:
    with cluster(tmp_path, 1) as one, Client(one.endpoints) as client, pytest.raises(ClientError) as refused:
        client.call(DOWNGRADE, rpc_pb2.DowngradeRequest(action=action, version=version))
    assert refused.value.message == message
