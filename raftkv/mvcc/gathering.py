"""Reading many keys as they are at one moment, a slice at a time: the store moves on between two slices.

Whatever changes meanwhile is told to those who read, who keep what stood there before. So nothing is copied beforehand,
no history is asked, and a compaction disturbs nobody.
"""

from itertools import islice

from sortedcontainers import SortedDict

from raftkv.mvcc.interval import Interval
from raftkv.mvcc.table import Table


class Gathering:
    """The live keys of an interval at the moment in which this is made.

    Invariants:
    1. What lies before `_first` has been taken.
    2. `_before` has each key behind it that has changed since, with the chunk it had; None: it was not there.
    """

    __slots__ = ("_before", "_end", "_first", "_newest", "count")

    def __init__(self, newest: Table[bytes], span: Interval) -> None:
        """`note` must be called before each change of `newest`."""
        self._newest = newest
        self._first: bytes | None
        self._first, self._end = span
        self._before: SortedDict[bytes, bytes | None] = SortedDict()
        low, high = self._places(span[0])
        self.count = high - low
        """How many keys there are."""

    def _places(self, first: bytes) -> tuple[int, int]:
        low = self._newest.bisect_left(first)
        return low, max(low, len(self._newest) if self._end is None else self._newest.bisect_left(self._end))

    def note(self, key: bytes, chunk: bytes | None) -> None:
        """Hear that a key is about to change, which has this chunk now."""
        first, end = self._first, self._end
        if first is not None and first <= key and (end is None or key < end):
            self._before.setdefault(key, chunk)

    @property
    def over(self) -> bool:
        """Whether all has been taken."""
        return self._first is None

    def take(self, max_keys: int) -> list[bytes]:
        """The chunks of the next keys in order: so many of those there are and of those that have changed, at most.

        None of them need have been there.
        """
        if self._first is None:
            return []
        low, high = self._places(self._first)
        stop = min(low + max_keys, high)
        self._first = next(self._newest.islice(stop, stop + 1)) if stop < high else None
        changed = list(islice(self._before.irange(maximum=self._first, inclusive=(True, False)), max_keys + 1))
        if len(changed) > max_keys:
            self._first = changed.pop()
            stop = self._newest.bisect_left(self._first)
        chunks = self._newest.values_between(low, stop)
        if not changed:
            return chunks
        found: dict[bytes, bytes | None] = dict(zip(self._newest.islice(low, stop), chunks, strict=True))
        for key in changed:
            found[key] = self._before.pop(key)
        return [chunk for _, chunk in sorted(found.items()) if chunk is not None]
