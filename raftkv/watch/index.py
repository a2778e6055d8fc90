"""Which watchers want to hear of a key.

Watchers of the same keys form a group. A group of one key is found by hash; so is one of a prefix, with one look-up for
each length of prefix in use, of which there are few; whatever else there is, in an interval tree.
"""

import random
from typing import TYPE_CHECKING

from sortedcontainers import SortedDict

from raftkv.mvcc.interval import Interval
from raftkv.watch.tree import IntervalTree

if TYPE_CHECKING:
    from raftkv.watch.stream import Watcher

MAX_PREFIX_BYTES = 128
"""Longer prefixes go to the tree: a client must not be able to make every change cost a thousand look-ups."""


class Group:
    """Watchers of the same keys, by form."""

    __slots__ = ("forms", "span")

    def __init__(self, span: Interval) -> None:
        self.span = span
        self.forms: dict[int, dict[Watcher, None]] = {}


def prefix_end(prefix: bytes) -> bytes | None:
    """The end of the interval of all keys with this prefix; None: there is no end."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


class Index:
    """Groups of watchers by the keys they watch."""

    def __init__(self, rng: random.Random) -> None:
        self._groups: dict[Interval, Group] = {}
        self._keys: dict[bytes, Group] = {}
        self._prefixes: dict[int, dict[bytes, Group]] = {}
        self._endless: SortedDict[bytes, Group] = SortedDict()
        self._tree: IntervalTree[Group] = IntervalTree(rng)

    def __len__(self) -> int:
        """How many different intervals are watched."""
        return len(self._groups)

    def add(self, watcher: "Watcher") -> None:
        """Let a watcher hear of its keys."""
        group = self._groups.get(watcher.span)
        if group is None:
            group = self._groups[watcher.span] = Group(watcher.span)
            self._add_group(group)
        group.forms.setdefault(watcher.form, {})[watcher] = None

    def remove(self, watcher: "Watcher") -> None:
        """Let a watcher hear nothing more."""
        group = self._groups[watcher.span]
        watchers = group.forms[watcher.form]
        del watchers[watcher]
        if not watchers:
            del group.forms[watcher.form]
            if not group.forms:
                del self._groups[group.span]
                self._remove_group(group)

    def match(self, key: bytes) -> list[Group]:
        """The groups whose interval holds the key."""
        found = []
        group = self._keys.get(key)
        if group is not None:
            found.append(group)
        for length, prefixes in self._prefixes.items():
            group = prefixes.get(key[:length])
            if group is not None:
                found.append(group)
        found += self._tree.holding(key)
        if self._endless:
            found += [self._endless[first] for first in self._endless.irange(None, key)]
        return found

    def watchers(self) -> "list[Watcher]":
        """All watchers."""
        groups = self._groups.values()
        return [watcher for group in groups for watchers in group.forms.values() for watcher in watchers]

    def _add_group(self, group: Group) -> None:
        first, end = group.span
        if end == first + b"\0":
            self._keys[first] = group
        elif _is_prefix(group.span):
            self._prefixes.setdefault(len(first), {})[first] = group
        elif end is None:
            self._endless[first] = group
        else:
            self._tree.add(first, end, group)

    def _remove_group(self, group: Group) -> None:
        first, end = group.span
        if end == first + b"\0":
            del self._keys[first]
        elif _is_prefix(group.span):
            prefixes = self._prefixes[len(first)]
            del prefixes[first]
            if not prefixes:
                del self._prefixes[len(first)]
        elif end is None:
            del self._endless[first]
        else:
            self._tree.remove(first, end)


def _is_prefix(span: Interval) -> bool:
    first, end = span
    return len(first) <= MAX_PREFIX_BYTES and end == prefix_end(first)
