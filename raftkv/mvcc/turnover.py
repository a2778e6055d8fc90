"""Which keys came and went, in order of revision: how many lived at an old revision is then a matter of the difference.

Only births (a put of a key that was not there) and deaths are noted, for revisions that may still be read.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import compress

from raftkv.mvcc.interval import Interval


class Turnover:
    """Births and deaths behind the compacted revision.

    Invariant: place by place, `_marks` holds revision * 2 + (1 for a birth), never decreasing, and `_keys` the key.
    """

    __slots__ = ("_keys", "_marks")

    def __init__(self) -> None:
        self._marks = array("Q")
        self._keys: list[bytes] = []

    def note(self, revision: int, key: bytes, *, born: bool) -> None:
        """Note a birth or a death; revisions come in order."""
        self._marks.append(revision * 2 + born)
        self._keys.append(key)

    def note_deaths(self, revision: int, keys: Sequence[bytes]) -> None:
        """Note deaths of one revision."""
        self._marks.extend([revision * 2] * len(keys))
        self._keys += keys

    def forget(self, revision: int) -> None:
        """Forget what happened up to a revision, before which nobody reads any more."""
        place = self._behind(revision)
        del self._marks[:place]
        del self._keys[:place]

    def size_behind(self, revision: int) -> int:
        """How many births and deaths there were behind a revision."""
        return len(self._marks) - self._behind(revision)

    def born_since(self, revision: int) -> set[bytes]:
        """Keys that came to life behind a revision; some may be gone again."""
        place = self._behind(revision)
        return set(compress(self._keys[place:], [mark & 1 for mark in self._marks[place:]]))

    def balance_since(self, revision: int, span: Interval) -> int:
        """How many more keys an interval holds now than it held at a revision."""
        first, end = span
        place = self._behind(revision)
        births = deaths = 0
        for mark, key in zip(self._marks[place:], self._keys[place:], strict=True):
            if first <= key and (end is None or key < end):
                if mark & 1:
                    births += 1
                else:
                    deaths += 1
        return births - deaths

    def _behind(self, revision: int) -> int:
        return bisect_left(self._marks, max(0, revision + 1) * 2)
