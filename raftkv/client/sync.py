"""The client for threads."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from raftkv.client import requests as req
from raftkv.client.errors import ClientError, classify, may_retry
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.status import Code

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class Client:
    """A cluster, reached through any of its endpoints.

    A call goes to the endpoint that answered last. When that one cannot be reached the others are tried: for reads
    always, for writes only if the request provably was not sent. Thread-safe.
    """

    def __init__(self, endpoints: str | Iterable[str] = "localhost:2379", *, timeout: float = 5.0) -> None:
        """`endpoints`: host:port or http:// URLs, in a list or comma-separated; `timeout`: seconds for a call.

        Raises:
            ValueError: an endpoint that cannot be used.
        """
        self._targets = req.targets(endpoints)
        self._timeout = timeout
        self._current = 0
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def call(self, rpc: req.Rpc[Q, A], request: Q, *, timeout: float | None = None) -> A:
        """Make a call, at another endpoint if that is safe.

        Raises:
            ClientError: see `raftkv.client.errors`.
        """
        last: ClientError | None = None
        for _ in self._targets:
            try:
                return self._call(self._targets[self._current], rpc, request, timeout or self._timeout)
            except grpc.RpcError as error:
                code, message = Code(error.code().value[0]), error.details() or ""
                last = classify(code, message, read=rpc.read)
                last.__cause__ = error
                if not may_retry(code, message, read=rpc.read):
                    break
                self._current = (self._current + 1) % len(self._targets)
        assert last is not None
        raise last

    def _call(self, target: str, rpc: req.Rpc[Q, A], request: Q, timeout: float) -> A:
        channel = self._channels.get(target)
        if channel is None:
            channel = self._channels[target] = grpc.insecure_channel(target, options=list(req.CHANNEL_OPTIONS))
        method = channel.unary_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        response: A = method(request, timeout=timeout)
        return response

    def get(self, key: str | bytes, *, revision: int = 0, serializable: bool = False) -> kv_pb2.KeyValue | None:
        """One key, or None; at an old `revision` if one is given."""
        kvs = self.range(key, revision=revision, serializable=serializable).kvs
        return kvs[0] if kvs else None

    def range(
        self,
        key: str | bytes,
        range_end: str | bytes | None = None,
        *,
        prefix: bool = False,
        limit: int = 0,
        revision: int = 0,
        serializable: bool = False,
    ) -> rpc_pb2.RangeResponse:
        """Keys of [key, range_end), or all with a prefix; linearizable unless `serializable`."""
        request = req.range_request(
            key, range_end, prefix=prefix, limit=limit, revision=revision, serializable=serializable
        )
        return self.call(req.RANGE, request)

    def pages(self, request: rpc_pb2.RangeRequest, page: int = 1000) -> Iterator[rpc_pb2.RangeResponse]:
        """A range in key order, page by page, all pages at the revision of the first.

        Its `count` and `more` are those of the whole range on the first page only.
        """
        wanted = rpc_pb2.RangeRequest()
        wanted.CopyFrom(request)
        left = request.limit
        while True:
            wanted.limit = min(page, left) if left else page
            response = self.call(req.RANGE, wanted)
            yield response
            left -= len(response.kvs) if left else 0
            if not response.more or (request.limit and not left):
                return
            wanted.key = response.kvs[-1].key + b"\0"
            wanted.revision = wanted.revision or response.header.revision

    def put(
        self, key: str | bytes, value: str | bytes, *, lease: int = 0, prev_kv: bool = False
    ) -> rpc_pb2.PutResponse:
        """Write one key."""
        request = rpc_pb2.PutRequest(key=req.as_bytes(key), value=req.as_bytes(value), lease=lease, prev_kv=prev_kv)
        return self.call(req.PUT, request)

    def delete(
        self, key: str | bytes, range_end: str | bytes | None = None, *, prefix: bool = False, prev_kv: bool = False
    ) -> rpc_pb2.DeleteRangeResponse:
        """Delete one key, [key, range_end), or all keys with a prefix."""
        first = req.as_bytes(key)
        end = req.prefix_end(first) if prefix else req.as_bytes(range_end or b"")
        return self.call(
            req.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=first or b"\0", range_end=end, prev_kv=prev_kv)
        )

    def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        """Run a transaction."""
        return self.call(req.TXN, request)

    def compact(self, revision: int, *, physical: bool = False) -> rpc_pb2.CompactionResponse:
        """Give up history below `revision`."""
        return self.call(req.COMPACT, rpc_pb2.CompactionRequest(revision=revision, physical=physical))

    def member_list(self) -> rpc_pb2.MemberListResponse:
        """Who the members are."""
        return self.call(req.MEMBER_LIST, rpc_pb2.MemberListRequest())

    def status(self) -> rpc_pb2.StatusResponse:
        """What the member behind the current endpoint says of itself."""
        return self.call(req.STATUS, rpc_pb2.StatusRequest())
