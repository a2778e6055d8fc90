"""Clients that do many kinds of operations on few keys and write down what they asked, were told, and when.

All of them are the Python client of the project, on one event loop in a thread. Half of them ask one member at a time
and go to another when it fails; the others leave that to the client. Every logged request carries its number into the
log (`marked`), where the checks find it again. Besides, each member has a reader that asks nobody else: an old leader
that still answered would be noticed.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

from raftkv.client import AsyncClient, AsyncWatch, NotConnected, WatchCompacted
from raftkv.client import requests as req
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.simulation.history import Change, History, Told, Watched
from raftkv.simulation.linearizability import FOREVER, Access
from raftkv.simulation.revisions import LOGGED
from tests.partition.asking import CALL_SECONDS, Asker
from tests.partition.holders import LEASERS, LOCKERS, Leaser, Locker, is_gone

CLIENTS = 6
PAUSE_SECONDS = 0.08
"""Between two operations of a client, on average."""
HOLDERS = 50
"""The number of the first who holds leases."""
WRITES = LOGGED - {"grant", "revoke"}
KEYS, REGISTERS = 5, 3
WATCHED = ((b"\0", b"\0", True), (b"k/", b"k0", False), (b"r/0", b"", True))
_MIX = (("put", 5), ("get", 4), ("range", 2), ("txn", 3), ("delete", 2), ("register", 8), ("compact", 0.1))


class Recorder:
    """Clients and watchers at work. Use: `start`, faults, `stop`, `drain`, `close`."""

    def __init__(self, endpoints: Sequence[str], seed: str) -> None:
        self.endpoints = list(endpoints)
        self.history = History()
        self.accesses: dict[bytes, list[Access]] = {}
        self.definite: set[int] = set()
        """Operations of which the client says that they had no effect."""
        self.problems: list[str] = []
        self.revision = 1
        self.stopping = False
        self.began = 0
        self.seed = seed
        self.heard: dict[int, int] = {}
        """When (ns) some watcher heard of a revision first."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._clients: list[asyncio.Task[None]] = []
        self._watchers: list[_Watcher] = []
        self._watching: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._thread.start()
        self.began = time.monotonic_ns()
        self._on_loop(self._start())

    async def _start(self) -> None:
        for number in range(CLIENTS):
            self._clients.append(asyncio.ensure_future(_Client(self, number).run()))
        for member in range(len(self.endpoints)):
            self._clients.append(asyncio.ensure_future(_Client(self, CLIENTS + member, reads_at=member).run()))
        for number in range(HOLDERS, HOLDERS + LEASERS + LOCKERS):
            kind = Leaser if number < HOLDERS + LEASERS else Locker
            self._clients.append(asyncio.ensure_future(kind(self, number, pinned=number % 2 == 0).run()))
        for number, watched in enumerate(WATCHED):
            watcher = _Watcher(self, number, Watched(100 + number, *watched))
            self._watchers.append(watcher)
            self._watching.append(asyncio.ensure_future(watcher.run()))

    def writes(self) -> int:
        """How many writes were acknowledged so far."""
        return sum(operation.ok and operation.kind in WRITES for operation in self.history.operations)

    def holds(self) -> bool:
        """Whether a lease was renewed and the lock given so far."""
        return bool(self.history.renewals) and any(op.ok and op.kind == "lock" for op in self.history.operations)

    def loses(self) -> bool:
        """Whether somebody has seen that a lease is gone which nobody revoked."""
        operations = self.history.operations
        revoked = {op.request.ID for op in operations if op.kind == "revoke"}  # type: ignore[attr-defined]
        return any(is_gone(op) and op.request.ID not in revoked for op in operations)  # type: ignore[attr-defined]

    def stop(self) -> None:
        """Let each client finish what it does."""
        self.stopping = True
        self._on_loop(self._finish(self._clients))

    def drained(self, revision: int) -> bool:
        """Whether all watchers have been told everything up to a revision; asks them for their progress."""
        self._on_loop(self._ask_progress())
        return all(watcher.told.reached >= revision for watcher in self._watchers)

    def close(self) -> None:
        """End watchers and loop, whatever state they are in."""
        if not self._thread.is_alive():
            self._loop.close()
            return
        self.stopping = True
        for task in (*self._clients, *self._watching):
            self._loop.call_soon_threadsafe(task.cancel)
        with contextlib.suppress(TimeoutError):
            self._on_loop(self._finish(self._clients + self._watching))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def _on_loop(self, coroutine: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(90)  # type: ignore[arg-type]

    async def _finish(self, tasks: "list[asyncio.Task[None]]") -> None:
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                self.problems.append(f"a client ended with {outcome!r}")

    async def _ask_progress(self) -> None:
        for watcher in self._watchers:
            if watcher.watch is not None:
                await watcher.watch.request_progress()


class _Client(Asker):
    """Does one operation after another; with `reads_at` it reads registers at that member, and nothing else."""

    def __init__(self, recorder: Recorder, number: int, reads_at: int | None = None) -> None:
        super().__init__(recorder, number, member=reads_at, pinned=number % 2 == 0 or reads_at is not None)
        self._reads_at = reads_at

    async def run(self) -> None:
        kinds, weights = zip(*(_MIX if self._reads_at is None else (("register", 1),)), strict=True)
        doing: dict[str, Callable[[], Awaitable[object]]] = {
            "put": self._put,
            "get": self._get,
            "range": self._range,
            "txn": self._txn,
            "delete": self._delete,
            "register": self._register,
            "compact": self._compact,
        }
        try:
            while not self.recorder.stopping:
                await asyncio.sleep(self.rng.expovariate(1 / PAUSE_SECONDS))
                await doing[self.rng.choices(kinds, weights)[0]]()
        finally:
            await self.client.close()

    def _key(self) -> bytes:
        return b"k/%d" % self.rng.randrange(KEYS)

    def _value(self) -> bytes:
        # One that nobody else writes: the operation's number.
        return b"%d" % (len(self.recorder.history.operations) + 1)

    async def _put(self) -> None:
        await self.ask(
            "put",
            req.PUT,
            rpc_pb2.PutRequest(key=self._key(), value=self._value(), prev_kv=self.rng.random() < 0.3),
        )

    async def _get(self) -> None:
        request = rpc_pb2.RangeRequest(key=self._key(), serializable=self.rng.random() < 0.2)
        await self.ask("range", req.range_rpc(request), request)

    async def _range(self) -> None:
        request = rpc_pb2.RangeRequest(key=b"k/", range_end=b"k0", limit=self.rng.choice((0, 0, 2)))
        if self.rng.random() < 0.3:
            request.revision = max(1, self.recorder.revision - self.rng.randrange(20))
        await self.ask("range", req.range_rpc(request), request)

    async def _delete(self) -> None:
        request = rpc_pb2.DeleteRangeRequest(key=self._key(), prev_kv=self.rng.random() < 0.3)
        if self.rng.random() < 0.2:
            request.range_end = b"k0"
        await self.ask("delete", req.DELETE_RANGE, request)

    async def _txn(self) -> None:
        request = rpc_pb2.TxnRequest()
        request.compare.add(
            key=self._key(), target=rpc_pb2.Compare.VERSION, result=rpc_pb2.Compare.LESS, version=self.rng.randrange(6)
        )
        first, second = self.rng.sample([b"k/%d" % number for number in range(KEYS)], 2)
        for branch in (request.success, request.failure):
            put = branch.add().request_put
            put.key, put.value = first, self._value()
            branch.add().request_range.key = second
        request.failure.add().request_delete_range.key = second
        await self.ask("txn", req.TXN, request)

    async def _compact(self) -> None:
        revision = max(1, self.recorder.revision - 100)
        await self.ask("compact", req.COMPACT, rpc_pb2.CompactionRequest(revision=revision))

    async def _register(self) -> None:
        """Use a key of which the checker that knows no revisions thinks as a register."""
        rng = self.rng
        key, value = b"r/%d" % rng.randrange(REGISTERS), self._value()
        accesses = self.recorder.accesses.setdefault(key, [])
        kinds = ("put", "get", "delete", "cas") if self._reads_at is None else ("get",)
        kind = rng.choices(kinds, (3, 4, 1, 2)[: len(kinds)])[0]
        access = Access(kind, time.monotonic_ns(), FOREVER, None if kind in ("get", "delete") else value)
        if kind == "put":
            operation = await self.ask("put", req.PUT, rpc_pb2.PutRequest(key=key, value=value))
        elif kind == "get":
            operation = await self.ask("range", req.RANGE, rpc_pb2.RangeRequest(key=key))
        elif kind == "delete":
            operation = await self.ask("delete", req.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=key))
        else:
            known = [known.value for known in accesses[-4:] if known.value is not None]
            access.expected = rng.choice(known) if known else b"none"
            request = rpc_pb2.TxnRequest()
            compare = request.compare.add(key=key, target=rpc_pb2.Compare.VALUE, value=access.expected)
            compare.result = rpc_pb2.Compare.EQUAL
            put = request.success.add().request_put
            put.key, put.value = key, value
            operation = await self.ask("txn", req.TXN, request)
        if operation.number in self.recorder.definite:
            return
        accesses.append(access)
        if operation.answer is not None:
            access.returned = operation.returned
            access.seen = _seen(kind, operation.answer)


def _seen(kind: str, answer: bytes) -> object:
    if kind == "get":
        kvs = rpc_pb2.RangeResponse.FromString(answer).kvs
        return kvs[0].value if kvs else None
    if kind == "delete":
        return rpc_pb2.DeleteRangeResponse.FromString(answer).deleted == 1
    if kind == "cas":
        return rpc_pb2.TxnResponse.FromString(answer).succeeded
    return None


class _Watcher:
    """Follows some keys from the first revision on; where compaction overtakes it, it goes on behind the gap."""

    def __init__(self, recorder: Recorder, number: int, watched: Watched) -> None:
        self._recorder = recorder
        self._watched = watched
        endpoints = recorder.endpoints
        place = number % len(endpoints)
        self._endpoints = endpoints[place:] + endpoints[:place]
        self.told = Told(1, 0)
        self.watch: AsyncWatch | None = None
        watched.segments.append(self.told)
        recorder.history.watches.append(watched)

    async def run(self) -> None:
        async with AsyncClient(self._endpoints, dial_timeout=CALL_SECONDS) as client:
            while True:
                try:
                    await self._follow(client)
                except WatchCompacted as gap:
                    self._watched.gaps.append((max(self.told.reached + 1, self.told.start), gap.compact_revision))
                    self.told = Told(gap.compact_revision, gap.compact_revision - 1)
                    self._watched.segments.append(self.told)
                except NotConnected:
                    await asyncio.sleep(0.1)

    async def _follow(self, client: AsyncClient) -> None:
        watched = self._watched
        start = max(self.told.reached + 1, self.told.start)
        async with client.watch(
            watched.key,
            watched.range_end or None,
            start_revision=start,
            prev_kv=watched.prev_kv,
            progress_notify=True,
        ) as self.watch:
            async for answer in self.watch:
                if answer.events:
                    now = time.monotonic_ns()
                    for event in answer.events:
                        self._recorder.heard.setdefault(event.kv.mod_revision, now)
                    self.told.batches.append([_change(event) for event in answer.events])
                    self.told.reached = max(self.told.reached, answer.events[-1].kv.mod_revision)
                else:
                    self.told.reached = max(self.told.reached, answer.header.revision)


def _change(event: kv_pb2.Event) -> Change:
    kv = event.kv
    previous = event.prev_kv.value if event.HasField("prev_kv") else None
    return Change(
        kv.mod_revision,
        event.type == kv_pb2.Event.DELETE,
        *(kv.key, kv.value, kv.create_revision, kv.version, kv.lease, previous),
    )
