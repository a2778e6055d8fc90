"""What clients do in a run: every kind of operation, on few keys, at members their choice; all of it is written down.

Each client does one thing after another, as a program would. Watchers, holders of leases and those who want locks are
clients, too. A client that gets no answer does not know what became of its operation, and goes on with another.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial

from google.protobuf.message import Message

from raftkv.pb import kv_pb2, rpc_pb2, v3lock_pb2
from raftkv.simulation.calls import Caller, Exchange
from raftkv.simulation.cluster import Cluster
from raftkv.simulation.history import Change, History, Operation, Told, Watched, marked
from raftkv.simulation.linearizability import FOREVER, Access
from raftkv.simulation.members import Operator
from raftkv.simulation.options import MEMBERS
from raftkv.simulation.revisions import LOGGED
from raftkv.simulation.roles import RoleKeeper
from raftkv.status import Code, StatusError

_KV = "/etcdserverpb.KV/"
_LEASE = "/etcdserverpb.Lease/"
PATHS = {
    "put": _KV + "Put",
    "delete": _KV + "DeleteRange",
    "txn": _KV + "Txn",
    "read-txn": _KV + "Txn",
    "range": _KV + "Range",
    "compact": _KV + "Compact",
    "grant": _LEASE + "LeaseGrant",
    "revoke": _LEASE + "LeaseRevoke",
    "lock": "/v3lockpb.Lock/Lock",
    "unlock": "/v3lockpb.Lock/Unlock",
}
KEEP_ALIVE = _LEASE + "LeaseKeepAlive"
WATCH = "/etcdserverpb.Watch/Watch"

MIX = (
    ("put", 26),
    ("get", 16),
    ("range", 10),
    ("txn", 12),
    ("delete", 6),
    ("register", 22),
    ("lease", 6),
    ("compact", 1),
    ("read-txn", 3),
)


CROWDS = (30, 100)
CROWD_NUMBER = 300


class Clients:
    """All clients of a run."""

    def __init__(self, cluster: Cluster, history: History) -> None:
        self.cluster = cluster
        self.history = history
        self._stopping = False
        self.operator: Operator | None = None
        self._role_keeper: RoleKeeper | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.watching: list[asyncio.Task[None]] = []
        self.watchers: list[Watcher] = []
        self.accesses: dict[bytes, list[Access]] = {}
        self.revision = 1
        """The newest revision any client has heard of."""
        self.compacted = 0
        self.leases: list[int] = []
        self.final_revision = 0
        """Where the run ends, once that is known: watchers go on until they have come so far."""

    def start(self) -> None:
        """Begin."""
        self.cluster.clients.run_in(self._start)

    def _start(self) -> None:
        options = self.cluster.options
        loop = self.cluster.clients
        for number in range(options.clients):
            self.tasks.append(loop.create_task(Client(self, number).run()))
        for number in range(options.watchers):
            watcher = Watcher(self, 100 + number)
            self.watchers.append(watcher)
            self.tasks.append(loop.create_task(watcher.run()))
            self.watching.append(self.tasks[-1])
        for number in range(options.lockers):
            self.tasks.append(loop.create_task(Locker(self, 200 + number).run()))
        for number in range(options.renewers):
            self.tasks.append(loop.create_task(Renewer(self, 250 + number).run()))
        if options.roles:
            self._role_keeper = RoleKeeper(self.cluster)
            self.tasks.append(loop.create_task(self._role_keeper.run()))
        if MEMBERS in options.faults:
            self.operator = Operator(self.cluster)
            self.tasks.append(loop.create_task(self.operator.run()))

    def crowd(self, rng: random.Random, seconds: float) -> None:
        """Have many operations begin within some seconds, whatever becomes of those before them."""
        self.cluster.clients.run_in(self._crowd, rng, seconds)

    def _crowd(self, rng: random.Random, seconds: float) -> None:
        for _ in range(rng.choice(CROWDS)):
            client = Client(self, CROWD_NUMBER + len(self.tasks))
            self.tasks.append(self.cluster.clients.create_task(client.ask_once(rng.random() * seconds)))

    @property
    def stopping(self) -> bool:
        """Whether everybody is to come to an end."""
        return self._stopping

    def stop(self) -> None:
        """End them: each finishes what it does."""
        self._stopping = True
        if self.operator is not None:
            self.operator.stop()
        if self._role_keeper is not None:
            self._role_keeper.stop()

    @property
    def busy(self) -> bool:
        """Whether some client has not ended yet."""
        return any(not task.done() for task in self.tasks)

    @property
    def working(self) -> bool:
        """Whether some client that is no watcher has not ended yet."""
        return any(not task.done() for task in self.tasks if task not in self.watching)

    def failure(self) -> BaseException | None:
        """What ended a client that should not have ended."""
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None


class _Base:
    """One client's place and dice."""

    def __init__(self, clients: Clients, number: int) -> None:
        self.clients = clients
        self.number = number
        self.cluster = clients.cluster
        self.rng = random.Random(f"{self.cluster.options.seed}/client/{number}")
        self.caller: Caller = self.cluster.caller(-1 - number)
        self.member = self.cluster.any_place(self.rng)

    def now(self) -> int:
        return self.cluster.scheduler.now

    def key(self) -> bytes:
        # Few keys are asked for often.
        count = self.cluster.options.keys
        return b"k/%03d" % min(self.rng.randrange(count), self.rng.randrange(count))

    def value(self, number: int) -> bytes:
        size = self.rng.choice((0, 0, 10, 100, self.cluster.options.value_bytes))
        return b"%d." % number + b"x" * size

    async def ask(self, kind: str, request: Message, timeout: float = 5.0) -> Operation:
        """Do one operation and write it down, whatever comes of it."""
        clients = self.clients
        operations = clients.history.operations
        number = len(operations) + 1
        operation = Operation(number, self.number, self.member, kind, request, self.now())
        operations.append(operation)
        if isinstance(request, rpc_pb2.PutRequest) and not request.value:
            request.value = self.value(number)
        encoded = marked(request, number) if kind in LOGGED else request.SerializeToString()
        member = self.member
        process = partial(self.cluster.process, member)
        try:
            operation.answer = await self.caller.call(member, process, PATHS[kind], [encoded], timeout)
        except StatusError as error:
            operation.error = error
        except ConnectionError:
            pass
        operation.returned = self.now()
        self.cluster.scheduler.note(number, 0 if operation.answer is None else len(operation.answer))
        if (operation.answer is None and not operation.refused) or self.rng.random() < 0.1:
            self.member = self.cluster.any_place(self.rng)
        return operation


