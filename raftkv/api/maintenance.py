"""etcdserverpb.Maintenance: the state of this member."""

from raftkv import ETCD_API_VERSION, errors
from raftkv.pb import rpc_pb2
from raftkv.rpc import Context, Method
from raftkv.server.server import Server


class MaintenanceService:
    """Status."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        return {"/etcdserverpb.Maintenance/Status": Method.unary(self.status)}

    async def status(self, request: bytes, context: Context) -> list[bytes]:
        """Answer this member's own view, without asking the cluster."""
        server = self._server
        node = server.node
        backend = server.store.backend
        response = rpc_pb2.StatusResponse(
            version=ETCD_API_VERSION,
            dbSize=backend.size_bytes,
            leader=node.leader,
            raftIndex=node.commit_index,
            raftTerm=node.term,
            raftAppliedIndex=server.applier.index,
            errors=[] if node.leader else [errors.NoLeader.TEXT],
            dbSizeInUse=backend.size_in_use_bytes,
            storageVersion=ETCD_API_VERSION,
            downgradeInfo=rpc_pb2.DowngradeInfo(),
        )
        return [server.header(), response.SerializeToString()]
