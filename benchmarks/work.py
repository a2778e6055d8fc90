"""The kinds of work: what is stored beforehand, and the request that is repeated."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.load import Call, Load
from benchmarks.wire import GRANT, KEEP_ALIVE, PUT, RANGE, TXN, Connection
from raftkv.pb import rpc_pb2 as pb

SMALL = b"v" * 256
LARGE_BYTES = 1024
LIST_KEYS = 10_000
PAGE_KEYS = 500
PUTS_PER_TXN = 100
LEASE_KEYS, LEASE_SECONDS = 10, 3600

HOT = b"/registry/hot"
GUARD = b"/registry/guard"
MANY = b"/registry/pods/"
MANY_END = b"/registry/pods0"

POINTS = (Load(1, 1), Load(10, 10), Load(100, 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of work.

    prepare stores what the request needs and returns it. needs_many: the store holds the many keys of 1 KiB, else it
    begins empty.
    """

    title: str
    path: str
    prepare: Callable[[Connection], bytes]
    writes: bool = False
    needs_many: bool = False
    loads: tuple[Load, ...] = POINTS

    def call(self, connection: Connection) -> Call:
        """Make an engine ready and return the request for it."""
        return Call(path=self.path, request=self.prepare(connection), writes=self.writes)


def _put(key: bytes, value: bytes = SMALL) -> bytes:
    return pb.PutRequest(key=key, value=value).SerializeToString()


def _prepare_put(_: Connection) -> bytes:
    return _put(HOT)


def _prepare_txn(connection: Connection) -> bytes:
    stored = pb.PutResponse.FromString(connection.call(PUT, _put(GUARD)))
    unchanged = pb.Compare(
        key=GUARD, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=stored.header.revision
    )
    request = pb.TxnRequest(compare=[unchanged])
    request.success.add().request_put.CopyFrom(pb.PutRequest(key=HOT, value=SMALL))
    request.failure.add().request_range.CopyFrom(pb.RangeRequest(key=HOT))
    return request.SerializeToString()


def _prepare_range(*, serializable: bool) -> Callable[[Connection], bytes]:
    def prepare(connection: Connection) -> bytes:
        connection.call(PUT, _put(HOT))
        return pb.RangeRequest(key=HOT, serializable=serializable).SerializeToString()

    return prepare


def _prepare_keepalive(connection: Connection) -> bytes:
    # A lease of its own for each cell: the one before has one, too.
    granted = connection.call(GRANT, pb.LeaseGrantRequest(TTL=LEASE_SECONDS).SerializeToString())
    lease = pb.LeaseGrantResponse.FromString(granted).ID
    for number in range(LEASE_KEYS):
        connection.call(PUT, pb.PutRequest(key=b"/leased/%d" % number, value=SMALL, lease=lease).SerializeToString())
    return pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()


def _prepare_list(_: Connection) -> bytes:
    return pb.RangeRequest(key=MANY, range_end=many_key(LIST_KEYS)).SerializeToString()


def _prepare_page(_: Connection) -> bytes:
    return pb.RangeRequest(key=MANY, range_end=MANY_END, limit=PAGE_KEYS).SerializeToString()


def _prepare_count(_: Connection) -> bytes:
    return pb.RangeRequest(key=MANY, range_end=MANY_END, count_only=True).SerializeToString()


def sized(value_bytes: int) -> dict[str, Work]:
    """Return a put of a value of this size, and a read of it, by name."""
    request = _put(HOT, b"v" * value_bytes)

    def stored(connection: Connection) -> bytes:
        connection.call(PUT, request)
        return pb.RangeRequest(key=HOT).SerializeToString()

    return {
        "put": Work(title=f"Put, {value_bytes:,} B", path=PUT, prepare=lambda _: request, writes=True),
        "range": Work(title=f"Range of one key, {value_bytes:,} B", path=RANGE, prepare=stored),
    }


def many_key(number: int) -> bytes:
    """Return the key of a number; keys sort as numbers do."""
    return MANY + b"%08d" % number


def store_many(connection: Connection, count: int) -> None:
    """Store keys of 1 KiB, in transactions of 100 puts, and check that all are there."""
    for first in range(0, count, PUTS_PER_TXN):
        request = pb.TxnRequest()
        for number in range(first, min(first + PUTS_PER_TXN, count)):
            value = (b"%08d" % number) * (LARGE_BYTES // 8)
            request.success.add().request_put.CopyFrom(pb.PutRequest(key=many_key(number), value=value))
        connection.call(TXN, request.SerializeToString())
    found = connection.range(pb.RangeRequest(key=MANY, range_end=MANY_END, count_only=True)).count
    if found != count:
        raise RuntimeError(f"{count} keys were stored, {found} are there")


# Long answers have fewer requests in flight: 1,000 lists of 10 MiB would measure the memory for them.
WORKS = {
    "put": Work(title="Put 256 B", path=PUT, prepare=_prepare_put, writes=True),
    "txn": Work(title="Txn: compare mod revision, put, else get", path=TXN, prepare=_prepare_txn, writes=True),
    "range": Work(title="Range of one key, linearizable", path=RANGE, prepare=_prepare_range(serializable=False)),
    "serializable": Work(title="Range of one key, serializable", path=RANGE, prepare=_prepare_range(serializable=True)),
    "keepalive": Work(title="LeaseKeepAlive, a stream of one", path=KEEP_ALIVE, prepare=_prepare_keepalive),
    "page": Work(
        title=f"Range of many keys of 1 KiB, page of {PAGE_KEYS}",
        path=RANGE,
        prepare=_prepare_page,
        needs_many=True,
        loads=(Load(1, 1), Load(10, 10)),
    ),
    "count": Work(title="Count of many keys of 1 KiB", path=RANGE, prepare=_prepare_count, needs_many=True),
    "list": Work(
        title="Range of 10,000 keys of 1 KiB",
        path=RANGE,
        prepare=_prepare_list,
        needs_many=True,
        loads=(Load(1, 1), Load(10, 1)),
    ),
}
OVERLOADED = "overload"
"""Puts, four times as many in flight as at the peak."""
VALUES, KEYSPACE, WATCHERS = "values", "keyspace", "watchers"
"""How both get on with larger values, more keys, more watchers; measured when they are asked for."""
VALUE_BYTES = (100, 1000, 10_000, 100_000, 1_000_000)
KEYS = (1000, 10_000, 100_000, 1_000_000)
MEMORY = "memory"
"""Not a load, but chosen like one: the leader's memory when the many keys of 1 KiB are stored."""
RESTART = "restart"
"""As well: how long a member needs to serve again after kill -9, and its memory then, with many keys of 256 B."""
