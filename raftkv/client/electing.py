"""Elections: whoever's turn it is under a name leads, and says something to those who observe."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from raftkv.client import requests as req
from raftkv.client.leasing import AsyncLease
from raftkv.client.requests import Key
from raftkv.client.turns import Turn, TurnLost, answered, oldest, queue
from raftkv.client.watching import WatchCompacted
from raftkv.pb import kv_pb2, rpc_pb2, v3election_pb2

if TYPE_CHECKING:
    from raftkv.client.aio import AsyncClient


class Candidates:
    """Who stands in an election, from change to change.

    Of the changes of one revision only the outcome counts. So every leader is told once, in order, and everything each
    of them said.
    """

    def __init__(self) -> None:
        self._standing: dict[bytes, kv_pb2.KeyValue] = {}
        self._told: tuple[bytes, int] | None = None

    def begin(self, kvs: Iterable[kv_pb2.KeyValue]) -> Iterator[kv_pb2.KeyValue]:
        """Begin anew with those who stand now; tells who leads, unless it was told."""
        self._standing = {kv.key: kv for kv in kvs}
        yield from self._news()

    def take(self, events: Iterable[kv_pb2.Event]) -> Iterator[kv_pb2.KeyValue]:
        """Take changes in their order; tells who leads after each revision that made a difference to that."""
        for _, together in groupby(events, key=lambda event: event.kv.mod_revision):
            for event in together:
                if event.type == kv_pb2.Event.PUT:
                    self._standing[event.kv.key] = event.kv
                else:
                    self._standing.pop(event.kv.key, None)
            yield from self._news()

    def _news(self) -> Iterator[kv_pb2.KeyValue]:
        leader = min(self._standing.values(), key=lambda kv: kv.create_revision, default=None)
        if leader is not None and (leader.key, leader.mod_revision) != self._told:
            self._told = leader.key, leader.mod_revision
            yield leader


class AsyncElection:
    """An election: stand in it, or observe it.

    As a context it gives up, on leaving it, what `campaign` won.
    """

    def __init__(
        self, client: "AsyncClient", name: Key, ttl: int, on_lost: Callable[["AsyncElection"], None] | None
    ) -> None:
        self._client = client
        self._name = name
        self._ttl = ttl
        self._on_lost = on_lost
        self._held: tuple[AsyncLease, Turn] | None = None

    async def __aenter__(self) -> "AsyncElection":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.resign()

    async def campaign(self, value: Key, *, timeout: float | None = None) -> None:
        """Stand with a value, and wait until elected; at most `timeout` seconds, 0: only if nobody leads.

        One who leads already proclaims the value.

        Raises:
            TimeoutError: not elected in time, and no longer standing.
            LeaseLost, TurnLost: never to be elected.
            ClientError: what granting a lease raises.
        """
        if self._held is not None:
            await self.proclaim(value)
            return
        on_lost = self._on_lost
        lease = self._client.lease(self._ttl, on_lost=None if on_lost is None else lambda _: on_lost(self))
        await lease.__aenter__()
        try:
            turn = Turn(self._client, self._name, lease)
            await turn.take(req.as_bytes(value), timeout)
        except BaseException:
            await lease.__aexit__()
            raise
        self._held = lease, turn

    @property
    def _leading(self) -> tuple[AsyncLease, Turn]:
        assert self._held is not None, "only who campaigned leads"
        return self._held

    @property
    def lease(self) -> AsyncLease:
        """What our leadership hangs on; `lease.lost` is set when it is lost."""
        return self._leading[0]

    @property
    def key(self) -> bytes:
        """The key that stands for our leadership."""
        return self._leading[1].key

    @property
    def token(self) -> int:
        """The fencing token: higher than that of all who led before."""
        return self._leading[1].token

    def check(self) -> None:
        """Raises: LeaseLost; also when its time is up and nobody has noticed yet."""
        self.lease.check()

    def held(self) -> rpc_pb2.Compare:
        """A condition for transactions: true as long as we lead."""
        return self._leading[1].held()

    async def proclaim(self, value: Key) -> None:
        """Say something else, as the leader.

        Raises:
            TurnLost: we lead no longer.
            OutcomeUnknown: it may have been said.
        """
        lease, turn = self._leading
        request = rpc_pb2.TxnRequest(compare=[turn.held()])
        put = request.success.add().request_put
        put.key, put.value, put.lease = turn.key, req.as_bytes(value), lease.id
        if not (await self._client.txn(request)).succeeded:
            raise TurnLost(turn.key)

    async def resign(self) -> None:
        """Give leadership up; without it nothing happens."""
        held, self._held = self._held, None
        if held is not None:
            await held[0].__aexit__()

    async def leader(self) -> kv_pb2.KeyValue | None:
        """Who leads now, and what it says; None: nobody."""
        kvs = (await self._client.call(req.RANGE, oldest(self._name))).kvs
        return kvs[0] if kvs else None

    async def observe(self) -> AsyncGenerator[v3election_pb2.LeaderResponse, None]:
        """Who leads and what it says, from now on: every leader in order, and everything it proclaims.

        The header is of the server's answer that told of it. It resumes by itself after a disconnect. Only if history
        was compacted meanwhile are leaders left out.

        Raises:
            NotConnected, Unavailable, Refused: when it begins.
        """
        first, end = queue(self._name)
        candidates = Candidates()
        standing = await self._client.range(first, end)
        while True:
            for kv in candidates.begin(standing.kvs):
                yield v3election_pb2.LeaderResponse(header=standing.header, kv=kv)
            try:
                async with self._client.watch(first, end, start_revision=standing.header.revision + 1) as watch:
                    await answered(watch.ready)
                    async for response in watch:
                        for kv in candidates.take(response.events):
                            yield v3election_pb2.LeaderResponse(header=response.header, kv=kv)
            except WatchCompacted:
                standing = await answered(lambda: self._client.range(first, end))