class Client(_Base):
    """Does operations at random, some per second."""

    async def run(self) -> None:
        options = self.cluster.options
        mean = options.clients / options.rate
        kinds = [kind for kind, weight in MIX for _ in range(weight)]
        doing: dict[str, Callable[[], Awaitable[object]]] = {
            "put": self._put,
            "get": self._get,
            "range": self._range,
            "txn": self._txn,
            "delete": self._delete,
            "register": self._register,
            "lease": self._lease,
            "compact": self._compact,
            "read-txn": self._read_txn,
        }
        while not self.clients.stopping:
            await asyncio.sleep(self.rng.expovariate(1 / mean))
            await doing[self.rng.choice(kinds)]()

    async def ask_once(self, seconds: float) -> None:
        """Do one operation after some time; not one that makes more of them."""
        await asyncio.sleep(seconds)
        if not self.clients.stopping:
            await self.rng.choice((self._put, self._put, self._txn, self._range, self._delete))()

    async def _put(self) -> None:
        request = rpc_pb2.PutRequest(key=self.key(), prev_kv=self.rng.random() < 0.3)
        if self.clients.leases and self.rng.random() < 0.3:
            request.lease = self.rng.choice(self.clients.leases[-4:])
        operation = await self.ask("put", request)
        if operation.answer is not None:
            revision = rpc_pb2.PutResponse.FromString(operation.answer).header.revision
            self.clients.revision = max(self.clients.revision, revision)

    async def _get(self) -> None:
        await self.ask("range", rpc_pb2.RangeRequest(key=self.key(), serializable=self.rng.random() < 0.2))

    async def _range(self) -> None:
        rng = self.rng
        first, end = sorted((self.key(), self.key()))
        whole = rng.random() < 0.3
        request = rpc_pb2.RangeRequest(
            key=b"k/" if whole else first,
            range_end=b"k0" if whole else end + b"\0",
            limit=rng.choice((0, 0, 0, 1, 3)),
            serializable=rng.random() < 0.2,
            keys_only=rng.random() < 0.1,
            count_only=rng.random() < 0.1,
        )
        if rng.random() < 0.3:
            request.revision = max(1, self.clients.revision - rng.randrange(30))
        await self.ask("range", request)

    def _compare(self) -> rpc_pb2.Compare:
        rng = self.rng
        compare = rpc_pb2.Compare(key=self.key(), result=rng.choice((0, 1, 2, 3)))  # type: ignore[arg-type]
        which = rng.randrange(4)
        if which == 0:
            compare.target, compare.version = rpc_pb2.Compare.VERSION, rng.randrange(4)
        elif which == 1:
            compare.target = rpc_pb2.Compare.MOD
            compare.mod_revision = max(0, self.clients.revision - rng.randrange(10))
        elif which == 2:
            compare.target = rpc_pb2.Compare.CREATE
            compare.create_revision = rng.choice((0, max(0, self.clients.revision - rng.randrange(50))))
        else:
            compare.target, compare.value = rpc_pb2.Compare.VALUE, b"%d" % rng.randrange(10)
        return compare

    async def _txn(self) -> None:
        rng = self.rng
        request = rpc_pb2.TxnRequest(compare=[self._compare() for _ in range(rng.choice((0, 1, 1, 2)))])
        number = len(self.clients.history.operations) + 1
        for branch in (request.success, request.failure):
            keys = sorted({self.key() for _ in range(3)})
            for key in keys[: rng.randrange(1, 4)]:
                op = branch.add()
                which = rng.random()
                if which < 0.6:
                    op.request_put.key, op.request_put.value = key, self.value(number)
                    op.request_put.prev_kv = rng.random() < 0.3
                elif which < 0.8:
                    op.request_delete_range.key = key
                else:
                    op.request_range.key, op.request_range.range_end = key, key + b"\xff"
                    if rng.random() < 0.3:
                        # Compacted or not, all members must agree.
                        op.request_range.revision = max(1, self.clients.revision + 2 - rng.randrange(40))
        for branch in (request.success, request.failure):
            # One that writes in neither branch is another kind of operation.
            if not any(op.HasField("request_put") for op in branch):
                op = branch.add()
                op.request_put.key, op.request_put.value = b"t/%d" % self.number, self.value(number)
        await self.ask("txn", request)

    async def _read_txn(self) -> None:
        request = rpc_pb2.TxnRequest(compare=[self._compare()])
        for branch in (request.success, request.failure):
            for _ in range(2):
                branch.add().request_range.key = self.key()
        await self.ask("read-txn", request)

    async def _delete(self) -> None:
        request = rpc_pb2.DeleteRangeRequest(key=self.key(), prev_kv=self.rng.random() < 0.3)
        if self.rng.random() < 0.2:
            request.range_end = self.key() + b"\0"
        await self.ask("delete", request)

    async def _compact(self) -> None:
        revision = max(1, self.clients.revision - self.rng.randrange(40))
        await self.ask("compact", rpc_pb2.CompactionRequest(revision=revision))

    async def _lease(self) -> None:
        """Take a lease and keep it alive for a while; then let it end, or revoke it."""
        rng = self.rng
        operation = await self.ask("grant", rpc_pb2.LeaseGrantRequest(TTL=rng.choice((2, 3, 5, 8))))
        if operation.answer is None:
            return
        lease_id = rpc_pb2.LeaseGrantResponse.FromString(operation.answer).ID
        self.clients.leases.append(lease_id)
        if rng.random() < 0.7:
            task = self.cluster.clients.create_task(self._keep_alive(lease_id, rng.randrange(1, 8), rng.random() < 0.3))
            self.clients.tasks.append(task)

    async def _keep_alive(self, lease_id: int, times: int, revoke: bool) -> None:
        for _ in range(times):
            await asyncio.sleep(0.7)
            if self.clients.stopping:
                return
            await renew(self, lease_id)
        if revoke:
            await self.ask("revoke", rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    async def _register(self) -> None:
        """Use a key that only such operations touch, for the checker that knows nothing of revisions."""
        rng = self.rng
        key = b"r/%d" % rng.randrange(self.cluster.options.registers)
        which = rng.random()
        value = b"%d" % (len(self.clients.history.operations) + 1)
        if which < 0.35:
            access = Access("put", self.now(), FOREVER, value)
            operation = await self.ask("put", rpc_pb2.PutRequest(key=key, value=value))
        elif which < 0.7:
            access = Access("get", self.now(), FOREVER)
            operation = await self.ask("range", rpc_pb2.RangeRequest(key=key))
        elif which < 0.8:
            access = Access("delete", self.now(), FOREVER)
            operation = await self.ask("delete", rpc_pb2.DeleteRangeRequest(key=key))
        else:
            known = [known.value for known in self.clients.accesses.get(key, [])[-4:] if known.value is not None]
            expected = rng.choice(known) if known else b"none"
            access = Access("cas", self.now(), FOREVER, value, expected)
            request = rpc_pb2.TxnRequest()
            compare = request.compare.add(key=key, target=rpc_pb2.Compare.VALUE, value=expected)
            compare.result = rpc_pb2.Compare.EQUAL
            put = request.success.add().request_put
            put.key, put.value = key, value
            operation = await self.ask("txn", request)
        if operation.refused:
            return
        self.clients.accesses.setdefault(key, []).append(access)
        if operation.answer is not None:
            access.returned = operation.returned
            access.seen = _seen(access.kind, operation.answer)


def _seen(kind: str, answer: bytes) -> bytes | bool | None:
    if kind == "get":
        kvs = rpc_pb2.RangeResponse.FromString(answer).kvs
        return kvs[0].value if kvs else None
    if kind == "delete":
        return rpc_pb2.DeleteRangeResponse.FromString(answer).deleted == 1
    if kind == "cas":
        return rpc_pb2.TxnResponse.FromString(answer).succeeded
    return None


async def renew(client: _Base, lease_id: int, timeout: float = 2.0) -> int:
    """Renew a lease once; its time to live, 0 when it is gone or nobody answers."""
    asked = client.now()
    member = client.member
    request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id).SerializeToString()
    process = partial(client.cluster.process, member)
    try:
        answer = await client.caller.call(member, process, KEEP_ALIVE, [request], timeout)
    except (StatusError, ConnectionError, IndexError):
        client.member = client.cluster.any_place(client.rng)
        return 0
    ttl = rpc_pb2.LeaseKeepAliveResponse.FromString(answer).TTL
    if ttl:
        client.clients.history.renewals.append((lease_id, asked, ttl))
    return ttl


