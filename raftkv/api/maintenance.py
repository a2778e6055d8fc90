"""etcdserverpb.Maintenance: the state of this member, and what is done for its upkeep."""

import os
import re
import time
from collections.abc import AsyncIterator

import lmdb

from raftkv import ETCD_API_VERSION, errors
from raftkv.api.kv import decode
from raftkv.pb import rpc_pb2
from raftkv.rpc import Context, Method
from raftkv.server.backup import SENDING, copy_store
from raftkv.server.corruption import hash_kv
from raftkv.server.proposals import ALARM
from raftkv.server.server import Server
from raftkv.server.transfer import move_leader
from raftkv.status import Code, StatusError

_VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+(-[0-9A-Za-z.-]*)?(\+[0-9A-Za-z.-]*)?)?")
"""What etcd takes for a version: semantic, or major and minor only."""
READ_BYTES = 1 << 20
PIECE_BYTES = 32 << 10


def _piece(left: int, data: bytes) -> bytes:
    response = rpc_pb2.SnapshotResponse(remaining_bytes=left, blob=data, version=ETCD_API_VERSION)
    return response.SerializeToString()


class MaintenanceService:
    """Alarm, Status, Defragment, Hash, HashKV, Snapshot, MoveLeader and Downgrade."""

    def __init__(self, server: Server, data_dir: str) -> None:
        self._server = server
        self._data_dir = data_dir

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        prefix = "/etcdserverpb.Maintenance/"
        return {
            prefix + "Alarm": Method.unary(self.alarm),
            prefix + "Status": Method.unary(self.status),
            prefix + "Defragment": Method.unary(self.defragment),
            prefix + "Downgrade": Method.unary(self.downgrade),
            prefix + "Hash": Method.unary(self.hash),
            prefix + "HashKV": Method.unary(self.hash_kv),
            prefix + "Snapshot": Method.server_stream(self.snapshot),
            prefix + "MoveLeader": Method.unary(self.move_leader),
        }

    async def alarm(self, request: bytes, context: Context) -> list[bytes]:
        """Tell, raise or disarm alarms; all of it goes through the log."""
        decode(rpc_pb2.AlarmRequest, request)
        return await self._server.propose(ALARM, request, context.caller)

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
            errors=[*([] if node.leader else [errors.NoLeader.TEXT]), *server.alarms.texts()],
            dbSizeInUse=backend.size_in_use_bytes,
            isLearner=node.id not in node.conf_state.voters,
            dbSizeQuota=server.quota.bytes,
            storageVersion=ETCD_API_VERSION,
            downgradeInfo=rpc_pb2.DowngradeInfo(),
        )
        return [server.header(), response.SerializeToString()]

    async def defragment(self, request: bytes, context: Context) -> bytes:
        """Give the space of what was deleted back to the file system; like etcd's, the answer has no header."""
        try:
            await self._server.defragment(self._data_dir)
        except (OSError, lmdb.Error) as error:
            raise StatusError(Code.UNKNOWN, f"raftkv: the store was not defragmented: {error}") from error
        return b""

    async def downgrade(self, request: bytes, context: Context) -> bytes:
        """Refuse: there is no older version of raftkv to go back to. The errors are those of etcd."""
        wanted = decode(rpc_pb2.DowngradeRequest, request)
        if wanted.action == rpc_pb2.DowngradeRequest.CANCEL:
            raise errors.NoInflightDowngrade
        if not _VERSION.fullmatch(wanted.version):
            raise errors.WrongDowngradeVersionFormat
        raise errors.InvalidDowngradeTargetVersion

    async def hash(self, request: bytes, context: Context) -> list[bytes]:
        """Answer the hash of all history."""
        _, crc = await hash_kv(self._server, 0)
        return [self._server.header(), rpc_pb2.HashResponse(hash=crc).SerializeToString()]

    async def hash_kv(self, request: bytes, context: Context) -> list[bytes]:
        """Answer the hash of the history up to a revision; members that agree answer alike."""
        hashed, crc = await hash_kv(self._server, decode(rpc_pb2.HashKVRequest, request).revision)
        response = rpc_pb2.HashKVResponse(
            hash=crc, compact_revision=hashed.compacted_revision, hash_revision=hashed.revision
        )
        return [self._server.header(), response.SerializeToString()]

    async def _compacted(self) -> None:
        while self._server.store.compacting:
            await self._server.compaction.wait()

    async def snapshot(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Send the store as of now, in pieces, and its SHA-256 at the end."""
        server = self._server
        started = time.perf_counter()
        await self._compacted()
        await server.flushed()
        try:
            backup = await server.aside(lambda: copy_store(server.store.backend, os.path.join(self._data_dir, SENDING)))
        except (OSError, lmdb.Error) as error:
            raise StatusError(Code.UNKNOWN, f"raftkv: the store was not copied: {error}") from error
        try:
            while backup.left_bytes:
                data = await server.aside(lambda: backup.read(READ_BYTES))
                end = backup.left_bytes + len(data)
                for place in range(0, len(data), PIECE_BYTES):
                    piece = data[place : place + PIECE_BYTES]
                    yield _piece(end - place - len(piece), piece)
            yield _piece(0, backup.digest())
            server.times.backup.observe(time.perf_counter() - started)
        finally:
            backup.close()

    async def move_leader(self, request: bytes, context: Context) -> bytes:
        """Hand leadership over; like etcd's, the answer has no header."""
        await move_leader(self._server, decode(rpc_pb2.MoveLeaderRequest, request).targetID)
        return b""
