"""The server: what binds consensus, the log and the store, and decides nothing of its own.

Inputs (ticks, messages, proposals, reads) only touch memory and ask for a turn of `_pump`; one turn per loop iteration
takes what Raft owes and sends, persists and applies it. Everything that arrived while the last fsync ran becomes one
append, one fsync and one message per follower. Messages that are safe to send go out before the fsync, votes and
acknowledgements after it: `Ready` keeps the two apart.

The event loop is the clock, the generator is handed in, blocking work is handed out (`run_blocking`), and messages
leave through `send`: the same object runs on a virtual loop. Threads see only bytes they own: the WAL group being
written, the store's frozen overlay.
"""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from raftkv import errors
from raftkv.lease import LeaseStore
from raftkv.mvcc import Store
from raftkv.pb import rpc_pb2
from raftkv.raft import Message, NodeId, ProposalDropped, RaftNode, Ready, Role, SoftState
from raftkv.server.alarms import ACTIVATE, NOSPACE
from raftkv.server.apply import Applier
from raftkv.server.headers import Headers
from raftkv.server.leases import CallPeer, Leases
from raftkv.server.membership import Membership
from raftkv.server.proposals import ALARM, Operation, Proposals
from raftkv.server.quota import Quota
from raftkv.server.reads import Reads
from raftkv.server.slow import Slow
from raftkv.wal import Group, Wal
from raftkv.watch import Hub

T = TypeVar("T")

logger = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
FLUSH_BYTES = 8 << 20
FLUSH_SECONDS = 2.0

Blocking = Callable[[Callable[[], None], Callable[[BaseException | None], None]], None]
"""Runs a blocking function elsewhere, then calls the second in the event loop with what the first raised."""


