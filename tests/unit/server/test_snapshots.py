"""A store on its way into place: whatever step the process dies at, the next start finds one whole store."""

import contextlib
import os
from pathlib import Path

import pytest

from raftkv.lease import LeaseStore
from raftkv.mvcc import LmdbBackend, Store
from raftkv.mvcc.encoding import decode_chunk
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import ConfState, Entry, EntryKind, InstallSnapshot
from raftkv.server import snapshots
from raftkv.server.apply import Applier
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.server.proposals import Proposals
from raftkv.server.retention import Retention
from raftkv.server.snapshots import Arrival, Copy, copy_store, settle_at_start

OLD, NEW = 3, 40


class Died(BaseException):
    """The process is gone."""


class Nobody:
    """No call waits."""

    def resolve(self, *_: object) -> None: ...

    def reject(self, *_: object) -> None: ...

    def term_applied(self, *_: object) -> None: ...


def make_store(directory: Path, entries: int, term: int) -> None:
    """A store that has applied so many puts; one key is under a lease."""
    backend = LmdbBackend(str(directory / "store"))
    store = Store(backend)
    membership = Membership(store)
    membership.bootstrap([rpc_pb2.Member(ID=1), rpc_pb2.Member(ID=2)])
    proposals: Proposals = Nobody()  # type: ignore[assignment]
    applier = Applier(store, LeaseStore(store), membership, proposals, Headers(1, 1))
    grant = log_pb2.Proposal(lease_grant=rpc_pb2.LeaseGrantRequest(ID=9, TTL=60))
    puts = [
        log_pb2.Proposal(put=rpc_pb2.PutRequest(key=b"k%d" % number, value=b"%d" % term, lease=9 * (number == 2)))
        for number in range(2, entries + 1)
    ]
    batches = [log_pb2.Batch(proposals=[proposal]).SerializeToString() for proposal in (grant, *puts)]
    applier.apply([Entry(term, index, EntryKind.NORMAL, data) for index, data in enumerate(batches, 1)])
    flush = store.begin_flush()
    assert flush is not None
    flush.write()
    backend.close()


def copy_of(directory: Path) -> Copy:
    backend = LmdbBackend(str(directory / "store"))
    try:
        return copy_store(backend, str(directory), 2)
    finally:
        backend.close()


def arrive(directory: Path, copy: Copy) -> Arrival:
    arrival = Arrival(str(directory), InstallSnapshot(1, 2, 5, copy.metadata))
    for offset in range(0, copy.size_bytes, 10_000):
        arrival.write(copy.read(offset, 10_000))
    return arrival


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Data directories of a leader, far ahead, and of a follower."""
    leader, follower = tmp_path / "leader", tmp_path / "follower"
    make_store(leader, NEW, 5)
    make_store(follower, OLD, 1)
    return leader, follower


def contents(directory: Path) -> tuple[int, int, set[bytes]]:
    backend = LmdbBackend(str(directory / "store"))
    store = Store(backend)
    index = snapshots.metadata_of(backend).index
    values = {decode_chunk(chunk).value for chunk in store.select((b"", None))}
    backend.close()
    return index, store.count((b"", None)), values


def test_a_copy_names_its_own_point_in_the_log_and_leaves_nothing_on_disk(two: tuple[Path, Path]) -> None:
    copy = copy_of(two[0])
    assert (copy.metadata.index, copy.metadata.term) == (NEW, 5)
    assert copy.metadata.conf_state == ConfState(voters=(1, 2))
    assert sorted(os.listdir(two[0])) == ["snapshot.sending", "store"]
    assert os.listdir(two[0] / "snapshot.sending") == []
    copy.close()


@pytest.mark.parametrize(
    "step",
    [
        "snapshot-receiving",
        "snapshot-received",
        "snapshot-aside",
        "loaded",
        "snapshot-recorded",
        "snapshot-moved",
        "snapshot-in-place",
    ],
)
def test_wherever_an_installation_dies_the_next_start_finds_one_whole_store(
    two: tuple[Path, Path], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = two

    def die(name: str) -> None:
        if name == step:
            raise Died

    monkeypatch.setattr(snapshots, "failpoint", die)
    recorded = 0
    with contextlib.ExitStack() as process:
        process.enter_context(contextlib.suppress(Died))
        loaded = arrive(follower, copy_of(leader)).keep()
        process.callback(loaded.store.backend.close)
        die("loaded")
        recorded = NEW
        loaded.move_into_place()
        pytest.fail(f"there is no step {step}")
    settle_at_start(str(follower), recorded)
    assert os.listdir(follower) == ["store"]
    assert contents(follower) == ((NEW, NEW - 1, {b"5"}) if recorded else (OLD, OLD - 1, {b"1"}))
    assert not settle_at_start(str(follower), recorded)


def test_a_store_that_arrived_is_that_of_its_message(two: tuple[Path, Path]) -> None:
    leader, follower = two
    copy = copy_of(leader)
    arrival = arrive(follower, copy)
    other = InstallSnapshot(1, 2, 5, snapshots.SnapshotMetadata(index=NEW + 1, term=5, conf_state=ConfState(voters=())))
    arrival.message = other
    with pytest.raises(ValueError, match="the snapshot is of"):
        arrival.keep()
    arrival.discard()


def test_a_running_store_becomes_the_one_that_arrived(two: tuple[Path, Path]) -> None:
    leader, follower = two
    loaded = arrive(follower, copy_of(leader)).keep()
    backend = LmdbBackend(str(follower / "store"))
    store = Store(backend)
    leases = LeaseStore(store)
    loaded.move_into_place()
    store.replace(loaded.store)
    leases.replace(loaded.leases)
    backend.close()
    assert store.count((b"", None)) == NEW - 1
    assert store.revision == NEW
    assert set(leases.leases[9].keys or ()) == {b"k2"}
    store.put(rpc_pb2.PutRequest(key=b"after", value=b"5", lease=9))
    assert set(leases.leases[9].keys or ()) == {b"k2", b"after"}
    flush = store.begin_flush()
    assert flush is not None
    flush.write()
    store.backend.end_flush(flush)
    store.backend.close()
    assert contents(follower)[1] == NEW


class Log:
    """As much of a node as retention looks at."""

    def __init__(self, snapshot_index: int) -> None:
        self.snapshot_index = snapshot_index

    def snapshot_point(self, index: int, *, max_entries: int, max_bytes: int) -> snapshots.SnapshotMetadata:
        return snapshots.SnapshotMetadata(index=index - max_entries, term=1, conf_state=ConfState(voters=(1,)))


def point(retention: Retention, durable_index: int) -> int | None:
    found = retention.point(durable_index)
    return None if found is None else found.index


def test_the_log_is_kept_for_slow_followers_and_while_a_snapshot_travels() -> None:
    held = False
    retention = Retention(Log(100), snapshot_count=10, catch_up_entries=5, hold=lambda: held)  # type: ignore[arg-type]
    assert point(retention, 114) is None
    assert point(retention, 115) == 110
    # Few entries, but large.
    assert point(retention, 108) is None
    retention.logged(1 << 30)
    assert point(retention, 108) == 103
    held = True
    assert point(retention, 500) is None
    retention.logged(1 << 30)
    assert point(retention, 500) == 495
    # A flush of the store that a snapshot has replaced meanwhile.
    assert point(retention, 99) is None


def test_a_disk_that_is_nearly_full_keeps_no_more_of_the_log_than_followers_need() -> None:
    short = held = False
    retention = Retention(
        Log(100),  # type: ignore[arg-type]
        snapshot_count=1000,
        catch_up_entries=5,
        hold=lambda: held,
        short=lambda: short,
    )
    assert point(retention, 120) is None
    short = True
    assert point(retention, 105) is None
    assert point(retention, 120) == 115
    held = True
    assert point(retention, 120) is None
