"""Leases against a real etcd: the same random requests, every field of every answer compared.

Times are long, so that none expires; what is left is compared by whether anything is.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.message import Message

from raftkv.client import Client, ClientError
from raftkv.client import requests as rpc
from raftkv.pb import rpc_pb2 as pb
from tests.cli.servers import serve

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd to compare with")

STEPS = 400
IDS = (1, 2, 3, 0x7FFFFFFFFFFFFFFF, -1, 12)
KEYS = (b"a", b"b", b"c", b"d")
TTLS = (1000, 5000, 9_000_000_000, 9_000_000_001, 1 << 62)
Ask = Callable[[Client], Message]


class Requests:
    """Random requests about a few leases and keys."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def next(self) -> Ask:
        kinds = [self.grant] * 2 + [self.put] * 3 + [self.txn] * 2
        kinds += [self.revoke, self.delete, self.keep_alive, self.time_to_live, self.leases, self.range]
        return self._rng.choice(kinds)()

    def grant(self) -> Ask:
        request = pb.LeaseGrantRequest(ID=self._rng.choice(IDS), TTL=self._rng.choice(TTLS))
        return lambda client: client.call(rpc.LEASE_GRANT, request)

    def revoke(self) -> Ask:
        lease_id = self._rng.choice((*IDS, 0, 99))
        return lambda client: client.lease_revoke(lease_id)

    def keep_alive(self) -> Ask:
        lease_id = self._rng.choice((*IDS, 0, 99))
        return lambda client: client.lease_keep_alive_once(lease_id)

    def time_to_live(self) -> Ask:
        lease_id, keys = self._rng.choice((*IDS, 0, 99)), self._rng.random() < 0.7

        def ask(client: Client) -> Message:
            answer = client.lease_time_to_live(lease_id, keys=keys)
            # etcd lists keys in no order, and a second may have passed.
            answer.keys[:] = sorted(answer.keys)
            answer.TTL = min(answer.TTL, 1)
            return answer

        return ask

    def leases(self) -> Ask:
        def ask(client: Client) -> Message:
            answer = client.leases()
            ordered = sorted(answer.leases, key=lambda lease: lease.ID)
            del answer.leases[:]
            answer.leases.extend(ordered)
            return answer

        return ask

    def _put(self) -> pb.PutRequest:
        request = pb.PutRequest(key=self._rng.choice(KEYS), value=b"v", lease=self._rng.choice((0, 99, *IDS, *IDS)))
        if self._rng.random() < 0.2:
            request.ignore_lease, request.lease = True, self._rng.choice((0, 0, 1))
        request.prev_kv = self._rng.random() < 0.5
        return request

    def put(self) -> Ask:
        request = self._put()
        return lambda client: client.call(rpc.PUT, request)

    def delete(self) -> Ask:
        request = pb.DeleteRangeRequest(
            key=self._rng.choice(KEYS), range_end=self._rng.choice((b"", b"c")), prev_kv=True
        )
        return lambda client: client.call(rpc.DELETE_RANGE, request)

    def txn(self) -> Ask:
        request = pb.TxnRequest()
        compare = request.compare.add(key=self._rng.choice(KEYS), target=pb.Compare.LEASE)
        compare.lease, compare.result = self._rng.choice((0, *IDS)), self._rng.choice((0, 1, 2, 3))
        for branch in (request.success, request.failure):
            for key in self._rng.sample(KEYS, 2):
                put = self._put()
                put.key = key
                branch.add().request_put.CopyFrom(put)
        return lambda client: client.txn(request)

    def range(self) -> Ask:
        return lambda client: client.range("", prefix=True)


def answer(client: Client, ask: Ask) -> Message | str:
    """What the server says, without who says it and how often it was elected."""
    try:
        response = ask(client)
    except ClientError as error:
        return error.message
    header = response.header  # type: ignore[attr-defined]
    header.cluster_id = header.member_id = header.raft_term = 0
    return response


@pytest.mark.parametrize("seed", range(2))
def test_answers_equal_etcds(seed: int, tmp_path: Path) -> None:
    servers = serve("etcd", tmp_path / "etcd"), serve("raftkv", tmp_path / "raftkv")
    with servers[0] as theirs, servers[1] as ours, Client(theirs) as etcd, Client(ours) as raftkv:
        requests = Requests(seed)
        said: set[str] = set()
        for _ in range(STEPS):
            ask = requests.next()
            expected = answer(etcd, ask)
            assert answer(raftkv, ask) == expected
            said.add(expected if isinstance(expected, str) else type(expected).__name__)
        # The random requests met everything there is to meet.
        assert {"etcdserver: requested lease not found", "etcdserver: lease already exists"} <= said
        assert {"etcdserver: too large lease TTL", "LeaseRevokeResponse", "LeaseKeepAliveResponse"} <= said
