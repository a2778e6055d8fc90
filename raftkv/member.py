"""A member: a server bound to real sockets, disks and threads.

Order of start: bind every port, lock the data directory, open the store and the log, then serve. A port in use or a
foreign data directory is found before anything is written. A member without data first asks the others whether it may
take part (`raftkv.peer.introduction`), and creates its data then.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from urllib.parse import urlsplit

import lmdb

from raftkv import api, errors
from raftkv.auditlog import AuditLog, RotatingFile
from raftkv.auth import MEMBER
from raftkv.auth.tokens import JwtTokens, SimpleTokens, TokenError
from raftkv.auth.tokens import parse as parse_tokens
from raftkv.config import Config
from raftkv.disk import OsDisk, free_bytes
from raftkv.gateway import Gateway, paths_of
from raftkv.histogram import Histogram
from raftkv.http import HttpServer, Load, listen
from raftkv.http.asgi import ASGIApp
from raftkv.http.load import connections_allowed
from raftkv.metrics import Metrics
from raftkv.mvcc import LmdbBackend, Store
from raftkv.pb import log_pb2, peer_pb2, rpc_pb2
from raftkv.peer import MESSAGES, SNAPSHOT, Acquaintance, PeerCalls, PeerTransport, introduction, joining
from raftkv.peer import snapshot as peer_snapshot
from raftkv.peer.dial import Dial
from raftkv.peer.reception import call_metadata
from raftkv.raft import Config as RaftConfig
from raftkv.raft import InstallSnapshot, Role
from raftkv.rates import Rates
from raftkv.rpc import App, Context, Method, Requests, Said, health, reflection
from raftkv.rpc.timed import timed
from raftkv.security import Port, check_files, dial_tls, listener_tls, make_files
from raftkv.server import compactor
from raftkv.server.bootstrap import bootstrap, check_store_exists, check_store_follows
from raftkv.server.corruption import CorruptionChecker
from raftkv.server.datadir import DataDir, StartError
from raftkv.server.headers import Headers
from raftkv.server.heard import Heard
from raftkv.server.identity import Identity, check_settings, check_token, first_members
from raftkv.server.join import (
    ASK_SECONDS,
    check_not_removed,
    fits,
    joined_identity,
    not_answered,
    others_urls,
    stay_alone,
    voters,
)
from raftkv.server.membership import Membership
from raftkv.server.proposals import COMPACTION, MEMBER_ATTRIBUTES
from raftkv.server.restart import restored_node
from raftkv.server.server import Server
from raftkv.server.snapshot_transfer import Transfers
from raftkv.server.snapshots import Copy, settle_at_start
from raftkv.server.transfer import hand_over
from raftkv.server.worker import Blocking, Worker
from raftkv.status import Code, StatusError
from raftkv.wal import CorruptLog, Wal, WalContents
from raftkv.web import Checks, Front, client_pages, metrics_pages

logger = logging.getLogger(__name__)

REQUEST_OVERHEAD_BYTES = 512 << 10
"""etcd accepts this much more than --max-request-bytes on the wire, so that its own error can answer."""

PEER_MESSAGE_BYTES = 512 << 20
"""Of the stream of a member that was let in, as in etcd: one with a larger --max-request-bytes may lead. All else that
the peer port is asked is read before it is known who asks, and is small."""
PEER_INFLIGHT_BYTES = 64 << 20
"""Of such questions, all together, as far as they have arrived; those that come in one piece are answered beyond it."""
PEER_STREAMS = 4096
"""Questions on the peer port that have not arrived whole; the streams of members do not count."""

_REMEDIES = {
    errno.EADDRINUSE: "stop what uses it, or choose another",
    errno.EACCES: "give this user the right to use the port, or choose another",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address: choose another",
}
"""When nobody can listen on a URL, by the system's reason."""


