"""Random users, permissions and requests, and a model of who may do what: as little as possible, and all of it slow.

The model knows neither merged intervals nor caches: a range is allowed when no key can be found in it that is not. What
etcd 3.4 forgets to ask (`ETCD_34`) is in it too, so that the two can be compared where it does not matter.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raftkv.pb import auth_pb2
from raftkv.pb import rpc_pb2 as pb

KEYS = (b"a", b"a\0", b"ab", b"b", b"ba", b"c", b"d", b"\xff", b"\0")
ENDS = (b"", b"", b"", b"a\0", b"b", b"c", b"d", b"\xff", b"\xff\xff", b"\0")
LEASES = (0, 0, 1, 2, 3, 99)
Permission = auth_pb2.Permission
Request = pb.RangeRequest | pb.PutRequest | pb.DeleteRangeRequest | pb.TxnRequest | pb.LeaseRevokeRequest
Granted = Sequence[Permission]
Attached = Mapping[int, Iterable[bytes]]


@dataclass(frozen=True)
class Holes:
    """What a server does not ask for."""

    nested: bool = False
    txn_puts: bool = False


NONE, ETCD_34 = Holes(), Holes(nested=True, txn_puts=True)


# The model


def allowed(granted: Granted, request: Request, attached: Attached, holes: Holes = NONE) -> bool:
    """Whether a user with these permissions may make a request."""
    return all(_covered(granted, *need) for need in _needs(request, attached, holes))


Need = tuple[str, bytes, bytes]


def _needs(request: Request, attached: Attached, holes: Holes, *, in_txn: bool = False) -> Iterator[Need]:
    if isinstance(request, pb.RangeRequest):
        yield "read", request.key, request.range_end
    elif isinstance(request, pb.PutRequest):
        yield "write", request.key, b""
        if not (in_txn and holes.txn_puts):
            if request.prev_kv:
                yield "read", request.key, b""
            yield from (("write", key, b"") for key in attached.get(request.lease, ()))
    elif isinstance(request, pb.DeleteRangeRequest):
        yield "write", request.key, request.range_end
        if request.prev_kv:
            yield "read", request.key, request.range_end
    elif isinstance(request, pb.LeaseRevokeRequest):
        yield from (("write", key, b"") for key in attached.get(request.ID, ()))
    elif not (in_txn and holes.nested):
        yield from (("read", compare.key, compare.range_end) for compare in request.compare)
        for op in (*request.success, *request.failure):
            yield from _needs(getattr(op, op.WhichOneof("request") or ""), attached, holes, in_txn=True)


def _covered(granted: Granted, kind: str, key: bytes, range_end: bytes) -> bool:
    wanted = {"read": Permission.READ, "write": Permission.WRITE}[kind]
    spans = [_span(one.key, one.range_end) for one in granted if one.permType in (wanted, Permission.READWRITE)]
    first, end = _span(key, range_end)
    if end is not None and end <= first:
        # No key at all.
        end = first + b"\0"
    return _no_gap(spans, first, end)


def _no_gap(spans: Sequence[tuple[bytes, bytes | None]], first: bytes, end: bytes | None) -> bool:
    """The first key that is not granted is the first of the range, or the end of something granted."""
    suspects = [
        first,
        *(last for _, last in spans if last is not None and first <= last and (end is None or last < end)),
    ]
    return all(any(begin <= key and (last is None or key < last) for begin, last in spans) for key in suspects)


def _span(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    return key, None if range_end == b"\0" else range_end or key + b"\0"


# Chance


class Cases:
    """Random permissions and requests."""

    def __init__(self, seed: int, *, empty_ranges: bool = True) -> None:
        """`empty_ranges`: also those without a key, of which etcd says now this, now that."""
        self.rng = random.Random(seed)
        self._empty_ranges = empty_ranges

    def _range(self) -> tuple[bytes, bytes]:
        key, end = self.rng.choice(KEYS), self.rng.choice(ENDS)
        return key, end if self._empty_ranges or end in (b"", b"\0") or end > key else b""

    def permissions(self) -> list[Permission]:
        """Those of one role; each on another key, and of ranges that hold keys."""
        found: dict[bytes, Permission] = {}
        for _ in range(self.rng.randrange(5)):
            key, end = self.rng.choice(KEYS), self.rng.choice(ENDS)
            if not end or end == b"\0" or end > key:
                found[key] = Permission(permType=self.rng.choice((0, 1, 2, 2)), key=key, range_end=end)
        return list(found.values())

    def request(self) -> Request:
        return self.rng.choice((self.range, self.put, self.delete, self.revoke, self.txn, self.txn))()

    def range(self) -> pb.RangeRequest:
        key, range_end = self._range()
        return pb.RangeRequest(key=key, range_end=range_end)

    def put(self) -> pb.PutRequest:
        rng = self.rng
        return pb.PutRequest(key=rng.choice(KEYS), lease=rng.choice(LEASES), prev_kv=rng.random() < 0.3)

    def delete(self) -> pb.DeleteRangeRequest:
        key, range_end = self._range()
        return pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=self.rng.random() < 0.3)

    def revoke(self) -> pb.LeaseRevokeRequest:
        return pb.LeaseRevokeRequest(ID=self.rng.choice(LEASES))

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        """Short, or nobody would be allowed anything."""
        request = pb.TxnRequest()
        for _ in range(self.rng.choice((0, 0, 1))):
            key, range_end = self._range()
            request.compare.add(key=key, range_end=range_end)
        for branch in (request.success, request.failure):
            for _ in range(self.rng.choice((0, 1, 1, 2))):
                self._operation(branch.add(), depth)
        return request

    def _operation(self, op: pb.RequestOp, depth: int) -> None:
        kind = self.rng.randrange(4 if depth < 3 else 3)
        if kind == 0:
            op.request_range.CopyFrom(self.range())
        elif kind == 1:
            op.request_put.CopyFrom(self.put())
        elif kind == 2:
            op.request_delete_range.CopyFrom(self.delete())
        else:
            op.request_txn.CopyFrom(self.txn(depth + 1))
