"""Mappings by key that may hold millions, and of which no insertion takes long.

A dict that grows is copied whole, in the middle of one insertion: with 700,000 keys that takes 0.2 s, with ten million
longer than an election, and all members come to it at the same entry. So the keys are spread over many dicts, which
grow one by one.
"""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from sortedcontainers import SortedList

V = TypeVar("V")

PARTS = 256
_MASK = PARTS - 1


class Parts(Generic[V]):
    """A mapping without order."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: tuple[dict[bytes, V], ...] = tuple([{} for _ in range(PARTS)])

    def __getitem__(self, key: bytes) -> V:
        return self._parts[hash(key) & _MASK][key]

    def __setitem__(self, key: bytes, value: V) -> None:
        self._parts[hash(key) & _MASK][key] = value

    def pop(self, key: bytes, default: V) -> V:
        """Take a value out; the default where there is none."""
        return self._parts[hash(key) & _MASK].pop(key, default)


class Table(Generic[V]):
    """A mapping in key order.

    Invariant: `_order` holds each key of the parts once, in order.
    """

    __slots__ = ("_order", "_parts", "bisect_left", "irange", "islice")

    def __init__(self) -> None:
        self._parts: tuple[dict[bytes, V], ...] = tuple([{} for _ in range(PARTS)])
        self._order: SortedList[bytes] = SortedList()
        self.bisect_left, self.irange, self.islice = (
            self._order.bisect_left,
            self._order.irange,
            self._order.islice,
        )
        """Places of keys, keys of an interval, and keys by place, as those of a `SortedList`."""

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._order)

    def __contains__(self, key: bytes) -> bool:
        return key in self._parts[hash(key) & _MASK]

    def get(self, key: bytes) -> V | None:
        """The value of a key; None: it is not there."""
        return self._parts[hash(key) & _MASK].get(key)

    def __getitem__(self, key: bytes) -> V:
        return self._parts[hash(key) & _MASK][key]

    def __setitem__(self, key: bytes, value: V) -> None:
        part = self._parts[hash(key) & _MASK]
        if key not in part:
            self._order.add(key)
        part[key] = value

    def __delitem__(self, key: bytes) -> None:
        self.pop(key)

    def pop(self, key: bytes) -> V:
        """Take a key out.

        Raises:
            KeyError: it is not there.
        """
        value = self._parts[hash(key) & _MASK].pop(key)
        self._order.remove(key)
        return value

    def values_between(self, low: int, high: int) -> list[V]:
        """The values of the keys at these places, in order."""
        parts = self._parts
        return [parts[hash(key) & _MASK][key] for key in self._order.islice(low, high)]

    def update(self, values: Mapping[bytes, V]) -> None:
        """Set many, none of which is there yet: in one go, as at the start."""
        parts = self._parts
        for key, value in values.items():
            parts[hash(key) & _MASK][key] = value
        self._order.update(values)
