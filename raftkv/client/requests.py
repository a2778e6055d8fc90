"""RPCs as data, and the key ranges of etcd's API: shared by both clients."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from raftkv.pb import rpc_pb2

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

Key = str | bytes
"""A key or value; text is written as UTF-8."""


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Q, A]):
    """One unary RPC.

    `read`: repeating it is harmless. `leader`: a member that knows no leader is asked to refuse it at once.
    """

    path: str
    request: type[Q]
    response: type[A]
    read: bool
    leader: bool = True


RANGE = Rpc("/etcdserverpb.KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, True)
SERIALIZABLE_RANGE = Rpc(RANGE.path, RANGE.request, RANGE.response, True, False)
PUT = Rpc("/etcdserverpb.KV/Put", rpc_pb2.PutRequest, rpc_pb2.PutResponse, False)
DELETE_RANGE = Rpc("/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse, False)
TXN = Rpc("/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse, False)
READ_TXN = Rpc(TXN.path, TXN.request, TXN.response, True)
COMPACT = Rpc("/etcdserverpb.KV/Compact", rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse, False)
LEASE_GRANT = Rpc("/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse, False)
LEASE_REVOKE = Rpc("/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse, False)
LEASE_TIME_TO_LIVE = Rpc(
    "/etcdserverpb.Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.LeaseTimeToLiveResponse, True
)
LEASE_LEASES = Rpc(
    "/etcdserverpb.Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest, rpc_pb2.LeaseLeasesResponse, True, False
)
MEMBER_LIST = Rpc(
    "/etcdserverpb.Cluster/MemberList", rpc_pb2.MemberListRequest, rpc_pb2.MemberListResponse, True, False
)
LINEARIZABLE_MEMBER_LIST = Rpc(MEMBER_LIST.path, MEMBER_LIST.request, MEMBER_LIST.response, True)
MEMBER_ADD = Rpc("/etcdserverpb.Cluster/MemberAdd", rpc_pb2.MemberAddRequest, rpc_pb2.MemberAddResponse, False)
MEMBER_REMOVE = Rpc(
    "/etcdserverpb.Cluster/MemberRemove", rpc_pb2.MemberRemoveRequest, rpc_pb2.MemberRemoveResponse, False
)
MEMBER_UPDATE = Rpc(
    "/etcdserverpb.Cluster/MemberUpdate", rpc_pb2.MemberUpdateRequest, rpc_pb2.MemberUpdateResponse, False
)
MEMBER_PROMOTE = Rpc(
    "/etcdserverpb.Cluster/MemberPromote", rpc_pb2.MemberPromoteRequest, rpc_pb2.MemberPromoteResponse, False
)
STATUS = Rpc("/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest, rpc_pb2.StatusResponse, True, False)
ALARM = Rpc("/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmRequest, rpc_pb2.AlarmResponse, False)
SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"
DEFRAGMENT = Rpc(
    "/etcdserverpb.Maintenance/Defragment", rpc_pb2.DefragmentRequest, rpc_pb2.DefragmentResponse, False, False
)
HASH_KV = Rpc("/etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVRequest, rpc_pb2.HashKVResponse, True, False)
AUTHENTICATE = Rpc(
    # Asked twice, it gives two tokens, and that is harmless.
    "/etcdserverpb.Auth/Authenticate",
    rpc_pb2.AuthenticateRequest,
    rpc_pb2.AuthenticateResponse,
    True,
)
MOVE_LEADER = Rpc("/etcdserverpb.Maintenance/MoveLeader", rpc_pb2.MoveLeaderRequest, rpc_pb2.MoveLeaderResponse, False)

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Who may be asked again is decided in `failover`, not in the library.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # Without its own pool a channel would wait out the back-off of another one to the same address.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A member that vanished says nothing: a call that waits must ask. etcd tolerates a ping every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without it a ping is waited for a minute, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)

LEADER_METADATA = (("hasleader", "true"),)


def metadata(rpc: Rpc[Q, A]) -> tuple[tuple[str, str], ...]:
    """What goes along with a request."""
    return LEADER_METADATA if rpc.leader else ()


def as_bytes(value: Key) -> bytes:
    """Text as UTF-8."""
    return value.encode() if isinstance(value, str) else value


def prefix_end(prefix: bytes) -> bytes:
    """The range_end that makes a range of all keys with this prefix.

    >>> prefix_end(b"a"), prefix_end(b"a\\xff"), prefix_end(b"")
    (b'b', b'b', b'\\x00')
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def key_range(key: Key, range_end: Key | None = None, *, prefix: bool = False) -> tuple[bytes, bytes]:
    """Key and range_end of one key, of [key, range_end), or of all keys with a prefix.

    >>> key_range("a"), key_range("a", "c"), key_range("a", prefix=True), key_range("", prefix=True)
    ((b'a', b''), (b'a', b'c'), (b'a', b'b'), (b'\\x00', b'\\x00'))

    Raises:
        ValueError: both `range_end` and `prefix`.
    """
    first = as_bytes(key)
    if not prefix:
        return first, as_bytes(range_end or b"")
    if range_end is not None:
        raise ValueError("a range has either a range_end or a prefix")
    return first or b"\0", prefix_end(first)


