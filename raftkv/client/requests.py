"""RPCs as data, and helpers to write key ranges: shared by both clients."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from raftkv.pb import rpc_pb2

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Q, A]):
    """One unary RPC; `read` says that repeating it is harmless."""

    path: str
    request: type[Q]
    response: type[A]
    read: bool


RANGE = Rpc("/etcdserverpb.KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, True)
PUT = Rpc("/etcdserverpb.KV/Put", rpc_pb2.PutRequest, rpc_pb2.PutResponse, False)
DELETE_RANGE = Rpc("/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse, False)
TXN = Rpc("/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse, False)
COMPACT = Rpc("/etcdserverpb.KV/Compact", rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse, False)
MEMBER_LIST = Rpc("/etcdserverpb.Cluster/MemberList", rpc_pb2.MemberListRequest, rpc_pb2.MemberListResponse, True)
STATUS = Rpc("/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest, rpc_pb2.StatusResponse, True)

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # The library's own retries would repeat writes behind our back.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def as_bytes(value: str | bytes) -> bytes:
    """Text as UTF-8."""
    return value.encode() if isinstance(value, str) else value


def prefix_end(prefix: bytes) -> bytes:
    """The range_end that makes a range of all keys with this prefix.

    >>> prefix_end(b"a"), prefix_end(b"a\\xff"), prefix_end(b"")
    (b'b', b'b', b'\\x00')
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def target(endpoint: str) -> str:
    """host:port of an endpoint that may be written as a URL.

    Raises:
        ValueError: https, which needs TLS.
    """
    if endpoint.startswith("https://"):
        raise ValueError(f"endpoint {endpoint}: TLS is not supported yet; use http://")
    return endpoint.removeprefix("http://")


def targets(endpoints: str | Iterable[str]) -> list[str]:
    """Targets of one endpoint, a comma-separated list, or several."""
    if isinstance(endpoints, str):
        endpoints = endpoints.split(",")
    found = [target(endpoint.strip()) for endpoint in endpoints if endpoint.strip()]
    if not found:
        raise ValueError("no endpoints given")
    return found


def range_request(
    key: str | bytes, range_end: str | bytes | None, *, prefix: bool, limit: int, revision: int, serializable: bool
) -> rpc_pb2.RangeRequest:
    """Build a Range; with `prefix`, of all keys that begin with `key`."""
    first = as_bytes(key)
    end = prefix_end(first) if prefix else as_bytes(range_end or b"")
    return rpc_pb2.RangeRequest(
        key=first or b"\0", range_end=end, limit=limit, revision=revision, serializable=serializable
    )
