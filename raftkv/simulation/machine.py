"""One member in the simulation: a machine with a disk that stays, and the processes that live on it one after another.

A process is put together from the shipping parts as `raftkv.member` does it; only the ports are others. What a thread
does elsewhere is an event here: it takes some time, and the process may die in the middle of it.

The log lies on the simulated disk, which loses what was not synced. The store is LMDB's own file in a directory of the
real system, without waiting for a real disk: a flush that was under way at a crash has happened or not.
"""

import asyncio
import fcntl
import hashlib
import os
import random
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import lmdb

from raftkv import api, errors, failpoints
from raftkv.api.slices import LARGE_KEYS
from raftkv.config import Config
from raftkv.http.asgi import ASGIApp
from raftkv.mvcc import LmdbBackend, Store, backend
from raftkv.pb import log_pb2, peer_pb2, rpc_pb2
from raftkv.peer import SNAPSHOT, codec
from raftkv.peer import snapshot as peer_snapshot
from raftkv.peer.reception import REMOVED, Reception, call_metadata
from raftkv.raft import Config as RaftConfig
from raftkv.raft import InstallSnapshot, Message, NodeId, Propose, RaftNode, Role
from raftkv.rpc import App, Context, Method, Requests
from raftkv.server.bootstrap import bootstrap, check_store_exists, check_store_follows
from raftkv.server.datadir import DataDir, StartError
from raftkv.server.headers import Headers
from raftkv.server.identity import Identity, first_members
from raftkv.server.join import check_not_removed, joined_identity
from raftkv.server.membership import Membership
from raftkv.server.proposals import MEMBER_ATTRIBUTES
from raftkv.server.restart import restored_node
from raftkv.server.server import TURN_WORK, Server
from raftkv.server.snapshot_transfer import Transfers
from raftkv.server.snapshots import Copy, Loaded, settle_at_start
from raftkv.server.worker import Done, Work
from raftkv.simulation.calls import Caller, Exchange, Served
from raftkv.simulation.disk import FaultyDisk, PowerCut
from raftkv.simulation.durable import ObservedWal
from raftkv.simulation.network import Network
from raftkv.simulation.options import AS_SHIPPED, Bounds
from raftkv.simulation.scheduler import SECOND, Event, ProcessLoop, Scheduler
from raftkv.status import Code, StatusError
from raftkv.wal import CorruptLog, Wal, WalContents

SNAPSHOT_CHUNK_BYTES = 16 << 10
SNAPSHOT_SECONDS = 20.0
CONNECT_SECONDS = 1.0
LOST_SECONDS = 0.05
"""How soon a sender notices that a message did not arrive, where it can."""


class Thread:
    """What a worker thread is to a process: jobs one after another, each of which takes a while."""

    def __init__(self, loop: ProcessLoop, seconds: Callable[[], float], power_cut: Callable[[], None]) -> None:
        """`seconds` draws how long a job takes; `power_cut` is called when the power fails in one."""
        self._loop = loop
        self._power_cut = power_cut
        self._seconds = seconds
        self.jobs: deque[tuple[Work, Done]] = deque()

    def run(self, work: Work, done: Done) -> None:
        """Do `work` after what was asked before, then call `done` in the loop."""
        self.jobs.append((work, done))
        if len(self.jobs) == 1:
            self._begin()

    def _begin(self) -> None:
        if not self._loop.dead:
            scheduler = self._loop.scheduler
            scheduler.plan(scheduler.now + int(self._seconds() * SECOND), Event(self._loop, self._finish, ()))

    def _finish(self) -> None:
        work, done = self.jobs.popleft()
        error: BaseException | None = None
        try:
            work()
        except PowerCut:
            self._power_cut()
            return
        except Exception as raised:
            error = raised
        if self.jobs:
            self._begin()
        done(error)


