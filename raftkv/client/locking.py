"""Locks: held as long as a lease is kept alive, with the token that proves to others who holds them.

Whoever holds a lock can lose it without noticing: a process that stands still for longer than its lease wakes up in a
world where another holds it. `token`, the create revision of the lock's key, only grows from holder to holder; what the
lock protects should refuse a token older than one it has seen, or be written in transactions that compare `key`'s
create revision with it.

An attempt whose outcome is unknown is given up together with its lease, and another made with a new one: a member that
was cut off may still take the old attempt's key away later.
"""

import asyncio
from collections.abc import Awaitable, Callable

from raftkv.client.errors import NotConnected, OutcomeUnknown, Unavailable
from raftkv.client.leasing import PAUSE_SECONDS, AsyncLease, LeaseLost
from raftkv.pb import kv_pb2, v3lock_pb2


class AsyncLock:
    """A lock, waited for on entering the context and let go on leaving it."""

    def __init__(
        self,
        make_lease: Callable[[], AsyncLease],
        lock: Callable[[v3lock_pb2.LockRequest], Awaitable[v3lock_pb2.LockResponse]],
        get: Callable[[bytes], Awaitable[kv_pb2.KeyValue | None]],
        name: bytes,
        timeout: float | None,
    ) -> None:
        self._make_lease = make_lease
        self._lock = lock
        self._get = get
        self._name = name
        self._timeout = timeout
        self._lease: AsyncLease | None = None
        self.key = b""
        """The key that exists as long as the lock is held."""
        self.token = 0
        """Grows from holder to holder: the create revision of `key`."""

    @property
    def lease(self) -> AsyncLease:
        """What keeps the lock held."""
        assert self._lease is not None, "a lock is held inside its context"
        return self._lease

    def check(self) -> None:
        """Raises: LeaseLost; then another may hold the lock."""
        self.lease.check()

    async def __aenter__(self) -> "AsyncLock":
        """Wait for the lock.

        Raises:
            TimeoutError: it did not come in time.
            NotConnected: no endpoint could be reached within the dial timeout.
            Refused
        """
        async with asyncio.timeout(self._timeout):
            while not await self._attempt():
                await asyncio.sleep(PAUSE_SECONDS)
        return self

    async def __aexit__(self, *_: object) -> None:
        lease, self._lease = self.lease, None
        await lease.__aexit__()

    async def _attempt(self) -> bool:
        lease = self._make_lease()
        try:
            await lease.__aenter__()
        except OutcomeUnknown:
            # A lease that nobody knows of ends by itself.
            return False
        held = False
        try:
            held = await self._wait(lease)
        except NotConnected:
            raise
        except (LeaseLost, OutcomeUnknown, Unavailable):
            held = False
        finally:
            if not held:
                await lease.__aexit__()
        self._lease = lease if held else None
        return held

    async def _wait(self, lease: AsyncLease) -> bool:
        call = asyncio.ensure_future(self._lock(v3lock_pb2.LockRequest(name=self._name, lease=lease.id)))
        lost = asyncio.ensure_future(lease.lost.wait())
        try:
            await asyncio.wait((call, lost), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                return False
            self.key = call.result().key
        finally:
            call.cancel()
            lost.cancel()
        kv = await self._get(self.key)
        if kv is None or kv.lease != lease.id:
            return False
        self.token = kv.create_revision
        return True