class Member:
    """One running member: `start`, then `stop`; `wait_failed` ends when it died by itself."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._disk = OsDisk()
        self._flushes = Histogram()
        self._rng = random.Random()
        self._exit = contextlib.AsyncExitStack()
        self._dial = Dial(dial_tls(config))
        self._identity: Identity | None = None
        self._server: Server | None = None
        self._transport: PeerTransport | None = None
        self._transfers: Transfers | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._compacting: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self.client_addresses: tuple[str, ...] = ()
        self.peer_addresses: tuple[str, ...] = ()

    @property
    def member_id(self) -> int:
        """Raft id, known once started."""
        return self._known_identity().member_id

    @property
    def cluster_id(self) -> int:
        """The cluster's id, known once started."""
        return self._known_identity().cluster_id

    def _known_identity(self) -> Identity:
        assert self._identity is not None, "start() comes first"
        return self._identity

    async def start(self) -> None:
        """Open or create the data, serve both ports and begin to take part.

        Raises:
            StartError: a port is in use; the data directory is foreign, locked, damaged or unwritable; or it is empty
                and this member took part before.
        """
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise

    async def _start(self) -> None:
        self._tokens = self._make_tokens()
        self._check_rates()
        self._check_certificates()
        clients = [self._bind("listen-client-urls", url) for url in self.config.listen_client_urls]
        peers = [self._bind("listen-peer-urls", url) for url in self.config.listen_peer_urls]
        monitors = [self._bind("listen-metrics-urls", url) for url in self.config.listen_metrics_urls]
        data_dir = DataDir(self.config.data_dir)
        data_dir.lock()
        self._exit.callback(data_dir.close)
        make_files(self.config)
        self._audit = self._open_audit_log()
        wal, contents = self._open_log(data_dir)
        self._heard = Heard(self._disk, data_dir.path)
        if contents is None:
            wal, store = await self._first_start(data_dir, peers)
        else:
            store = self._later_start(data_dir, contents)
        assert wal is not None
        # Only now: a start that was refused has changed nothing.
        wal.settle()
        membership = Membership(store)
        if self.config.force_new_cluster and contents is not None:
            stay_alone(self.config, wal, contents, membership, self.member_id)
        server, transport, calls = self._assemble(wal, contents, store, membership)
        self._server, self._transport = server, transport
        self._exit.push_async_callback(server.close)
        assert self._transfers is not None
        self._exit.push_async_callback(self._transfers.close)
        if not self.peer_addresses:
            await self._serve_peers(peers)
        self._exit.push_async_callback(calls.close)
        # Closed first: the server of the peer port waits for the streams of others to end.
        self._exit.push_async_callback(transport.close)
        transport.start()
        server.start()
        await self._serve_clients(server, transport, clients, monitors)
        self._publishing = asyncio.get_running_loop().create_task(self._publish(server))
        self._exit.callback(self._publishing.cancel)
        self._start_compactor(server)
        checker = CorruptionChecker(
            server,
            calls.call,
            at_start=self.config.initial_corrupt_check,
            interval_seconds=self.config.corrupt_check_time_seconds,
        )
        self._checking = asyncio.get_running_loop().create_task(checker.run())
        self._exit.callback(self._checking.cancel)
        if self.config.auto_promote_learners:
            self._promoting = asyncio.get_running_loop().create_task(server.reconfiguration.promote_learners())
            self._exit.callback(self._promoting.cancel)

    async def stop(self) -> None:
        """Hand leadership over, drain the calls under way, flush and close. Safe to call twice."""
        if self._server is not None:
            await hand_over(self._server)
        await self._exit.aclose()

    async def wait_removed(self) -> None:
        """Wait until this member has been removed from its cluster; it should stop then."""
        assert self._server is not None, "start() comes first"
        await asyncio.shield(self._server.standing.removed)

    async def wait_failed(self) -> BaseException:
        """Wait until the member dies by itself; the reason."""
        assert self._server is not None, "start() comes first"
        return await asyncio.shield(self._server.failed)

    # Sockets

    def _bind(self, flag: str, url: str) -> socket.socket:
        parts = urlsplit(url)
        try:
            listener = listen(parts.hostname or "", parts.port or 0)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            remedy = _REMEDIES.get(error.errno or 0, "choose another")
            raise StartError(f"cannot listen on {url}: {why}: {remedy} --{flag}") from error
        self._exit.callback(listener.close)
        return listener

    def _check_certificates(self) -> None:
        """Raises: StartError; a file cannot be used."""
        try:
            check_files(self.config)
        except ValueError as error:
            raise StartError(str(error)) from error

    async def _serve(
        self,
        app: ASGIApp,
        listeners: list[socket.socket],
        port: Port,
        urls: Sequence[str],
        *,
        load: Load | None = None,
        ping_seconds: float = 0.0,
    ) -> tuple[str, ...]:
        addresses = []
        for listener, url in zip(listeners, urls, strict=True):
            tls = listener_tls(self.config, port, url)
            http = HttpServer(
                app,
                listener,
                max_concurrent_streams=self.config.max_concurrent_streams,
                tls=tls,
                load=load,
                ping_seconds=ping_seconds,
            )
            self._exit.push_async_callback(http.stop)
            await http.start()
            addresses.append(http.address)
        return tuple(addresses)

    async def _serve_clients(
        self, server: Server, transport: PeerTransport, clients: list[socket.socket], monitors: list[socket.socket]
    ) -> None:
        methods = self._client_methods(server)
        checks = Checks(server, alarms=server.alarms.names)
        assert self._transfers is not None
        said = Said(b"client-api-version")
        most = self.config.max_connections or connections_allowed()
        load = Load(self.config.max_inflight_bytes, most, self.config.max_streams)
        times = self._disk.times
        metrics = Metrics(server, transport, checks, methods, said, times, self._flushes, self._transfers, load)
        pages = Front(metrics_pages(checks, metrics.render))
        await self._serve(pages, monitors, "client", self.config.listen_metrics_urls)
        max_receive_bytes = self.config.max_request_bytes + REQUEST_OVERHEAD_BYTES
        urgent = {*api.URGENT, *paths_of(api.URGENT)}
        app = App(methods, max_receive_bytes=max_receive_bytes, said=said, load=load, urgent=urgent)
        pages_of_clients = client_pages(checks, metrics.render, debug=self.config.enable_pprof)
        gateway = None
        if self.config.enable_grpc_gateway:
            gateway = Gateway(app, max_receive_bytes=max_receive_bytes, load=load)
        app.http = Front(
            pages_of_clients,
            gateway=gateway,
            origins=self.config.cors,
            users_matter=lambda: server.auth.enabled,
        )
        self.client_addresses = await self._serve(
            app,
            clients,
            "client",
            self.config.listen_client_urls,
            load=load,
            ping_seconds=self.config.grpc_keepalive_min_time_seconds,
        )

    def _open_audit_log(self) -> AuditLog | None:
        """Raises: StartError; the file cannot be written."""
        path = self.config.audit_log
        if not path:
            return None
        try:
            file = RotatingFile(path, max_bytes=self.config.audit_log_max_bytes, backups=self.config.audit_log_backups)
        except OSError as error:
            raise StartError(f"--audit-log: cannot write {path}: {error.strerror or error}") from error
        self._exit.callback(file.close)
        log = AuditLog(file, self._thread("audit"), clock=time.time)
        self._exit.push_async_callback(log.close)
        return log

    def _client_methods(self, server: Server) -> dict[str, Method]:
        limits = api.Limits(max_request_bytes=self.config.max_request_bytes, max_txn_ops=self.config.max_txn_ops)
        methods = api.services(
            server,
            limits,
            data_dir=self.config.data_dir,
            watch_progress_seconds=self.config.watch_progress_notify_interval_seconds,
            rates=Rates(self.config.rate_limit, time.monotonic, api.APART) if self.config.rate_limit else None,
        )
        methods.update(health.methods(lambda: not server.failed.done()))
        methods.update(reflection.methods({path.split("/")[1] for path in methods}))
        api.check_rules(methods)
        audit = self._audit
        if audit is not None:
            methods = {
                path: api.audited(path, method, audit, lambda: server.store.revision)
                for path, method in methods.items()
            }
        if self.config.metrics == "extensive":
            methods = {path: timed(method) for path, method in methods.items()}
        return methods

    # Data

    def _open_log(self, data_dir: DataDir) -> tuple[Wal | None, WalContents | None]:
        if not data_dir.has_log():
            return None, None
        try:
            wal, contents = Wal.open(self._disk, data_dir.wal)
        except CorruptLog as error:
            raise StartError(str(error)) from error
        self._exit.callback(wal.close)
        if contents.repaired:
            logger.warning("%s", contents.repaired)
        return wal, contents

    def _open_store(self, data_dir: DataDir) -> Store:
        try:
            backend = LmdbBackend(data_dir.store)
        except (lmdb.Error, OSError) as error:
            raise StartError(
                f"the store in {data_dir.store} cannot be opened: {error}. Check space and owner"
            ) from error
        self._exit.callback(backend.close)
        store = Store(backend)
        # A snapshot may bring another backend.
        self._exit.callback(lambda: store.backend.close())
        return store

    async def _first_start(self, data_dir: DataDir, listeners: list[socket.socket]) -> tuple[Wal, Store]:
        others: Sequence[rpc_pb2.Member]
        founders: Sequence[rpc_pb2.Member]
        told: Sequence[rpc_pb2.Member]
        if self.config.initial_cluster_state == "existing":
            known = await self._ask_members()
            self._identity = joined_identity(self.config, known)
            founders, others, told = known.founders, voters(known, self.member_id), known.members
        else:
            self._identity, founders = first_members(self.config)
            others, told = founders, []
        await self._serve_peers(listeners)
        await self._introduce(others)
        store = self._open_store(data_dir)
        wal = bootstrap(self._disk, data_dir, store, self._identity, founders, introduced=told)
        self._exit.callback(wal.close)
        return wal, store

    async def _ask_members(self) -> peer_pb2.KnownMembers:
        urls = others_urls(self.config)
        known = await joining.ask_members(urls, partial(fits, self.config), seconds=ASK_SECONDS, dial=self._dial)
        if known is None:
            raise not_answered(urls)
        return known

    def _later_start(self, data_dir: DataDir, contents: WalContents) -> Store:
        self._identity = Identity.decode(contents.identity)
        check_token(self.config, self._identity)
        check_store_exists(data_dir)
        try:
            if settle_at_start(data_dir.path, contents.snapshot[0]):
                logger.info("the installation of a snapshot of index %d is finished", contents.snapshot[0])
        except (OSError, lmdb.Error) as error:
            raise StartError(f"cannot finish the installation of a snapshot in {data_dir.path}: {error}") from error
        store = self._open_store(data_dir)
        check_store_follows(data_dir, store, contents)
        membership = Membership(store)
        check_not_removed(self.config, membership, self.member_id)
        ignored = check_settings(self.config, self._identity, membership.members)
        if ignored:
            logger.info(ignored)
        return store

    # The others

    async def _serve_peers(self, listeners: list[socket.socket]) -> None:
        """Serve the peer port; until the parts are assembled it only answers what this member knows of others."""
        methods = {
            introduction.INTRODUCE: introduction.method(self.cluster_id, self.member_id, self._acquaintance),
            joining.MEMBERS: joining.method(self._known_members),
            MESSAGES: Method.client_stream(self._receive, PEER_MESSAGE_BYTES, counted=False),
            SNAPSHOT: Method.client_stream(self._receive_snapshot, counted=False),
            **api.peer_methods(self.cluster_id, self.member_id, lambda: self._server),
        }
        load = Load(PEER_INFLIGHT_BYTES, max_streams=PEER_STREAMS)
        app = App(methods, load=load, urgent=methods)
        self.peer_addresses = await self._serve(app, listeners, "peer", self.config.listen_peer_urls, load=load)

    async def _receive(self, batches: Requests, context: Context) -> bytes:
        if self._transport is None:
            raise StatusError(Code.UNAVAILABLE, "raftkv: this member has not started yet")
        return await self._transport.receive(batches, context)

    async def _receive_snapshot(self, parts: Requests, context: Context) -> bytes:
        if self._transport is None or self._transfers is None:
            raise StatusError(Code.UNAVAILABLE, "raftkv: this member has not started yet")
        sender = await self._transport.admit(context)
        return await peer_snapshot.receive_snapshot(parts, sender, self.member_id, self._transfers.begin)

    def _acquaintance(self, member: int) -> Acquaintance:
        if self._server is None or self._server.blank:
            return Acquaintance.BLANK
        return Acquaintance.KNOWN if member in self._heard else Acquaintance.STRANGER

    def _known_members(self) -> peer_pb2.KnownMembers | None:
        if self._server is None:
            return None
        membership = self._server.membership
        return peer_pb2.KnownMembers(
            cluster_id=self.cluster_id,
            cluster_token=self._known_identity().cluster_token,
            members=membership.members,
            founders=membership.founders,
        )

    async def _introduce(self, members: Sequence[rpc_pb2.Member]) -> None:
        others = {member.ID: member.peerURLs for member in members if self.member_id != member.ID}
        try:
            await introduction.introduce(self.cluster_id, self.member_id, others, self._dial)
        except introduction.AlreadyTookPart as error:
            raise StartError(
                f"member {self.config.name} ({self.member_id:x}) has no data in {self.config.data_dir}, but member "
                f"{error.witness:x} knows that it took part in this cluster: it has forgotten its votes and must not "
                "vote again. Restore its --data-dir, or remove the member and add it as a new one"
            ) from error

    async def _admit(self, member: int) -> None:
        try:
            await self._heard.remember(member)
        except OSError as error:
            assert self._server is not None
            self._server.fail(error)
            raise errors.Stopped from error

    # Parts

    def _assemble(
        self, wal: Wal, contents: WalContents | None, store: Store, membership: Membership
    ) -> tuple[Server, PeerTransport, PeerCalls]:
        config = self.config
        election_ticks = max(2, round(config.election_timeout_ms / config.heartbeat_interval_ms))
        node = restored_node(
            RaftConfig(id=self.member_id, random=self._rng, election_ticks=election_ticks), contents, store, membership
        )
        transport = PeerTransport(
            self.cluster_id,
            self.member_id,
            membership.peers,
            on_messages=lambda *messages: server.receive(*messages),
            on_unreachable=lambda peer: server.unreachable(peer),
            admit=self._admit,
            rng=self._rng,
            on_snapshot=lambda message: transfers.send(message),
            is_removed=membership.is_removed,
            on_removed=lambda: server.standing.told_removed(),
            dial=self._dial,
        )
        run_aside = self._thread("aside")
        self._transfers = transfers = Transfers(
            config.data_dir,
            backend=lambda: store.backend,
            install=lambda message, loaded: server.install(message, loaded),
            report=lambda peer, ok: server.report_snapshot(peer, ok),
            matched=lambda peer: node.status().match_indexes.get(peer),
            send=lambda message, copy, read: self._send_snapshot(membership, message, copy, read),
            run=run_aside,
        )
        calls = PeerCalls(self.cluster_id, self.member_id, lambda: membership.peers, self._dial)
        server = Server(
            node=node,
            wal=wal,
            store=store,
            membership=membership,
            headers=Headers(self.cluster_id, self.member_id),
            send=transport.send,
            call_peer=calls.call,
            run_wal=self._thread("wal"),
            run_flush=self._thread("flush", self._flushes),
            run_aside=run_aside,
            rng=self._rng,
            tick_seconds=config.heartbeat_interval_ms / 1000,
            election_ticks=election_ticks,
            quota_bytes=config.quota_backend_bytes,
            watch_fragment_bytes=config.max_request_bytes + REQUEST_OVERHEAD_BYTES,
            max_watch_bytes=config.max_watch_bytes,
            warning_seconds=config.warning_apply_duration_seconds,
            clock=time.monotonic,
            snapshot_count=config.snapshot_count,
            catch_up_entries=config.snapshot_catchup_entries,
            hold_log=lambda: transfers.holding,
            free_bytes=partial(free_bytes, config.data_dir),
            run_auth=self._threads("auth", min(4, os.cpu_count() or 1)),
            tokens=self._tokens,
            bcrypt_cost=config.bcrypt_cost,
            on_members=lambda: transport.update(membership.peers),
            connected=lambda peer: transport.connected.get(peer, False),
            strict_reconfig_check=config.strict_reconfig_check,
            max_learners=config.max_learners,
        )
        return server, transport, calls

    async def _send_snapshot(
        self, membership: Membership, message: InstallSnapshot, copy: Copy, read: Callable[[int, int], Awaitable[bytes]]
    ) -> None:
        urls = next((member.peerURLs for member in membership.members if message.to == member.ID), ())
        if not urls:
            raise ConnectionError(f"member {message.to:x} is not known")
        await peer_snapshot.send_snapshot(
            self._rng.choice(urls),
            call_metadata(self.cluster_id, self.member_id, message.to),
            message,
            copy.size_bytes,
            read,
            bytes_per_second=self.config.snapshot_send_bytes_per_second,
            dial=self._dial,
        )

    def _thread(self, name: str, times: Histogram | None = None) -> Blocking:
        """A thread of its own for one kind of blocking work, whose times are observed if wanted."""
        worker = Worker(name)
        self._exit.callback(worker.stop)
        if times is None:
            return worker.run
        return lambda work, done: worker.run(partial(_timed, work, times), done)

    def _threads(self, name: str, count: int) -> Blocking:
        """Some threads that take turns."""
        turns = itertools.cycle([self._thread(f"{name}-{number}") for number in range(count)])
        return lambda work, done: next(turns)(work, done)

    def _make_tokens(self) -> SimpleTokens | JwtTokens:
        """Raises: StartError; --auth-token cannot be used."""
        config = self.config
        clock = asyncio.get_running_loop().time
        try:
            return parse_tokens(
                config.auth_token, ttl_seconds=config.auth_token_ttl_seconds, clock=clock, now=time.time
            )
        except TokenError as error:
            raise StartError(f"--auth-token: {error}") from error

    def _check_rates(self) -> None:
        """Raises: StartError; --rate-limit is about no method."""
        try:
            api.check_rates(self.config.rate_limit)
        except ValueError as error:
            raise StartError(f"--rate-limit: {error}") from error

    # Life

    def _start_compactor(self, server: Server) -> None:
        planned = compactor.schedule(self.config.auto_compaction_mode, self.config.auto_compaction_retention)
        if planned is None:
            return

        def compact(revision: int) -> Awaitable[object]:
            request = rpc_pb2.CompactionRequest(revision=revision)
            return server.propose(COMPACTION, request.SerializeToString(), MEMBER)

        running = compactor.Compactor(
            planned,
            revision=lambda: server.store.revision,
            leads=lambda: server.node.role is Role.LEADER,
            compact=compact,
        )
        self._compacting = asyncio.get_running_loop().create_task(running.run())
        self._exit.callback(self._compacting.cancel)

    async def _publish(self, server: Server) -> None:
        """Tell the cluster this member's name and client URLs, until that has been applied once."""
        attributes = log_pb2.MemberAttributes(
            member_id=self.member_id, name=self.config.name, client_urls=self.config.advertise_client_urls
        )
        while True:
            await server.wait_leader()
            try:
                await server.propose(MEMBER_ATTRIBUTES, attributes.SerializeToString())
            except StatusError as error:
                logger.warning("could not publish this member's name yet: %s", error.message)
                await asyncio.sleep(1.0)
            else:
                return


def _timed(work: Callable[[], None], times: Histogram) -> None:
    started = time.perf_counter()
    work()
    times.observe(time.perf_counter() - started)
