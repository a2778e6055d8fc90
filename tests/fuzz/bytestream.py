"""Choices drawn from the bytes of an input, so that changing a byte changes one choice."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Reads an input from its start; an input that is too short goes on with zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """The next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def choose(self, options: Sequence[T]) -> T:
        """One of these."""
        return options[self.byte() % len(options)]

    def text(self) -> bytes:
        """Some bytes, as many as the next byte says."""
        size = self.byte()
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """What is left."""
        at, self._at = self._at, len(self._data)
        return self._data[at:]

    def pieces(self) -> Iterator[bytes]:
        """What is left, whole or torn into pieces of one size."""
        size = self.choose((1 << 30, 1, 2, 5, 9, 64))
        rest = self.rest()
        return (rest[at : at + size] for at in range(0, len(rest), size))
