"""Whether the members still agree: hashes of history are compared, and whoever differs is named.

Every member does so when it has started, with what it found on its disk, and the leader again and again. A difference
is judged among answers of one revision and one compacted revision; learners are asked too, and have no say. Whoever
differs from a majority of the voters is corrupt; without a majority nobody can tell who is right, and all who answered
are named. A member that starts gives the others time to start as well before it says that.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from itertools import count

from raftkv.mvcc import HistoryHash, hash_history
from raftkv.pb import rpc_pb2
from raftkv.raft import NodeId, Role
from raftkv.server.alarms import CORRUPT
from raftkv.server.server import Server
from raftkv.status import StatusError

logger = logging.getLogger(__name__)

PEER_HASH_KV = "/raftkvpb.Peer/HashKV"
CALL_SECONDS = 30.0
BEHIND_SECONDS = 5.0
"""How long a member that is asked for the hash of a revision to come waits for it."""
BEHIND_POLL_SECONDS = 0.02
START_PAUSE_SECONDS = (0.25, 30.0)
"""The first and the longest pause between attempts to compare after a start."""
PATIENT_ATTEMPTS = 7
"""Of them, so many wait for members that do not answer when those that do disagree: about half a minute."""

CallPeer = Callable[[NodeId, str, bytes, float], Awaitable[bytes]]


async def hash_kv(server: Server, revision: int) -> tuple[HistoryHash, int]:
    """Hash the history up to a revision (0: the newest), once no compaction is under way.

    Raises:
        Compacted, FutureRev, Stopped
    """
    store = server.store
    store.check_revision(revision)
    while store.compacting:
        await server.compaction.wait()
    started = time.perf_counter()
    hashed = hash_history(store, revision)
    crc = await server.aside(hashed.compute)
    (server.times.hash_kv if revision else server.times.hash).observe(time.perf_counter() - started)
    return hashed, crc


async def hash_kv_to_come(server: Server, revision: int) -> tuple[HistoryHash, int]:
    """Hash the history up to a revision that this member may be about to apply: another one has.

    Raises:
        Compacted, FutureRev, Stopped
    """
    deadline = asyncio.get_running_loop().time() + BEHIND_SECONDS
    while server.store.revision < revision and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(BEHIND_POLL_SECONDS)
    return await hash_kv(server, revision)


def majority(hashes: Mapping[NodeId, int], voters: Collection[NodeId]) -> int | None:
    """The hash of more than half of the voters; None: there is none."""
    crcs = [crc for member, crc in hashes.items() if member in voters]
    crc, votes = Counter(crcs).most_common(1)[0] if crcs else (0, 0)
    return crc if votes * 2 > len(voters) else None


def divergent(hashes: Mapping[NodeId, int], voters: Collection[NodeId]) -> set[NodeId]:
    """Members whose hash is not that of a majority of the voters; all, if they differ and there is no such majority."""
    if len(set(hashes.values())) < 2:
        return set()
    right = majority(hashes, voters)
    return {member for member, crc in hashes.items() if crc != right}


class CorruptionChecker:
    """Compares the members: once when this one has started, and again and again while it leads."""

    def __init__(
        self,
        server: Server,
        call_peer: CallPeer,
        *,
        at_start: bool,
        interval_seconds: float,
        pause_seconds: tuple[float, float] = START_PAUSE_SECONDS,
    ) -> None:
        """`interval_seconds` is that of the leader; 0: never again."""
        self._server = server
        self._call_peer = call_peer
        self._at_start = at_start
        self._interval = interval_seconds
        self._pause = pause_seconds

    async def run(self) -> None:
        """Check until cancelled, or until nothing remains to be done."""
        if self._at_start:
            await self.check_at_start()
        while self._interval:
            await asyncio.sleep(self._interval)
            if self._server.node.role is Role.LEADER:
                try:
                    await self.check()
                except StatusError as error:
                    logger.warning("the members could not be compared: %s", error)

    async def check_at_start(self) -> None:
        """Compare until a majority agrees or all voters were heard, and raise CORRUPT for each member that differs."""
        server = self._server
        first, longest = self._pause
        for attempt in count():
            await server.wait_leader()
            voters = server.node.conf_state.voters
            if not set(voters) - {server.node.id}:
                return
            try:
                revision, hashes = await self._hashes()
                told = majority(hashes, voters) is not None or set(voters) <= hashes.keys()
                if told or attempt >= PATIENT_ATTEMPTS:
                    await self._name(revision, hashes)
                if told:
                    heard = len(hashes.keys() & set(voters))
                    logger.info("compared with %d of %d voters at revision %d", heard, len(voters), revision)
                    return
            except StatusError as error:
                logger.debug("not compared with the others yet: %s", error)
            await asyncio.sleep(min(first * 2.0 ** min(attempt, 20), longest))

    async def check(self) -> None:
        """Compare once, and raise CORRUPT for each member that differs.

        Raises:
            StatusError: this member has no hash, or the alarm did not get through.
        """
        await self._name(*await self._hashes())

    async def _hashes(self) -> tuple[int, dict[NodeId, int]]:
        """The newest revision here, and the hash at it of each member that answers and of this one."""
        server = self._server
        own, crc = await hash_kv(server, 0)
        request = rpc_pb2.HashKVRequest(revision=own.revision).SerializeToString()
        others = [member for member in server.node.conf_state.members() if member != server.node.id]
        answers = await asyncio.gather(*(self._ask(member, request) for member in others))
        hashes = {server.node.id: crc}
        for member, answer in zip(others, answers, strict=True):
            if answer is not None and answer.compact_revision == own.compacted_revision:
                hashes[member] = answer.hash
        return own.revision, hashes

    async def _name(self, revision: int, hashes: Mapping[NodeId, int]) -> None:
        server = self._server
        for member in sorted(divergent(hashes, server.node.conf_state.voters)):
            if not server.alarms.is_on(CORRUPT, member):
                logger.error("member %x differs from the others at revision %d", member, revision)
                await server.raise_alarm(CORRUPT, member)

    async def _ask(self, member: NodeId, request: bytes) -> rpc_pb2.HashKVResponse | None:
        try:
            return rpc_pb2.HashKVResponse.FromString(await self._call_peer(member, PEER_HASH_KV, request, CALL_SECONDS))
        except (ConnectionError, StatusError) as error:
            # It is away, behind, or compacted already: another time.
            logger.debug("no hash of member %x: %s", member, error)
            return None
