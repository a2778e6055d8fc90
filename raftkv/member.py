"""A member: a server bound to real sockets, disks and threads.

Order of start: bind every port, lock the data directory, open or create the store and the log, then serve. A port in
use or a foreign data directory is found before anything is written.
"""

import asyncio
import contextlib
import gc
import logging
import random
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import lmdb

from raftkv import api
from raftkv.api.info import http_app
from raftkv.config import Config
from raftkv.disk import OsDisk
from raftkv.mvcc import LmdbBackend, Store
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.peer import PeerTransport
from raftkv.raft import Config as RaftConfig
from raftkv.raft import Entry, EntryKind, HardState, RaftNode
from raftkv.rpc import App, health, reflection
from raftkv.rpc.server import HttpServer, listen
from raftkv.server import datadir, identity
from raftkv.server.apply import applied_position
from raftkv.server.datadir import DataDir, StartError
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.server.proposals import MEMBER_ATTRIBUTES
from raftkv.server.server import Blocking, Server
from raftkv.status import StatusError
from raftkv.wal import CorruptLog, Wal, WalContents

logger = logging.getLogger(__name__)

REQUEST_OVERHEAD_BYTES = 512 << 10
"""etcd accepts this much more than --max-request-bytes on the wire, so that its own error can answer."""

PEER_MESSAGE_BYTES = (1 << 31) - 1


