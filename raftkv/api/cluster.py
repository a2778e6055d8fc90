"""etcdserverpb.Cluster: who the members are."""

from raftkv.api.kv import decode
from raftkv.pb import rpc_pb2
from raftkv.rpc import Context, Method
from raftkv.server.server import Server


class ClusterService:
    """MemberList."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        return {"/etcdserverpb.Cluster/MemberList": Method.unary(self.member_list)}

    async def member_list(self, request: bytes, context: Context) -> list[bytes]:
        """Answer the members, as this member knows them or, when asked, linearizably."""
        if decode(rpc_pb2.MemberListRequest, request).linearizable:
            await self._server.linearizable()
        response = rpc_pb2.MemberListResponse(members=self._server.membership.members)
        # etcd leaves the revision out of the headers of this service.
        header = self._server.headers.encode(0, self._server.node.term)
        return [header, response.SerializeToString()]
