"""A process that flushes the store is killed in the middle: the store is that of one moment, before or after."""

import random
import subprocess
import sys
import time
from pathlib import Path

from raftkv.mvcc import LmdbBackend, Store
from raftkv.mvcc.encoding import decode_chunk
from tests.support.store_writer import KEYS, MAP_BYTES, applied, key

ROOT = Path(__file__).parents[2]
ROUNDS = 8


def flush_and_die(directory: Path, flushes: int, delay: float) -> tuple[int, int]:
    """Kill a writer inside a flush, or soon after; the puts of its last durable flush and of the last it began."""
    command = [sys.executable, "-m", "tests.support.store_writer", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(2 * flushes + 1)]
            time.sleep(delay)
        finally:
            process.kill()
        told += process.stdout.read().splitlines(keepends=True)
    numbers = [int(line) for line in told if line.endswith(b"\n")]
    assert len(numbers) > 2 * flushes, "the writer stopped by itself"
    durable = [number for number in numbers if numbers.count(number) == 2]
    return max(durable, default=0), numbers[-1]


def test_a_store_killed_in_a_flush_is_of_one_moment(tmp_path: Path) -> None:
    rng = random.Random(4)
    found = []
    for _ in range(ROUNDS):
        durable, begun = flush_and_die(tmp_path, rng.randrange(3), rng.choice((0.0, 0.001, 0.005)))
        backend = LmdbBackend(str(tmp_path), map_bytes=MAP_BYTES)
        store = Store(backend)
        count = applied(store)
        assert max(durable, found[-1] if found else 0) <= count <= begun
        check_contents(store, count)
        backend.close()
        found.append(count)
    assert found[-1] > 0


def check_contents(store: Store, count: int) -> None:
    """Exactly the first puts: the revision, every key's newest value, and every revision readable."""
    assert store.revision == count + 1
    newest = {key(number): number for number in range(count)}
    kvs = [decode_chunk(chunk) for chunk in store.select((b"", None))]
    assert {kv.key: int(kv.value.split()[0]) for kv in kvs} == newest
    for revision in range(2, count + 2, 97):
        number = revision - 2
        assert store.count_at((b"", None), revision) == min(number + 1, KEYS)
        [chunk] = store.select_at((key(number), key(number) + b"\0"), revision)
        assert decode_chunk(chunk).mod_revision == revision
