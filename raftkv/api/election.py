"""v3electionpb.Election: leaders of applications, one at a time, in the order in which they stood."""

from collections.abc import AsyncIterator

from raftkv import errors
from raftkv.api import guard, turns
from raftkv.api.guard import Limits
from raftkv.api.kv import decode
from raftkv.pb import kv_pb2
from raftkv.pb import v3election_pb2 as pb
from raftkv.rpc import Context, Method
from raftkv.server.server import Server

NO_LEADER = "election: no leader"
NOT_LEADER = "election: not leader"
NO_KEY = '"leader" field must be provided'


class ElectionService:
    """Campaign, Proclaim, Leader, Observe and Resign."""

    def __init__(self, server: Server, limits: Limits) -> None:
        self._server = server
        self._limits = limits

    def methods(self) -> dict[str, Method]:
        """The service's method table; Campaign is served as a stream of one answer, for the reasons of Lock."""
        prefix = "/v3electionpb.Election/"
        return {
            prefix + "Campaign": Method.server_stream(self.campaign),
            prefix + "Proclaim": Method.unary(self.proclaim),
            prefix + "Leader": Method.unary(self.leader),
            prefix + "Observe": Method.server_stream(self.observe),
            prefix + "Resign": Method.unary(self.resign),
        }

    async def campaign(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Stand, and wait until elected; never elected is who lost the lease meanwhile."""
        wanted = turns.bounded(pb.CampaignRequest, request, self._limits)
        server = self._server
        lease_id = await turns.session(server, wanted.lease, context)
        turn = turns.Turn(server, wanted.name, lease_id, context)
        entered = await turn.enter(wanted.value)
        key = pb.LeaderKey(name=wanted.name, key=turn.key, rev=turn.create_revision, lease=lease_id)
        if not turn.created and entered.responses[0].response_range.kvs[0].value != wanted.value:
            await self._proclaim(key, wanted.value, context)
        elected = False
        try:
            elected = await turn.wait()
        finally:
            if not elected:
                turn.leave()
        if not elected:
            raise turns.failed(NOT_LEADER)
        yield turns.answer(server, pb.CampaignResponse(leader=key), entered.header.revision)

    async def proclaim(self, request: bytes, context: Context) -> list[bytes]:
        """Change what the leader says, if it still leads."""
        wanted = turns.bounded(pb.ProclaimRequest, request, self._limits)
        return [await self._proclaim(_leader_key(wanted), wanted.value, context)]

    async def _proclaim(self, key: pb.LeaderKey, value: bytes, context: Context) -> bytes:
        txn = turns.guarded(key.key, key.rev)
        put = txn.success.add().request_put
        put.key, put.value, put.lease = key.key, value, key.lease
        # A caller that does not name its lease keeps it.
        put.ignore_lease = not key.lease
        response = await turns.transact(self._server, txn, context)
        if not response.succeeded:
            raise turns.failed(NOT_LEADER)
        return turns.answer(self._server, pb.ProclaimResponse(), response.header.revision)

    async def resign(self, request: bytes, context: Context) -> list[bytes]:
        """Give leadership up; one that is lost already is no error."""
        key = _leader_key(turns.bounded(pb.ResignRequest, request, self._limits))
        txn = turns.guarded(key.key, key.rev)
        txn.success.add().request_delete_range.key = key.key
        response = await turns.transact(self._server, txn, context)
        return [turns.answer(self._server, pb.ResignResponse(), response.header.revision)]

    async def leader(self, request: bytes, context: Context) -> list[bytes]:
        """Who leads now."""
        name = decode(pb.LeaderRequest, request).name
        await self._server.linearizable()
        with turns.codeless():
            await turns.check_read(self._server, name + b"/", context)
        revision = self._server.store.revision
        kv = await turns.oldest(self._server, name + b"/")
        if kv is None:
            raise turns.failed(NO_LEADER)
        return [turns.answer(self._server, pb.LeaderResponse(kv=kv), revision)]

    async def observe(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Tell who leads, everything it says, and who leads next; of leaders in quick succession the last is told."""
        prefix = decode(pb.LeaderRequest, request).name + b"/"
        server = self._server
        guard.end_without_leader(server, context)
        await server.linearizable()
        with turns.codeless():
            await turns.check_read(server, prefix, context)
        told = (b"", 0)
        while True:
            revision = server.store.revision
            leader = await turns.oldest(server, prefix)
            if leader is None:
                with turns.Changes(server, prefix, turns.prefix_end(prefix), after=revision) as changes:
                    await changes.next()
                continue
            if (leader.key, leader.mod_revision) != told:
                turns.check_read_still(server, prefix, context)
                yield turns.answer(server, pb.LeaderResponse(kv=leader), revision)
            # It leads as long as its key is there: whoever comes is younger.
            told = leader.key, leader.mod_revision
            with turns.Changes(server, leader.key, after=revision) as changes:
                async for kv in _said(changes):
                    told = kv.key, kv.mod_revision
                    turns.check_read_still(server, prefix, context)
                    yield turns.answer(server, pb.LeaderResponse(kv=kv), server.store.revision)


async def _said(changes: turns.Changes) -> AsyncIterator[kv_pb2.KeyValue]:
    """What is put to a key until it is deleted, or its history is lost."""
    while (events := await changes.next()) is not None:
        for event in events:
            if event.type == kv_pb2.Event.DELETE:
                return
            yield event.kv


def _leader_key(request: pb.ProclaimRequest | pb.ResignRequest) -> pb.LeaderKey:
    if not request.HasField("leader"):
        raise turns.failed(NO_KEY)
    if not request.leader.key:
        # What is made of it goes into the log as a transaction that no check has seen.
        raise turns.failed(errors.EmptyKey.TEXT)
    return request.leader