class Server:
    """One member's replicated state machine.

    Invariants:
    1. `_unsynced` holds the Readys handed out and not yet durable, oldest first; they are advanced in that order.
    2. At most one WAL write and one store flush are under way.
    3. After `failed` is set nothing is sent, written or answered any more.
    """

    def __init__(
        self,
        *,
        node: RaftNode,
        wal: Wal,
        store: Store,
        membership: Membership,
        headers: Headers,
        send: Callable[[Sequence[Message]], None],
        call_peer: CallPeer,
        run_wal: Blocking,
        run_flush: Blocking,
        run_aside: Blocking | None = None,
        rng: random.Random,
        tick_seconds: float,
        election_ticks: int,
        quota_bytes: int = 0,
        watch_fragment_bytes: int = 2 << 20,
        warning_seconds: float = 0.1,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.node = node
        self.store = store
        self.membership = membership
        self.headers = headers
        self._wal = wal
        self._send = send
        self._run_wal = run_wal
        self._run_flush = run_flush
        self._run_aside = run_aside or run_flush
        self._tick_seconds = tick_seconds
        # etcd's bound on a request: 5 s for the disk and the queue, two elections for the leader.
        timeout = 5.0 + 2 * election_ticks * tick_seconds
        self.proposals = Proposals(self._loop, headers.member_id, rng, timeout_seconds=timeout)
        self.slow = Slow(clock or self._loop.time, warning_seconds)
        self.leader_changes = 0
        self._led_by = 0
        self.late_heartbeats = 0
        """Ticks of a leader that came more than two of them late: followers may have missed it."""
        self._ticked_at = self._loop.time()
        self.reads = Reads(self._loop, node, rng, self.slow, timeout_seconds=timeout, retry_seconds=0.5)
        leases = LeaseStore(store)
        self.leases = Leases(
            node,
            leases,
            propose=self.propose,
            linearizable=self.linearizable,
            call_peer=call_peer,
            election_seconds=election_ticks * tick_seconds,
            timeout_seconds=timeout,
            clock=clock,
        )
        self.applier = Applier(store, leases, membership, self.proposals, headers)
        self.alarms = self.applier.alarms
        self.quota = Quota(store.backend, quota_bytes)
        self.applier.on_compaction = self._start_compaction
        self.hub = Hub(
            store,
            lambda revision: headers.encode(revision, node.term),
            fragment_bytes=watch_fragment_bytes,
            on_behind=self._start_catching_up,
        )
        self._catching_up = False
        self.leader_calls: WeakSet[Callable[[Exception], None]] = WeakSet()
        """Ends calls under way that want no member without a leader."""
        self._leaderless_seconds = 3 * election_ticks * tick_seconds
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._current: asyncio.Future[None] = self._loop.create_future()
        self._current.set_result(None)
        self._unsynced: deque[tuple[Ready, Group | None]] = deque()
        self._syncing = False
        self._sync_started_at = 0.0
        self._flushing = False
        self._flush_waiters: list[asyncio.Future[None]] = []
        self._flushed_at = self._loop.time()
        self._pump_due = False
        self._closed = False
        self._tick_timer: asyncio.TimerHandle | None = None
        self._leader_lost_at = float("-inf")
        self._silent: set[NodeId] = set()
        self._leader_waiters: list[asyncio.Future[None]] = []
        self._compaction: asyncio.Task[None] | None = None
        self._blocking = 0
        self._idle: asyncio.Future[None] | None = None

    # What callers ask

    def propose(self, operation: Operation, request: bytes) -> asyncio.Future[list[bytes]]:
        """Replicate an operation; the future gets the pieces of the encoded response once it is applied here.

        Raises:
            RequestTooManyRequests: too much is waiting already.
            Stopped: this member has failed or is closed.
        The future raises what applying raised, or `Timeout` and its kin when the outcome is unknown.
        """
        if self._closed or self.failed.done():
            raise errors.Stopped
        future = self.proposals.add(operation, request)
        self.wake()
        return future

    async def admit(self, cost_bytes: int) -> None:
        """Refuse what would exceed the quota of this member, and see that all members know.

        Raises:
            NoSpace
        """
        if not self.quota.admits(cost_bytes):
            if not self.alarms.is_on(NOSPACE, self.node.id):
                await self.raise_alarm(NOSPACE, self.node.id)
            raise errors.NoSpace

    def raise_alarm(self, kind: "rpc_pb2.AlarmType", member: NodeId) -> asyncio.Future[list[bytes]]:
        """Raise an alarm of a member, through the log."""
        logger.warning("alarm %s of member %x is raised", rpc_pb2.AlarmType.Name(kind), member)
        request = rpc_pb2.AlarmRequest(action=ACTIVATE, memberID=member, alarm=kind)
        return self.propose(ALARM, request.SerializeToString())

    def linearizable(self) -> asyncio.Future[None]:
        """Wait until a read of the local store is linearizable (thesis 6.4).

        Raises:
            Stopped: this member has failed or is closed.
        """
        if self._closed or self.failed.done():
            raise errors.Stopped
        index = self.node.sole_read_index()
        if index is not None and index <= self.applier.index:
            return self._current
        future = self.reads.wait()
        self.wake()
        return future

    def receive(self, message: Message) -> None:
        """Take a message from a peer."""
        if self._closed or self.failed.done():
            return
        if self._silent:
            self._silent.discard(message.sender)
        try:
            self.node.step(message)
        except Exception as error:
            self.fail(error)
        else:
            self.wake()

    def unreachable(self, peer: int) -> None:
        """Note that messages to this peer are being lost."""
        if self._closed or self.failed.done():
            return
        self._silent.add(peer)
        try:
            self.node.report_unreachable(peer)
        except Exception as error:
            self.fail(error)

    def header(self) -> bytes:
        """Encode a response header of this moment."""
        return self.headers.encode(self.store.revision, self.node.term)

    def fail(self, error: BaseException) -> None:
        """Stop for good: a failed fsync or a broken invariant is never survived."""
        if not self.failed.done():
            logger.critical("member %x stops: %s", self.node.id, error, exc_info=error)
            self.failed.set_result(error)
            self.proposals.fail_all(errors.Stopped)
            self.reads.fail_all(errors.Stopped())
            self.leases.close()

    @property
    def blank(self) -> bool:
        """Whether this member has neither a term nor a log: it has promised nothing and counted nobody's word."""
        return self.node.term == 0 and self.node.last_index == 0

    async def wait_leader(self) -> None:
        """Wait until a leader is known."""
        if not self.node.leader:
            future = self._loop.create_future()
            self._leader_waiters.append(future)
            await future

    def aside(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have blocking work done by the thread for long work; an error is the caller's. `close` waits for it.

        Raises:
            Stopped: this member has failed or is closed.
        """
        if self._closed or self.failed.done():
            raise errors.Stopped
        future: asyncio.Future[T] = self._loop.create_future()

        def attempt() -> None:
            try:
                outcome = partial(future.set_result, work())
            except Exception as error:
                outcome = partial(future.set_exception, error)
            outcomes.append(outcome)

        def done() -> None:
            if not future.done():
                outcomes[0]()

        outcomes: list[Callable[[], None]] = []
        self._run(self._run_aside, attempt, done)
        return future

    async def flushed(self) -> None:
        """Wait until the store holds durably what has been applied by now.

        Raises:
            Stopped: this member has failed or is closed.
        """
        # A flush that is under way began too early.
        for _ in range(2 if self._flushing else 1):
            if self._closed or self.failed.done():
                raise errors.Stopped
            self._flush()
            if self._flushing:
                ended: asyncio.Future[None] = self._loop.create_future()
                self._flush_waiters.append(ended)
                either: list[asyncio.Future[Any]] = [ended, self.failed]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            raise errors.Stopped

    async def wait_compaction(self) -> None:
        """Wait until the compaction under way has removed what it must."""
        if self._compaction is not None:
            await asyncio.shield(self._compaction)

    # Life

    def start(self) -> None:
        """Begin to tick; a sole voter need not wait for anyone to be silent."""
        if self.node.conf_state.voters == (self.node.id,):
            self.node.campaign()
        self._tick_timer = self._loop.call_later(self._tick_seconds, self._tick)
        self._start_compaction()
        self.wake()

    async def hand_over(self) -> None:
        """Give leadership to the most advanced follower, if we lead, and wait for it a little (thesis 3.10)."""
        if self.failed.done() or self.node.role is not Role.LEADER:
            return
        followers = self.node.status().match_indexes
        # One that was lost a moment ago may have as much of the log as any, and cannot take over.
        gone = {self.node.id, *self._silent}
        candidates = {peer: index for peer, index in followers.items() if peer not in gone}
        if not candidates:
            return
        target = max(sorted(candidates), key=candidates.__getitem__)
        logger.info("handing leadership over to %x", target)
        self.node.transfer_leader(target)
        self.wake()
        deadline = self._loop.time() + 1.0
        while self.node.leader in (0, self.node.id) and self._loop.time() < deadline:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Stop, flush the store and end every waiting call with `Stopped`."""
        self._closed = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        if self._compaction is not None:
            self._compaction.cancel()
        self.proposals.fail_all(errors.Stopped)
        self.reads.fail_all(errors.Stopped())
        self.leases.close()
        await self._until_idle()
        if not self.failed.done():
            self._flush()
            await self._until_idle()

    # The pump

    def wake(self) -> None:
        """Ask for a turn of the pump at the end of this loop iteration."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _tick(self) -> None:
        if self.failed.done():
            return
        self._tick_timer = self._loop.call_later(self._tick_seconds, self._tick)
        try:
            self._pass_time()
        except Exception as error:
            self.fail(error)
        else:
            self.wake()

    def _pass_time(self) -> None:
        self.node.tick()
        now = self._loop.time()
        if now - self._ticked_at > 3 * self._tick_seconds and self.node.role is Role.LEADER:
            self.late_heartbeats += 1
        self._ticked_at = now
        self.proposals.expire(now, self._timeout_error)
        self.reads.tick()
        if self.leader_calls and not self.node.leader and now - self._leader_lost_at >= self._leaderless_seconds:
            self._end_leader_calls()
        self.leases.tick()
        if self.store.backend.pending_bytes > FLUSH_BYTES or now - self._flushed_at > FLUSH_SECONDS:
            self._flush()

    def _end_leader_calls(self) -> None:
        calls, self.leader_calls = self.leader_calls, WeakSet()
        for end in calls:
            end(errors.NoLeader())

    def _timeout_error(self) -> errors.EtcdError:
        if self._loop.time() - self._leader_lost_at < self.proposals.timeout_seconds:
            return errors.TimeoutDueToLeaderFail()
        return errors.Timeout()

    def _pump(self) -> None:
        self._pump_due = False
        if self._closed or self.failed.done():
            return
        try:
            self._propose_queued()
            self.reads.start_round()
            while self.node.has_ready():
                self._handle(self.node.ready())
            self._sync()
        except Exception as error:
            self.fail(error)

    def _propose_queued(self) -> None:
        # While an fsync runs a leader lets proposals gather: they become one entry.
        if not self.proposals.queued or not self.node.leader or (self._syncing and self.node.role is Role.LEADER):
            return
        with contextlib.suppress(ProposalDropped):
            self.proposals.hand_over(self.node.term, BATCH_BYTES, lambda batch: self.node.propose([batch]))

    def _handle(self, ready: Ready) -> None:
        if ready.soft_state is not None:
            self._soft_state_changed(ready.soft_state)
        if ready.messages:
            self._send(ready.messages)
        if ready.must_sync or ready.messages_after_persist:
            group = self._wal.encode(_hard_state(ready), ready.entries) if ready.must_sync else None
            self._unsynced.append((ready, group))
        elif self._unsynced:
            self._unsynced.append((ready, None))
        else:
            self.node.advance(ready)
        if ready.committed:
            self._apply(ready)
        self.leases.observe(self.applier.term)
        if ready.read_states:
            self.reads.confirmed(ready.read_states, self.applier.index)
            self.reads.start_round()

    def _apply(self, ready: Ready) -> None:
        started = self.slow.clock()
        self.applier.apply(ready.committed)
        self.hub.distribute()
        self.node.applied_to(self.applier.index)
        self.reads.applied(self.applier.index)
        self.proposals.report(self.slow, started)

    def _soft_state_changed(self, state: SoftState) -> None:
        if state.leader:
            self.leader_changes += state.leader != self._led_by
            logger.info("member %x follows leader %x in term %d", self.node.id, state.leader, self.node.term)
            waiters, self._leader_waiters = self._leader_waiters, []
            for future in waiters:
                if not future.done():
                    future.set_result(None)
        else:
            self._leader_lost_at = self._loop.time()
            logger.info("member %x has no leader in term %d", self.node.id, self.node.term)
        self._led_by = state.leader
        self.reads.leader_changed()

    # The disk

    def _sync(self) -> None:
        while self._unsynced and not self._syncing:
            batch = list(self._unsynced)
            groups = [group for _, group in batch if group is not None]
            if groups:
                self._syncing = True
                self._sync_started_at = self.slow.clock()
                self._run(self._run_wal, partial(self._wal.write, groups), partial(self._written, batch))
                return
            self._unsynced.clear()
            self._persisted([ready for ready, _ in batch])
            while self.node.has_ready():
                self._handle(self.node.ready())

    def _written(self, batch: list[tuple[Ready, Group | None]]) -> None:
        self.slow.last_fsync_seconds = self.slow.clock() - self._sync_started_at
        for _ in batch:
            self._unsynced.popleft()
        self._syncing = False
        if not self._closed and not self.failed.done():
            self._persisted([ready for ready, _ in batch])
            self._pump()

    def _persisted(self, readys: list[Ready]) -> None:
        for ready in readys:
            self.node.advance(ready)
            if ready.messages_after_persist:
                self._send(ready.messages_after_persist)

    def _flush(self) -> None:
        if self._flushing:
            return
        self._flushed_at = self._loop.time()
        flush = self.store.begin_flush()
        if flush is None:
            return

        def flushed() -> None:
            self.store.backend.end_flush(flush)
            self._flushing = False
            waiters, self._flush_waiters = self._flush_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

        self._flushing = True
        self._run(self._run_flush, flush.write, flushed)

    def _start_compaction(self) -> None:
        if self._compaction is None or self._compaction.done():
            self._compaction = self._loop.create_task(self._compact())
            self._compaction.add_done_callback(self._finished)

    async def _compact(self) -> None:
        while self.store.compaction_step():
            await asyncio.sleep(0)

    def _start_catching_up(self) -> None:
        if not self._catching_up:
            self._catching_up = True
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        """Serve a slice of history to watchers that are behind, and come back after everybody else's turn."""
        self._catching_up = False
        if self._closed or self.failed.done():
            return
        try:
            more = self.hub.catch_up()
        except Exception as error:
            self.fail(error)
            return
        if more:
            self._start_catching_up()

    def _run(self, run: Blocking, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Have blocking work done elsewhere and go on with `then`; whatever fails there or here stops the member."""

        def done(error: BaseException | None) -> None:
            self._blocking -= 1
            try:
                if error is not None:
                    raise error
                then()
            except Exception as failure:
                self.fail(failure)
            if not self._blocking and self._idle is not None:
                self._idle.set_result(None)
                self._idle = None

        self._blocking += 1
        run(work, done)

    async def _until_idle(self) -> None:
        while self._blocking:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    def _finished(self, task: "asyncio.Future[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)


def _hard_state(ready: Ready) -> tuple[int, int, int] | None:
    state = ready.hard_state
    return None if state is None else (state.term, state.voted_for, state.commit)
