"""Puts from many coroutines at a given rate, for `raftctl check`."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as numbers
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkv.client import AsyncClient

VALUE = b"v" * 1024


@dataclass(slots=True)
class Outcome:
    """How a load went: the time of each put that was acknowledged, and how often each error came."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0
    """Processor time of this program per second: near 1 the load is all it can make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`count` puts of 1 KiB below a prefix by so many clients; `rate` are begun in a second, 0: as many as go."""

    prefix: str
    count: int
    clients: int
    rate: int = 0

    async def run(self, client: "AsyncClient", progress: Callable[[int], None]) -> Outcome:
        """Put them all; `progress` hears how many are done. A put that fails is noted and not repeated."""
        outcome = Outcome()
        started, used = time.perf_counter(), time.process_time()
        order = numbers()
        await asyncio.gather(
            *(self._work(client, order, started, outcome, progress) for _ in range(min(self.clients, self.count)))
        )
        outcome.seconds = time.perf_counter() - started
        outcome.busy = (time.process_time() - used) / outcome.seconds
        return outcome

    async def _work(
        self,
        client: "AsyncClient",
        order: "numbers[int]",
        started: float,
        outcome: Outcome,
        progress: Callable[[int], None],
    ) -> None:
        from raftkv.client import ClientError

        while (number := next(order)) < self.count:
            if self.rate and (early := started + number / self.rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            begun = time.perf_counter()
            try:
                await client.put(f"{self.prefix}{number:09}", VALUE)
            except ClientError as error:
                outcome.errors[error.message] = outcome.errors.get(error.message, 0) + 1
            else:
                outcome.latencies.append(time.perf_counter() - begun)
            progress(len(outcome.latencies))
