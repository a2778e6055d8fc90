"""How many keys lived in an interval at an old revision, from what came and went since."""

import random
from pathlib import Path

import pytest

from raftkv.mvcc import LmdbBackend, Store
from raftkv.pb import rpc_pb2 as pb

SPANS = [(b"", None), (b"k02", b"k05"), (b"k05", b"k02"), (b"k03", b"k03\0")]


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_old_revisions_survive_compaction_and_restart(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
    store = Store(backend)
    lived: list[set[bytes]] = [set(), set()]
    for _ in range(200):
        key = b"k%02d" % rng.randrange(8)
        alive = set(lived[-1])
        if rng.random() < 0.4 and key in alive:
            store.delete_range(pb.DeleteRangeRequest(key=key))
            alive.remove(key)
        else:
            store.put(pb.PutRequest(key=key, value=b"v"))
            alive.add(key)
        lived.append(alive)
    store.compact(rng.randrange(1, 100))
    check(store, lived)
    store.compaction_step(3)
    flush = store.begin_flush()
    assert flush is not None
    flush.write()
    backend.close()
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
    store = Store(backend)
    check(store, lived)
    while store.compaction_step():
        pass
    check(store, lived)
    backend.close()


def check(store: Store, lived: list[set[bytes]]) -> None:
    assert store.compacted_revision > 0
    for revision in range(store.compacted_revision, store.revision + 1):
        for first, end in SPANS:
            expected = [key for key in lived[revision] if first <= key and (end is None or key < end)]
            assert store.count_at((first, end), revision) == len(expected)
