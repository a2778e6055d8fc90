"""The removal of history that a compaction gave up: a step at a time, and a pause for others in between."""

import asyncio
from collections.abc import Callable

from raftkv.mvcc import Store
from raftkv.server.times import Times

PAUSE = 3
"""How much longer than a step: several members may share the processors of a machine, and all remove the same."""
PAUSE_SECONDS_MAX = 0.02
"""However slow the machine, it comes to its end."""


class Compaction:
    """At most one task, which goes on for as long as the store has something to remove."""

    __slots__ = ("_clock", "_fail", "_store", "_task", "_times")

    def __init__(
        self, store: Store, times: Times, clock: Callable[[], float], fail: Callable[[BaseException], None]
    ) -> None:
        self._store = store
        self._times = times
        self._clock = clock
        self._fail = fail
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless it is under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._remove())
            self._task.add_done_callback(self._finished)

    async def wait(self) -> None:
        """Wait until the compaction under way has removed what it must."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def cancel(self) -> None:
        """Leave the rest to the next start."""
        if self._task is not None:
            self._task.cancel()

    async def _remove(self) -> None:
        store, times, clock = self._store, self._times, self._clock
        started, more = clock(), store.compacting
        if not more:
            return
        while more:
            began = clock()
            store.compaction_step()
            took = clock() - began
            times.compaction_pause_ms.observe(took * 1000)
            # On a busy machine a step takes longer, and so does the pause.
            await asyncio.sleep(min(took * PAUSE, PAUSE_SECONDS_MAX))
            # The next compaction may have begun in this pause, and is this task's, too.
            more = store.compacting
        times.compaction_ms.observe((clock() - started) * 1000)
        times.compacted_at = clock()

    def _finished(self, task: "asyncio.Future[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
