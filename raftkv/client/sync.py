"""The client for threads: `AsyncClient` on an event loop of its own, in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from raftkv.client import requests as req
from raftkv.client.aio import AsyncClient
from raftkv.client.requests import Key
from raftkv.pb import kv_pb2, rpc_pb2

# As in `raftkv.client.aio`, imported where it is needed.
if TYPE_CHECKING:
    from raftkv.client.coordination import Election, Lock, Transaction
    from raftkv.client.leasing import AsyncLease
    from raftkv.client.secure import ClientTls
    from raftkv.client.watching import AsyncWatch

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
T = TypeVar("T")


class _LoopThread:
    """An event loop that runs until it is stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A client that nobody closed must not keep the process alive.
        self._thread = threading.Thread(target=self._loop.run_forever, name="raftkv-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it; interrupted, it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def stop(self) -> None:
        self.run(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _interrupted() -> None:
    """Wait for calls that were cancelled."""
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.cancelling()), return_exceptions=True)


async def _end_tasks() -> None:
    """Let what others began here, such as calls that were cancelled, come to its end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Client:
    """A cluster, reached through any of its endpoints. Thread-safe; one connection per endpoint used.

    All methods raise `ClientError` (see `raftkv.client.errors`), and follow the rules of `raftkv.client.failover`:
    what provably was not sent and what only reads may go to another endpoint, a write that was sent never does.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "localhost:2379",
        *,
        timeout: float = 5.0,
        dial_timeout: float = 2.0,
        user: str = "",
        password: str = "",
        tls: "ClientTls | None" = None,
    ) -> None:
        """Nothing is connected yet.

        endpoints: host:port, http:// or https:// URLs, several or comma-separated; with `tls` host:port is https, too.
        timeout: seconds for a whole call.
        dial_timeout: seconds to find an endpoint that can be reached, shared evenly between them. user, password: who
        calls; the client logs in when it is first needed, and again when its token is void.

        Raises:
            ValueError: an endpoint that cannot be used.
        """
        self._client = AsyncClient(
            endpoints, timeout=timeout, dial_timeout=dial_timeout, user=user, password=password, tls=tls
        )
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, when no other thread is in a call any more."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            # What was interrupted may still be giving back a lock.
            thread.run(_interrupted())
            thread.run(self._client.close())
            thread.stop()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            thread = self._thread
            if thread is None:
                thread = self._thread = _LoopThread()
        return thread.run(coroutine)

    def call(self, rpc: req.Rpc[Q, A], request: Q, *, timeout: float | None = None, endpoint: str | None = None) -> A:
        """Make any unary call; with `endpoint`, at that one only."""
        return self._run(self._client.call(rpc, request, timeout=timeout, endpoint=endpoint))

    def get(self, key: Key, *, revision: int = 0, serializable: bool = False) -> kv_pb2.KeyValue | None:
        """One key, or None; at an old `revision` if one is given."""
        return self._run(self._client.get(key, revision=revision, serializable=serializable))

    def range(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        prefix: bool = False,
        limit: int = 0,
        revision: int = 0,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> rpc_pb2.RangeResponse:
        """One key, [key, range_end), or all keys with a prefix, in one answer; linearizable unless `serializable`."""
        return self._run(
            self._client.range(
                key,
                range_end,
                prefix=prefix,
                limit=limit,
                revision=revision,
                serializable=serializable,
                keys_only=keys_only,
                count_only=count_only,
            )
        )

    def pages(self, request: rpc_pb2.RangeRequest, *, page_bytes: int = 1 << 20) -> Iterator[rpc_pb2.RangeResponse]:
        """A range in key order, page by page, all at the revision of the first; the timeout is for each page.

        `count` and `more` of a page speak of the rest of the range from that page on.

        Raises:
            ValueError: an order other than by ascending key.
        """
        pages = req.Pages(request, page_bytes=page_bytes)
        while True:
            response = self.call(req.range_rpc(pages.request), pages.request)
            yield response
            if not pages.take(response):
                return

    def put(self, key: Key, value: Key, *, lease: int = 0, prev_kv: bool = False) -> rpc_pb2.PutResponse:
        """Write one key."""
        return self._run(self._client.put(key, value, lease=lease, prev_kv=prev_kv))

    def delete(
        self, key: Key, range_end: Key | None = None, *, prefix: bool = False, prev_kv: bool = False
    ) -> rpc_pb2.DeleteRangeResponse:
        """Delete one key, [key, range_end), or all keys with a prefix."""
        return self._run(self._client.delete(key, range_end, prefix=prefix, prev_kv=prev_kv))

    def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        """Run a transaction."""
        return self._run(self._client.txn(request))

    def compact(self, revision: int, *, physical: bool = False) -> rpc_pb2.CompactionResponse:
        """Give up history below `revision`; with `physical`, return when the member has removed it."""
        return self._run(self._client.compact(revision, physical=physical))

    def watch(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        prefix: bool = False,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        puts: bool = True,
        deletes: bool = True,
    ) -> "Watch":
        """Follow the changes of one key, of [key, range_end), or of all keys with a prefix; 0: from now on.

        It resumes by itself, at another endpoint if need be, without gap or repeat. The timeout does not bound it.

        Raises:
            ValueError: a negative revision, or both `range_end` and `prefix`.
        """
        watch = self._client.watch(
            key,
            range_end,
            prefix=prefix,
            start_revision=start_revision,
            prev_kv=prev_kv,
            progress_notify=progress_notify,
            puts=puts,
            deletes=deletes,
        )
        return Watch(watch, self._run)

    def lease(self, ttl: int, *, on_lost: "Callable[[Lease], None] | None" = None) -> "Lease":
        """A lease of `ttl` seconds for `with`: kept alive inside, revoked at the end.

        `on_lost` is called, in the client's own thread, when it has expired or could not be renewed in time. It must
        not call this client.
        """
        return Lease(self._client, self._run, ttl, on_lost)

    def lease_grant(self, ttl: int, lease_id: int = 0) -> rpc_pb2.LeaseGrantResponse:
        """Make a lease of `ttl` seconds; the server chooses its id unless one is given, and may grant more time."""
        return self._run(self._client.lease_grant(ttl, lease_id))

    def lease_revoke(self, lease_id: int) -> rpc_pb2.LeaseRevokeResponse:
        """End a lease and delete its keys."""
        return self._run(self._client.lease_revoke(lease_id))

    def lease_keep_alive_once(self, lease_id: int) -> rpc_pb2.LeaseKeepAliveResponse:
        """Renew a lease once; raises an error that is also `LeaseNotFound` when there is none."""
        return self._run(self._client.lease_keep_alive_once(lease_id))

    def lease_keep_alive(self, lease_id: int) -> Iterator[rpc_pb2.LeaseKeepAliveResponse]:
        """Renew a lease again and again, as long as it exists and can be renewed in time; yields each answer."""
        renewals = self._client.lease_keep_alive(lease_id)

        async def following() -> rpc_pb2.LeaseKeepAliveResponse | None:
            return await anext(renewals, None)

        while (answer := self._run(following())) is not None:
            yield answer

    def lease_time_to_live(self, lease_id: int, *, keys: bool = False) -> rpc_pb2.LeaseTimeToLiveResponse:
        """What is left of a lease, in whole seconds (-1: there is none), and its keys if asked for."""
        return self._run(self._client.lease_time_to_live(lease_id, keys=keys))

    def leases(self) -> rpc_pb2.LeaseLeasesResponse:
        """All leases, as some member knows them."""
        return self._run(self._client.leases())

    def lock(
        self,
        name: Key,
        *,
        ttl: int = 10,
        timeout: float | None = None,
        on_lost: "Callable[[Lock], None] | None" = None,
    ) -> "Lock":
        """A lock for `with`, held on a lease of `ttl` seconds that is kept alive inside.

        timeout: seconds to wait for those before us (0: do not wait); None: as long as it takes. on_lost is called, in
        the client's own thread, when the lease is lost. It must not call this client.
        """
        from raftkv.client.coordination import Lock

        return Lock(self._client, self._run, name, ttl=ttl, timeout=timeout, on_lost=on_lost)

    def election(self, name: Key, *, ttl: int = 60, on_lost: "Callable[[Election], None] | None" = None) -> "Election":
        """An election, to stand in with a lease of `ttl` seconds or to observe; `on_lost` as with `lock`."""
        from raftkv.client.coordination import Election

        return Election(self._client, self._run, name, ttl=ttl, on_lost=on_lost)

    def stm(self, body: "Callable[[Transaction], T]") -> T:
        """Run a function as a serialisable transaction, again and again until it commits; what it returned.

        It reads and writes through what it is given, and should do nothing else that cannot be done twice.

        Raises:
            OutcomeUnknown: it may have committed; it is not run again.
        """
        from raftkv.client import coordination

        return coordination.transact(self._client, self._run, body)

    def member_list(self, *, linearizable: bool = False) -> rpc_pb2.MemberListResponse:
        """Who the members are, as some member knows them or as the cluster agrees now."""
        return self._run(self._client.member_list(linearizable=linearizable))

    def member_add(self, peer_urls: Iterable[str], *, learner: bool = False) -> rpc_pb2.MemberAddResponse:
        """Add a member that others reach at these URLs: a voter, or a learner that only gets the log."""
        return self._run(self._client.member_add(peer_urls, learner=learner))

    def member_remove(self, member: int) -> rpc_pb2.MemberRemoveResponse:
        """Remove a member for good."""
        return self._run(self._client.member_remove(member))

    def member_update(self, member: int, peer_urls: Iterable[str]) -> rpc_pb2.MemberUpdateResponse:
        """Change the URLs at which the others reach a member."""
        return self._run(self._client.member_update(member, peer_urls))

    def member_promote(self, member: int) -> rpc_pb2.MemberPromoteResponse:
        """Let a learner vote; refused until it has caught up."""
        return self._run(self._client.member_promote(member))

    def status(self, endpoint: str | None = None) -> rpc_pb2.StatusResponse:
        """What the member behind an endpoint says of itself; without one, any member that answers."""
        return self._run(self._client.status(endpoint))

    def snapshot(self) -> Iterator[rpc_pb2.SnapshotResponse]:
        """The store of a member, in pieces; the last piece is the SHA-256 of the others. Without a time limit.

        Raises:
            NotConnected, Unavailable, Refused
        """
        pieces = self._client.snapshot()

        async def following() -> rpc_pb2.SnapshotResponse | None:
            return await anext(pieces, None)

        while (piece := self._run(following())) is not None:
            yield piece

    def health(self, endpoint: str | None = None) -> float:
        """Seconds that a linearizable read took; raises when it fails. A read that is not permitted is healthy too."""
        return self._run(self._client.health(endpoint))


class Lease:
    """A lease, made on entering the context, kept alive inside it and revoked on leaving it; see `AsyncLease`."""

    def __init__(
        self,
        client: AsyncClient,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        ttl: int,
        on_lost: "Callable[[Lease], None] | None",
    ) -> None:
        self._client = client
        self._run = run
        self._ttl = ttl
        self._on_lost = on_lost
        self._lease: AsyncLease | None = None

    def __enter__(self) -> "Lease":
        """Raises: what a write raises; OutcomeUnknown: a lease that nobody renews may exist until its time is up."""
        self._lease = self._run(self._enter())
        return self

    async def _enter(self) -> "AsyncLease":
        on_lost = self._on_lost
        told = None if on_lost is None else (lambda _: on_lost(self))
        return await self._client.lease(self._ttl, on_lost=told).__aenter__()

    def __exit__(self, *_: object) -> None:
        self._run(self._entered.__aexit__())

    @property
    def _entered(self) -> "AsyncLease":
        assert self._lease is not None, "a lease exists inside its context"
        return self._lease

    @property
    def id(self) -> int:
        """The lease's id."""
        return self._entered.id

    @property
    def ttl(self) -> int:
        """Seconds the server granted; it may be more than was asked for."""
        return self._entered.ttl

    @property
    def lost(self) -> bool:
        """Whether it is known to be lost."""
        return self._entered.lost.is_set()

    @property
    def valid_seconds(self) -> float:
        """How much longer the lease can be relied on without another renewal; 0 when it is lost."""
        from raftkv.client import coordination

        return float(self._run(coordination.valid_seconds(self._entered)))

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until it is lost, at most `timeout` seconds; whether it is."""
        from raftkv.client import coordination

        return bool(self._run(coordination.wait_lost(self._entered, timeout)))

    def check(self) -> None:
        """Raises: LeaseLost; also when its time is up and nobody has noticed yet."""
        from raftkv.client import coordination

        self._run(coordination.check(self._entered))


class Watch(Iterator[rpc_pb2.WatchResponse]):
    """The changes of some keys, answer by answer, as `AsyncWatch` gives them. One thread iterates; any may close it."""

    def __init__(self, watch: "AsyncWatch", run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._watch = watch
        self._run = run

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def next_revision(self) -> int:
        """The first revision that was not told yet; 0: no server was reached so far."""
        return self._watch.next_revision

    def ready(self) -> None:
        """Wait until a server has the watcher: what is written from now on will be told.

        Raises:
            NotConnected: no endpoint could be reached within the dial timeout, and none was before.
            WatchCompacted, Refused: as when iterating.
        """
        self._run(self._watch.ready())

    def __next__(self) -> rpc_pb2.WatchResponse:
        """Wait for the next answer.

        Raises:
            NotConnected: no endpoint could be reached within the dial timeout, and none was before.
            WatchCompacted: what it is to be told next is gone.
            Refused: the server does not let it watch; no server has room for it (RESOURCE_EXHAUSTED).
        """
        answer: rpc_pb2.WatchResponse | None = self._run(self._next())
        if answer is None:
            raise StopIteration
        return answer

    async def _next(self) -> rpc_pb2.WatchResponse | None:
        return await anext(self._watch, None)

    def request_progress(self) -> None:
        """Ask how far the server is; answered when everything up to there has been told. `ready` comes first."""
        self._run(self._watch.request_progress())

    def close(self) -> None:
        """End the watcher; a thread that waits for an answer is done, too."""
        self._run(self._watch.close())