class Member:
    """One running member: `start`, then `stop`; `wait_failed` ends when it died by itself."""

    def __init__(self, config: Config) -> None:
        self.config = config
        token = config.initial_cluster_token
        ids = {name: identity.member_id(urls, token) for name, urls in config.initial_cluster}
        self.member_id = ids[config.name]
        self.cluster_id = identity.cluster_id(ids.values())
        self._initial = [rpc_pb2.Member(ID=ids[name], peerURLs=urls) for name, urls in config.initial_cluster]
        self._rng = random.Random()
        self._exit = contextlib.AsyncExitStack()
        self._server: Server | None = None
        self._publishing: asyncio.Task[None] | None = None
        self.client_addresses: tuple[str, ...] = ()
        self.peer_addresses: tuple[str, ...] = ()

    async def start(self) -> None:
        """Open or create the data, serve both ports and begin to take part.

        Raises:
            StartError: a port is in use, or the data directory is foreign, locked, damaged or unwritable.
        """
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise

    async def _start(self) -> None:
        clients = [self._bind("listen-client-urls", url) for url in self.config.listen_client_urls]
        peers = [self._bind("listen-peer-urls", url) for url in self.config.listen_peer_urls]
        data_dir = DataDir(self.config.data_dir)
        data_dir.lock()
        self._exit.callback(data_dir.close)
        wal, contents = self._open_log(data_dir)
        store = self._open_store(data_dir, new=contents is None)
        membership = Membership(store)
        if contents is None:
            wal = self._bootstrap(data_dir, store, membership)
            self._exit.callback(wal.close)
        assert wal is not None
        server, transport = self._assemble(wal, contents, store, membership)
        self._server = server
        self._exit.push_async_callback(server.close)
        self.peer_addresses = await self._serve(App(transport.methods(), max_receive_bytes=PEER_MESSAGE_BYTES), peers)
        # Closed first: the server of the peer port waits for the streams of others to end.
        self._exit.push_async_callback(transport.close)
        transport.start()
        server.start()
        self.client_addresses = await self._serve(self._client_app(server), clients)
        self._publishing = asyncio.get_running_loop().create_task(self._publish(server))
        self._exit.callback(self._publishing.cancel)
        # What is loaded now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        # A thread that comes back from fdatasync waits this long for the interpreter lock while the loop is busy.
        sys.setswitchinterval(0.0005)

    async def stop(self) -> None:
        """Hand leadership over, drain the calls under way, flush and close. Safe to call twice."""
        if self._server is not None:
            await self._server.hand_over()
        await self._exit.aclose()

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
            problem = f"cannot listen on {url}: {error.strerror or error}"
            raise StartError(f"{problem}. Stop what uses it, or choose another --{flag}") from error
        self._exit.callback(listener.close)
        return listener

    async def _serve(self, app: App, listeners: list[socket.socket]) -> tuple[str, ...]:
        addresses = []
        for listener in listeners:
            http = HttpServer(app, listener, max_concurrent_streams=self.config.max_concurrent_streams)
            self._exit.push_async_callback(http.stop)
            await http.start()
            addresses.append(http.address)
        return tuple(addresses)

    def _client_app(self, server: Server) -> App:
        limits = api.Limits(max_request_bytes=self.config.max_request_bytes, max_txn_ops=self.config.max_txn_ops)
        methods = api.services(server, limits)
        methods.update(health.methods(lambda: not server.failed.done()))
        methods.update(reflection.methods({path.split("/")[1] for path in methods}))
        return App(
            methods,
            max_receive_bytes=self.config.max_request_bytes + REQUEST_OVERHEAD_BYTES,
            http=http_app(server),
        )

    # Data

    def _open_log(self, data_dir: DataDir) -> tuple[Wal | None, WalContents | None]:
        disk = OsDisk()
        if not data_dir.has_log():
            data_dir.check_may_create(self.config.initial_cluster_state)
            return None, None
        try:
            wal, contents = Wal.open(disk, data_dir.wal)
        except CorruptLog as error:
            raise StartError(str(error)) from error
        self._exit.callback(wal.close)
        data_dir.check_identity(contents.identity, cluster_id=self.cluster_id, member_id=self.member_id)
        if contents.repaired:
            logger.warning("%s", contents.repaired)
        return wal, contents

    def _open_store(self, data_dir: DataDir, *, new: bool) -> Store:
        try:
            backend = LmdbBackend(data_dir.store)
        except (lmdb.Error, OSError) as error:
            raise StartError(
                f"the store in {data_dir.store} cannot be opened: {error}. Check space and owner"
            ) from error
        self._exit.callback(backend.close)
        return Store(backend)

    def _bootstrap(self, data_dir: DataDir, store: Store, membership: Membership) -> Wal:
        """Write a new member's store, then its log: a log proves that everything before it is there."""
        owner = datadir.identity(cluster_id=self.cluster_id, member_id=self.member_id)
        membership.bootstrap(self._initial)
        try:
            flush = store.begin_flush()
            assert flush is not None
            flush.write()
            store.backend.end_flush(flush)
            return Wal.create(OsDisk(), data_dir.wal, owner)
        except OSError as error:
            raise datadir.disk_error(error, data_dir.path) from error
        except lmdb.Error as error:
            raise StartError(f"cannot write {data_dir.store}: {error}: free some space") from error

    # Parts

    def _assemble(
        self, wal: Wal, contents: WalContents | None, store: Store, membership: Membership
    ) -> tuple[Server, PeerTransport]:
        config = self.config
        election_ticks = max(2, round(config.election_timeout_ms / config.heartbeat_interval_ms))
        hard_state = contents.hard_state if contents else (0, 0, 0)
        entries = contents.entries if contents else []
        node = RaftNode(
            RaftConfig(id=self.member_id, random=self._rng, election_ticks=election_ticks),
            membership.conf_state,
            HardState(term=hard_state[0], voted_for=hard_state[1], commit=hard_state[2]),
            [Entry(term, index, EntryKind(kind), data) for term, index, kind, data in entries],
            applied=applied_position(store)[0],
        )
        transport = PeerTransport(
            self.cluster_id,
            self.member_id,
            {member.ID: member.peerURLs for member in membership.members},
            on_message=lambda message: server.receive(message),
            on_unreachable=lambda peer: server.unreachable(peer),
            rng=self._rng,
        )
        server = Server(
            node=node,
            wal=wal,
            store=store,
            membership=membership,
            headers=Headers(self.cluster_id, self.member_id),
            send=transport.send,
            run_wal=self._thread("wal"),
            run_flush=self._thread("flush"),
            rng=self._rng,
            tick_seconds=config.heartbeat_interval_ms / 1000,
            election_ticks=election_ticks,
        )
        return server, transport

    def _thread(self, name: str) -> Blocking:
        """A thread of its own for one kind of blocking work."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._exit.callback(executor.shutdown, wait=False)
        loop = asyncio.get_running_loop()

        def run(work: Callable[[], None]) -> asyncio.Future[None]:
            return loop.run_in_executor(executor, work)

        return run

    # Life

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
