"""Leases on a member: renewals and questions find their way to the leader, and the leader lets leases expire.

A renewal is given in two steps: the primary notes it at once, and promises it only after its leadership was confirmed
later than that (a read index) and the lease still exists then. A leader that was stopped for a while, or replaced
without knowing it, cannot promise what another has already taken away.

All renewals that arrive together share one confirmation, and one message when they go to the leader of elsewhere.
Expiry goes through the log in slices, one at a time: a hundred thousand leases that end together hold up nothing else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from raftkv import errors
from raftkv.lease import LeaseStore, Lessor
from raftkv.pb import log_pb2, peer_pb2, rpc_pb2
from raftkv.raft import NodeId, RaftNode, Role
from raftkv.server.proposals import LEASE_CHECKPOINTS, LEASE_EXPIRY, Operation
from raftkv.status import StatusError

logger = logging.getLogger(__name__)

PEER_RENEW = "/raftkvpb.Peer/LeaseRenew"
PEER_TIME_TO_LIVE = "/raftkvpb.Peer/LeaseTimeToLive"

SLICE_KEYS = 500
"""Keys and leases that one entry may expire; applying them takes a few milliseconds."""
SLICE_PAUSE_SECONDS = 0.005
LEASES_TAKEN_UP = 500
"""By a new leader at a time, for the same few milliseconds."""
CHECKPOINTS_PER_ENTRY = 1000
RENEWALS_PER_BATCH = 1000
MAX_BATCHES = 8
RETRY_SECONDS = 0.05

CallPeer = Callable[[NodeId, str, bytes, float], Awaitable[bytes]]
"""Calls a method of another member: who, path, request, timeout (seconds)."""
Propose = Callable[[Operation, bytes], "asyncio.Future[list[bytes]]"]


class Leases:
    """What a member does for leases.

    Invariants:
    1. The lessor is primary in the node's term, or not at all, whenever something is decided here.
    2. At most one slice of expired leases and one entry of checkpoints are under way.
    """

    def __init__(
        self,
        node: RaftNode,
        store: LeaseStore,
        *,
        propose: Propose,
        linearizable: Callable[[], "asyncio.Future[None]"],
        call_peer: CallPeer,
        election_seconds: float,
        timeout_seconds: float,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`clock` goes on during a turn of the loop, whose own time may not (uvloop): a promise counts from it."""
        self._loop = asyncio.get_running_loop()
        self._node = node
        self.store = store
        self.lessor = Lessor(store, clock=clock or self._loop.time, slack_seconds=election_seconds)
        self._propose = propose
        self._linearizable = linearizable
        self._call_peer = call_peer
        self._election_seconds = election_seconds
        self._timeout = timeout_seconds
        # etcd's minimum: one and a half elections, in whole seconds.
        self.min_ttl_seconds = -int(-1.5 * election_seconds // 1)
        self._waiting: list[tuple[int, asyncio.Future[int]]] = []
        self.renewed = 0
        """Renewals granted here, as the primary."""
        self._batches: set[asyncio.Task[None]] = set()
        self._batch_due = False
        self._slice: asyncio.Future[list[bytes]] | None = None
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._checkpoint: asyncio.Future[list[bytes]] | None = None
        self._look_timer: asyncio.TimerHandle | None = None

    # What the server tells

    def observe(self, applied_term: int) -> None:
        """Note whether we lead: primary is a leader that has applied an entry of its term."""
        node = self._node
        leading = node.role is Role.LEADER and applied_term == node.term
        if leading and self.lessor.term != node.term:
            self.lessor.promote(node.term)
            self._take_up()
        elif not leading and self.lessor.term:
            self.lessor.demote()
            self._settle()

    def _take_up(self) -> None:
        if self.lessor.take_up(LEASES_TAKEN_UP):
            self._loop.call_later(SLICE_PAUSE_SECONDS, self._take_up)

    def tick(self) -> None:
        """Let expire what is due, and checkpoint what has not been renewed for a while."""
        if self._look_timer is None and self.lessor.term:
            self._look()

    def _look(self) -> None:
        self._look_timer = None
        expiring, telling = self._expire(), self._tell_checkpoints()
        if expiring or telling:
            self._look_soon()

    def _look_soon(self) -> None:
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(SLICE_PAUSE_SECONDS, self._look)

    def close(self) -> None:
        """End every waiting renewal with `Stopped`."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        self.lessor.demote()
        for task in self._batches:
            task.cancel()
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(errors.Stopped())

    # What clients ask

    def renew(self, lease_id: int) -> "asyncio.Future[int]":
        """Renew a lease, at the leader wherever it is; the future gets its time to live, 0 when it does not exist.

        The future raises `NoLeader`, `Timeout` or `Stopped` when nothing can be promised.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append((lease_id, future))
        if not self._batch_due:
            self._batch_due = True
            self._loop.call_soon(self._start_batches)
        return future

    async def time_to_live(self, request: rpc_pb2.LeaseTimeToLiveRequest) -> bytes:
        """What is left of a lease, asked of the leader; a LeaseTimeToLiveResponse without header."""
        return await self._at_leader(
            lambda: self.time_to_live_here(request), PEER_TIME_TO_LIVE, request.SerializeToString()
        )

    # What other members ask of the leader

    async def renew_here(self, lease_ids: Sequence[int]) -> list[int]:
        """Renew leases as the primary; the time to live of each, 0 when it does not exist.

        Raises:
            NotLeader: we do not lead, or did not lead long enough to promise it.
        """
        term = await self._primary_term()
        taken_back = [lease_id for lease_id in lease_ids if self.lessor.renew(lease_id)]
        told = [self._take_back(taken_back)] if taken_back else []
        await asyncio.gather(self._linearizable(), *told)
        while self.lessor.term == term and any(map(self.lessor.is_expiring, lease_ids)):
            await asyncio.shield(self._settled)
        self._check_still_primary(term)
        leases = [self.store.get(lease_id) for lease_id in lease_ids]
        self.renewed += sum(lease is not None for lease in leases)
        return [0 if lease is None else lease.ttl for lease in leases]

    async def time_to_live_here(self, request: rpc_pb2.LeaseTimeToLiveRequest) -> bytes:
        """What is left of a lease, as the primary; -1 when it does not exist. Encoded, without header.

        Raises:
            NotLeader
        """
        term = await self._primary_term()
        await self._linearizable()
        self._check_still_primary(term)
        response = rpc_pb2.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        lease = self.store.get(request.ID)
        if lease is not None:
            response.TTL = int(self.lessor.remaining(lease))
            response.grantedTTL = lease.ttl
            if request.keys:
                response.keys.extend(sorted(lease.keys or ()))
        return response.SerializeToString()

    async def _primary_term(self) -> int:
        if not self.lessor.term and self._node.role is Role.LEADER:
            # Just elected: a read waits for our first entry, with which we become primary.
            await self._linearizable()
        if not self._is_primary():
            raise errors.NotLeader
        return self.lessor.term

    def _is_primary(self) -> bool:
        return self._node.role is Role.LEADER and self._node.term == self.lessor.term

    def _check_still_primary(self, term: int) -> None:
        if not self._is_primary() or self.lessor.term != term:
            raise errors.NotLeader

    def _take_back(self, lease_ids: list[int]) -> "asyncio.Future[list[bytes]]":
        """Have the log say again that all of these leases is left."""
        return self._propose(LEASE_CHECKPOINTS, self._checkpoints([(lease_id, 0) for lease_id in lease_ids]))

    # The way to the leader

    def _start_batches(self) -> None:
        self._batch_due = False
        while self._waiting and len(self._batches) < MAX_BATCHES:
            batch, self._waiting = self._waiting[:RENEWALS_PER_BATCH], self._waiting[RENEWALS_PER_BATCH:]
            task = self._loop.create_task(self._renew_batch(batch))
            self._batches.add(task)
            task.add_done_callback(self._batch_done)

    def _batch_done(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._start_batches()

    async def _renew_batch(self, batch: list[tuple[int, asyncio.Future[int]]]) -> None:
        lease_ids = [lease_id for lease_id, _ in batch]
        failure: Exception
        try:
            encoded = await self._at_leader(
                lambda: self._renew_encoded(lease_ids),
                PEER_RENEW,
                peer_pb2.LeaseRenewRequest(ids=lease_ids).SerializeToString(),
            )
            ttls = peer_pb2.LeaseRenewResponse.FromString(encoded).ttls
            if len(ttls) != len(batch):
                raise ValueError(f"{len(ttls)} answers to {len(batch)} renewals")
        except asyncio.CancelledError:
            failure = errors.Stopped()
        except Exception as error:
            # Whatever it is, somebody waits to hear of it.
            failure = error
        else:
            for (_, future), ttl in zip(batch, ttls, strict=True):
                if not future.done():
                    future.set_result(ttl)
            return
        for _, future in batch:
            if not future.done():
                future.set_exception(failure)

    async def _renew_encoded(self, lease_ids: Sequence[int]) -> bytes:
        return peer_pb2.LeaseRenewResponse(ttls=await self.renew_here(lease_ids)).SerializeToString()

    async def _at_leader(self, here: Callable[[], Awaitable[bytes]], path: str, request: bytes) -> bytes:
        """Ask the leader, whoever it is by then; what may be asked twice may follow it from member to member.

        Raises:
            NoLeader, Timeout: nobody could answer in time.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    leader = self._node.leader
                    try:
                        if leader == self._node.id:
                            return await here()
                        if leader:
                            return await self._call_peer(leader, path, request, 2 * self._election_seconds)
                    except (errors.NotLeader, errors.Timeout, ConnectionError):
                        pass
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError as error:
            raise (errors.Timeout if self._node.leader else errors.NoLeader) from error

    # Expiry and checkpoints

    def _expire(self) -> bool:
        """Propose the next slice; whether to look again soon instead."""
        if self._slice is not None or not self._is_primary():
            return False
        lease_ids = self.lessor.take_expired(SLICE_KEYS)
        if not lease_ids:
            return self.lessor.expiries_unfinished
        expiry = log_pb2.LeaseExpiry(term=self.lessor.term, grants=self.store.grants, ids=lease_ids)
        try:
            self._slice = self._propose(LEASE_EXPIRY, expiry.SerializeToString())
        except StatusError as error:
            self._expiry_failed(lease_ids, error)
        else:
            self._slice.add_done_callback(lambda future: self._slice_done(lease_ids, future))
        return False

    def _slice_done(self, lease_ids: list[int], future: "asyncio.Future[list[bytes]]") -> None:
        self._slice = None
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._expiry_failed(lease_ids, error)
            return
        self._settle()
        self._look_soon()

    def _expiry_failed(self, lease_ids: list[int], error: BaseException) -> None:
        logger.warning("%d leases did not expire yet: %s", len(lease_ids), error)
        self.lessor.put_back(lease_ids)
        self._settle()

    def _settle(self) -> None:
        """Wake renewals that wait for the fate of an expiring lease."""
        settled, self._settled = self._settled, self._loop.create_future()
        settled.set_result(None)

    def _checkpoints(self, marks: list[tuple[int, int]]) -> bytes:
        told = [rpc_pb2.LeaseCheckpoint(ID=lease_id, remaining_TTL=left) for lease_id, left in marks]
        message = log_pb2.LeaseCheckpoints(term=self.lessor.term, grants=self.store.grants, checkpoints=told)
        return message.SerializeToString()

    def _tell_checkpoints(self) -> bool:
        """Propose what is left of some leases; whether to look again soon instead."""
        if self._checkpoint is not None:
            return False
        marks = self.lessor.take_checkpoints(CHECKPOINTS_PER_ENTRY)
        if not marks:
            return self.lessor.checkpoints_unfinished
        lease_ids = [lease_id for lease_id, _ in marks]
        try:
            self._checkpoint = self._propose(LEASE_CHECKPOINTS, self._checkpoints(marks))
        except StatusError:
            self.lessor.checkpoints_refused(lease_ids)
        else:
            self._checkpoint.add_done_callback(lambda future: self._checkpoint_done(lease_ids, future))
        return False

    def _checkpoint_done(self, lease_ids: list[int], future: "asyncio.Future[list[bytes]]") -> None:
        self._checkpoint = None
        error = None if future.cancelled() else future.exception()
        if error is not None:
            logger.warning("%d leases are not checkpointed yet: %s", len(lease_ids), error)
            self.lessor.checkpoints_failed(lease_ids)