SECURED = "https://"


def target(endpoint: str, *, secured: bool = False) -> str:
    """host:port of an endpoint that may be written as a URL; https:// stays, and is put where `secured` says so.

    Raises:
        ValueError: a socket with TLS; or no port.
    """
    if endpoint.startswith("unixs:"):
        raise ValueError(f"endpoint {endpoint}: TLS on Unix sockets is not supported, use https://")
    if endpoint.startswith("unix:"):
        return endpoint
    if endpoint.startswith(SECURED) or (secured and not endpoint.startswith("http://")):
        return SECURED + target("http://" + endpoint.removeprefix(SECURED))
    address = endpoint.removeprefix("http://").rstrip("/")
    if "/" in address:
        raise ValueError(f"endpoint {endpoint} is no address: write host:port, http://host:port or https://host:port")
    if not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"endpoint {endpoint} has no port: write host:port or http://host:port")
    return address


def targets(endpoints: str | Iterable[str], *, secured: bool = False) -> list[str]:
    """Targets of one endpoint, a comma-separated list, or several.

    Raises:
        ValueError: none, or one that cannot be used.
    """
    if isinstance(endpoints, str):
        endpoints = endpoints.split(",")
    found = [target(endpoint.strip(), secured=secured) for endpoint in endpoints if endpoint.strip()]
    if not found:
        raise ValueError("no endpoints given")
    return list(dict.fromkeys(found))


def range_rpc(request: rpc_pb2.RangeRequest) -> Rpc[rpc_pb2.RangeRequest, rpc_pb2.RangeResponse]:
    """How to call Range: a serializable one needs no leader."""
    return SERIALIZABLE_RANGE if request.serializable else RANGE


def txn_rpc(request: rpc_pb2.TxnRequest) -> Rpc[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse]:
    """How to call Txn: one that only reads may be repeated."""
    return READ_TXN if _reads_only(request) else TXN


def _reads_only(request: rpc_pb2.TxnRequest) -> bool:
    for op in (*request.success, *request.failure):
        kind = op.WhichOneof("request")
        if kind == "request_txn":
            if not _reads_only(op.request_txn):
                return False
        elif kind != "request_range":
            return False
    return True


def watch_request(
    key: Key,
    range_end: Key | None,
    *,
    prefix: bool,
    start_revision: int,
    prev_kv: bool,
    progress_notify: bool,
    puts: bool,
    deletes: bool,
) -> rpc_pb2.WatchCreateRequest:
    """A watcher of one key, of [key, range_end), or of all keys with a prefix.

    Raises:
        ValueError: a negative revision, or both `range_end` and `prefix`.
    """
    if start_revision < 0:
        raise ValueError("a watch starts at a revision from 1 on; 0 is now")
    first, end = key_range(key, range_end, prefix=prefix)
    kind = rpc_pb2.WatchCreateRequest
    filters = [unwanted for unwanted, wanted in ((kind.NOPUT, puts), (kind.NODELETE, deletes)) if not wanted]
    return kind(
        key=first,
        range_end=end,
        start_revision=start_revision,
        prev_kv=prev_kv,
        progress_notify=progress_notify,
        filters=filters,
    )


class Pages:
    """Cuts a range in key order into pages, all at the revision of the first.

    Use: send `request`, hand the answer to `take`, until it says that there is no more. A page has a few keys at first
    and then as many as make about `page_bytes`, whatever the size of the values.
    """

    FIRST_KEYS = 64
    MAX_KEYS = 10_000

    def __init__(self, request: rpc_pb2.RangeRequest, *, page_bytes: int = 1 << 20) -> None:
        """`request` is not changed; its limit counts over all pages.

        Raises:
            ValueError: an order other than by ascending key.
        """
        by_key = request.sort_target == rpc_pb2.RangeRequest.KEY and request.sort_order != rpc_pb2.RangeRequest.DESCEND
        if not by_key:
            raise ValueError("pages come in ascending order of keys")
        self.request = rpc_pb2.RangeRequest()
        self.request.CopyFrom(request)
        self._limit = max(request.limit, 0)
        self._taken = 0
        self._page_bytes = page_bytes
        self._set_limit(self.FIRST_KEYS)

    def take(self, response: rpc_pb2.RangeResponse) -> bool:
        """Make `request` the next page; False when this was the last."""
        keys = len(response.kvs)
        self._taken += keys
        if not response.more or not keys or (self._limit and self._taken >= self._limit):
            return False
        self.request.key = response.kvs[-1].key + b"\0"
        self.request.revision = self.request.revision or response.header.revision
        self._set_limit(keys * self._page_bytes // max(response.ByteSize(), 1))
        return True

    def _set_limit(self, keys: int) -> None:
        keys = min(max(keys, 1), self.MAX_KEYS)
        self.request.limit = min(keys, self._limit - self._taken) if self._limit else keys
