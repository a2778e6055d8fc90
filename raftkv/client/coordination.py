"""Locks, elections and transactions for threads, on top of those for asyncio."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from raftkv import errors
from raftkv.client import stm
from raftkv.client.aio import AsyncClient
from raftkv.client.electing import AsyncElection
from raftkv.client.leasing import AsyncLease
from raftkv.client.locking import AsyncLock
from raftkv.client.requests import Key
from raftkv.pb import kv_pb2, rpc_pb2, v3election_pb2

T = TypeVar("T")

Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine on the client's event loop, and waits for it."""


async def wait_lost(lease: AsyncLease, timeout: float | None) -> bool:
    """Wait until a lease is lost, at most `timeout` seconds; whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await lease.lost.wait()
    return lease.lost.is_set()


async def valid_seconds(lease: AsyncLease) -> float:
    """How much longer a lease can be relied on."""
    return lease.valid_seconds


async def check(lease: AsyncLease) -> None:
    """Raises: LeaseLost."""
    lease.check()


class Lock:
    """A lock, taken on entering the context and released on leaving it; see `AsyncLock`."""

    def __init__(
        self,
        client: AsyncClient,
        run: Run,
        name: Key,
        *,
        ttl: int,
        timeout: float | None,
        on_lost: "Callable[[Lock], None] | None",
    ) -> None:
        self._run = run
        told = None if on_lost is None else (lambda _: on_lost(self))
        self._lock: AsyncLock = client.lock(name, ttl=ttl, timeout=timeout, on_lost=told)

    def __enter__(self) -> "Lock":
        """Wait for the lock.

        Raises:
            TimeoutError: it did not come in time.
            LeaseLost, TurnLost: while waiting; the lock was not taken.
            ClientError: what granting a lease raises.
        """
        self._run(self._lock.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._lock.__aexit__())

    @property
    def key(self) -> bytes:
        """The key that stands for our place."""
        return self._lock.key

    @property
    def token(self) -> int:
        """The fencing token: the create revision of `key`, higher than that of all who held the lock before."""
        return self._lock.token

    @property
    def revision(self) -> int:
        """The store's revision when the lock was taken."""
        return self._lock.revision

    @property
    def lost(self) -> bool:
        """Whether it is known to be lost."""
        return self._lock.lost.is_set()

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until it is lost, at most `timeout` seconds; whether it is."""
        return bool(self._run(wait_lost(self._lock.lease, timeout)))

    def check(self) -> None:
        """Raises: LeaseLost; also when its time is up and nobody has noticed yet."""
        self._run(check(self._lock.lease))

    def held(self) -> rpc_pb2.Compare:
        """A condition for transactions: true as long as we hold the lock."""
        return self._lock.held()


class Election:
    """An election: stand in it, or observe it; as a context it resigns on leaving; see `AsyncElection`."""

    def __init__(
        self, client: AsyncClient, run: Run, name: Key, *, ttl: int, on_lost: "Callable[[Election], None] | None"
    ) -> None:
        self._run = run
        told = None if on_lost is None else (lambda _: on_lost(self))
        self._election: AsyncElection = client.election(name, ttl=ttl, on_lost=told)

    def __enter__(self) -> "Election":
        return self

    def __exit__(self, *_: object) -> None:
        self.resign()

    def campaign(self, value: Key, *, timeout: float | None = None) -> None:
        """Stand with a value, and wait until elected; at most `timeout` seconds, 0: only if nobody leads.

        One who leads already proclaims the value.

        Raises:
            TimeoutError: not elected in time, and no longer standing.
            LeaseLost, TurnLost: never to be elected.
            ClientError: what granting a lease raises.
        """
        self._run(self._election.campaign(value, timeout=timeout))

    def proclaim(self, value: Key) -> None:
        """Say something else, as the leader.

        Raises:
            TurnLost: we lead no longer.
            OutcomeUnknown: it may have been said.
        """
        self._run(self._election.proclaim(value))

    def resign(self) -> None:
        """Give leadership up; without it nothing happens."""
        self._run(self._election.resign())

    @property
    def key(self) -> bytes:
        """The key that stands for our leadership."""
        return self._election.key

    @property
    def token(self) -> int:
        """The fencing token: higher than that of all who led before."""
        return self._election.token

    @property
    def lost(self) -> bool:
        """Whether our leadership is known to be lost."""
        return self._election.lease.lost.is_set()

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until our leadership is lost, at most `timeout` seconds; whether it is."""
        return bool(self._run(wait_lost(self._election.lease, timeout)))

    def check(self) -> None:
        """Raises: LeaseLost; also when its time is up and nobody has noticed yet."""
        self._run(check(self._election.lease))

    def held(self) -> rpc_pb2.Compare:
        """A condition for transactions: true as long as we lead."""
        return self._election.held()

    def leader(self) -> kv_pb2.KeyValue | None:
        """Who leads now, and what it says; None: nobody."""
        leader: kv_pb2.KeyValue | None = self._run(self._election.leader())
        return leader

    def observe(self) -> Iterator[v3election_pb2.LeaderResponse]:
        """Who leads and what it says, from now on; see `AsyncElection.observe`.

        Raises:
            NotConnected, Unavailable, Refused: when it begins.
        """
        told = self._election.observe()

        async def following() -> v3election_pb2.LeaderResponse | None:
            return await anext(told, None)

        try:
            while (answer := self._run(following())) is not None:
                yield answer
        finally:
            self._run(told.aclose())


class Transaction:
    """What a function given to `Client.stm` reads and writes with."""

    def __init__(self, run: Run, transaction: stm.AsyncTransaction) -> None:
        self._run = run
        self._transaction = transaction

    def get(self, key: Key) -> bytes | None:
        """A key's value, or None; always the same until this transaction writes it."""
        value: bytes | None = self._run(self._transaction.get(key))
        return value

    def put(self, key: Key, value: Key, *, lease: int = 0) -> None:
        """Write a key, when the transaction commits."""
        self._transaction.put(key, value, lease=lease)

    def delete(self, key: Key) -> None:
        """Delete a key, when the transaction commits."""
        self._transaction.delete(key)


def transact(client: AsyncClient, run: Run, body: Callable[[Transaction], T]) -> T:
    """Run a function as a transaction, again and again until it commits; it runs in the caller's thread."""
    attempt = stm.Attempt()
    while True:
        try:
            result = body(Transaction(run, stm.AsyncTransaction(client, attempt)))
        except errors.Compacted:
            attempt = stm.Attempt()
            continue
        following: stm.Attempt | None = run(stm.commit(client, attempt))
        if following is None:
            return result
        attempt = following
