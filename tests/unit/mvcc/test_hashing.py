"""The hash over history: a function of what happened, not of where it lies."""

from pathlib import Path

import pytest

from raftkv import errors
from raftkv.mvcc import LmdbBackend, Store, hash_history
from raftkv.pb import rpc_pb2


def flush(store: Store) -> None:
    frozen = store.begin_flush()
    if frozen is not None:
        frozen.write()
        store.backend.end_flush(frozen)


def compact(store: Store, revision: int) -> None:
    store.compact(revision)
    while store.compaction_step():
        pass


def fill(store: Store, *, flush_every: int) -> None:
    """Sixty revisions over seven keys, with deletions and transactions of several changes."""
    for number in range(60):
        key = b"key%d" % (number % 7)
        if number % 11 == 10:
            store.delete_range(rpc_pb2.DeleteRangeRequest(key=b"key", range_end=b"kez"))
        elif number % 5 == 4:
            puts = [rpc_pb2.RequestOp(request_put={"key": key + b"-%d" % n, "value": b"v"}) for n in range(3)]
            store.txn(rpc_pb2.TxnRequest(success=puts))
        else:
            store.put(rpc_pb2.PutRequest(key=key, value=b"value" * (number * 97 % 2000)))
        if number % flush_every == flush_every - 1:
            flush(store)


def crc(store: Store, revision: int = 0) -> int:
    return hash_history(store, revision).compute()


@pytest.fixture
def stores(tmp_path: Path) -> list[Store]:
    """Three that did the same, flushed at different times."""
    found = [Store(LmdbBackend(str(tmp_path / str(every)), map_bytes=1 << 30)) for every in (7, 13, 1000)]
    for store, every in zip(found, (7, 13, 1000), strict=True):
        fill(store, flush_every=every)
    return found


def test_flushed_or_not_the_hash_is_the_same(stores: list[Store]) -> None:
    for revision in (0, 2, 17, 40, stores[0].revision):
        assert len({crc(store, revision) for store in stores}) == 1, revision


def test_every_revision_has_a_hash_of_its_own(stores: list[Store]) -> None:
    store = stores[1]
    assert len({crc(store, revision) for revision in range(2, store.revision + 1)}) == store.revision - 1


def test_a_hash_of_an_old_revision_does_not_change(stores: list[Store]) -> None:
    for store in stores:
        before = crc(store, 30)
        store.put(rpc_pb2.PutRequest(key=b"later", value=b"x"))
        assert crc(store, 30) == before


def test_how_often_history_was_compacted_plays_no_part(stores: list[Store]) -> None:
    once, twice, reopened = stores
    compact(once, 40)
    compact(twice, 12)
    flush(twice)
    compact(twice, 40)
    compact(reopened, 25)
    flush(reopened)
    reopened = Store(reopened.backend)
    compact(reopened, 40)
    flush(reopened)
    for revision in (0, 40, 50):
        assert len({crc(store, revision) for store in (once, twice, reopened)}) == 1, revision


def test_a_frozen_and_half_written_flush_counts_once(stores: list[Store]) -> None:
    quiet, busy = stores[1], stores[2]
    frozen = busy.begin_flush()
    assert frozen is not None
    assert crc(busy) == crc(quiet)
    frozen.write()
    assert crc(busy) == crc(quiet)
    busy.backend.end_flush(frozen)
    assert crc(busy) == crc(quiet)


def test_the_store_moves_on_while_a_hash_is_computed(stores: list[Store]) -> None:
    store = stores[2]
    expected = crc(store)
    hashed = hash_history(store)
    flush(store)
    for _ in range(20):
        store.put(rpc_pb2.PutRequest(key=b"key0", value=b"later"))
    compact(store, store.revision)
    flush(store)
    assert hashed.compute() == expected


def test_another_value_gives_another_hash(stores: list[Store]) -> None:
    one, other = stores[0], stores[1]
    one.put(rpc_pb2.PutRequest(key=b"k", value=b"a"))
    other.put(rpc_pb2.PutRequest(key=b"k", value=b"b"))
    assert crc(one) != crc(other)


def test_only_what_is_kept_can_be_hashed(stores: list[Store]) -> None:
    store = stores[0]
    compact(store, 20)
    assert hash_history(store, 20).compacted_revision == 20
    with pytest.raises(errors.Compacted):
        hash_history(store, 19)
    with pytest.raises(errors.FutureRev):
        hash_history(store, store.revision + 1)
