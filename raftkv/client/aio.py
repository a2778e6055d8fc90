"""The client for asyncio."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from raftkv import errors
from raftkv.client import requests as req
from raftkv.client.errors import ClientError, classify
from raftkv.client.failover import Attempts, Rotation
from raftkv.client.login import RENEWALS, Login, Metadata
from raftkv.client.login import metadata as token_metadata
from raftkv.client.requests import Key
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.status import Code

# What a call or two needs is imported by the method that needs it: the start of raftctl pays for no more.
if TYPE_CHECKING:
    from raftkv.client.electing import AsyncElection
    from raftkv.client.leasing import AsyncLease, KeepAlive
    from raftkv.client.locking import AsyncLock
    from raftkv.client.secure import ClientTls
    from raftkv.client.stm import AsyncTransaction
    from raftkv.client.watching import AsyncWatch

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
T = TypeVar("T")


async def _ready(channel: grpc.aio.Channel, seconds: float) -> bool:
    """Wait for a connection; False when it is refused or takes longer, or when another call gave the channel up."""
    with contextlib.suppress(TimeoutError, grpc.aio.UsageError):
        async with asyncio.timeout(seconds):
            while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
                await channel.wait_for_state_change(state)
            return True
    return False


class AsyncClient:
    """A cluster, reached through any of its endpoints; the methods, rules and errors of `raftkv.client.Client`.

    Belongs to the event loop that runs when it is first used.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "localhost:2379",
        *,
        timeout: float = 5.0,
        dial_timeout: float = 2.0,
        user: str = "",
        password: str = "",
        tls: "ClientTls | None" = None,
    ) -> None:
        """Nothing is connected yet.

        endpoints: host:port, http:// or https:// URLs, several or comma-separated; with `tls` host:port is https, too.
        timeout: seconds for a whole call.
        dial_timeout: seconds to find an endpoint that can be reached, shared evenly between them. user, password: who
        calls; the client logs in when it is first needed, and again when its token is void.

        Raises:
            ValueError: an endpoint that cannot be used.
        """
        self._tls = tls
        self._rotation = Rotation(req.targets(endpoints, secured=tls is not None))
        self._timeout = timeout
        self._dial_timeout = dial_timeout
        self._channels: dict[str, grpc.aio.Channel] = {}
        credentials = rpc_pb2.AuthenticateRequest(name=user, password=password)

        async def log_in() -> str:
            return (await self._call(req.AUTHENTICATE, credentials, self._timeout, None, "")).token

        self._login = Login(user, log_in)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls under way end as if their connection had broken."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close(None)

    async def call(
        self, rpc: req.Rpc[Q, A], request: Q, *, timeout: float | None = None, endpoint: str | None = None
    ) -> A:
        """Make any unary call; with `endpoint`, at that one only."""
        only = req.target(endpoint, secured=self._tls is not None) if endpoint else None
        seconds = self._timeout if timeout is None else timeout
        renewals = 0
        while True:
            token = await self._login.token()
            try:
                return await self._call(rpc, request, seconds, only, token)
            except ClientError as error:
                # What is refused for its token was not carried out.
                if renewals == RENEWALS or not self._login.forget(token, error):
                    raise
                renewals += 1

    async def _call(self, rpc: req.Rpc[Q, A], request: Q, timeout: float, only: str | None, token: str) -> A:
        attempts = Attempts(
            self._rotation,
            read=rpc.read,
            now=time.monotonic(),
            timeout=timeout,
            dial_timeout=self._dial_timeout,
            only=only,
        )
        metadata = (*req.metadata(rpc), *token_metadata(token))
        while True:
            target = attempts.target
            channel = await self._connect(target, attempts.connect_seconds(time.monotonic()))
            if channel is not None:
                try:
                    return await self._send(channel, rpc, request, attempts.call_seconds(time.monotonic()), metadata)
                except grpc.aio.AioRpcError as error:
                    code, message = Code(error.code().value[0]), error.details() or ""
                    pause = attempts.failed(target, code, message, time.monotonic())
            else:
                pause = attempts.unconnected(target, time.monotonic())
            await asyncio.sleep(pause)

    async def _connect(self, target: str, seconds: float) -> grpc.aio.Channel | None:
        """The ready channel to a target; None: it did not become ready in time."""
        if not target.startswith(req.SECURED):
            channel = self._channels.get(target)
            if channel is None:
                channel = self._channels[target] = grpc.aio.insecure_channel(target, options=list(req.CHANNEL_OPTIONS))
            return channel if await _ready(channel, seconds) else None
        until = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                channel = await self._secured(target)
        except OSError:
            return None
        if await _ready(channel, until - time.monotonic()):
            return channel
        # Its files, or the certificate that was expected, may be others by the next attempt.
        if self._channels.get(target) is channel:
            del self._channels[target]
            await channel.close(None)
        return None

    async def _secured(self, target: str) -> grpc.aio.Channel:
        channel = self._channels.get(target)
        if channel is None:
            from raftkv.client.secure import ClientTls

            made = await (self._tls or ClientTls()).channel(target.removeprefix(req.SECURED))
            # Another call may have been faster.
            channel = self._channels.setdefault(target, made)
            if channel is not made:
                await made.close(None)
        return channel

    async def _send(
        self, channel: grpc.aio.Channel, rpc: req.Rpc[Q, A], request: Q, seconds: float, metadata: Metadata
    ) -> A:
        method = channel.unary_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        response: A = await method(request, timeout=seconds, metadata=metadata)
        return response

    async def get(self, key: Key, *, revision: int = 0, serializable: bool = False) -> kv_pb2.KeyValue | None:
        """One key, or None; at an old `revision` if one is given."""
        kvs = (await self.range(key, revision=revision, serializable=serializable)).kvs
        return kvs[0] if kvs else None

    async def range(
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
        return await self.call(req.range_rpc(request), request)

    async def pages(
        self, request: rpc_pb2.RangeRequest, *, page_bytes: int = 1 << 20
    ) -> AsyncIterator[rpc_pb2.RangeResponse]:
        """A range in key order, page by page, all at the revision of the first; the timeout is for each page.

        `count` and `more` of a page speak of the rest of the range from that page on.

        Raises:
            ValueError: an order other than by ascending key.
        """
        pages = req.Pages(request, page_bytes=page_bytes)
        while True:
            response = await self.call(req.range_rpc(pages.request), pages.request)
            yield response
            if not pages.take(response):
                return

    async def put(self, key: Key, value: Key, *, lease: int = 0, prev_kv: bool = False) -> rpc_pb2.PutResponse:
        """Write one key."""
        request = rpc_pb2.PutRequest(key=req.as_bytes(key), value=req.as_bytes(value), lease=lease, prev_kv=prev_kv)
        return await self.call(req.PUT, request)

    async def delete(
        self, key: Key, range_end: Key | None = None, *, prefix: bool = False, prev_kv: bool = False
    ) -> rpc_pb2.DeleteRangeResponse:
        """Delete one key, [key, range_end), or all keys with a prefix."""
        first, end = req.key_range(key, range_end, prefix=prefix)
        return await self.call(req.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=first, range_end=end, prev_kv=prev_kv))

    async def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        """Run a transaction."""
        return await self.call(req.txn_rpc(request), request)

    async def compact(self, revision: int, *, physical: bool = False) -> rpc_pb2.CompactionResponse:
        """Give up history below `revision`; with `physical`, return when the member has removed it."""
        return await self.call(req.COMPACT, rpc_pb2.CompactionRequest(revision=revision, physical=physical))

    def watch(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        prefix: bool = False,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        puts: bool = True,
        deletes: bool = True,
    ) -> "AsyncWatch":
        """Follow the changes of one key, of [key, range_end), or of all keys with a prefix; 0: from now on.

        It resumes by itself, at another endpoint if need be, without gap or repeat. The timeout does not bound it.

        Raises:
            ValueError: a negative revision, or both `range_end` and `prefix`.
        """
        request = req.watch_request(
            key,
            range_end,
            prefix=prefix,
            start_revision=start_revision,
            prev_kv=prev_kv,
            progress_notify=progress_notify,
            puts=puts,
            deletes=deletes,
        )
        from raftkv.client.watching import AsyncWatch

        return AsyncWatch(self._connected, self._rotation.leave, request, self._login)

    async def _connected(self) -> tuple[str, grpc.aio.Channel]:
        """An endpoint that can be reached, and its ready channel.

        Raises:
            NotConnected: none can, within the dial timeout.
        """
        search = Attempts(
            self._rotation, read=True, now=time.monotonic(), timeout=self._timeout, dial_timeout=self._dial_timeout
        )
        while True:
            target = search.target
            channel = await self._connect(target, search.connect_seconds(time.monotonic()))
            if channel is not None:
                return target, channel
            await asyncio.sleep(search.unconnected(target, time.monotonic()))

    def lease(self, ttl: int, *, on_lost: "Callable[[AsyncLease], None] | None" = None) -> "AsyncLease":
        """A lease of `ttl` seconds for `async with`: kept alive inside, revoked at the end.

        `on_lost` is called, in the event loop, when it has expired or could not be renewed in time.
        """
        from raftkv.client.leasing import AsyncLease

        return AsyncLease(self.lease_grant, self.lease_revoke, self._keep_alive, ttl, on_lost)

    def _keep_alive(self, lease_id: int) -> "KeepAlive":
        from raftkv.client.leasing import KeepAlive

        return KeepAlive(self._connected, self._rotation.leave, lease_id, self._login)

    async def lease_grant(self, ttl: int, lease_id: int = 0) -> rpc_pb2.LeaseGrantResponse:
        """Make a lease of `ttl` seconds; the server chooses its id unless one is given, and may grant more time."""
        return await self.call(req.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=lease_id))

    async def lease_revoke(self, lease_id: int) -> rpc_pb2.LeaseRevokeResponse:
        """End a lease and delete its keys."""
        return await self.call(req.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    async def lease_keep_alive_once(self, lease_id: int) -> rpc_pb2.LeaseKeepAliveResponse:
        """Renew a lease once; raises an error that is also `LeaseNotFound` when there is none."""
        from raftkv.client.leasing import keep_alive_once

        return await keep_alive_once(self._keep_alive(lease_id), self._timeout)

    def lease_keep_alive(self, lease_id: int) -> AsyncIterator[rpc_pb2.LeaseKeepAliveResponse]:
        """Renew a lease again and again, as long as it exists and can be renewed in time; yields each answer."""
        from raftkv.client.leasing import keep_alive_on

        return keep_alive_on(self._keep_alive(lease_id), self._timeout)

    async def lease_time_to_live(self, lease_id: int, *, keys: bool = False) -> rpc_pb2.LeaseTimeToLiveResponse:
        """What is left of a lease, in whole seconds (-1: there is none), and its keys if asked for."""
        return await self.call(req.LEASE_TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys))

    async def leases(self) -> rpc_pb2.LeaseLeasesResponse:
        """All leases, as some member knows them."""
        return await self.call(req.LEASE_LEASES, rpc_pb2.LeaseLeasesRequest())

    def lock(
        self,
        name: Key,
        *,
        ttl: int = 10,
        timeout: float | None = None,
        on_lost: "Callable[[AsyncLock], None] | None" = None,
    ) -> "AsyncLock":
        """A lock for `async with`, held on a lease of `ttl` seconds that is kept alive inside.

        timeout: seconds to wait for those before us (0: do not wait); None: as long as it takes. on_lost is called, in
        the event loop, when the lease is lost.
        """
        from raftkv.client.locking import AsyncLock

        return AsyncLock(self, name, ttl, timeout, on_lost)

    def election(
        self, name: Key, *, ttl: int = 60, on_lost: "Callable[[AsyncElection], None] | None" = None
    ) -> "AsyncElection":
        """An election, to stand in with a lease of `ttl` seconds or to observe.

        `on_lost` is called, in the event loop, when the lease of who stands or leads is lost.
        """
        from raftkv.client.electing import AsyncElection

        return AsyncElection(self, name, ttl, on_lost)

    async def stm(self, body: "Callable[[AsyncTransaction], Awaitable[T]]") -> T:
        """Run a function as a serialisable transaction, again and again until it commits; what it returned.

        It reads and writes through what it is given, and should do nothing else that cannot be done twice.

        Raises:
            OutcomeUnknown: it may have committed; it is not run again.
        """
        from raftkv.client import stm

        return await stm.run(self, body)

    async def member_list(self, *, linearizable: bool = False) -> rpc_pb2.MemberListResponse:
        """Who the members are, as some member knows them or as the cluster agrees now."""
        rpc = req.LINEARIZABLE_MEMBER_LIST if linearizable else req.MEMBER_LIST
        return await self.call(rpc, rpc_pb2.MemberListRequest(linearizable=linearizable))

    async def member_add(self, peer_urls: Iterable[str], *, learner: bool = False) -> rpc_pb2.MemberAddResponse:
        """Add a member that others reach at these URLs: a voter, or a learner that only gets the log."""
        return await self.call(req.MEMBER_ADD, rpc_pb2.MemberAddRequest(peerURLs=peer_urls, isLearner=learner))

    async def member_remove(self, member: int) -> rpc_pb2.MemberRemoveResponse:
        """Remove a member for good."""
        return await self.call(req.MEMBER_REMOVE, rpc_pb2.MemberRemoveRequest(ID=member))

    async def member_update(self, member: int, peer_urls: Iterable[str]) -> rpc_pb2.MemberUpdateResponse:
        """Change the URLs at which the others reach a member."""
        return await self.call(req.MEMBER_UPDATE, rpc_pb2.MemberUpdateRequest(ID=member, peerURLs=peer_urls))

    async def member_promote(self, member: int) -> rpc_pb2.MemberPromoteResponse:
        """Let a learner vote; refused until it has caught up."""
        return await self.call(req.MEMBER_PROMOTE, rpc_pb2.MemberPromoteRequest(ID=member))

    async def status(self, endpoint: str | None = None) -> rpc_pb2.StatusResponse:
        """What the member behind an endpoint says of itself; without one, any member that answers."""
        return await self.call(req.STATUS, rpc_pb2.StatusRequest(), endpoint=endpoint)

    async def snapshot(self) -> AsyncIterator[rpc_pb2.SnapshotResponse]:
        """The store of a member, in pieces; the last piece is the SHA-256 of the others. Without a time limit.

        Raises:
            NotConnected, Unavailable, Refused
        """
        _, channel = await self._connected()
        token = await self._login.token()
        stream = channel.unary_stream(
            req.SNAPSHOT,
            request_serializer=rpc_pb2.SnapshotRequest.SerializeToString,
            response_deserializer=rpc_pb2.SnapshotResponse.FromString,
        )
        try:
            async for piece in stream(rpc_pb2.SnapshotRequest(), metadata=token_metadata(token)):
                yield piece
        except grpc.aio.AioRpcError as error:
            raise classify(Code(error.code().value[0]), error.details() or "", read=True) from error

    async def health(self, endpoint: str | None = None) -> float:
        """Seconds that a linearizable read took; raises when it fails. A read that is not permitted is healthy too."""
        started = time.monotonic()
        with contextlib.suppress(errors.PermissionDenied):
            await self.call(req.RANGE, rpc_pb2.RangeRequest(key=b"health"), endpoint=endpoint)
        return time.monotonic() - started
