"""The lease benchmark: many leases with keys, renewed on streams as clients hold them, each renewal its own answer."""

import time
from dataclasses import dataclass

from benchmarks.generator import BUSY_MAX
from benchmarks.http2 import DATA, END_STREAM, RST_STREAM, Connection
from benchmarks.load import CheckFailed, Sample
from benchmarks.restart import call_each
from benchmarks.wire import FRAME_HEAD_BYTES, GRANT, KEEP_ALIVE, TXN
from raftkv.pb import rpc_pb2 as pb

RENEW = "renew"
"""The name by which it is chosen."""
KEYS_PER_LEASE = 10
TTL_SECONDS = 3600
STREAMS = 10
"""Streams under way at once."""
RENEWALS = 500
"""On each stream, one message each; they fit into one frame."""
_FIRST_ID = 1_000_000
_PILOT = 5_000


@dataclass(frozen=True, slots=True)
class RenewJob:
    """Renewals of `leases` in turn."""

    leases: int

    def size(self, endpoint: str, seconds: float, requests: int | None) -> int:
        """Drive a member unmeasured and return how many renewals a run should have: whole streams."""
        wanted = requests or int(self.run(endpoint, _PILOT).rate * seconds)
        return max(1, round(wanted / RENEWALS)) * RENEWALS

    def run(self, endpoint: str, requests: int) -> Sample:
        """Measure once. Raises CheckFailed: an answer was missing, or said that a lease is gone."""
        connection = Connection(endpoint, KEEP_ALIVE)
        bodies: dict[int, list[bytes]] = {}
        begun = renewed = 0
        started, busy = time.perf_counter(), time.process_time()
        try:
            while renewed < requests:
                while begun < requests and len(bodies) < STREAMS:
                    ids = (_FIRST_ID + number % self.leases for number in range(begun, begun + RENEWALS))
                    messages = [pb.LeaseKeepAliveRequest(ID=lease).SerializeToString() for lease in ids]
                    bodies[connection.request(messages, last=True)] = []
                    begun += RENEWALS
                for one in connection.receive():
                    if one.kind == RST_STREAM:
                        raise CheckFailed(f"a stream was refused after {renewed} renewals")
                    if one.kind == DATA:
                        bodies[one.stream].append(one.payload)
                    if one.flags & END_STREAM:
                        renewed += _renewed(b"".join(bodies.pop(one.stream)))
        finally:
            connection.close()
        seconds = time.perf_counter() - started
        saturated = (time.process_time() - busy) / seconds > BUSY_MAX
        return Sample(rate=renewed / seconds, operations=renewed, saturated=saturated)


def grant_many(endpoint: str, count: int) -> None:
    """Grant leases, each with its keys.

    Raises:
        CheckFailed: not all were granted.
    """
    leases = range(_FIRST_ID, _FIRST_ID + count)
    call_each(endpoint, GRANT, (pb.LeaseGrantRequest(ID=lease, TTL=TTL_SECONDS) for lease in leases))
    call_each(endpoint, TXN, map(_keys, leases))


def _keys(lease: int) -> pb.TxnRequest:
    request = pb.TxnRequest()
    for number in range(KEYS_PER_LEASE):
        put = pb.PutRequest(key=b"/leases/%d/%d" % (lease, number), value=b"v", lease=lease)
        request.success.add().request_put.CopyFrom(put)
    return request


def _renewed(body: bytes) -> int:
    """Count the answers of a stream.

    Raises:
        CheckFailed: one is missing, or its lease is gone.
    """
    count = position = 0
    while position < len(body):
        begin = position + FRAME_HEAD_BYTES
        position = begin + int.from_bytes(body[position + 1 : begin], "big")
        if pb.LeaseKeepAliveResponse.FromString(body[begin:position]).TTL != TTL_SECONDS:
            raise CheckFailed("a lease that was granted is gone")
        count += 1
    if count != RENEWALS:
        raise CheckFailed(f"{RENEWALS} renewals of a stream had {count} answers")
    return count
