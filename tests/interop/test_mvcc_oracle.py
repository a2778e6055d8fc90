"""The store against a real etcd: the same random requests, every field of every answer compared."""

import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from raftkv import errors
from raftkv.client import Client, ClientError, Refused
from raftkv.client import requests as rpc
from raftkv.mvcc import LmdbBackend, Store, validate
from raftkv.pb import rpc_pb2 as pb
from raftkv.status import StatusError
from tests.support.processes import CALL_SECONDS, START_SECONDS, free_ports
from tests.unit.mvcc.requests import ENDS, Requests

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd to compare with")

STEPS = 500


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Client]:
    with started_etcd(tmp_path) as client:
        yield client


@contextlib.contextmanager
def started_etcd(tmp_path: Path, *flags: str) -> Iterator[Client]:
    with started_etcd_endpoint(tmp_path, *flags) as endpoint, Client(endpoint, timeout=CALL_SECONDS) as client:
        yield client


@contextlib.contextmanager
def started_etcd_endpoint(tmp_path: Path, *flags: str) -> Iterator[str]:
    client_port, peer_port = free_ports(2)
    client_url, peer_url = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    command = ["etcd", "--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", client_url]
    command += ["--advertise-client-urls", client_url, "--listen-peer-urls", peer_url]
    command += ["--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"default={peer_url}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Client(client_url, timeout=5.0) as client:
            deadline = time.monotonic() + START_SECONDS
            while True:
                assert time.monotonic() < deadline, "etcd does not start"
                with contextlib.suppress(ClientError, grpc.RpcError):
                    client.range("ready")
                    break
                time.sleep(0.05)
        yield client_url.removeprefix("http://")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("seed", range(8))
def test_answers_equal_etcds(seed: int, etcd: Client, tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path / "store"), map_bytes=1 << 30)
    store = Store(backend)
    # A put beside a deletion from a key on can crash etcd 3.4.
    requests = Requests(seed, delete_ends=[end for end in ENDS if end != b"\0"])
    for _ in range(STEPS):
        requests.revision = store.revision
        request: Message
        if requests.chance(0.4):
            request = requests.range()
        elif requests.chance(0.04):
            request = pb.CompactionRequest(revision=requests.some_revision())
        else:
            request = requests.txn()
        expected = ask_etcd(etcd, request)
        found = ask_store(store, request)
        assert found == expected, request
    backend.close()


def test_the_limit_of_operations_shrinks_as_etcds_does(tmp_path: Path) -> None:
    """Nested transactions of random shape around a limit so small that it is met at every depth."""
    rng = random.Random(5)
    limit, outcomes = 5, set()
    with started_etcd(tmp_path, f"--max-txn-ops={limit}") as etcd:
        for _ in range(400):
            request = shape(rng, depth=rng.randint(0, 4))
            expected = ask_etcd(etcd, request)
            try:
                validate.check_txn(request, limit)
                found = None
            except StatusError as error:
                found = error.message
            assert found == (expected if isinstance(expected, str) else None), request
            outcomes.add(found)
    assert outcomes == {None, errors.TooManyOps().message, errors.EmptyKey().message, errors.KeyNotFound().message}


def shape(rng: random.Random, depth: int) -> pb.TxnRequest:
    """A transaction that only reads: its shape is what counts; now and then with a fault of another kind in it."""
    request = pb.TxnRequest()
    for _ in range(rng.choice((0, 0, 0, 1, 2, 3, 6))):
        request.compare.add(key=b"" if rng.random() < 0.02 else b"k")
    for branch in (request.success, request.failure):
        for _ in range(rng.choice((0, 1, 1, 2))):
            op = branch.add()
            if depth and rng.random() < 0.8:
                op.request_txn.CopyFrom(shape(rng, depth - 1))
            elif rng.random() < 0.99:
                op.request_range.key = b"" if rng.random() < 0.02 else b"k"
    return request


def ask_etcd(etcd: Client, request: Message) -> Message | str:
    method = {pb.RangeRequest: rpc.RANGE, pb.TxnRequest: rpc.TXN, pb.CompactionRequest: rpc.COMPACT}[type(request)]
    try:
        response = etcd.call(method, request)  # type: ignore[arg-type]
    except Refused as error:
        return error.message
    header = response.header
    header.cluster_id = header.member_id = header.raft_term = 0
    return response


def ask_store(store: Store, request: Message) -> Message | str:
    response: Message
    try:
        if isinstance(request, pb.RangeRequest):
            validate.check_range(request)
            response = pb.RangeResponse.FromString(b"".join(store.range(request)))
        elif isinstance(request, pb.TxnRequest):
            validate.check_txn(request, 128)
            response = pb.TxnResponse.FromString(store.txn(request))
        else:
            assert isinstance(request, pb.CompactionRequest)
            store.compact(request.revision)
            response = pb.CompactionResponse()
    except StatusError as error:
        return error.message
    response.header.revision = store.revision  # type: ignore[attr-defined]
    return response
