"""Whether the members still agree: the leader compares hashes of history, and names who differs.

A difference is judged among answers of one revision and one compacted revision. Whoever differs from a majority of the
voters is corrupt; without a majority nobody can tell who is right, and all who answered are named.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from raftkv.mvcc import HistoryHash, hash_history
from raftkv.pb import rpc_pb2
from raftkv.raft import NodeId, Role
from raftkv.server.alarms import CORRUPT
from raftkv.server.server import Server
from raftkv.status import StatusError

logger = logging.getLogger(__name__)

PEER_HASH_KV = "/raftkvpb.Peer/HashKV"
CALL_SECONDS = 30.0

CallPeer = Callable[[NodeId, str, bytes, float], Awaitable[bytes]]


async def hash_kv(server: Server, revision: int) -> tuple[HistoryHash, int]:
    """Hash the history up to a revision (0: the newest), once no compaction is under way.

    Raises:
        Compacted, FutureRev, Stopped
    """
    store = server.store
    store.check_revision(revision)
    while store.compacting:
        await server.wait_compaction()
    hashed = hash_history(store, revision)
    return hashed, await server.aside(hashed.compute)


def divergent(hashes: Mapping[NodeId, int], voters: int) -> set[NodeId]:
    """Members whose hash is not that of a majority of the voters; all, if there is no such majority."""
    if len(set(hashes.values())) < 2:
        return set()
    crc, count = Counter(hashes.values()).most_common(1)[0]
    return {member for member, other in hashes.items() if other != crc or count * 2 <= voters}


class CorruptionChecker:
    """Compares the members again and again, while this one leads."""

    def __init__(self, server: Server, call_peer: CallPeer, interval_seconds: float) -> None:
        self._server = server
        self._call_peer = call_peer
        self._interval = interval_seconds

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            if self._server.node.role is Role.LEADER:
                try:
                    await self.check()
                except StatusError as error:
                    logger.warning("the members could not be compared: %s", error)

    async def check(self) -> None:
        """Compare once, and raise CORRUPT for each member that differs.

        Raises:
            StatusError: this member has no hash, or the alarm did not get through.
        """
        server = self._server
        own, crc = await hash_kv(server, 0)
        voters = server.node.conf_state.voters
        request = rpc_pb2.HashKVRequest(revision=own.revision).SerializeToString()
        others = [member for member in voters if member != server.node.id]
        answers = await asyncio.gather(*(self._ask(member, request) for member in others))
        hashes = {server.node.id: crc}
        for member, answer in zip(others, answers, strict=True):
            if answer is not None and answer.compact_revision == own.compacted_revision:
                hashes[member] = answer.hash
        for member in sorted(divergent(hashes, len(voters))):
            if not server.alarms.is_on(CORRUPT, member):
                logger.error("member %x differs from the others at revision %d", member, own.revision)
                await server.raise_alarm(CORRUPT, member)

    async def _ask(self, member: NodeId, request: bytes) -> rpc_pb2.HashKVResponse | None:
        try:
            return rpc_pb2.HashKVResponse.FromString(await self._call_peer(member, PEER_HASH_KV, request, CALL_SECONDS))
        except (ConnectionError, StatusError) as error:
            # It is away, behind, or compacted already: another time.
            logger.debug("no hash of member %x: %s", member, error)
            return None