class Machine:
    """A place where a member lives: what survives its processes.

    Invariant: at most one process is alive.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        *,
        scheduler: Scheduler,
        network: Network,
        seed: str,
        members: Mapping[NodeId, int],
        find: Callable[[int], "Process | None"],
        on_error: Callable[[str], None],
        on_died: Callable[[int, str], None],
        on_power_cut: Callable[[int], None],
        after_turn: Callable[["Process"], None],
        on_message: Callable[[Message], None],
        rate: float = 1.0,
        offset: float = 0.0,
        segment_bytes: int = 32 << 10,
        turn_work: int = TURN_WORK,
        large_keys: int = LARGE_KEYS,
        on_wire: bool = False,
        changing: bool = False,
        message_bytes: int = 1 << 20,
        bounds: Bounds = AS_SHIPPED,
    ) -> None:
        """`members` are the places of all members by id, new ones too if `changing`; `find` gives the process at a
        place."""
        self.number = number
        self.config = config
        self.scheduler = scheduler
        self.network = network
        self.members = members
        self.find = find
        self.on_error = on_error
        self.on_died = on_died
        self.on_power_cut = on_power_cut
        self.after_turn = after_turn
        self.on_message = on_message
        self.rate = rate
        self.offset = offset
        self.segment_bytes = segment_bytes
        self.turn_work = turn_work
        self.large_keys = large_keys
        self.on_wire = on_wire
        self.changing = changing
        self.message_bytes = message_bytes
        self.bounds = bounds
        self.turn_ns = 20_000
        self.rng = random.Random(f"{seed}/machine/{number}")
        self.disk = FaultyDisk(f"{seed}/{number}")
        self.sync_seconds = 0.0008
        self.stall_until = 0
        self.process: Process | None = None
        self.lives = 0
        self.installed = 0
        """Snapshots that its processes have gone on from."""
        self.on_arrival: Callable[[Process], None] | None = None
        """Called when a snapshot has arrived, before it is installed."""
        self.flipped: tuple[str, int, int] | None = None
        """Where a bit of its log was changed."""
        self.known: peer_pb2.KnownMembers | None = None
        """What another member said of the members, if this one was added later."""
        self.refused: str = ""
        """Why the last start was refused."""

    def disk_seconds(self) -> float:
        """Draw how long the next job of a thread takes."""
        seconds = self.sync_seconds * (0.5 + self.rng.random())
        return seconds + max(0, self.stall_until - self.scheduler.now) / SECOND

    def start(self) -> None:
        """Start a process; what hinders it is in `refused`."""
        self.lives += 1
        self.refused = ""
        process = self.process = Process(self)
        process.loop.run_in(process.start)

    def died(self, process: "Process", reason: str) -> None:
        """The process has stopped by itself."""
        if process is not self.process:
            return
        self.refused = reason
        self.on_died(self.number, reason)

    def kill(self, *, power: bool) -> None:
        """End the process at once, with the machine (`power`) or without; jobs under way are done in part."""
        process, self.process = self.process, None
        if process is not None:
            process.kill(partial(self._interrupt, power=power))
            for exchange in list(process.exchanges):
                exchange.broken(5.0 if power else 0.0)
            process.exchanges.clear()
        if power:
            self.disk.crash()
        else:
            self.disk.kill()

    def _interrupt(self, work: Work, *, power: bool) -> None:
        """Do a job up to some point: nothing of it, all of it, or what came before the end."""
        chance = self.rng.random()
        if chance < 0.3:
            return
        if chance < 0.8:
            self.disk.cut_power(after=self.rng.randrange(5))
            failpoints.arm(_Countdown(self.rng.randrange(4)))
        try:
            work()
        except (PowerCut, Exception):
            # Nobody is left to hear of it.
            pass
        finally:
            failpoints.disarm()


class _Countdown:
    """Lets the power fail at the n-th failpoint."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, name: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise PowerCut(name)


