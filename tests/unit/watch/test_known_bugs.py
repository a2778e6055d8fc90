"""Progress and compaction bugs that etcd and its replacements had, one test each, named by what broke.

Numbers are those of the projects' issues: etcd-io/etcd, k3s-io/kine, t4db/t4, xline-kv/Xline.
"""

from pathlib import Path

import pytest

from raftkv import errors
from raftkv.pb import rpc_pb2 as pb
from tests.unit.watch.test_guarantees import flat, overflow, watching
from tests.unit.watch.world import Client, World


def progress(client: Client) -> list[int]:
    """The revisions of the answers to progress requests so far."""
    client.drain()
    return client.progress


def test_requested_progress_overtook_events_in_the_queue(world: World) -> None:
    """etcd 15220, kine 602, kine 731, t4 183."""
    client = world.client()
    client.create(watching(b"k"))
    for _ in range(5):
        world.put(b"k")
        client.stream.request_progress()
    client.drain()
    told = [(response.watch_id, response.header.revision) for response in client.responses[1:]]
    assert told == [(watch_id, revision) for revision in range(2, 7) for watch_id in (0, -1)]


def test_requested_progress_overtook_a_watcher_that_is_behind(world: World) -> None:
    """etcd 15220, kine 731: one of two watchers has a long way to go."""
    for _ in range(5):
        world.put(b"k")
    client = world.client()
    client.create(watching(b"other"))
    client.create(watching(b"k", start=2))
    client.stream.request_progress()
    assert progress(client) == []
    world.settle()
    assert progress(client) == [6]
    assert client.responses[-1].watch_id == -1


def test_periodic_progress_overtook_a_reader_that_is_behind(world: World) -> None:
    """etcd 15220."""
    client = world.client()
    client.create(watching(b"k", progress_notify=True))
    overflow(world, client)
    client.stream.periodic_progress()
    client.stream.periodic_progress()
    world.settle()
    assert all(response.events or response.created for response in client.responses)
    client.stream.periodic_progress()
    client.stream.periodic_progress()
    client.drain()
    assert client.responses[-1].header.revision == world.store.revision


def test_periodic_progress_overtook_a_watcher_that_is_behind(world: World) -> None:
    """etcd 15220: nothing waits to be sent, the watcher itself has a long way to go."""
    for _ in range(5):
        world.put(b"k")
    client = world.client()
    client.create(watching(b"k", start=2, progress_notify=True))
    client.stream.periodic_progress()
    client.stream.periodic_progress()
    client.drain()
    assert all(response.created for response in client.responses)
    world.settle()
    assert flat(client) == [2, 3, 4, 5, 6]
    assert all(response.events for response in client.responses[1:])
    client.stream.periodic_progress()
    client.stream.periodic_progress()
    client.drain()
    assert client.responses[-1].header.revision == 6


def test_a_new_watcher_without_events_never_got_progress(world: World) -> None:
    """etcd 17507: it starts in the past, and nothing there is for it."""
    world.put(b"elsewhere")
    client = world.client()
    client.create(watching(b"k", start=1))
    client.stream.request_progress()
    world.settle()
    assert progress(client) == [2]


def test_progress_was_not_answered_at_all(world: World) -> None:
    """Xline 309, kine 267: at once, without a turn of anything else."""
    client = world.client()
    client.create(watching(b"k"))
    client.stream.request_progress()
    assert progress(client) == [1]


def test_progress_for_a_watcher_of_the_future_went_back(world: World) -> None:
    """etcd 20221: its client has read a later revision at another member."""
    client = world.client()
    client.create(watching(b"k", start=4, progress_notify=True))
    client.stream.request_progress()
    client.stream.periodic_progress()
    world.put(b"elsewhere")
    world.put(b"k")
    assert progress(client) == []
    world.put(b"elsewhere")
    assert progress(client) == [4]
    client.stream.periodic_progress()
    client.drain()
    assert [response.header.revision for response in client.responses] == [1, 4, 4]


def test_a_watcher_of_the_future_was_told_the_past_after_a_snapshot(world: World, tmp_path: Path) -> None:
    """etcd 20221: the snapshot ends before the revision it waits for."""
    other = World(tmp_path / "other")
    client = world.client()
    client.create(watching(b"k", start=5))
    client.stream.request_progress()
    other.put(b"k")
    other.put(b"k")
    world.hub.become(other.store)
    world.store, world.history = other.store, other.history
    while world.catch_up():
        continue
    assert progress(client) == []
    for _ in range(3):
        other.put(b"k")
        world.hub.distribute()
    world.settle()
    assert flat(client) == [5, 6]
    assert progress(client) == [5]
    other.close()


