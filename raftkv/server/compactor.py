"""Compaction by itself: history is given up after a time, or behind a number of revisions; etcd's schedules.

Every member samples, so that a new leader knows what the revision was; only the leader compacts.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from raftkv import errors
from raftkv.duration import parse_duration
from raftkv.status import StatusError

logger = logging.getLogger(__name__)

HOUR_SECONDS = 3600.0
SAMPLES_PER_INTERVAL = 10
REVISION_INTERVAL_SECONDS = 300.0


class Periodic:
    """Keeps the history of the last `period` seconds.

    A tenth of the period (of an hour, if it is longer) lies between samples. The first compaction comes after a whole
    period, later ones every period (every hour), to the revision of one period before the last sample.
    """

    name = "periodic"

    def __init__(self, period_seconds: float) -> None:
        self._period = period_seconds
        self._interval = min(period_seconds, HOUR_SECONDS)
        self.pause_seconds = self._interval / SAMPLES_PER_INTERVAL
        self._samples: deque[int] = deque(maxlen=int(period_seconds / self.pause_seconds + 1e-9) + 1)
        self._due: float | None = None

    def sample(self, revision: int, now: float) -> None:
        """Note the revision of this moment."""
        self._samples.append(revision)
        if self._due is None:
            self._due = now + self._period

    def target(self, revision: int, now: float) -> int:
        """To which revision to compact now; 0: not at all."""
        # Timers may come a little early.
        return self._samples[0] if self._due is not None and now >= self._due - self.pause_seconds / 10 else 0

    def compacted(self, now: float) -> None:
        """It was done."""
        self._due = now + self._interval


class ByRevision:
    """Keeps the newest `retention` revisions; looks every five minutes."""

    name = "revision"
    pause_seconds = REVISION_INTERVAL_SECONDS

    def __init__(self, retention: int) -> None:
        self._retention = retention

    def sample(self, revision: int, now: float) -> None:
        """Nothing to remember."""

    def target(self, revision: int, now: float) -> int:
        """To which revision to compact now; not positive: not at all."""
        return revision - self._retention

    def compacted(self, now: float) -> None:
        """It was done."""


Schedule = Periodic | ByRevision


def schedule(mode: str, retention: str) -> Schedule | None:
    """The schedule of `--auto-compaction-mode` and `--auto-compaction-retention`, checked; None: nothing to do."""
    if retention.isascii() and retention.isdigit():
        if not int(retention):
            return None
        return ByRevision(int(retention)) if mode == "revision" else Periodic(int(retention) * HOUR_SECONDS)
    period = parse_duration(retention)
    return Periodic(period) if period else None


class Compactor:
    """Compacts the keyspace by a schedule, while this member leads."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        revision: Callable[[], int],
        leads: Callable[[], bool],
        compact: Callable[[int], Awaitable[object]],
    ) -> None:
        """`compact` gives up history below a revision, through the log."""
        self._schedule = schedule
        self._revision = revision
        self._leads = leads
        self._give_up = compact
        self._last = 0

    async def run(self) -> None:
        """Compact until cancelled."""
        now = asyncio.get_running_loop().time
        while True:
            self._schedule.sample(self._revision(), now())
            await asyncio.sleep(self._schedule.pause_seconds)
            if self._leads():
                await self._compact(now)

    async def _compact(self, now: Callable[[], float]) -> None:
        started = now()
        revision = self._schedule.target(self._revision(), started)
        if revision <= 0 or revision == self._last:
            return
        name = self._schedule.name
        logger.info("starting auto %s compaction at revision %d", name, revision)
        try:
            await self._give_up(revision)
        except errors.Compacted:
            # Someone else was faster.
            logger.debug("revision %d is compacted already", revision)
        except StatusError as error:
            logger.warning("failed auto %s compaction at revision %d: %s", name, revision, error)
            return
        self._last = revision
        self._schedule.compacted(now())
        logger.info("completed auto %s compaction at revision %d in %.3f s", name, revision, now() - started)