class Process(Served):
    """One life of a member."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.life = machine.lives
        self._rng = random.Random(f"{machine.rng.getrandbits(64)}")
        self.loop = ProcessLoop(
            machine.scheduler,
            machine.number,
            rate=machine.rate,
            offset=machine.offset,
            turn_ns=machine.turn_ns,
            on_error=self._callback_failed,
            after_turn=partial(machine.after_turn, self),
        )
        self.exchanges: dict[Exchange, None] = {}
        self._caller = Caller(machine.network, machine.scheduler, machine.number, self.loop)
        self._threads = [Thread(self.loop, machine.disk_seconds, self._power_cut) for _ in range(3)]
        self._apps: dict[str, ASGIApp] = {}
        self._silent: set[int] = set()
        self.server: Server | None = None
        self.reported: tuple[int, int, int, int, Role] | None = None
        """What the invariants saw of this process last: term, last index, commit and applied index, role."""

    def durable(self, index: int, term: int) -> bool:
        """Whether this member's disk holds this entry."""
        return self._observed.holds(index, term)

    def app(self, port: str) -> ASGIApp | None:
        return self._apps.get(port)

    def _callback_failed(self, what: str, error: BaseException | None) -> None:
        self.machine.on_error(f"member {self.machine.number}: {what}: {error!r}")

    # Life

    def start(self) -> None:
        """Open what is on disk and begin to take part; in a turn of the loop."""
        try:
            self._start()
        except (StartError, OSError, CorruptLog) as error:
            self.machine.died(self, f"refused to start: {error}")
        except PowerCut:
            self._power_cut()
        else:
            self.machine.flipped = None

    def _power_cut(self) -> None:
        self.machine.on_power_cut(self.machine.number)

    def kill(self, interrupt: Callable[[Work], None]) -> None:
        """End; the jobs under way are given to `interrupt`."""
        self.loop.kill()
        for thread in self._threads:
            if thread.jobs:
                interrupt(thread.jobs[0][0])
                thread.jobs.clear()
        close_environments(self.machine.config.data_dir)

    def _start(self) -> None:
        machine, config = self.machine, self.machine.config
        data_dir = DataDir(config.data_dir)
        has_log = any(name.endswith(".wal") for name in machine.disk.list(data_dir.wal))
        contents: WalContents | None = None
        if has_log:
            wal, contents = Wal.open(machine.disk, data_dir.wal, machine.segment_bytes)
            identity = Identity.decode(contents.identity)
            check_store_exists(data_dir)
            settle_at_start(data_dir.path, contents.snapshot[0])
            store = self._open_store(data_dir)
            check_store_follows(data_dir, store, contents)
            check_not_removed(config, Membership(store), identity.member_id)
        else:
            identity, members, told = self._introduction()
            store = self._open_store(data_dir)
            wal = bootstrap(
                machine.disk,
                data_dir,
                store,
                identity,
                members,
                introduced=told,
                segment_bytes=machine.segment_bytes,
            )
        wal.settle()
        self._assemble(identity, wal, contents, store)

    def _introduction(self) -> tuple[Identity, Sequence[rpc_pb2.Member], Sequence[rpc_pb2.Member]]:
        """Who this member is, the first members, and those of today as far as others told."""
        known = self.machine.known
        if known is None:
            return *first_members(self.machine.config), []
        return joined_identity(self.machine.config, known), known.founders, known.members

    def known_members(self) -> peer_pb2.KnownMembers:
        """What this member says of the cluster to one that joins."""
        assert self.server is not None
        membership = self.server.membership
        return peer_pb2.KnownMembers(
            cluster_id=self._identity.cluster_id,
            cluster_token=self._identity.cluster_token,
            members=membership.members,
            founders=membership.founders,
        )

    def _open_store(self, data_dir: DataDir) -> Store:
        return Store(LmdbBackend(data_dir.store))

    def _assemble(self, identity: Identity, wal: Wal, contents: WalContents | None, store: Store) -> None:
        config = self.machine.config
        membership = Membership(store)
        election_ticks = max(2, round(config.election_timeout_ms / config.heartbeat_interval_ms))
        node = self._node(identity.member_id, election_ticks, contents, store, membership)
        run_wal, run_flush, run_aside = (thread.run for thread in self._threads)
        self.transfers = transfers = Transfers(
            config.data_dir,
            backend=lambda: store.backend,
            install=self._install,
            report=lambda peer, ok: server.report_snapshot(peer, ok),
            send=self._send_snapshot,
            matched=lambda peer: node.status().match_indexes.get(peer),
            run=run_aside,
        )
        self._identity = identity
        self._observed = ObservedWal(wal, contents)
        server = self.server = Server(
            node=node,
            wal=self._observed,
            store=store,
            membership=membership,
            headers=Headers(identity.cluster_id, identity.member_id),
            send=self._send,
            call_peer=self._call_peer,
            run_wal=run_wal,
            run_flush=run_flush,
            run_aside=run_aside,
            rng=self._rng,
            tick_seconds=config.heartbeat_interval_ms / 1000,
            election_ticks=election_ticks,
            quota_bytes=config.quota_backend_bytes,
            watch_fragment_bytes=config.max_request_bytes,
            clock=self.loop.time,
            snapshot_count=config.snapshot_count,
            catch_up_entries=config.snapshot_catchup_entries,
            turn_work=self.machine.turn_work,
            hold_log=lambda: transfers.holding,
            connected=lambda peer: self.machine.members.get(peer) not in self._silent,
        )
        server.proposals.max_pending_bytes = self.machine.bounds.pending_bytes
        self._serve(server)
        server.failed.add_done_callback(lambda failed: self.machine.died(self, repr(failed.result())))
        server.standing.removed.add_done_callback(lambda _: self.machine.died(self, "it was removed"))
        server.start()
        if self.machine.changing:
            self._connect()
        self._publishing = self.loop.create_task(self._publish(server))

    def _node(
        self,
        member_id: NodeId,
        election_ticks: int,
        contents: WalContents | None,
        store: Store,
        membership: Membership,
    ) -> RaftNode:
        bounds = self.machine.bounds
        config = RaftConfig(
            id=member_id,
            random=self._rng,
            election_ticks=election_ticks,
            max_message_bytes=self.machine.message_bytes,
            max_inflight_messages=bounds.inflight_messages,
            max_inflight_bytes=bounds.inflight_bytes,
            max_uncommitted_bytes=bounds.uncommitted_bytes,
            max_apply_bytes=self.machine.message_bytes,
        )
        return restored_node(config, contents, store, membership)

    def _serve(self, server: Server) -> None:
        config, identity = self.machine.config, self._identity
        limits = api.Limits(
            max_request_bytes=config.max_request_bytes,
            max_txn_ops=config.max_txn_ops,
            large_keys=self.machine.large_keys,
        )
        self._apps["client"] = App(api.services(server, limits, data_dir=config.data_dir, watch_progress_seconds=2.0))
        self._apps["peer"] = App(
            {
                SNAPSHOT: Method.client_stream(self._receive_snapshot),
                **api.peer_methods(identity.cluster_id, identity.member_id, lambda: server),
            }
        )

    async def _publish(self, server: Server) -> None:
        name = self.machine.config.name
        attributes = log_pb2.MemberAttributes(member_id=self._identity.member_id, name=name)
        while True:
            await server.wait_leader()
            try:
                await server.propose(MEMBER_ATTRIBUTES, attributes.SerializeToString())
            except StatusError:
                await asyncio.sleep(1.0)
            else:
                return

    async def _install(self, message: InstallSnapshot, loaded: Loaded) -> bool:
        assert self.server is not None
        if self.machine.on_arrival is not None:
            self.machine.on_arrival(self)
        installed = await self.server.install(message, loaded)
        self.machine.installed += installed
        return installed

    # The network port

    def _send(self, messages: Sequence[Message]) -> None:
        machine = self.machine
        for message in messages:
            machine.on_message(message)
            if type(message) is InstallSnapshot:
                self.transfers.send(message)
                continue
            target = machine.members.get(message.to)
            if target is None:
                continue
            if machine.on_wire:
                message = next(codec.decode_batch(codec.encode_framed(message)))
            machine.network.post(
                machine.number,
                target,
                self._deliver,
                self._lost,
                target,
                message,
                # The transport promises that it sends nothing twice, and proposals rely on it.
                once=type(message) is Propose,
            )

    def _deliver(self, target: int, message: Message) -> None:
        process = self.machine.find(target)
        if process is None or process.server is None:
            self._lost(target, message)
        elif process.server.membership.is_removed(message.sender):
            self._lost(target, message)
            self._refuse(target)
        else:
            self._silent.discard(target)
            process.loop.run_in(process.server.receive, message)

    def _refuse(self, target: int) -> None:
        """Have the member at `target` say that this one was removed, as it says to a stream."""
        self.machine.network.post(
            target, self.machine.number, partial(self.loop.run_in, self._told_removed), lambda: None
        )

    def _connect(self) -> None:
        """Open a stream to every peer, as the transport does whether or not there is something to say."""
        assert self.server is not None
        self.loop.call_later(CONNECT_SECONDS, self._connect)
        machine = self.machine
        for peer in self.server.membership.peers:
            target = machine.members.get(peer)
            if target not in (None, machine.number):
                machine.network.post(machine.number, target, partial(self._connected, target), lambda: None)

    def _connected(self, target: int) -> None:
        process = self.machine.find(target)
        server = None if process is None else process.server
        if server is not None and server.membership.is_removed(self._identity.member_id):
            self._refuse(target)

    def _told_removed(self) -> None:
        if self.server is not None:
            self.server.standing.told_removed()

    def _lost(self, target: int, message: Message) -> None:
        if target not in self._silent and self.server is not None:
            self._silent.add(target)
            self.machine.scheduler.after(LOST_SECONDS, self.loop.run_in, self.server.unreachable, message.to)

    async def _call_peer(self, peer: NodeId, path: str, request: bytes, timeout: float) -> bytes:
        target = self.machine.members.get(peer)
        if target is None:
            raise ConnectionError(f"member {peer:x} is not known")
        try:
            return await self._call(peer, target, path, [request], timeout)
        except StatusError as error:
            if (error.code, error.message) == (Code.FAILED_PRECONDITION, errors.NotLeader.TEXT):
                raise errors.NotLeader from error
            raise ConnectionError(error.message) from error

    async def _call(self, peer: NodeId, target: int, path: str, requests: Sequence[bytes], timeout: float) -> bytes:
        metadata = call_metadata(self._identity.cluster_id, self._identity.member_id, peer)
        return await self._caller.call(
            target, partial(self.machine.find, target), path, requests, timeout, port="peer", metadata=metadata
        )

    async def _send_snapshot(
        self, message: InstallSnapshot, copy: Copy, read: Callable[[int, int], Awaitable[bytes]]
    ) -> None:
        target = self.machine.members[message.to]
        parts = [peer_pb2.SnapshotPart(message=codec.encode(message), size=copy.size_bytes)]
        digest = hashlib.sha256()
        offset = 0
        while offset < copy.size_bytes:
            data = await read(offset, SNAPSHOT_CHUNK_BYTES)
            offset += len(data)
            digest.update(data)
            parts.append(peer_pb2.SnapshotPart(data=data))
        parts.append(peer_pb2.SnapshotPart(hash=digest.digest()))
        try:
            encoded = [part.SerializeToString() for part in parts]
            await self._call(message.to, target, SNAPSHOT, encoded, SNAPSHOT_SECONDS)
        except StatusError as error:
            raise ConnectionError(error.message) from error

    async def _receive_snapshot(self, parts: Requests, context: Context) -> bytes:
        sender = Reception(self._identity.cluster_id, self._identity.member_id).sender(context)
        if self.server is not None and self.server.membership.is_removed(sender):
            raise StatusError(Code.FAILED_PRECONDITION, REMOVED)
        return await peer_snapshot.receive_snapshot(parts, sender, self._identity.member_id, self.transfers.begin)


_environments: list[tuple[str, lmdb.Environment]] = []
backend.WATCHERS.append(lambda path, environment: _environments.append((path, environment)))


def close_environments(directory: str) -> None:
    """Close what is open of LMDB below a directory, as the end of a process would."""
    for place, environment in _environments:
        if place.startswith(directory + "/"):
            environment.close()
    _environments[:] = [opened for opened in _environments if not opened[0].startswith(directory + "/")]


def remove_directory(path: str) -> None:
    """Remove what a run left in the file system, and close the files that dead processes would have open."""
    shutil.rmtree(path, ignore_errors=True)
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            flags = fcntl.fcntl(int(name), fcntl.F_GETFL)
        except OSError:
            continue
        # LMDB's own are open for reading and writing, or for synced writing: it closes them itself.
        if target.startswith(path + "/") and not flags & (os.O_RDWR | os.O_DSYNC):
            os.close(int(name))
