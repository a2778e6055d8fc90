"""Taking turns under a name: what locks and elections are made of, with the keys etcd's clients use.

Everyone who wants a turn makes a lease of its own and creates `name/lease id` with it. The oldest key is on; each of
the others waits for the deletion of the key just before its own. Create revisions only grow, so that of the key is a
fencing token: whoever is on has a higher one than all before.

Since nobody else has our lease, our key is ours: to create it twice is as good as once, so what got no answer is asked
again, at another endpoint if need be, until the lease is lost.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from raftkv import errors
from raftkv.client import requests as req
from raftkv.client.errors import ClientError, OutcomeUnknown, Unavailable
from raftkv.client.leasing import AsyncLease, LeaseLost
from raftkv.client.requests import Key
from raftkv.client.watching import WatchCompacted
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.status import Code

if TYPE_CHECKING:
    from raftkv.client.aio import AsyncClient

T = TypeVar("T")

PAUSE_SECONDS = 0.1
"""Before what was not answered is asked again."""


class TurnLost(ClientError):
    """Our key is gone though the lease may live: somebody deleted it."""

    def __init__(self, key: bytes) -> None:
        super().__init__(Code.FAILED_PRECONDITION, f"{key.decode(errors='backslashreplace')} was deleted: turn lost")
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return TurnLost, (self.key,)


def queue(name: Key) -> tuple[bytes, bytes]:
    """The range of the keys of all who want a turn: key and range_end."""
    prefix = req.as_bytes(name) + b"/"
    return prefix, req.prefix_end(prefix)


def oldest(name: Key) -> rpc_pb2.RangeRequest:
    """Asks for the key that is on."""
    first, end = queue(name)
    kind = rpc_pb2.RangeRequest
    return kind(key=first, range_end=end, limit=1, sort_target=kind.CREATE, sort_order=kind.ASCEND)


class Turn:
    """Our place among those who want a turn under a name. Belongs to one task at a time."""

    def __init__(self, client: "AsyncClient", name: Key, lease: AsyncLease) -> None:
        """`lease` is one that was made for this."""
        self._client = client
        self._name = name
        self._lease = lease
        self.key = queue(name)[0] + b"%x" % lease.id
        self.token = 0
        """The create revision of our key, once it is there."""
        self.revision = 0
        """At which the turn came."""

    def held(self) -> rpc_pb2.Compare:
        """A condition for transactions: true as long as our key exists, and never again."""
        return rpc_pb2.Compare(key=self.key, target=rpc_pb2.Compare.CREATE, create_revision=self.token)

    async def take(self, value: bytes, seconds: float | None) -> None:
        """Join the queue and wait until it is our turn, at most `seconds`; 0: only if nobody is before us.

        Raises:
            TimeoutError: it did not come in time.
            LeaseLost, TurnLost: it never will.
            Refused: the server does not let us.
        """
        if not await self._alive(self._enter(value)):
            async with asyncio.timeout(seconds):
                await self._alive(self._wait())
        self._lease.check()

    async def _alive(self, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for something as long as we have the lease."""
        task = asyncio.ensure_future(waiting)
        lost = asyncio.ensure_future(self._lease.lost.wait())
        try:
            await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise LeaseLost(self._lease.id)
        finally:
            task.cancel()
            lost.cancel()
            await asyncio.gather(task, lost, return_exceptions=True)

    async def _enter(self, value: bytes) -> bool:
        """Create our key, unless it is there already; whether it is our turn at once."""
        request = rpc_pb2.TxnRequest()
        request.compare.add(key=self.key, target=rpc_pb2.Compare.CREATE, create_revision=0)
        put = request.success.add().request_put
        put.key, put.value, put.lease = self.key, value, self._lease.id
        for branch in (request.success, request.failure):
            branch.add().request_range.key = self.key
            branch.add().request_range.CopyFrom(oldest(self._name))
        try:
            answer = await answered(lambda: self._client.txn(request))
        except errors.LeaseNotFound as error:
            raise LeaseLost(self._lease.id) from error
        own, first = (op.response_range.kvs[0] for op in answer.responses[-2:])
        self.token, self.revision = own.create_revision, answer.header.revision
        return bool(first.key == self.key)

    async def _wait(self) -> None:
        while (older := await self._predecessor()) is not None:
            await self._deleted(older)

    async def _predecessor(self) -> kv_pb2.KeyValue | None:
        """The key just before ours, as of `revision`; None: it is our turn.

        Raises:
            TurnLost: our key is gone.
        """
        first, end = queue(self._name)
        request = rpc_pb2.TxnRequest()
        request.success.add().request_range.key = self.key
        before = request.success.add().request_range
        before.key, before.range_end, before.limit = first, end, 1
        before.max_create_revision = self.token - 1
        before.sort_target, before.sort_order = rpc_pb2.RangeRequest.CREATE, rpc_pb2.RangeRequest.DESCEND
        answer = await answered(lambda: self._client.txn(request))
        own, older = (op.response_range.kvs for op in answer.responses)
        if not own or own[0].create_revision != self.token:
            raise TurnLost(self.key)
        self.revision = answer.header.revision
        return older[0] if older else None

    async def _deleted(self, older: kv_pb2.KeyValue) -> None:
        """Wait until a key that was there at `revision` is deleted, or until that can no longer be told."""
        with contextlib.suppress(WatchCompacted):
            async with self._client.watch(older.key, start_revision=self.revision + 1, puts=False) as watch:
                await answered(watch.ready)
                async for response in watch:
                    if response.events:
                        return


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again until there is a definite answer; only for what may happen twice, and under a time limit."""
    while True:
        try:
            return await ask()
        except (Unavailable, OutcomeUnknown, errors.NoLeader):
            await asyncio.sleep(PAUSE_SECONDS)
