"""etcdserverpb.Cluster: who the members are, and who is to be one."""

from collections.abc import Callable

from raftkv import errors
from raftkv.api.kv import decode
from raftkv.pb import peer_pb2, rpc_pb2
from raftkv.peer import Reception
from raftkv.rpc import Context, Method
from raftkv.server.reconfiguration import PEER_CHANGE
from raftkv.server.server import Server


class ClusterService:
    """MemberAdd, MemberRemove, MemberUpdate, MemberPromote and MemberList."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        prefix = "/etcdserverpb.Cluster/"
        return {
            prefix + "MemberAdd": Method.unary(self.member_add),
            prefix + "MemberRemove": Method.unary(self.member_remove),
            prefix + "MemberUpdate": Method.unary(self.member_update),
            prefix + "MemberPromote": Method.unary(self.member_promote),
            prefix + "MemberList": Method.unary(self.member_list),
        }

    def _header(self) -> bytes:
        # etcd leaves the revision out of the headers of this service.
        return self._server.headers.encode(0, self._server.node.term)

    async def _change(self, wanted: peer_pb2.MemberChange) -> peer_pb2.MemberChanged:
        return await self._server.reconfiguration.change(wanted)

    async def member_add(self, request: bytes, context: Context) -> list[bytes]:
        """Add a voter or a learner; its id is new."""
        changed = await self._change(peer_pb2.MemberChange(add=decode(rpc_pb2.MemberAddRequest, request)))
        response = rpc_pb2.MemberAddResponse(member=changed.member, members=changed.members)
        return [self._header(), response.SerializeToString()]

    async def member_remove(self, request: bytes, context: Context) -> list[bytes]:
        """Remove a member for good."""
        changed = await self._change(peer_pb2.MemberChange(remove=decode(rpc_pb2.MemberRemoveRequest, request)))
        response = rpc_pb2.MemberRemoveResponse(members=changed.members)
        return [self._header(), response.SerializeToString()]

    async def member_update(self, request: bytes, context: Context) -> list[bytes]:
        """Change the peer URLs of a member."""
        changed = await self._change(peer_pb2.MemberChange(update=decode(rpc_pb2.MemberUpdateRequest, request)))
        response = rpc_pb2.MemberUpdateResponse(members=changed.members)
        return [self._header(), response.SerializeToString()]

    async def member_promote(self, request: bytes, context: Context) -> list[bytes]:
        """Let a learner that has caught up vote."""
        changed = await self._change(peer_pb2.MemberChange(promote=decode(rpc_pb2.MemberPromoteRequest, request)))
        response = rpc_pb2.MemberPromoteResponse(members=changed.members)
        return [self._header(), response.SerializeToString()]

    async def member_list(self, request: bytes, context: Context) -> list[bytes]:
        """Answer the members, as this member knows them or, when asked, linearizably."""
        if decode(rpc_pb2.MemberListRequest, request).linearizable:
            await self._server.linearizable()
        response = rpc_pb2.MemberListResponse(members=self._server.membership.members)
        return [self._header(), response.SerializeToString()]


def peer_methods(cluster_id: int, member_id: int, server: Callable[[], Server | None]) -> dict[str, Method]:
    """What other members ask of the leader when they are asked to change the members."""
    reception = Reception(cluster_id, member_id)

    async def change(request: bytes, context: Context) -> bytes:
        reception.sender(context)
        started = server()
        if started is None:
            raise errors.NotLeader
        answer = await started.reconfiguration.answer(decode(peer_pb2.MemberChange, request))
        return answer.SerializeToString()

    return {PEER_CHANGE: Method.unary(change)}
