"""etcdserverpb.Lease: leases and what keeps them alive; and the same for other members, at the leader."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from raftkv import errors
from raftkv.api.access import caller, check_user
from raftkv.api.kv import decode
from raftkv.lease import MAX_TTL_SECONDS
from raftkv.mvcc import validate
from raftkv.mvcc.encoding import varint
from raftkv.pb import peer_pb2, rpc_pb2
from raftkv.peer import Reception
from raftkv.rpc import Context, Incoming, Method
from raftkv.server.corruption import PEER_HASH_KV, hash_kv_to_come
from raftkv.server.leases import PEER_RENEW, PEER_TIME_TO_LIVE, Leases
from raftkv.server.proposals import LEASE_GRANT, LEASE_REVOKE
from raftkv.server.server import Server
from raftkv.status import Code, StatusError

LEASE_BYTES = 64
"""What a lease costs of the quota, as in etcd."""
LEASES_PER_TURN = 500
"""Looked at in one turn of the loop."""
RENEWALS_TOGETHER = 1024
"""Of one stream, and as many as are read ahead; those that come later wait until these are answered."""


class LeaseService:
    """LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive and LeaseLeases."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._leases = server.leases
        self._rng = server.rng
        self._auth = server.auth

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        prefix = "/etcdserverpb.Lease/"
        return {
            prefix + "LeaseGrant": Method.unary(self.grant),
            prefix + "LeaseRevoke": Method.unary(self.revoke),
            prefix + "LeaseKeepAlive": Method.bidi(self.keep_alive),
            prefix + "LeaseTimeToLive": Method.unary(self.time_to_live),
            prefix + "LeaseLeases": Method.unary(self.leases),
        }

    async def grant(self, request: bytes, context: Context) -> list[bytes]:
        """Make a lease; what members could see differently is settled here, before the log: its id and least time."""
        wanted = decode(rpc_pb2.LeaseGrantRequest, request)
        if wanted.TTL > MAX_TTL_SECONDS:
            raise errors.LeaseTTLTooLarge
        await self._server.admit(validate.LEASE_BYTES)
        wanted.TTL = max(wanted.TTL, self._leases.min_ttl_seconds)
        wanted.ID = wanted.ID or self._free_id()
        await self._server.admit(LEASE_BYTES)
        return await self._server.propose(LEASE_GRANT, wanted.SerializeToString(), context.caller)

    def _free_id(self) -> int:
        while True:
            lease_id = self._rng.getrandbits(63)
            if lease_id and not self._leases.store.exists(lease_id):
                return lease_id

    async def revoke(self, request: bytes, context: Context) -> list[bytes]:
        """End a lease and delete its keys."""
        decode(rpc_pb2.LeaseRevokeRequest, request)
        return await self._server.propose(LEASE_REVOKE, request, context.caller)

    async def keep_alive(self, requests: Incoming, context: Context) -> AsyncIterator[bytes]:
        """Renew leases; answers come in the order of the requests, and those that are here together share a round.

        Raises:
            NoLeader, Timeout, Stopped: a lease could not be renewed, nor is it known to be gone.
        """
        under_way: deque[tuple[bytes, asyncio.Future[int]]] = deque()
        refused: StatusError | None = None
        ended = False
        try:
            while not ended:
                try:
                    under_way.append(await self._renew(await anext(requests), context))
                    if requests.more() and len(under_way) < RENEWALS_TOGETHER:
                        continue
                except StopAsyncIteration:
                    ended = True
                except StatusError as error:
                    # What came before it is answered first.
                    refused, ended = error, True
                while under_way:
                    head, future = under_way[0]
                    ttl = await future
                    under_way.popleft()
                    yield head + (b"\x18" + varint(ttl) if ttl else b"")
            if refused is not None:
                raise refused
        finally:
            # The error knows this frame: together they would wait for the collector.
            refused = None
            for _, future in under_way:
                future.cancel()

    async def _renew(self, request: bytes, context: Context) -> tuple[bytes, "asyncio.Future[int]"]:
        """Ask for a renewal: its answer but for the time to live, which is still to come."""
        wanted = decode(rpc_pb2.LeaseKeepAliveRequest, request)
        lease_id = wanted.ID
        if self._auth.enabled:
            await self._authorise_renewal(wanted, context)
        if context.note is not None:
            context.note(wanted, Code.OK)
        # The header is of the moment before: the lease existed at that revision.
        head = self._server.header() + (b"\x10" + varint(lease_id) if lease_id else b"")
        return head, self._leases.renew(lease_id)

    async def _authorise_renewal(self, wanted: rpc_pb2.LeaseKeepAliveRequest, context: Context) -> None:
        server = self._server
        try:
            context.caller = await server.authority.identify(context.metadata, context.certificate_user)
            server.rules.check_renewal(caller(context), wanted.ID)
        except errors.EtcdError as error:
            if context.note is not None:
                context.note(wanted, error.code)
            raise

    async def time_to_live(self, request: bytes, context: Context) -> list[bytes]:
        """Tell what is left of a lease and, if asked, its keys, to whom may read all of them."""
        body = await self._leases.time_to_live(decode(rpc_pb2.LeaseTimeToLiveRequest, request))
        if self._auth.enabled:
            keys = rpc_pb2.LeaseTimeToLiveResponse.FromString(body).keys
            await self._server.linearizable()
            self._check_keys(context, keys)
        return [self._server.header(), body]

    def _check_keys(self, context: Context, keys: Iterable[bytes]) -> None:
        self._auth.check_user(caller(context))
        if keys:
            self._server.rules.check_keys_read(caller(context), keys)

    async def leases(self, request: bytes, context: Context) -> list[bytes]:
        """List the leases this member knows; at the leader, those that expire soonest first.

        Only for whom may read the keys of all of them, as in etcd.
        """
        if self._auth.enabled:
            await self._check_all_leases(context)
        header, soonest_first = self._server.header(), self._leases.lessor.soonest_first()
        return [header, await asyncio.to_thread(_listed, soonest_first)]

    async def _check_all_leases(self, context: Context) -> None:
        await check_user(self._server, caller(context))
        for place, lease in enumerate(list(self._leases.store.leases.values()), 1):
            self._check_keys(context, lease.keys or ())
            if not place % LEASES_PER_TURN:
                await asyncio.sleep(0)


