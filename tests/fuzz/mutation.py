"""Inputs made from other inputs: what to change is drawn from a seed."""

import random
from collections.abc import Callable, Sequence

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
PIECE_BYTES = 40

Change = Callable[[bytearray, int, random.Random, Sequence[bytes]], None]


def _flip(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    if data:
        data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    data[at : at + 1] = bytes([rng.randrange(256)])


def _cut(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    del data[at : at + rng.randrange(1, PIECE_BYTES)]


def _truncate(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    del data[at:]


def _insert(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    data[at:at] = rng.randbytes(rng.randrange(1, PIECE_BYTES))


def _repeat(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    data[at:at] = data[at : at + rng.randrange(1, PIECE_BYTES)] * rng.choice((1, 1, 1, 2, 30))


def _number(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(EDGES) % (1 << 8 * size)
    data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _splice(data: bytearray, at: int, rng: random.Random, pool: Sequence[bytes]) -> None:
    other = rng.choice(pool)
    start = rng.randrange(len(other) + 1)
    data[at : at + rng.choice((0, 0, PIECE_BYTES))] = other[start : start + rng.choice((4, PIECE_BYTES, 400))]


CHANGES: tuple[Change, ...] = (_flip, _flip, _set, _set, _cut, _truncate, _insert, _repeat, _number, _number, _splice)


def mutated(pool: Sequence[bytes], rng: random.Random, max_bytes: int) -> bytes:
    """An input of the pool with a few changes."""
    data = bytearray(rng.choice(pool))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        rng.choice(CHANGES)(data, rng.randrange(len(data) + 1), rng, pool)
    return bytes(data[:max_bytes])
