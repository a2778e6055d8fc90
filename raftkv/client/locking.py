"""Locks: held by whoever's turn it is under a name."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkv.client.leasing import AsyncLease
from raftkv.client.requests import Key
from raftkv.client.turns import Turn
from raftkv.pb import rpc_pb2

if TYPE_CHECKING:
    from raftkv.client.aio import AsyncClient


class AsyncLock:
    """A lock, taken on entering the context and released on leaving it, however that is left.

    It is held only as long as its lease lives. Then another may have it while we do not know yet, so let what it
    protects refuse tokens lower than one it has seen, or write in transactions that compare `held()`.
    """

    def __init__(
        self,
        client: "AsyncClient",
        name: Key,
        ttl: int,
        timeout: float | None,
        on_lost: Callable[["AsyncLock"], None] | None,
    ) -> None:
        self._client = client
        self._name = name
        self._timeout = timeout
        self.lease: AsyncLease = client.lease(ttl, on_lost=None if on_lost is None else lambda _: on_lost(self))
        """What the lock hangs on."""
        self._turn: Turn | None = None

    async def __aenter__(self) -> "AsyncLock":
        """Wait for the lock.

        Raises:
            TimeoutError: it did not come in time.
            LeaseLost, TurnLost: while waiting; the lock was not taken.
            ClientError: what granting a lease raises.
        """
        await self.lease.__aenter__()
        try:
            turn = Turn(self._client, self._name, self.lease)
            await turn.take(b"", self._timeout)
        except BaseException:
            await self.lease.__aexit__()
            raise
        self._turn = turn
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.lease.__aexit__()

    @property
    def _taken(self) -> Turn:
        assert self._turn is not None, "a lock is held inside its context"
        return self._turn

    @property
    def key(self) -> bytes:
        """The key that stands for our place."""
        return self._taken.key

    @property
    def token(self) -> int:
        """The fencing token: the create revision of `key`, higher than that of all who held the lock before."""
        return self._taken.token

    @property
    def revision(self) -> int:
        """The store's revision when the lock was taken."""
        return self._taken.revision

    @property
    def lost(self) -> asyncio.Event:
        """Set when the lease is lost, and the lock with it."""
        return self.lease.lost

    def check(self) -> None:
        """Raises: LeaseLost; also when its time is up and nobody has noticed yet."""
        self.lease.check()

    def held(self) -> rpc_pb2.Compare:
        """A condition for transactions: true as long as we hold the lock."""
        return self._taken.held()
