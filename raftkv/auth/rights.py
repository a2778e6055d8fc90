"""What one user may do: sets of intervals of keys, merged from the permissions of all its roles."""

from bisect import bisect_right
from collections.abc import Iterable

from raftkv.mvcc.interval import Interval, interval
from raftkv.pb import auth_pb2

ROOT = "root"
"""Name of the user and of the role that may do everything."""

READ, WRITE, READWRITE = auth_pb2.Permission.READ, auth_pb2.Permission.WRITE, auth_pb2.Permission.READWRITE


class RangeSet:
    """A union of intervals.

    Invariant: `_firsts` and `_ends` are those of disjoint intervals that do not touch, in order.

    >>> granted = RangeSet([(b"a", b"c"), (b"c", b"e"), (b"x", None)])
    >>> granted.covers((b"b", b"d")), granted.covers((b"d", b"f")), granted.covers((b"y", None))
    (True, False, True)
    """

    __slots__ = ("_ends", "_firsts")

    def __init__(self, spans: Iterable[Interval]) -> None:
        self._firsts: list[bytes] = []
        self._ends: list[bytes | None] = []
        for first, end in sorted(((_first(span), span[1]) for span in spans), key=lambda span: span[0]):
            if end is not None and end <= first:
                continue
            last = self._ends[-1] if self._ends else b""
            if self._firsts and (last is None or first <= last):
                if last is not None and (end is None or end > last):
                    self._ends[-1] = end
            else:
                self._firsts.append(first)
                self._ends.append(end)

    def covers(self, span: Interval) -> bool:
        """Whether all of an interval lies in the union.

        An interval without keys (its end is not behind its first key) counts as its first key; what etcd says of one
        depends on the shape of a tree.
        """
        first, end = _first(span), span[1]
        if end is not None and end <= first:
            end = first + b"\0"
        place = bisect_right(self._firsts, first) - 1
        if place < 0:
            return False
        last = self._ends[place]
        return last is None or (end is not None and end <= last)


def _first(span: Interval) -> bytes:
    # Everything begins at the empty key, which no key is: it is all the same as to begin at the first there can be.
    return span[0] or b"\0"


class Rights:
    """What a user may do; `root`: everything."""

    __slots__ = ("read", "root", "write")

    def __init__(self, permissions: Iterable[auth_pb2.Permission], *, root: bool) -> None:
        granted = [(one.permType, interval(one.key, one.range_end)) for one in permissions]
        self.root = root
        self.read = RangeSet(span for kind, span in granted if kind in (READ, READWRITE))
        self.write = RangeSet(span for kind, span in granted if kind in (WRITE, READWRITE))

    def may_read(self, span: Interval) -> bool:
        return self.root or self.read.covers(span)

    def may_write(self, span: Interval) -> bool:
        return self.root or self.write.covers(span)


def is_valid(permission: auth_pb2.Permission) -> bool:
    """Whether a permission is one on some keys: a range that holds none is refused before it is stored."""
    if not permission.key:
        return False
    first, end = interval(permission.key, permission.range_end)
    return end is None or first < end