def _listed(soonest_first: Callable[[], list[int]]) -> bytes:
    leases = [rpc_pb2.LeaseStatus(ID=lease_id) for lease_id in soonest_first()]
    return rpc_pb2.LeaseLeasesResponse(leases=leases).SerializeToString()


def peer_methods(cluster_id: int, member_id: int, server: Callable[[], Server | None]) -> dict[str, Method]:
    """What other members ask of the leader; a member that has not started yet is not it."""
    reception = Reception(cluster_id, member_id)

    def leases(context: Context) -> Leases:
        reception.sender(context)
        started = server()
        if started is None:
            raise errors.NotLeader
        return started.leases

    async def renew(request: bytes, context: Context) -> bytes:
        ids = decode(peer_pb2.LeaseRenewRequest, request).ids
        return peer_pb2.LeaseRenewResponse(ttls=await leases(context).renew_here(ids)).SerializeToString()

    async def time_to_live(request: bytes, context: Context) -> bytes:
        return await leases(context).time_to_live_here(decode(rpc_pb2.LeaseTimeToLiveRequest, request))

    async def hashed(request: bytes, context: Context) -> bytes:
        reception.sender(context)
        started = server()
        if started is None:
            raise errors.Stopped
        found, crc = await hash_kv_to_come(started, decode(rpc_pb2.HashKVRequest, request).revision)
        answer = rpc_pb2.HashKVResponse(hash=crc, compact_revision=found.compacted_revision)
        return answer.SerializeToString()

    return {
        PEER_RENEW: Method.unary(renew),
        PEER_TIME_TO_LIVE: Method.unary(time_to_live),
        PEER_HASH_KV: Method.unary(hashed),
    }
