"""What the log does to leases and their keys; restarts."""

from pathlib import Path

import pytest

from raftkv import errors
from raftkv.lease import MAX_TTL_SECONDS, LeaseStore
from raftkv.mvcc import LmdbBackend, Store
from raftkv.mvcc import encoding as enc
from raftkv.mvcc.store import Change
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2 as pb
from tests.unit.lease.world import World


def make() -> tuple[Store, LeaseStore]:
    store = Store(MemoryBackend())
    return store, LeaseStore(store)


def put(store: Store, key: bytes, lease: int = 0, **options: bool) -> None:
    store.put(pb.PutRequest(key=key, lease=lease, **options))


def keys(leases: LeaseStore, lease_id: int) -> set[bytes]:
    lease = leases.get(lease_id)
    assert lease is not None
    return set(lease.keys or ())


@pytest.mark.parametrize(
    ("lease_id", "ttl", "error"),
    [
        (1, 10, errors.LeaseExist),
        (0, 10, errors.LeaseNotFound),
        (2, MAX_TTL_SECONDS + 1, errors.LeaseTTLTooLarge),
        (1, MAX_TTL_SECONDS + 1, errors.LeaseTTLTooLarge),
    ],
)
def test_a_refused_grant_changes_nothing(lease_id: int, ttl: int, error: type[Exception]) -> None:
    _, leases = make()
    leases.grant(1, 5)
    with pytest.raises(error):
        leases.grant(lease_id, ttl)
    assert list(leases.leases) == [1]
    assert leases.grants == 1


def test_revoking_deletes_all_keys_in_one_revision_with_their_last_state() -> None:
    store, leases = make()
    leases.grant(1, 5)
    for key in (b"c", b"a", b"b"):
        put(store, key, 1)
    put(store, b"other")
    commits: list[tuple[int, list[Change]]] = []
    store.on_commit = lambda revision, changes: commits.append((revision, list(changes)))
    before = store.revision
    leases.revoke(1)
    assert store.revision == before + 1
    ((revision, changes),) = commits
    assert revision == before + 1
    assert [change.key for change in changes] == [b"a", b"b", b"c"]
    for change in changes:
        assert change.deleted
        assert change.previous is not None
        assert enc.decode_chunk(change.previous).lease == 1
        assert enc.decode_chunk(change.chunk).mod_revision == revision
    assert store.count((b"", None)) == 1
    with pytest.raises(errors.LeaseNotFound):
        leases.revoke(1)


def test_revoking_a_lease_without_keys_makes_no_revision() -> None:
    store, leases = make()
    leases.grant(1, 5)
    leases.revoke(1)
    assert store.revision == 1


def test_each_expired_lease_has_a_revision_of_its_own() -> None:
    store, leases = make()
    for lease_id in (1, 2):
        leases.grant(lease_id, 5)
        for number in range(3):
            put(store, b"%d-%d" % (lease_id, number), lease_id)
    before = store.revision
    leases.expire([2, 1, 9], leases.grants)
    assert store.revision == before + 2
    assert not leases


def test_a_key_belongs_to_the_lease_of_its_newest_version() -> None:
    store, leases = make()
    leases.grant(1, 5)
    leases.grant(2, 5)
    put(store, b"k", 1)
    assert (keys(leases, 1), keys(leases, 2)) == ({b"k"}, set())
    put(store, b"k", 2)
    assert (keys(leases, 1), keys(leases, 2)) == (set(), {b"k"})
    put(store, b"k", ignore_lease=True)
    assert keys(leases, 2) == {b"k"}
    put(store, b"k")
    assert keys(leases, 2) == set()
    put(store, b"k", 2)
    store.delete_range(pb.DeleteRangeRequest(key=b"a", range_end=b"z"))
    assert keys(leases, 2) == set()
    leases.revoke(2)
    with pytest.raises(errors.LeaseNotFound):
        put(store, b"k", 2)


def test_a_transaction_attaches_and_detaches_too() -> None:
    store, leases = make()
    leases.grant(1, 5)
    put(store, b"gone", 1)
    request = pb.TxnRequest()
    request.success.add().request_put.CopyFrom(pb.PutRequest(key=b"a", lease=1))
    request.success.add().request_delete_range.key = b"gone"
    nested = request.success.add().request_txn
    nested.success.add().request_put.CopyFrom(pb.PutRequest(key=b"b", lease=1))
    store.txn(request)
    assert keys(leases, 1) == {b"a", b"b"}
    nested.success[0].request_put.lease = 99
    with pytest.raises(errors.LeaseNotFound):
        store.txn(request)
    assert keys(leases, 1) == {b"a", b"b"}


def flush(store: Store) -> None:
    frozen = store.begin_flush()
    assert frozen is not None
    frozen.write()
    store.backend.end_flush(frozen)


def test_leases_and_their_keys_survive_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    backend = LmdbBackend(path, map_bytes=1 << 30)
    store = Store(backend)
    leases = LeaseStore(store)
    for lease_id in (1, 2, -3):
        leases.grant(lease_id, 100)
        put(store, b"k%d" % lease_id, lease_id)
    put(store, b"k1", 2)
    leases.revoke(-3)
    leases.checkpoint([pb.LeaseCheckpoint(ID=2, remaining_TTL=40)], leases.grants)
    flush(store)
    leases.grant(4, 5)
    backend.close()

    backend = LmdbBackend(path, map_bytes=1 << 30)
    store = Store(backend)
    again = LeaseStore(store)
    assert {lease.id: (lease.ttl, lease.remaining, lease.serial) for lease in again.leases.values()} == {
        1: (100, 0, 1),
        2: (100, 40, 2),
    }
    assert again.grants == 3
    assert (keys(again, 1), keys(again, 2)) == (set(), {b"k1", b"k2"})
    backend.close()


def test_followers_have_the_same_leases() -> None:
    world = World()
    for lease_id in range(1, 6):
        world.grant(lease_id, 30 * lease_id)
        world.put(b"%d" % lease_id, lease_id)
    world.delete(b"3", b"5")
    world.run(70, step=0.9)
    for member in world.members:
        world.catch_up(member)
    first = world.members[0]
    assert set(first.leases.leases) == {3, 4, 5}
    assert any(lease.remaining for lease in first.leases.leases.values())
    for member in world.members[1:]:
        assert dict(member.leases.leases) == dict(first.leases.leases)
        assert member.store.select((b"", None)) == first.store.select((b"", None))
