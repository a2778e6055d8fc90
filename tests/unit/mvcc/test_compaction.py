"""Compaction goes step by step: whatever happens between two steps, what may be read is there, and the rest goes."""

import random
from pathlib import Path

import pytest

from raftkv.mvcc import LmdbBackend, Store
from raftkv.mvcc.store import REVISION
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2 as pb

ALL = pb.RangeRequest(key=b"\0", range_end=b"\0")


class Counting(MemoryBackend):
    """Counts what is removed."""

    deleted = 0

    def delete(self, table: bytes, key: bytes) -> None:
        self.deleted += 1
        super().delete(table, key)


def put(store: Store, key: bytes) -> None:
    store.put(pb.PutRequest(key=key, value=b"%d" % store.revision))


def at(store: Store, revision: int) -> bytes:
    return b"".join(store.range(pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision)))


def test_one_key_with_a_long_history_is_the_work_of_many_steps() -> None:
    backend = Counting()
    store = Store(backend)
    for _ in range(1000):
        put(store, b"k")
    store.compact(store.revision)
    more, most = True, 0
    while more:
        before = backend.deleted
        more = store.compaction_step(1)
        most = max(most, backend.deleted - before)
    assert most == 10
    assert store.counts.compacted == backend.deleted == 998, "one stands before what may be read"


def test_a_step_looks_at_no_more_keys_than_it_may() -> None:
    backend = Counting()
    store = Store(backend)
    for number in range(2000):
        put(store, b"k%d" % (number % 1000))
    store.compact(store.revision)
    steps = most = 0
    while store.compacting:
        before = backend.deleted
        store.compaction_step()
        most = max(most, backend.deleted - before)
        steps += 1
    assert backend.deleted == 999, "of one key nothing stands before what may be read"
    assert most <= 100
    assert steps <= 11


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_between_two_steps_all_that_may_be_read_stays(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
    store = Store(backend)
    known: dict[int, bytes] = {}

    def change() -> None:
        key = b"k%d" % min(rng.randrange(12), rng.randrange(12))
        if rng.random() < 0.2:
            store.delete_range(pb.DeleteRangeRequest(key=key))
        else:
            put(store, key)
        known[store.revision] = b"".join(store.range(ALL))

    for _ in range(400):
        change()
    for _ in range(rng.randrange(1, 5)):
        store.compact(rng.randrange(max(store.compacted_revision, 1) + 1, store.revision + 1))
        for _ in range(rng.randrange(60)):
            store.compaction_step(rng.randrange(1, 5))
            if rng.random() < 0.5:
                change()
            if rng.random() < 0.2 and (flush := store.begin_flush()) is not None:
                flush.write()
                backend.end_flush(flush)
        if rng.random() < 0.5:
            # What was not flushed is lost with the process; the log would bring it back.
            flush = store.begin_flush()
            assert flush is not None
            flush.write()
            backend.close()
            backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
            store = Store(backend)
        for revision in range(store.compacted_revision, store.revision + 1):
            assert pb.RangeResponse.FromString(at(store, revision)) == pb.RangeResponse.FromString(known[revision])
    while store.compaction_step(rng.randrange(1, 50)):
        pass
    for revision in range(store.compacted_revision, store.revision + 1):
        assert pb.RangeResponse.FromString(at(store, revision)) == pb.RangeResponse.FromString(known[revision])
    revisions = [REVISION.unpack(key)[0] for key, _ in backend.revisions(b"")]
    assert sum(revision < store.compacted_revision for revision in revisions) <= 12, (
        "of each key one version at most stands before what may be read"
    )
    backend.close()
