"""The server: what binds consensus, the log and the store, and decides nothing of its own.

Inputs (ticks, proposals, reads) only touch memory and ask for a turn of the pump, at most one per loop iteration;
messages that came together end in one at once. A turn takes what Raft owes and sends, persists and applies it.
Everything that arrived while the last fsync ran becomes one append, one fsync and one message per follower. Messages
that are safe to send go out before the fsync, votes and acknowledgements after it: `Ready` keeps the two apart.

The event loop is the clock, the generator is handed in, blocking work is handed out (`Blocking`), and messages
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
from typing import TypeVar

from raftkv import errors
from raftkv.auth import MEMBER, Caller
from raftkv.auth.passwords import DEFAULT_COST
from raftkv.auth.tokens import JwtTokens, SimpleTokens
from raftkv.failpoints import failpoint
from raftkv.lease import LeaseStore
from raftkv.mvcc import Backend, Store
from raftkv.pb import rpc_pb2
from raftkv.raft import (
    ConfState,
    Entry,
    InstallSnapshot,
    Message,
    NodeId,
    ProposalDropped,
    RaftNode,
    Ready,
    Role,
    SnapshotMetadata,
    SoftState,
)
from raftkv.server.alarms import ACTIVATE, NOSPACE
from raftkv.server.apply import Applier
from raftkv.server.authority import Authority
from raftkv.server.compaction import Compaction
from raftkv.server.errands import Errands
from raftkv.server.flushes import Flushes
from raftkv.server.headers import Headers
from raftkv.server.leadership import Leadership
from raftkv.server.leases import CallPeer, Leases
from raftkv.server.membership import Membership, encode_conf_state
from raftkv.server.proposals import ALARM, Operation, Proposals
from raftkv.server.quota import Quota
from raftkv.server.reads import Reads
from raftkv.server.reconfiguration import Reconfiguration
from raftkv.server.retention import Retention
from raftkv.server.slow import Slow
from raftkv.server.snapshots import Loaded
from raftkv.server.standing import Standing
from raftkv.server.times import Times
from raftkv.server.transfer import hand_over
from raftkv.server.worker import Blocking, Work
from raftkv.wal import Group, Log
from raftkv.watch import Hub

T = TypeVar("T")

logger = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
TURN_WORK = 500
"""Operations and changed keys after which applying leaves the loop to others: a few milliseconds. Entries that expire
leases are small, and those that gather while a busy follower waits for its turn may have a million keys."""
LONG_PAUSE_SECONDS = 0.02
"""Enough for a message to leave."""
LOOK_SECONDS = 0.5
"""How often a member looks how full its disk is."""
TOKEN_TTL_SECONDS = 300.0


class Server:
    """One member's replicated state machine.

    Invariants:
    1. `_unsynced` holds the Readys handed out and not yet durable, oldest first; they are advanced in that order.
       Between them stand the points up to which the log is to be forgotten.
    2. At most one WAL write, one store flush and one installation are under way.
    3. After `failed` is set nothing is sent, written or answered any more.
    """

    def __init__(
        self,
        *,
        node: RaftNode,
        wal: Log,
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
        max_watch_bytes: int = 1 << 62,
        warning_seconds: float = 0.1,
        clock: Callable[[], float] | None = None,
        snapshot_count: int = 10_000,
        catch_up_entries: int = 5_000,
        turn_work: int = TURN_WORK,
        hold_log: Callable[[], bool] = lambda: False,
        free_bytes: Callable[[], int] | None = None,
        run_auth: Blocking | None = None,
        tokens: SimpleTokens | JwtTokens | None = None,
        bcrypt_cost: int = DEFAULT_COST,
        on_members: Callable[[], None] = lambda: None,
        connected: Callable[[NodeId], bool] = lambda peer: True,
        strict_reconfig_check: bool = True,
        max_learners: int = 1,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.node = node
        self.store = store
        self.membership = membership
        self.headers = headers
        self.rng = rng
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
        self.times = Times()
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
        self.quota = Quota(store, quota_bytes, free_bytes)
        self._looked_at = float("-inf")
        self._raising: asyncio.Future[list[bytes]] | None = None
        self.auth = self.applier.auth
        self.rules = self.applier.rules
        self.authority = Authority(
            self.auth,
            tokens or SimpleTokens(TOKEN_TTL_SECONDS, self._loop.time),
            run=run_auth or run_aside or run_flush,
            propose=self.propose,
            linearizable=self.linearizable,
            bcrypt_cost=bcrypt_cost,
        )
        self.applier.on_log_in = self.authority.logged_in
        self.compaction = Compaction(store, self.times, self.slow.clock, self.fail)
        self.applier.on_compaction = self.compaction.start
        self.applier.granted_ttl = self.times.lease_ttl.observe
        self.applier.clock, self.applier.times = self.slow.clock, self.times
        self.standing = Standing(node, membership)
        self._on_members = on_members
        self.reconfiguration = Reconfiguration(
            node,
            membership,
            rng=rng,
            call_peer=call_peer,
            connected=connected,
            linearizable=self.linearizable,
            hand_over=lambda: hand_over(self),
            wake=self.wake,
            timeout_seconds=timeout,
            strict=strict_reconfig_check,
            max_learners=max_learners,
        )
        self.applier.log_begins = lambda: node.snapshot_index
        self.applier.on_conf_state = self._conf_state_applied
        self.applier.on_conf_change = self.reconfiguration.applied
        self.hub = Hub(
            store,
            lambda revision: headers.encode(revision, node.term),
            rng=random.Random(rng.getrandbits(64)),
            fragment_bytes=watch_fragment_bytes,
            max_bytes=max_watch_bytes,
            on_behind=self._start_catching_up,
        )
        self._catching_up = False
        leaderless = 3 * election_ticks * tick_seconds
        self.leadership = Leadership(node, timeout_seconds=timeout, leaderless_seconds=leaderless)
        self.leader_calls, self.wait_leader = self.leadership.calls, self.leadership.wait
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        self.current: asyncio.Future[None] = self._loop.create_future()
        self.current.set_result(None)
        """Done: what a read waits for that need not be linearizable."""
        self._retention = Retention(
            node,
            snapshot_count=snapshot_count,
            catch_up_entries=catch_up_entries,
            hold=hold_log,
            short=lambda: self.quota.short,
        )
        self._installation: tuple[Loaded, asyncio.Future[None]] | None = None
        self._committed: list[Entry] = []
        """Handed out by the core, and not applied yet."""
        self.turn_work = turn_work
        """How much is applied in one turn; 0: nothing, for as long as it is."""
        self._apply_due: asyncio.Handle | None = None
        self._unsynced: deque[tuple[Ready | SnapshotMetadata, Group | None]] = deque()
        self._syncing = False
        self._sync_started_at = 0.0
        self._errands = Errands(self.fail)
        self._run = self._errands.run
        self._flushes = Flushes(self, self.times.defragment)
        self.flushed, self.defragment = self._flushes.flushed, self._flushes.defragment
        self._pump_due = False
        self._closed = False
        self._tick_timer: asyncio.TimerHandle | None = None
        self.silent: set[NodeId] = set()
        """Peers to whom messages are being lost."""

    # What callers ask

    def propose(
        self, operation: Operation, request: bytes, caller: Caller | None = None
    ) -> asyncio.Future[list[bytes]]:
        """Replicate an operation; the future gets the pieces of the encoded response once it is applied here.

        `caller` is who asked for it, if they said so; `MEMBER` is this member itself.

        Raises:
            RequestTooManyRequests: too much is waiting already.
            Stopped: this member has failed or is closed.
        The future raises what applying raised, or `Timeout` and its kin when the outcome is unknown.
        """
        if self.stopped:
            raise errors.Stopped
        future = self.proposals.add(operation, request, caller)
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
        return self.propose(ALARM, request.SerializeToString(), MEMBER)

    def linearizable(self) -> asyncio.Future[None]:
        """Wait until a read of the local store is linearizable (thesis 6.4).

        Raises:
            Stopped: this member has failed or is closed.
        """
        if self.stopped:
            raise errors.Stopped
        index = self.node.sole_read_index()
        if index is not None and index <= self.applier.index:
            return self.current
        future = self.reads.wait()
        self.wake()
        return future

    def receive(self, *messages: Message) -> None:
        """Take messages from a peer that came together, and do at once what they ask for."""
        if self.stopped:
            return
        try:
            for message in messages:
                if isinstance(message, InstallSnapshot):
                    # Without its store it is nothing: `install` takes the two together.
                    continue
                if self.silent:
                    self.silent.discard(message.sender)
                self.node.step(message)
        except Exception as error:
            self.fail(error)
        else:
            self._pump()

    async def install(self, message: InstallSnapshot, loaded: Loaded) -> bool:
        """Go on from a store that a leader sent and that is put aside; whether this member had use for it.

        Raises:
            Stopped: this member has failed or is closed, now or before it came to that.
        """
        if self.stopped:
            raise errors.Stopped
        try:
            self.node.step(message)
        except Exception as error:
            self.fail(error)
            raise errors.Stopped from error
        self.wake()
        if not self.node.installing:
            return False
        installed: asyncio.Future[None] = self._loop.create_future()
        self._installation = loaded, installed
        await installed
        return True

    def report_snapshot(self, peer: int, ok: bool) -> None:
        """Note how the transfer of a snapshot to this peer ended."""
        if self.stopped:
            return
        try:
            self.node.report_snapshot(peer, ok=ok)
        except Exception as error:
            self.fail(error)
        else:
            self.wake()

    def unreachable(self, peer: int) -> None:
        """Note that messages to this peer are being lost."""
        if self.stopped:
            return
        self.silent.add(peer)
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
            self._end_installation()

    @property
    def defragmenting(self) -> bool:
        """Whether the store is being defragmented."""
        return self._flushes.defragmenting

    @property
    def installing(self) -> bool:
        """Whether a snapshot is taking the place of the store."""
        return self._installation is not None

    @property
    def blank(self) -> bool:
        """Whether this member has neither a term nor a log: it has promised nothing and counted nobody's word."""
        return self.node.term == 0 and self.node.last_index == 0

    def aside(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have blocking work done by the thread for long work; an error is the caller's. `close` waits for it.

        Raises:
            Stopped: this member has failed or is closed.
        """
        if self.stopped:
            raise errors.Stopped
        return self._errands.outcome(self._run_aside, work)

    @property
    def stopped(self) -> bool:
        """Whether this member has failed or is closed."""
        return self._closed or self.failed.done()

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied."""
        return self.applier.index

    # Life

    def start(self) -> None:
        """Begin to tick; a sole voter need not wait for anyone to be silent."""
        if self.node.conf_state.voters == (self.node.id,):
            self.node.campaign()
        # Members whose ticks fall together would stand for election together, and split the vote, ten times as often.
        self._tick_timer = self._loop.call_later(self._tick_seconds * self.rng.random(), self._tick)
        self.compaction.start()
        self.wake()

    async def close(self) -> None:
        """Stop, flush the store and end every waiting call with `Stopped`."""
        self._closed = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        self.compaction.cancel()
        self.proposals.fail_all(errors.Stopped)
        self.reads.fail_all(errors.Stopped())
        self.leases.close()
        await self._errands.until_idle()
        self._end_installation()
        if not self.failed.done():
            self._flushes.begin()
            await self._errands.until_idle()

    # The pump

    def wake(self) -> None:
        """Ask for a turn of the pump at the end of this loop iteration."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._turn)

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
        self.proposals.expire(now, self.leadership.timeout_error)
        self.reads.tick()
        self.leadership.tick(now)
        self.leases.tick()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look_at_disk()
        if self._flushes.due:
            self._flushes.begin()

    def _look_at_disk(self) -> None:
        """Tell all members when the disk is nearly full: others take puts that are stored here as well."""
        self.quota.look()
        if not self.quota.short or self.alarms.is_on(NOSPACE, self.node.id):
            return
        if self.node.leader and (self._raising is None or self._raising.done()):
            self._raising = self.raise_alarm(NOSPACE, self.node.id)
            self._raising.add_done_callback(_told)

    def _turn(self) -> None:
        if self._pump_due:
            self._pump()

    def _pump(self) -> None:
        self._pump_due = False
        if self.stopped:
            return
        try:
            self._propose_queued()
            self.reads.start_round()
            messages = self.node.take_messages()
            if messages:
                self._send(messages)
            else:
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
            group = self._encode(ready) if ready.must_sync else None
            if group is not None:
                self._retention.logged(len(group.records))
            self._unsynced.append((ready, group))
        elif self._unsynced:
            self._unsynced.append((ready, None))
        else:
            self.node.advance(ready)
        if ready.committed:
            self._committed += ready.committed
            self._apply()
        self.leases.observe(self.applier.term)
        if ready.read_states:
            self.reads.confirmed(ready.read_states, self.applier.index)
            self.reads.start_round()

    def _encode(self, ready: Ready) -> Group:
        if ready.snapshot is None:
            return self._wal.encode(_hard_state(ready), ready.entries)
        return self._wal.encode(_hard_state(ready), ready.entries, snapshot=_recorded(ready.snapshot), restored=True)

    def _apply(self) -> None:
        """Apply what is committed: as much as one turn of the loop bears, and the rest in the next ones.

        So ticks and messages of others never wait for all of it. A leader begins with what takes long in itself a
        moment later, when the others know of it: then they work at the same time as it does, instead of waiting for its
        heartbeats.
        """
        if self._apply_due is not None:
            return
        followed = self.node.role is Role.LEADER and len(self.node.conf_state.voters) > 1
        applied = self._applied(self._committed, until_long=followed)
        del self._committed[:applied]
        if not self._committed:
            return
        if applied:
            self._apply_due = self._loop.call_soon(self._go_on_applying, False)
        else:
            self._apply_due = self._loop.call_later(LONG_PAUSE_SECONDS, self._go_on_applying, True)

    def _go_on_applying(self, long: bool) -> None:
        self._apply_due = None
        if self.stopped:
            return
        try:
            if long:
                del self._committed[: self._applied(self._committed[:1], until_long=False)]
            self._apply()
            self.leases.observe(self.applier.term)
            self._pump()
        except Exception as error:
            self.fail(error)

    def _applied(self, entries: Sequence[Entry], *, until_long: bool) -> int:
        started = self.slow.clock()
        applied = self.applier.apply(entries, work=self.turn_work, until_long=until_long)
        self.hub.distribute()
        self.node.applied_to(self.applier.index)
        self.reads.applied(self.applier.index)
        self.proposals.report(self.slow, started)
        return applied

    def _conf_state_applied(self, conf_state: ConfState, index: int) -> None:
        self.node.apply_conf_state(conf_state, index)
        self._members_changed()

    def _members_changed(self) -> None:
        self.standing.update()
        self._on_members()

    def _soft_state_changed(self, state: SoftState) -> None:
        self.leadership.changed(state.leader)
        self.reads.leader_changed()

    # The disk

    def _sync(self) -> None:
        while self._unsynced and not self._syncing:
            batch = list(self._unsynced)
            groups = [group for _, group in batch if group is not None]
            if groups:
                self._syncing = True
                self._sync_started_at = self.slow.clock()
                self._run(self._run_wal, self._writing(batch, groups), partial(self._written, batch))
                return
            self._unsynced.clear()
            self._persisted([owed for owed, _ in batch])
            while self.node.has_ready():
                self._handle(self.node.ready())

    def _writing(self, batch: list[tuple[Ready | SnapshotMetadata, Group | None]], groups: list[Group]) -> Work:
        write = partial(self._wal.write, groups)
        if not any(isinstance(owed, Ready) and owed.snapshot is not None for owed, _ in batch):
            return write
        assert self._installation is not None
        loaded, _ = self._installation

        def write_and_move() -> None:
            write()
            loaded.move_into_place()

        return write_and_move

    def _written(self, batch: list[tuple[Ready | SnapshotMetadata, Group | None]]) -> None:
        self.slow.last_fsync_seconds = self.slow.clock() - self._sync_started_at
        for _ in batch:
            self._unsynced.popleft()
        self._syncing = False
        if not self.stopped:
            self._persisted([owed for owed, _ in batch])
            self._pump()

    def _persisted(self, owed: list[Ready | SnapshotMetadata]) -> None:
        for ready in owed:
            if isinstance(ready, SnapshotMetadata):
                self._forget_log(ready.index)
                continue
            if ready.snapshot is not None:
                self._become_installed()
            self.node.advance(ready)
            if ready.messages_after_persist:
                self._send(ready.messages_after_persist)

    def write_aside(self, work: Work, then: Callable[[], None]) -> None:
        """Have a flush written in its thread, and go on with `then`; whatever fails stops the member."""
        self._run(self._run_flush, work, then)

    def durable(self, durable_index: int) -> None:
        """Hear that the store holds everything up to an index durably.

        If the log has grown enough, record where it begins from now on; the rest follows when that is durable.
        """
        point = None if self._closed else self._retention.point(durable_index)
        if point is not None:
            self._unsynced.append((point, self._wal.encode(None, (), snapshot=_recorded(point))))
            self.wake()

    def _forget_log(self, index: int) -> None:
        failpoint("log-point-recorded")
        self.node.compact(index)
        logger.info("the log begins behind %d", index)
        self._run(self._run_wal, partial(self._wal.release, index), lambda: None)

    def _become_installed(self) -> None:
        """Go on in memory from the store that has taken the place of ours on disk."""
        assert self._installation is not None
        loaded, installed = self._installation
        self._installation = None
        old = self.store.backend
        self._committed.clear()
        self.store.replace(loaded.store)
        self.leases.store.replace(loaded.leases)
        self.membership.load()
        self.applier.load()
        self._members_changed()
        self.hub.become(self.store)
        self.proposals.entries_skipped(self.leadership.timeout_error)
        self.reads.applied(self.applier.index)
        if not self._flushes.busy:
            self.retire(old)
        if not installed.done():
            installed.set_result(None)
        self.compaction.start()
        logger.info("member %x goes on from a snapshot of index %d", self.node.id, self.applier.index)

    def _end_installation(self) -> None:
        if self._installation is not None and not self._installation[1].done():
            self._installation[1].set_exception(errors.Stopped())

    def retire(self, backend: Backend) -> None:
        """Close a store that was replaced, behind what the thread for long work still does with it."""
        self._run(self._run_aside, backend.close, lambda: None)

    def _start_catching_up(self) -> None:
        if not self._catching_up:
            self._catching_up = True
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        """Serve a slice of history to watchers that are behind, and come back after everybody else's turn."""
        self._catching_up = False
        if self.stopped:
            return
        try:
            more = self.hub.catch_up()
        except Exception as error:
            self.fail(error)
            return
        if more:
            self._start_catching_up()


def _told(raised: "asyncio.Future[list[bytes]]") -> None:
    """Nobody waits for an alarm that a member raises by itself; it tries again."""
    if not raised.cancelled():
        raised.exception()


def _recorded(point: SnapshotMetadata) -> tuple[int, int, bytes]:
    return point.index, point.term, encode_conf_state(point.conf_state)


def _hard_state(ready: Ready) -> tuple[int, int, int] | None:
    state = ready.hard_state
    return None if state is None else (state.term, state.voted_for, state.commit)