class Locker(_Base):
    """Takes a lock now and then, holds it for a while and writes under its fencing token."""

    async def run(self) -> None:
        while not self.clients.stopping:
            await asyncio.sleep(self.rng.expovariate(0.5))
            await self._hold()

    async def _hold(self) -> None:
        operation = await self.ask("grant", rpc_pb2.LeaseGrantRequest(TTL=self.rng.choice((2, 4))))
        if operation.answer is None or self.clients.stopping:
            return
        lease_id = rpc_pb2.LeaseGrantResponse.FromString(operation.answer).ID
        holding = [True]
        task = self.cluster.clients.create_task(self._keep(lease_id, holding))
        self.clients.tasks.append(task)
        lock = await self.ask(
            "lock", v3lock_pb2.LockRequest(name=b"lock/%d" % self.rng.randrange(2), lease=lease_id), 6.0
        )
        if lock.answer is not None:
            key = v3lock_pb2.LockResponse.FromString(lock.answer).key
            await self._write(key)
            if self.rng.random() < 0.5:
                await self.ask("unlock", v3lock_pb2.UnlockRequest(key=key))
        holding[0] = False
        if self.rng.random() < 0.5:
            await self.ask("revoke", rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    async def _write(self, key: bytes) -> None:
        for _ in range(self.rng.randrange(1, 4)):
            request = rpc_pb2.TxnRequest()
            request.compare.add(
                key=key, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.GREATER, create_revision=0
            )
            put = request.success.add().request_put
            put.key, put.value = b"guarded", key
            await self.ask("txn", request)
            await asyncio.sleep(self.rng.random() * 0.5)

    async def _keep(self, lease_id: int, holding: list[bool]) -> None:
        while holding[0] and not self.clients.stopping:
            await renew(self, lease_id)
            await asyncio.sleep(0.5)


class Renewer(_Base):
    """Keeps a short lease alive, often, and only at the member it knows: it finds out late that nobody else does."""

    async def run(self) -> None:
        known = self.member
        while not self.clients.stopping:
            operation = await self.ask("grant", rpc_pb2.LeaseGrantRequest(TTL=2))
            if operation.answer is None:
                continue
            lease_id = rpc_pb2.LeaseGrantResponse.FromString(operation.answer).ID
            gone = False
            while not gone and not self.clients.stopping:
                await asyncio.sleep(0.2 + 0.3 * self.rng.random())
                self.member = known
                gone = await renew(self, lease_id, timeout=0.6) == 0 and self.rng.random() < 0.2


class Watcher(_Base):
    """Watches a range over many streams, and resumes where the last one ended."""

    def __init__(self, clients: Clients, number: int) -> None:
        super().__init__(clients, number)
        rng = self.rng
        key, end = rng.choice(((b"k/", b"k0"), (b"\0", b"\0"), (self.key(), b""), (b"k/002", b"k/006")))
        self.watched = Watched(number, key, end, rng.random() < 0.5)
        if rng.random() < 0.2:
            self.watched.no_put = rng.random() < 0.5
            self.watched.no_delete = not self.watched.no_put
        clients.history.watches.append(self.watched)
        self.told: Told | None = None
        self.problem = ""
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def reached(self) -> int:
        """The revision up to which it was told everything."""
        return self.told.reached if self.told is not None else 0

    async def run(self) -> None:
        while not self.clients.stopping or not self.drained():
            await self._stream()
            await asyncio.sleep(0.1 + self.rng.random() * 0.4)
        if self._exchange is not None:
            self._exchange.close()

    def drained(self) -> bool:
        """Whether it has come to the end of the run."""
        return 0 < self.clients.final_revision <= self.reached

    async def _stream(self) -> None:
        """Watch over one stream until it ends, by itself or because we want another one."""
        rng = self.rng
        loop = self.cluster.clients
        ended = self._ended = loop.create_future()
        if self.told is None:
            self.told = Told(1, 0)
            self.watched.segments.append(self.told)
        self._next = max(self.told.reached + 1, self.told.start)
        process = partial(self.cluster.process, self.member)
        exchange = self._exchange = self.caller.open(self.member, process, WATCH, self._heard, self._stream_ended)
        request = rpc_pb2.WatchRequest()
        request.create_request.key = self.watched.key
        request.create_request.range_end = self.watched.range_end
        request.create_request.start_revision = self._next
        request.create_request.prev_kv = self.watched.prev_kv
        request.create_request.progress_notify = True
        if self.watched.no_put:
            request.create_request.filters.append(rpc_pb2.WatchCreateRequest.NOPUT)
        if self.watched.no_delete:
            request.create_request.filters.append(rpc_pb2.WatchCreateRequest.NODELETE)
        exchange.send(request.SerializeToString())
        loop.call_later(2.0 + rng.expovariate(0.1), self._stream_ended, None, "enough")
        loop.call_later(1.0, self._ask_progress, exchange)
        if rng.random() < 0.2:
            exchange.hold()
            loop.call_later(rng.random() * 3, exchange.read_on)
        await ended
        exchange.close()
        self.member = self.cluster.any_place(rng)

    def _ask_progress(self, exchange: Exchange) -> None:
        if self.clients.stopping and self.drained():
            # A watcher that is to begin behind the end is not told of any progress.
            self._stream_ended(None, "the end")
        elif exchange is self._exchange and self._ended is not None and not self._ended.done():
            exchange.send(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()).SerializeToString())
            self.cluster.clients.call_later(1.5, self._ask_progress, exchange)

    def _stream_ended(self, code: int | None, details: str) -> None:
        if code == Code.INTERNAL:
            self.problem = details
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _heard(self, message: bytes) -> None:
        told = self.told
        assert told is not None
        if self._ended is None or self._ended.done():
            return
        answer = rpc_pb2.WatchResponse.FromString(message)
        self.cluster.scheduler.note(self.number, len(message))
        if answer.canceled:
            self._canceled(answer)
        elif answer.events:
            batch = [_change(event) for event in answer.events]
            if (told.batches and batch[0].revision <= told.reached) or batch[0].revision < self._next:
                self.problem = f"told of revision {batch[0].revision} after {told.reached}"
            told.batches.append(batch)
            told.reached = max(told.reached, batch[-1].revision)
        elif not answer.created:
            # Progress: everything up to here was told.
            told.reached = max(told.reached, answer.header.revision)
        self.clients.revision = max(self.clients.revision, told.reached)
        if self.clients.stopping and self.drained():
            self._stream_ended(None, "the end")

    def _canceled(self, answer: rpc_pb2.WatchResponse) -> None:
        assert self.told is not None
        if answer.compact_revision > self._next:
            self.told = Told(answer.compact_revision, answer.compact_revision - 1)
            self.watched.segments.append(self.told)
            self.watched.gaps.append((self._next, answer.compact_revision))
        else:
            self.problem = f"canceled: {answer.cancel_reason!r}, compact revision {answer.compact_revision}"
        self._stream_ended(None, "canceled")


def _change(event: kv_pb2.Event) -> Change:
    kv = event.kv
    deleted = event.type == kv_pb2.Event.DELETE
    previous = event.prev_kv.value if event.HasField("prev_kv") else None
    return Change(kv.mod_revision, deleted, kv.key, kv.value, kv.create_revision, kv.version, kv.lease, previous)
