"""The client for threads."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from raftkv import errors
from raftkv.client import requests as req
from raftkv.client.failover import Attempts, Rotation
from raftkv.client.requests import Key
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.status import Code

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class _Link:
    """A channel to one target, and whether it is connected right now."""

    _SETTLED = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE)

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, options=list(req.CHANNEL_OPTIONS))
        self._changed = threading.Condition()
        self._state: grpc.ChannelConnectivity | None = None
        self._was_ready = False
        self.channel.subscribe(self._take, try_to_connect=True)

    def ready(self, seconds: float) -> bool:
        """Wait for a connection; False when it is refused or takes longer."""
        with self._changed:
            if self._was_ready and self._state is grpc.ChannelConnectivity.IDLE:
                # A connection that was lost is not made again unasked.
                self._was_ready = False
                self.channel.unsubscribe(self._take)
                self.channel.subscribe(self._take, try_to_connect=True)
            self._changed.wait_for(lambda: self._state in self._SETTLED, seconds)
            return self._state is grpc.ChannelConnectivity.READY

    def close(self) -> None:
        self.channel.close()

    def _take(self, state: grpc.ChannelConnectivity) -> None:
        with self._changed:
            self._state = state
            self._was_ready |= state is grpc.ChannelConnectivity.READY
            self._changed.notify_all()


class Client:
    """A cluster, reached through any of its endpoints. Thread-safe; one connection per endpoint used.

    All methods raise `ClientError` (see `raftkv.client.errors`), and follow the rules of `raftkv.client.failover`:
    what provably was not sent and what only reads may go to another endpoint, a write that was sent never does.
    """

    def __init__(
        self, endpoints: str | Iterable[str] = "localhost:2379", *, timeout: float = 5.0, dial_timeout: float = 2.0
    ) -> None:
        """Nothing is connected yet.

        endpoints: host:port or http:// URLs, several or comma-separated. timeout: seconds for a whole call.
        dial_timeout: seconds to find an endpoint that can be reached, shared evenly between them.

        Raises:
            ValueError: an endpoint that cannot be used.
        """
        self._rotation = Rotation(req.targets(endpoints))
        self._timeout = timeout
        self._dial_timeout = dial_timeout
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls under way end as if their connection had broken."""
        with self._lock:
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()

    def call(self, rpc: req.Rpc[Q, A], request: Q, *, timeout: float | None = None, endpoint: str | None = None) -> A:
        """Make any unary call; with `endpoint`, at that one only."""
        only = req.target(endpoint) if endpoint else None
        attempts = Attempts(
            self._rotation,
            read=rpc.read,
            now=time.monotonic(),
            timeout=self._timeout if timeout is None else timeout,
            dial_timeout=self._dial_timeout,
            only=only,
        )
        while True:
            target = attempts.target
            link = self._link(target)
            if link.ready(attempts.connect_seconds(time.monotonic())):
                try:
                    return self._send(link, rpc, request, attempts.call_seconds(time.monotonic()))
                except grpc.RpcError as error:
                    code, message = Code(error.code().value[0]), error.details() or ""
                    pause = attempts.failed(target, code, message, time.monotonic())
            else:
                pause = attempts.unconnected(target, time.monotonic())
            time.sleep(pause)

    def _link(self, target: str) -> _Link:
        with self._lock:
            link = self._links.get(target)
            if link is None:
                link = self._links[target] = _Link(target)
            return link

    def _send(self, link: _Link, rpc: req.Rpc[Q, A], request: Q, seconds: float) -> A:
        method = link.channel.unary_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        response: A = method(request, timeout=seconds, metadata=req.metadata(rpc))
        return response

    def get(self, key: Key, *, revision: int = 0, serializable: bool = False) -> kv_pb2.KeyValue | None:
        """One key, or None; at an old `revision` if one is given."""
        kvs = self.range(key, revision=revision, serializable=serializable).kvs
        return kvs[0] if kvs else None

    def range(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        prefix: bool = False,
        limit: int = 0,
        revision: int = 0,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> rpc_pb2.RangeResponse:
        """One key, [key, range_end), or all keys with a prefix, in one answer; linearizable unless `serializable`."""
        first, end = req.key_range(key, range_end, prefix=prefix)
        request = rpc_pb2.RangeRequest(
            key=first,
            range_end=end,
            limit=limit,
            revision=revision,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
        )
        return self.call(req.range_rpc(request), request)

    def pages(self, request: rpc_pb2.RangeRequest, *, page_bytes: int = 1 << 20) -> Iterator[rpc_pb2.RangeResponse]:
        """A range in key order, page by page, all at the revision of the first; the timeout is for each page.

        `count` and `more` of a page speak of the rest of the range from that page on.

        Raises:
            ValueError: an order other than by ascending key.
        """
        pages = req.Pages(request, page_bytes=page_bytes)
        while True:
            response = self.call(req.range_rpc(pages.request), pages.request)
            yield response
            if not pages.take(response):
                return

    def put(self, key: Key, value: Key, *, lease: int = 0, prev_kv: bool = False) -> rpc_pb2.PutResponse:
        """Write one key."""
        request = rpc_pb2.PutRequest(key=req.as_bytes(key), value=req.as_bytes(value), lease=lease, prev_kv=prev_kv)
        return self.call(req.PUT, request)

    def delete(
        self, key: Key, range_end: Key | None = None, *, prefix: bool = False, prev_kv: bool = False
    ) -> rpc_pb2.DeleteRangeResponse:
        """Delete one key, [key, range_end), or all keys with a prefix."""
        first, end = req.key_range(key, range_end, prefix=prefix)
        return self.call(req.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=first, range_end=end, prev_kv=prev_kv))

    def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        """Run a transaction."""
        return self.call(req.txn_rpc(request), request)

    def compact(self, revision: int, *, physical: bool = False) -> rpc_pb2.CompactionResponse:
        """Give up history below `revision`; with `physical`, return when the member has removed it."""
        return self.call(req.COMPACT, rpc_pb2.CompactionRequest(revision=revision, physical=physical))

    def member_list(self) -> rpc_pb2.MemberListResponse:
        """Who the members are."""
        return self.call(req.MEMBER_LIST, rpc_pb2.MemberListRequest())

    def status(self, endpoint: str | None = None) -> rpc_pb2.StatusResponse:
        """What the member behind an endpoint says of itself; without one, any member that answers."""
        return self.call(req.STATUS, rpc_pb2.StatusRequest(), endpoint=endpoint)

    def health(self, endpoint: str | None = None) -> float:
        """Seconds that a linearizable read took; raises when it fails. A read that is not permitted is healthy too."""
        started = time.monotonic()
        with contextlib.suppress(errors.PermissionDenied):
            self.call(req.RANGE, rpc_pb2.RangeRequest(key=b"health"), endpoint=endpoint)
        return time.monotonic() - started