def test_progress_told_revision_zero_or_went_back(world: World) -> None:
    """kine 568; Kubernetes' cache stands still for ever at 0."""
    client = world.client()
    client.create(watching(b"k"))
    for _ in range(3):
        client.stream.request_progress()
        world.put(b"elsewhere")
        world.catch_up()
    assert progress(client) == [1, 2, 3]


def test_requests_for_progress_piled_up_behind_a_reader_that_pauses(world: World) -> None:
    client = world.client()
    client.create(watching(b"k"))
    overflow(world, client)
    queued = client.stream.queued_bytes
    for _ in range(1000):
        client.stream.request_progress()
    assert client.stream.queued_bytes == queued
    world.settle()
    assert progress(client) == [world.store.revision]


def test_canceling_the_watcher_that_is_behind_left_progress_unanswered(world: World) -> None:
    for _ in range(3):
        world.put(b"k")
    client = world.client()
    client.create(watching(b"k"))
    client.create(watching(b"k", start=1))
    client.stream.request_progress()
    client.stream.cancel(1)
    assert progress(client) == [4]


def test_a_compacted_watcher_left_progress_unanswered(world: World) -> None:
    """etcd keeps it among those that progress waits for."""
    for _ in range(3):
        world.put(b"k")
    world.compact(4)
    client = world.client()
    client.create(watching(b"k"))
    client.create(watching(b"k", start=1))
    client.stream.request_progress()
    world.settle()
    assert progress(client) == [4]


def test_events_were_lost_when_a_stream_starved(world: World) -> None:
    """etcd 17529: each watcher of a stream that nobody reads falls behind at another moment."""
    client = world.client()
    for number in range(8):
        client.create(watching(b"k%d" % number, prev_kv=True))
    for round_ in range(200):
        world.put(b"k%d" % (round_ % 8), bytes(5_000))
        if round_ % 40 == 39:
            client.take()
            world.catch_up()
    world.settle()
    assert sorted(flat(client)) == list(range(2, 202))


def test_a_deletion_at_the_compacted_revision_was_dropped(world: World) -> None:
    """etcd 18089, 19179."""
    world.put(b"k", b"last")
    world.delete(b"k")
    for flush in (False, True):
        if flush:
            world.flush()
        else:
            world.compact(3)
        client = world.client()
        client.create(watching(b"k", start=3, prev_kv=True))
        world.settle()
        event = client.responses[-1].events[0]
        assert (event.type, event.prev_kv.value) == (event.DELETE, b"last")
    world.put(b"k")
    world.compact(4)
    assert world.store.version_before(b"k", 4, 0) is None


def test_an_event_of_a_transaction_that_is_being_written_out_came_twice(world: World) -> None:
    """etcd 17247: what was buffered of a transaction and what was written of it were both read."""
    for value in (b"durable", b"being written", b"buffered"):
        world.put_all({b"a": value, b"b": value, b"c": value})
        if value == b"durable":
            world.flush()
        elif value == b"being written":
            world.begin_flush()
    behind = world.client()
    behind.create(watching(b"a", b"d", start=2))
    world.settle()
    world.end_flush()
    world.put_all({b"a": b"live", b"b": b"live"})
    world.settle()
    assert flat(behind) == [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]


def test_a_watch_at_the_compacted_revision_was_refused(world: World) -> None:
    """t4 163: off by one."""
    world.put(b"k")
    world.put(b"k")
    world.compact(2)
    client = world.client()
    client.create(watching(b"k", start=2))
    world.settle()
    assert flat(client) == [2, 3]


def test_the_revision_went_back_after_a_crash_amid_compaction(world: World) -> None:
    """etcd 17780: everything was deleted, and compaction leaves nothing that tells how far the store was."""
    for _ in range(3):
        world.put(b"k")
    world.delete(b"k")
    world.compact(5, steps=0)
    world.flush()
    world.store.compaction_step()
    world.flush()
    world.close()
    again = World(Path(world.path))
    client = again.client()
    client.create(watching(b"k"))
    client.stream.request_progress()
    assert progress(client) == [5]
    assert again.store.revision == 5
    again.close()
    world.backend = World(Path(world.path)).backend


def test_a_transaction_read_below_the_compacted_revision(world: World) -> None:
    """etcd 18667: it must be refused whole, on every member alike."""
    world.put(b"k")
    world.put(b"k")
    world.compact(3, steps=0)
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"k", revision=2))
    write = pb.RequestOp(request_put=pb.PutRequest(key=b"k"))
    with pytest.raises(errors.Compacted):
        world.store.txn(pb.TxnRequest(success=[write, read]))
    assert world.store.revision == 3
