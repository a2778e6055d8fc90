"""v3lockpb.Lock: a mutex that is held as long as a key exists.

Whoever holds it may lose it at any time with its lease, so what it protects should compare the create revision of the
key (the fencing token) in every write.
"""

from collections.abc import AsyncIterator

from raftkv.api import access, turns
from raftkv.api.guard import Limits
from raftkv.mvcc import validate
from raftkv.pb import rpc_pb2, v3lock_pb2
from raftkv.rpc import Context, Method
from raftkv.server import proposals
from raftkv.server.server import Server

EXPIRED = "mutex: session is expired"


class LockService:
    """Lock and Unlock."""

    def __init__(self, server: Server, limits: Limits) -> None:
        self._server = server
        self._limits = limits

    def methods(self) -> dict[str, Method]:
        """The service's method table.

        Lock has one answer, but waits without bound: served as a stream it hears that its client went away or that the
        server stops.
        """
        return {
            "/v3lockpb.Lock/Lock": Method.server_stream(self.lock),
            "/v3lockpb.Lock/Unlock": Method.unary(self.unlock),
        }

    async def lock(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Wait for the lock; never granted to a caller whose lease ended meanwhile."""
        wanted = turns.bounded(v3lock_pb2.LockRequest, request, self._limits)
        server = self._server
        lease_id = await turns.session(server, wanted.lease, context)
        turn = turns.Turn(server, wanted.name, lease_id, context)
        await turn.enter(b"")
        held = False
        try:
            held = await turn.wait()
        finally:
            if not held:
                turn.leave()
        if not held:
            raise turns.failed(EXPIRED)
        yield turns.answer(server, v3lock_pb2.LockResponse(key=turn.key), turn.revision)

    async def unlock(self, request: bytes, context: Context) -> list[bytes]:
        """Delete the key of a lock; one that is gone already is no error."""
        delete = rpc_pb2.DeleteRangeRequest(key=turns.bounded(v3lock_pb2.UnlockRequest, request, self._limits).key)
        with turns.codeless():
            validate.check_delete_range(delete)
            answer = await access.propose(self._server, proposals.DELETE_RANGE, delete.SerializeToString(), context)
        return answer[:1]
