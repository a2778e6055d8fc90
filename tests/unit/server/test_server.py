"""What the server promises of itself, with a disk that the test holds in its hand."""

import asyncio
import random
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path

import pytest

from raftkv.disk import OsDisk
from raftkv.mvcc import Store
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import (
    AppendEntries,
    AppendEntriesResponse,
    Config,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Message,
    RaftNode,
)
from raftkv.server.compaction import Compaction
from raftkv.server.headers import Headers
from raftkv.server.leases import SLICE_KEYS
from raftkv.server.membership import Membership
from raftkv.server.server import Server
from raftkv.server.worker import Blocking
from raftkv.wal import Wal


def member_of_three(directory: Path, sent: list[Message], run_wal: Blocking) -> Server:
    store = Store(MemoryBackend())
    membership = Membership(store)
    membership.bootstrap([rpc_pb2.Member(ID=number) for number in (1, 2, 3)])
    rng = random.Random(1)
    return Server(
        node=RaftNode(Config(id=1, random=rng), membership.conf_state, HardState(), []),
        wal=Wal.create(OsDisk(), str(directory / "wal"), b""),
        store=store,
        membership=membership,
        headers=Headers(1, 1),
        send=sent.extend,
        call_peer=lambda *_: asyncio.Future(),
        run_wal=run_wal,
        run_flush=lambda work, done: None,
        rng=rng,
        tick_seconds=1.0,
        election_ticks=10,
    )


def test_a_member_that_failed_acknowledges_nothing_when_its_disk_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        sent: list[Message] = []
        writes: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
        server = member_of_three(tmp_path, sent, lambda work, done: writes.append((work, done)))
        server.receive(AppendEntries(2, 1, 1, 0, 0, [Entry(1, 1, EntryKind.NORMAL, b"")], 0))
        await asyncio.sleep(0)
        ((work, done),) = writes
        work()
        server.fail(OSError("the store cannot be written"))
        done(None)
        await asyncio.sleep(0)
        assert sent == []

    asyncio.run(scenario())


def test_messages_that_come_together_are_written_together_and_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        sent: list[Message] = []
        writes: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
        server = member_of_three(tmp_path, sent, lambda work, done: writes.append((work, done)))
        entries = [Entry(1, index, EntryKind.NORMAL, b"") for index in (1, 2)]
        server.receive(*(AppendEntries(2, 1, 1, index, min(index, 1), [entries[index]], 0) for index in (0, 1)))
        ((work, done),) = writes
        work()
        done(None)
        assert [message.index for message in sent if isinstance(message, AppendEntriesResponse)] == [1, 2]
        assert len(writes) == 1

    asyncio.run(scenario())


LEASES = 400
KEYS = 10
"""Of each lease."""
TURN_KEYS = 1000
"""Keys that may change in one turn of the loop: ten milliseconds."""


def _leases_that_come_and_go() -> list[Entry]:
    """Their grants and keys, and then their end, in slices as large as a leader makes them."""
    batches = []
    for lease in range(1, LEASES + 1):
        proposals = [log_pb2.Proposal(lease_grant=rpc_pb2.LeaseGrantRequest(ID=lease, TTL=60))]
        for number in range(KEYS):
            put = rpc_pb2.PutRequest(key=b"%d/%d" % (lease, number), lease=lease)
            proposals.append(log_pb2.Proposal(put=put))
        batches.append(proposals)
    size = SLICE_KEYS // (KEYS + 1)
    for first in range(1, LEASES + 1, size):
        ids = range(first, min(first + size, LEASES + 1))
        batches.append([log_pb2.Proposal(lease_expiry=log_pb2.LeaseExpiry(term=1, grants=LEASES, ids=ids))])
    data = [log_pb2.Batch(proposals=proposals).SerializeToString() for proposals in batches]
    return [Entry(1, index, EntryKind.NORMAL, each) for index, each in enumerate(data, 1)]


def test_a_backlog_of_expired_leases_is_applied_in_turns_between_which_heartbeats_are_answered(tmp_path: Path) -> None:
    """As on a follower that had to wait for its turn, and finds thousands of small entries with all their keys."""

    async def scenario() -> None:
        sent: list[Message] = []

        def run_wal(work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
            work()
            asyncio.get_running_loop().call_soon(done, None)

        server = member_of_three(tmp_path, sent, run_wal)
        entries = _leases_that_come_and_go()
        server.receive(AppendEntries(2, 1, 1, 0, 0, entries, len(entries)))
        counts, steps, answered = server.store.counts, [0], 0
        while server.applied_index < len(entries):
            sent.clear()
            server.receive(Heartbeat(2, 1, 1, len(entries), b""))
            await asyncio.sleep(0)
            answered += any(isinstance(message, HeartbeatResponse) for message in sent)
            steps.append(counts.puts + counts.deletes)
        turns = [after - before for before, after in pairwise(steps) if after > before]
        assert max(turns) <= TURN_KEYS
        assert answered >= len(turns) - 1
        assert counts.deletes == LEASES * KEYS
        assert not server.leases.store

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(8))
def test_a_compaction_that_begins_as_another_ends_is_carried_out_too(turns: int, tmp_path: Path) -> None:
    """It was forgotten: its history stayed, and who waited for its end never gave the loop back."""

    async def scenario() -> None:
        def run_wal(work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
            work()
            done(None)

        server = member_of_three(tmp_path, [], run_wal)
        puts = [log_pb2.Proposal(put=rpc_pb2.PutRequest(key=b"k"))] * 9
        first, second = (
            log_pb2.Proposal(compaction=rpc_pb2.CompactionRequest(revision=revision)) for revision in (3, 6)
        )
        data = [log_pb2.Batch(proposals=each).SerializeToString() for each in ([*puts, first], [second])]
        one, other = (Entry(1, index, EntryKind.NORMAL, each) for index, each in enumerate(data, 1))
        server.receive(AppendEntries(2, 1, 1, 0, 0, [one], 1))
        for _ in range(turns):
            await asyncio.sleep(0)
        server.receive(AppendEntries(2, 1, 1, 1, 1, [other], 2))
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.store.compacted_revision == 6
        assert not server.store.compacting

    asyncio.run(scenario())


@pytest.mark.parametrize(("took", "expected"), [(0.001, 0.003), (0.005, 0.015), (0.25, 0.02)])
def test_compaction_leaves_most_of_the_time_to_others_and_comes_to_its_end(
    took: float, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        await sleep(0)

    async def scenario() -> None:
        server = member_of_three(tmp_path, [], lambda work, done: None)
        for number in range(1000):
            server.store.put(rpc_pb2.PutRequest(key=b"k%d" % (number % 500)))
        monkeypatch.setattr(asyncio, "sleep", pause)
        server.store.compact(server.store.revision)
        compaction = Compaction(server.store, server.times, count(0.0, took).__next__, server.fail)
        compaction.start()
        await compaction.wait()
        assert not server.store.compacting
        assert len(paused) >= 5
        assert paused == pytest.approx([expected] * len(paused))

    asyncio.run(scenario())
