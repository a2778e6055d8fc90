"""Objects shaped like Kubernetes', and writers that put them through all members and remember what they were told."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from raftkv.client import AsyncClient, ClientError

WRITERS = 24
SIZES = {
    "pods": ((1_500, 4_000, 12_000, 100_000), (40, 45, 14, 1)),
    "leases": ((200, 350), (80, 20)),
    "events": ((600, 1_000, 1_600), (30, 50, 20)),
}
"""Bytes of an object of each kind, and how frequent each size is."""


def objects(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values as an API server writes them: `k8s`, a zero byte, and a protobuf message of any bytes."""
    rng = random.Random(count)
    for number in range(count):
        kind = tuple(SIZES)[number % len(SIZES)]
        (size,) = rng.choices(*SIZES[kind])
        key = f"/registry/{kind}/namespace-{number % 20}/object-{number:05d}"
        yield key.encode(), b"k8s\0\x0a\x08\x0a\x02v1\x12\x02Ob\x12" + rng.randbytes(size + rng.randrange(size // 4))


@dataclass(slots=True)
class Written:
    """What became of one object: how often it was sent, and at which revision the last put was acknowledged, if so."""

    value: bytes
    attempts: int = 0
    revision: int = 0


class Writers(threading.Thread):
    """Puts objects from many coroutines over all members. A put of unknown outcome is made again: the object's version
    may then be higher than 1, nothing else may differ."""

    def __init__(self, endpoints: list[str], count: int) -> None:
        super().__init__(daemon=True)
        self.written: dict[bytes, Written] = {}
        self.acknowledged = 0
        self._endpoints = endpoints
        self._objects = objects(count)
        self._ended = False
        self.start()

    def run(self) -> None:
        asyncio.run(self._write_all())

    def end(self) -> None:
        """Stop after the puts under way."""
        self._ended = True
        self.join(120)
        assert not self.is_alive()

    def finish(self, seconds: float) -> None:
        """Wait until every object is acknowledged."""
        self.join(seconds)
        assert not self.is_alive(), f"{self.acknowledged} of {len(self.written)} acknowledged"

    def wait(self, count: int, seconds: float = 300.0) -> None:
        """Wait until so many objects are acknowledged."""
        deadline = time.monotonic() + seconds
        while self.acknowledged < count:
            assert time.monotonic() < deadline, f"only {self.acknowledged} of {count} are acknowledged"
            time.sleep(0.01)

    async def _write_all(self) -> None:
        await asyncio.gather(*(self._write(number) for number in range(WRITERS)))

    async def _write(self, number: int) -> None:
        first = number % len(self._endpoints)
        endpoints = self._endpoints[first:] + self._endpoints[:first]
        async with AsyncClient(endpoints, timeout=10.0) as client:
            for key, value in self._objects:
                written = self.written[key] = Written(value)
                while not self._ended and not written.revision:
                    written.attempts += 1
                    try:
                        written.revision = (await client.put(key, value)).header.revision
                        self.acknowledged += 1
                    except ClientError:
                        await asyncio.sleep(0.05)
                if self._ended:
                    return
