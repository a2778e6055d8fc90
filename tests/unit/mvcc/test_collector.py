"""What the garbage collector has to walk through does not grow with the keys: it stands the event loop still."""

import gc

from raftkv.lease import LeaseStore
from raftkv.mvcc import Store
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2

KEYS = 5000


def test_keys_and_their_history_are_nothing_to_the_garbage_collector() -> None:
    """Live keys, keys put again, and keys that are gone; each has a few versions."""
    store = Store(MemoryBackend())
    gc.collect()
    before = len(gc.get_objects())
    for number in range(KEYS):
        for _ in range(1 + number % 4):
            store.put(rpc_pb2.PutRequest(key=b"%05d" % number, value=b"v"))
    store.delete_range(rpc_pb2.DeleteRangeRequest(key=b"0", range_end=b"03"))
    gc.collect()
    assert len(gc.get_objects()) - before < KEYS / 10


def test_a_lease_is_one_object_to_the_garbage_collector_however_many_keys_it_has() -> None:
    leases = LeaseStore(Store(MemoryBackend()))
    gc.collect()
    before = len(gc.get_objects())
    for lease_id in range(1, 1001):
        leases.grant(lease_id, 60)
        for number in range(10):
            leases.attach(lease_id, b"%d/%d" % (lease_id, number))
    gc.collect()
    assert len(gc.get_objects()) - before < 1100
    assert len(leases.keys_of(7)) == 10


def test_many_versions_of_one_key_are_kept_and_given_up() -> None:
    store = Store(MemoryBackend())
    for _ in range(100):
        store.put(rpc_pb2.PutRequest(key=b"k", value=b"v"))
    last = store.revision
    at = [rpc_pb2.RangeRequest(key=b"k", revision=revision) for revision in (2, last - 3, last)]
    assert all(b"v" in b"".join(store.range(request)) for request in at)
    store.compact(last - 3)
    while store.compaction_step():
        continue
    assert store.counts.compacted == 95
    assert all(b"v" in b"".join(store.range(request)) for request in at[1:])
    assert store.version_before(b"k", last, 0) is not None
