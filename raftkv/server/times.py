"""How long rare and long work took, for metrics."""

from dataclasses import dataclass, field

from raftkv.histogram import Histogram, doubling


def _hashing() -> Histogram:
    return Histogram(doubling(0.01, 15))


@dataclass(slots=True)
class Times:
    """Histograms with etcd's buckets."""

    defragment: Histogram = field(default_factory=lambda: Histogram(doubling(0.1, 13)))
    backup: Histogram = field(default_factory=lambda: Histogram(doubling(0.01, 17)))
    hash: Histogram = field(default_factory=_hashing)
    hash_kv: Histogram = field(default_factory=_hashing)
    lease_ttl: Histogram = field(default_factory=lambda: Histogram(doubling(1.0, 24)))
