"""Bounded intervals of keys, and which of them hold a key: a treap ordered by interval, each node with its subtree's
greatest end (an augmented search tree; Cormen et al., interval trees).

Adding, removing and each interval found cost O(log n), whatever clients do: priorities come from a generator whose seed
they cannot know, or they could add intervals in an order that makes a list of the tree.
"""

import random
from typing import Generic, TypeVar

T = TypeVar("T")


class _Node(Generic[T]):
    __slots__ = ("end", "first", "highest", "left", "priority", "right", "value")

    def __init__(self, first: bytes, end: bytes, value: T, priority: float) -> None:
        self.first = first
        self.end = end
        self.value = value
        self.priority = priority
        self.highest = end
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None

    @property
    def span(self) -> tuple[bytes, bytes]:
        return self.first, self.end

    def fix(self) -> None:
        """Find the greatest end again after a child has changed."""
        highest = self.end
        if self.left is not None and self.left.highest > highest:
            highest = self.left.highest
        if self.right is not None and self.right.highest > highest:
            highest = self.right.highest
        self.highest = highest


class IntervalTree(Generic[T]):
    """A map from half-open intervals [first, end) to values.

    Invariants:
    1. In-order, intervals ascend; a parent's priority is not below its children's.
    2. `highest` of a node is the greatest end in its subtree.
    """

    def __init__(self, rng: random.Random) -> None:
        self._root: _Node[T] | None = None
        self._random = rng

    @property
    def depth(self) -> int:
        """How many intervals an addition is compared with at most."""
        depth, level = 0, [self._root]
        while level := [node for node in level if node is not None]:
            depth += 1
            level = [child for node in level for child in (node.left, node.right)]
        return depth

    def add(self, first: bytes, end: bytes, value: T) -> None:
        """Add an interval that is not there yet."""
        self._root = _insert(self._root, _Node(first, end, value, self._random.random()))

    def remove(self, first: bytes, end: bytes) -> None:
        """Remove an interval that is there."""
        self._root = _remove(self._root, (first, end))

    def holding(self, key: bytes) -> list[T]:
        """The values of all intervals that hold the key."""
        found: list[T] = []
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node is None or node.highest <= key:
                continue
            stack.append(node.left)
            if node.first <= key:
                if key < node.end:
                    found.append(node.value)
                stack.append(node.right)
        return found


def _insert(node: _Node[T] | None, new: _Node[T]) -> _Node[T]:
    if node is None:
        return new
    if new.priority > node.priority:
        new.left, new.right = _split(node, new.span)
        node = new
    elif new.span < node.span:
        node.left = _insert(node.left, new)
    else:
        node.right = _insert(node.right, new)
    node.fix()
    return node


def _split(node: _Node[T] | None, span: tuple[bytes, bytes]) -> tuple[_Node[T] | None, _Node[T] | None]:
    """Part a subtree into what lies before `span` and what lies behind it."""
    if node is None:
        return None, None
    if node.span < span:
        node.right, high = _split(node.right, span)
        node.fix()
        return node, high
    low, node.left = _split(node.left, span)
    node.fix()
    return low, node


def _remove(node: _Node[T] | None, span: tuple[bytes, bytes]) -> _Node[T] | None:
    if node is None:
        raise KeyError(span)
    if node.span == span:
        return _join(node.left, node.right)
    if span < node.span:
        node.left = _remove(node.left, span)
    else:
        node.right = _remove(node.right, span)
    node.fix()
    return node


def _join(low: _Node[T] | None, high: _Node[T] | None) -> _Node[T] | None:
    if low is None or high is None:
        return high if low is None else low
    if low.priority > high.priority:
        low.right = _join(low.right, high)
        low.fix()
        return low
    high.left = _join(low, high.left)
    high.fix()
    return high
