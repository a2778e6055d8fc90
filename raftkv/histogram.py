"""How often something took how long, in numbers that are read when someone scrapes."""

from bisect import bisect_left


class Histogram:
    """Counts of observed seconds in buckets whose bounds double; the last one is open.

    One thread observes; another may read meanwhile and sees numbers of nearly the same moment.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, first: float = 0.001, buckets: int = 14) -> None:
        """`first` is the upper bound of the first bucket, in seconds; the defaults are those of etcd's disk times."""
        self.bounds = tuple(first * 2**place for place in range(buckets))
        self.counts = [0] * (buckets + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds
