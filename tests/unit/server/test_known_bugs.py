"""What broke in etcd around snapshots, defragmentation and the applied index, one test each, named after what broke."""

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from raftkv import errors
from raftkv.disk import OsDisk
from raftkv.lease import LeaseStore
from raftkv.mvcc import LmdbBackend, Store
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import AppendEntries, Config, Entry, EntryKind, HardState, InstallSnapshot, RaftNode
from raftkv.server.apply import Applier, applied_position
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.server.server import Server
from raftkv.server.snapshot_transfer import Transfers
from raftkv.server.snapshots import Loaded
from raftkv.status import Code, StatusError
from raftkv.wal import Wal
from tests.unit.server.test_snapshots import OLD, Nobody, arrive, contents, copy_of, make_store

LEADER, FOLLOWER, TERM = 1, 2, 5


class Thread:
    """Stands for a thread: does what it is given at once, or when the test says so."""

    def __init__(self) -> None:
        self.held = False
        self.waiting: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self.waiting.append((work, done))
        if not self.held:
            self.go_on()

    def go_on(self) -> None:
        """Do what waits."""
        self.held = False
        while self.waiting:
            work, done = self.waiting.pop(0)
            error: BaseException | None = None
            try:
                work()
            except Exception as raised:
                error = raised
            asyncio.get_running_loop().call_soon(done, error)


class Follower:
    """A member that has applied a little of what its leader has."""

    def __init__(self, directory: Path, *, snapshot_count: int = 10_000) -> None:
        self.directory = directory
        self.flushes, self.aside = Thread(), Thread()
        self.store = Store(LmdbBackend(str(directory / "store")))
        membership = Membership(self.store)
        rng = random.Random(1)
        self.server = Server(
            node=RaftNode(
                Config(id=FOLLOWER, random=rng),
                membership.conf_state,
                HardState(term=1, voted_for=0, commit=OLD),
                [],
                snapshot_index=OLD,
                snapshot_term=1,
                applied=OLD,
            ),
            wal=Wal.create(OsDisk(), str(directory / "wal"), b""),
            store=self.store,
            membership=membership,
            headers=Headers(1, FOLLOWER),
            send=lambda _: None,
            call_peer=lambda *_: asyncio.Future(),
            run_wal=Thread().run,
            run_flush=self.flushes.run,
            run_aside=self.aside.run,
            rng=rng,
            tick_seconds=1.0,
            election_ticks=10,
            snapshot_count=snapshot_count,
            catch_up_entries=5,
        )

    def load(self, leader: Path) -> tuple[InstallSnapshot, Loaded]:
        """Receive what a leader has."""
        copy = copy_of(leader)
        message = InstallSnapshot(LEADER, FOLLOWER, TERM, copy.metadata)
        arrival = arrive(self.directory, copy)
        copy.close()
        return message, arrival.keep()

    async def close(self) -> None:
        await self.server.close()
        self.store.backend.close()


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Data of a follower, of its leader, and of the leader some time later."""
    places = tmp_path / "follower", tmp_path / "leader", tmp_path / "later"
    for place, entries, term in zip(places, (OLD, 40, 60), (1, TERM, TERM), strict=True):
        make_store(place, entries, term)
    return places


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20.0):
            await scenario()

    asyncio.run(bounded())


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def put(store: Store, key: bytes) -> None:
    store.put(rpc_pb2.PutRequest(key=key, value=b"1"))


def test_what_was_flushed_while_the_file_was_copied_was_missing_in_the_defragmented_one(
    directories: tuple[Path, Path, Path],
) -> None:
    """etcd 14685: the new file ended before the old one, and the member applied entries twice."""
    place = directories[0]

    async def scenario() -> None:
        member = Follower(place)
        member.aside.held = True
        defragmenting = asyncio.ensure_future(member.server.defragment(str(place)))
        await turns()
        ((copying, copied),) = member.aside.waiting
        member.aside.waiting.clear()
        copying()
        put(member.store, b"meanwhile")
        # A flush is asked for, and must wait.
        member.server._flushes.begin()
        await turns()
        member.aside.held = False
        copied(None)
        await defragmenting
        assert member.store.newest(b"meanwhile") is not None
        put(member.store, b"later")
        await member.server.flushed()
        await member.close()

    run(scenario)
    assert contents(place)[:2] == (OLD, OLD - 1 + 2)
    assert os.listdir(place / "snapshot.sending") == []


def test_a_snapshot_installed_while_the_file_was_copied_was_undone_by_the_defragmented_one(
    directories: tuple[Path, Path, Path],
) -> None:
    """etcd 20271: two that swap the same file."""
    place, leader, _ = directories

    async def scenario() -> None:
        member = Follower(place)
        message, loaded = member.load(leader)
        member.aside.held = True
        defragmenting = asyncio.ensure_future(member.server.defragment(str(place)))
        await turns()
        copying, copied = member.aside.waiting.pop()
        copying()
        assert await member.server.install(message, loaded)
        copied(None)
        member.aside.go_on()
        with pytest.raises(errors.Stopped):
            await defragmenting
        assert member.server.applier.index == 40
        put(member.store, b"after")
        await member.close()

    run(scenario)
    assert contents(place)[:2] == (40, 39 + 1)
    assert os.listdir(place / "snapshot.sending") == []


def test_the_log_was_given_up_before_the_store_had_what_it_says(directories: tuple[Path, Path, Path]) -> None:
    """What is applied is not durable yet: a crash would lose it for ever."""

    async def scenario() -> None:
        member = Follower(directories[0], snapshot_count=10)
        entries = [Entry(TERM, index, EntryKind.NORMAL, b"") for index in range(OLD + 1, 41)]
        member.flushes.held = True
        member.server.receive(AppendEntries(LEADER, FOLLOWER, TERM, OLD, 1, entries, 40))
        await turns()
        assert member.server.applier.index == 40
        member.server._flushes.begin()
        await turns()
        assert member.server.node.snapshot_index == OLD
        member.flushes.go_on()
        await turns()
        assert member.server.node.snapshot_index == 35
        await member.close()

    run(scenario)


def test_the_applied_index_of_before_overwrote_that_of_a_snapshot(directories: tuple[Path, Path, Path]) -> None:
    """etcd 13933: a commit that was under way ended after the installation."""
    place, leader, _ = directories

    async def scenario() -> None:
        member = Follower(place)
        message, loaded = member.load(leader)
        member.flushes.held = True
        put(member.store, b"before")
        member.server._flushes.begin()
        assert await member.server.install(message, loaded)
        member.flushes.go_on()
        await turns()
        assert member.server.applier.index == 40
        put(member.store, b"after")
        await member.server.flushed()
        await member.close()

    run(scenario)
    assert contents(place)[:2] == (40, 39 + 1)


def test_two_snapshots_in_quick_succession_were_mixed(directories: tuple[Path, Path, Path]) -> None:
    """etcd 18055."""
    place, leader, later = directories

    async def scenario() -> None:
        member = Follower(place)
        for source, index in ((leader, 40), (later, 60)):
            message, loaded = member.load(source)
            assert await member.server.install(message, loaded)
            assert (member.server.applier.index, member.server.node.snapshot_index) == (index, index)
            assert member.store.revision == index
        # One that is late changes nothing.
        message, loaded = member.load(leader)
        assert not await member.server.install(message, loaded)
        loaded.store.backend.close()
        assert member.store.revision == 60
        await member.close()

    run(scenario)
    assert contents(place)[:2] == (60, 59)


def test_a_snapshot_was_taken_while_another_one_arrived(directories: tuple[Path, Path, Path]) -> None:
    """etcd 18055 again: both would be written to one place."""
    place, leader, _ = directories

    async def scenario() -> None:
        copy = copy_of(leader)
        message = InstallSnapshot(LEADER, FOLLOWER, TERM, copy.metadata)
        copy.close()
        transfers = Transfers(
            str(place),
            backend=lambda: pytest.fail("nothing is sent"),
            install=lambda *_: pytest.fail("nothing has arrived"),
            report=lambda *_: None,
            send=lambda *_: pytest.fail("nothing is sent"),
            matched=lambda _: None,
            run=Thread().run,
        )
        first = transfers.begin(message)
        await first.write(b"part")
        with pytest.raises(StatusError) as refused:
            transfers.begin(message)
        assert refused.value.code is Code.UNAVAILABLE
        assert (place / "snapshot.receiving" / "data.mdb").read_bytes() == b"part"
        first.abandon()
        await turns()
        second = transfers.begin(message)
        second.abandon()
        await turns()

    run(scenario)
    assert not (place / "snapshot.receiving").exists()


def test_a_commit_between_the_applied_index_and_the_effect_skipped_an_entry(tmp_path: Path) -> None:
    """etcd 13766: what a flush holds is of one entry, index and effects."""
    backend = LmdbBackend(str(tmp_path / "store"))
    store = Store(backend)
    membership = Membership(store)
    membership.bootstrap([rpc_pb2.Member(ID=1)])
    applier = Applier(store, LeaseStore(store), membership, Nobody(), Headers(1, 1))  # type: ignore[arg-type]
    for index in range(1, 9):
        put_key = log_pb2.Proposal(put=rpc_pb2.PutRequest(key=b"k%d" % index))
        batch = log_pb2.Batch(proposals=[put_key]).SerializeToString()
        applier.apply([Entry(1, index, EntryKind.NORMAL, batch)])
        if index % 3 == 2:
            flush = store.begin_flush()
            assert flush is not None
            flush.write()
            backend.end_flush(flush)
            assert durable(backend, tmp_path / f"copy-{index}") == (index, index + 1, index)
    backend.close()


ADDED = rpc_pb2.Member(ID=2, peerURLs=["http://n2:2380"], isLearner=True)
WITHOUT_KEYS = {
    "log-in": log_pb2.Proposal(log_in=log_pb2.LogIn(name="nobody", token_prefix="abc")),
    "user": log_pb2.Proposal(user_add=rpc_pb2.AuthUserAddRequest(name="ann", hashedPassword="AAAA")),
    "role": log_pb2.Proposal(role_add=rpc_pb2.AuthRoleAddRequest(name="readers")),
    "role that is not there": log_pb2.Proposal(role_delete=rpc_pb2.AuthRoleDeleteRequest(role="none")),
    "enabling": log_pb2.Proposal(auth_enable=rpc_pb2.AuthEnableRequest()),
    "alarm": log_pb2.Proposal(alarm=rpc_pb2.AlarmRequest(action="ACTIVATE", memberID=1, alarm="NOSPACE")),
    "lease": log_pb2.Proposal(lease_grant=rpc_pb2.LeaseGrantRequest(ID=5, TTL=60)),
    "compaction": log_pb2.Proposal(compaction=rpc_pb2.CompactionRequest(revision=1)),
    "member": log_pb2.ConfChange(add=ADDED),
    "nothing": None,
}


@pytest.mark.parametrize("operation", WITHOUT_KEYS.values(), ids=WITHOUT_KEYS)
def test_an_operation_without_keys_did_not_advance_the_stored_applied_index(
    operation: log_pb2.Proposal | log_pb2.ConfChange | None, tmp_path: Path
) -> None:
    """etcd 11651: users and roles were changed a second time after a restart, and members differed unnoticed."""
    backend, applier = founded(tmp_path / "store")
    applier.apply([entry_of(1, operation)])
    flush(backend, applier)
    assert durable(backend, tmp_path / "copy") == (1, 1, 0)
    backend.close()


def test_a_promotion_was_not_in_the_store(tmp_path: Path) -> None:
    """etcd 19557: after a restart the member was a learner in the list, and a voter to the others."""
    backend, applier = founded(tmp_path / "store")
    applier.apply([entry_of(1, log_pb2.ConfChange(add=ADDED)), entry_of(2, log_pb2.ConfChange(promote=2))])
    flush(backend, applier)
    backend.close()
    again = LmdbBackend(str(tmp_path / "store"))
    membership = Membership(Store(again))
    assert [(member.ID, member.isLearner) for member in membership.members] == [(1, False), (2, False)]
    assert membership.conf_state.voters == (1, 2)
    again.close()


def test_an_id_that_was_removed_was_a_members_again(tmp_path: Path) -> None:
    """Also after a restart: what a removed member voted or acknowledged must never count for another one."""
    backend, applier = founded(tmp_path / "store")
    applier.apply([entry_of(1, log_pb2.ConfChange(add=ADDED)), entry_of(2, log_pb2.ConfChange(remove=2))])
    flush(backend, applier)
    backend.close()
    again = LmdbBackend(str(tmp_path / "store"))
    membership = Membership(Store(again))
    with pytest.raises(errors.MemberExist):
        membership.apply(log_pb2.ConfChange(add=ADDED), 3)
    assert membership.conf_state.members() == (1,)
    again.close()


def founded(path: Path) -> tuple[LmdbBackend, Applier]:
    """The store of a sole member that has applied nothing, and what applies to it."""
    backend = LmdbBackend(str(path))
    store = Store(backend)
    membership = Membership(store)
    membership.bootstrap([rpc_pb2.Member(ID=1, peerURLs=["http://n1:2380"])])
    applier = Applier(store, LeaseStore(store), membership, Nobody(), Headers(1, 1))  # type: ignore[arg-type]
    return backend, applier


def entry_of(index: int, operation: log_pb2.Proposal | log_pb2.ConfChange | None) -> Entry:
    if isinstance(operation, log_pb2.ConfChange):
        return Entry(1, index, EntryKind.CONF_CHANGE, operation.SerializeToString())
    data = b"" if operation is None else log_pb2.Batch(proposals=[operation]).SerializeToString()
    return Entry(1, index, EntryKind.NORMAL, data)


def flush(backend: LmdbBackend, applier: Applier) -> None:
    begun = applier._store.begin_flush()
    assert begun is not None
    begun.write()
    backend.end_flush(begun)


def durable(backend: LmdbBackend, directory: Path) -> tuple[int, int, int]:
    """What a crash would leave: applied index, revision and number of keys."""
    directory.mkdir()
    backend.copy_to(str(directory))
    left = LmdbBackend(str(directory))
    store = Store(left)
    found = applied_position(left)[0], store.revision, store.count((b"", None))
    left.close()
    return found
