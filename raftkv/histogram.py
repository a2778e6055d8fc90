"""How often something took how long, in numbers that are read when someone scrapes."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache


@cache
def doubling(first: float, buckets: int) -> tuple[float, ...]:
    """Bounds of buckets, each twice the one before."""
    return tuple(first * 2**place for place in range(buckets))


class Histogram:
    """Counts of observed seconds in buckets by their upper bounds; behind the last bound is one more.

    One thread observes; another may read meanwhile and sees numbers of nearly the same moment.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = doubling(0.001, 14)) -> None:
        """`bounds` are seconds, ascending; the default is that of etcd's disk times."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds
