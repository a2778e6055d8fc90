"""How long work took, for metrics."""

from collections import defaultdict
from dataclasses import dataclass, field

from raftkv.histogram import Histogram, doubling


def _hashing() -> Histogram:
    return Histogram(doubling(0.01, 15))


def _operation() -> Histogram:
    return Histogram(doubling(0.0001, 20))


@dataclass(slots=True)
class TransferTimes:
    """The snapshots that went to one peer, or came from it."""

    under_way: int = 0
    successes: int = 0
    failures: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(doubling(0.1, 10)))

    def ended(self, seconds: float, *, ok: bool) -> None:
        """Count one that took so long; etcd times only those that succeed."""
        self.under_way -= 1
        if ok:
            self.successes += 1
            self.seconds.observe(seconds)
        else:
            self.failures += 1


@dataclass(slots=True)
class Times:
    """Histograms with etcd's buckets."""

    defragment: Histogram = field(default_factory=lambda: Histogram(doubling(0.1, 13)))
    backup: Histogram = field(default_factory=lambda: Histogram(doubling(0.01, 17)))
    hash: Histogram = field(default_factory=_hashing)
    hash_kv: Histogram = field(default_factory=_hashing)
    applied: defaultdict[tuple[str, bool], Histogram] = field(default_factory=lambda: defaultdict(_operation))
    """Operations of the log, by name and whether they succeeded."""
    ranges: dict[bool, Histogram] = field(default_factory=lambda: {True: _operation(), False: _operation()})
    """Reads of the store, by whether they succeeded."""
    lease_ttl: Histogram = field(default_factory=lambda: Histogram(doubling(1.0, 24)))
    compaction_pause_ms: Histogram = field(default_factory=lambda: Histogram(doubling(1.0, 13)))
    """Turns of the loop that a compaction took, in milliseconds like the next."""
    compaction_ms: Histogram = field(default_factory=lambda: Histogram(doubling(100.0, 14)))
    compacted_at: float | None = None
    """When the last compaction ended, by the clock that times requests; None: none since the start."""
