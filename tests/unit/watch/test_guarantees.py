"""etcd's guarantees of a watch, one by one, at the hub; the client of `world` checks each answer as it comes."""

from itertools import chain
from pathlib import Path

import pytest

from raftkv import errors
from raftkv.pb import rpc_pb2 as pb
from raftkv.watch import hub as watch_hub
from raftkv.watch import stream as watch_stream
from tests.unit.watch.world import Client, World

NOPUT, NODELETE = pb.WatchCreateRequest.NOPUT, pb.WatchCreateRequest.NODELETE


def watching(key: bytes, range_end: bytes = b"", start: int = 0, **fields: object) -> pb.WatchCreateRequest:
    return pb.WatchCreateRequest(key=key, range_end=range_end, start_revision=start, **fields)  # type: ignore[arg-type]


def revisions(client: Client) -> list[list[int]]:
    """The revisions in each answer with events."""
    return [[event.kv.mod_revision for event in response.events] for response in client.responses if response.events]


def flat(client: Client) -> list[int]:
    return list(chain.from_iterable(revisions(client)))


def overflow(world: World, client: Client, key: bytes = b"k") -> None:
    """Write until a watcher of the client is behind."""
    while not client.stream.behind:
        world.put(key, bytes(10_000))


def test_ordered(world: World) -> None:
    """Also across the border between what was read from history and what came later."""
    for number in range(10):
        world.put(b"k", b"%d" % number)
    client = world.client()
    client.create(watching(b"k", start=4))
    for number in range(10):
        world.put(b"k", b"%d" % number)
        if number == 5:
            world.catch_up()
        client.take()
    world.settle()
    assert flat(client) == list(range(4, 22))


def test_unique_and_reliable_for_a_reader_that_pauses(world: World) -> None:
    """It falls behind, reads history, comes back, again and again."""
    client = world.client()
    asked = client.create(watching(b"k"))
    for _ in range(4):
        overflow(world, client)
        world.settle()
        assert not client.stream.behind
    assert len(asked.told) == world.store.revision - 1
    assert flat(client) == list(range(2, world.store.revision + 1))


@pytest.mark.parametrize("start", [0, 1])
def test_atomic(world: World, start: int) -> None:
    """All changes of a revision in one answer, be it live or from history, larger than a queue or not."""
    client = world.client()
    if not start:
        client.create(watching(b"k", b"l"))
    world.put_all({b"k%d" % number: bytes(50_000) for number in range(10)})
    world.put_all({b"k%d" % number: b"small" for number in range(10)})
    if start:
        client.create(watching(b"k", b"l", start=1))
    world.settle()
    whole = sorted(flat(client))
    assert whole == [2] * 10 + [3] * 10
    assert all(found.count(2) in (0, 10) and found.count(3) in (0, 10) for found in revisions(client))


def test_resumable(world: World) -> None:
    """From any revision that was told, a new watcher goes on with the next."""
    for number in range(20):
        world.put(b"k%d" % (number % 3), b"")
    for start in range(1, 23):
        client = world.client()
        client.create(watching(b"k", b"l", start=start))
        world.settle()
        assert flat(client) == list(range(max(start, 2), 22))


def test_bookmarkable(world: World) -> None:
    """A progress answer comes behind every event at or below its revision, also when those wait in the queue."""
    client = world.client()
    client.create(watching(b"k", progress_notify=True))
    world.put(b"k")
    client.stream.periodic_progress()
    client.stream.periodic_progress()
    client.stream.request_progress()
    client.drain()
    kinds = [(response.watch_id, response.header.revision, len(response.events)) for response in client.responses]
    assert kinds == [(0, 1, 0), (0, 2, 1), (0, 2, 0), (-1, 2, 0)]


def test_nothing_older_than_asked_for(world: World) -> None:
    client = world.client()
    client.create(watching(b"k", b"l", start=5))
    world.put(b"k")
    world.put(b"k")
    world.put_all({b"k": b"", b"k1": b""})
    world.put_all({b"k": b"", b"k1": b""})
    world.settle()
    assert revisions(client) == [[5, 5]]


def test_nothing_older_than_asked_for_amid_one_batch(world: World) -> None:
    """Several revisions that were applied together share an answer; a watcher may begin amid them."""
    clients = [world.client() for _ in range(2)]
    for client, start in zip(clients, (0, 3), strict=True):
        client.create(watching(b"k", start=start))
    for number in range(3):
        world.store.put(pb.PutRequest(key=b"k", value=b"%d" % number))
        world.history.put(world.store.revision, b"k", b"%d" % number)
    world.hub.distribute()
    world.settle()
    assert [revisions(client) for client in clients] == [[[2, 3, 4]], [[3, 4]]]


# Creation and cancellation


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (watching(b"b", b"a"), "mvcc: watcher range is empty"),
        (watching(b"b", b"b"), "mvcc: watcher range is empty"),
        (watching(b"b", watch_id=3), "mvcc: duplicate watch ID provided on the WatchStream"),
        (watching(b"b", start=-1), errors.Compacted.TEXT),
    ],
)
def test_refused(world: World, request_: pb.WatchCreateRequest, reason: str) -> None:
    client = world.client()
    client.create(watching(b"x", watch_id=3))
    client.create(request_)
    client.drain()
    answer = client.responses[-1]
    assert (answer.watch_id, answer.created, answer.canceled, answer.cancel_reason) == (-1, True, True, reason)
    assert answer.compact_revision == 0
    assert answer.header.revision == 1


def test_ids_are_the_next_free_ones(world: World) -> None:
    client = world.client()
    for watch_id in (0, 1, 0, 7, 0):
        client.create(watching(b"k", watch_id=watch_id))
    client.stream.cancel(0)
    client.create(watching(b"k"))
    client.drain()
    assert [response.watch_id for response in client.responses if response.created] == [0, 1, 2, 7, 3, 4]


def test_nothing_after_cancel(world: World) -> None:
    client = world.client()
    client.create(watching(b"k"))
    client.create(watching(b"k"))
    overflow(world, client)
    for watch_id in (0, 99, 0):
        client.stream.cancel(watch_id)
    world.put(b"k")
    world.settle()
    assert [response.watch_id for response in client.responses if response.canceled] == [0]
    assert client.responses[-1].watch_id == 1


def test_filters(world: World) -> None:
    client = world.client()
    for filters in ([NOPUT], [NODELETE], [NOPUT, NODELETE], []):
        client.create(watching(b"k", filters=filters))
    world.put(b"k")
    world.delete(b"k")
    world.settle()
    told = [(response.watch_id, response.events[0].type) for response in client.responses if response.events]
    assert sorted(told) == [(0, 1), (1, 0), (3, 0), (3, 1)]


@pytest.mark.parametrize("fragment", [True, False])
def test_fragments(tmp_path: Path, fragment: bool) -> None:
    """Parts below the limit, cut between events, the last one marked as such; an event alone may be larger."""
    world = World(tmp_path / "fragments", fragment_bytes=1000)
    client = world.client()
    client.create(watching(b"k", b"l", fragment=fragment))
    world.put_all({b"k%02d" % number: bytes(100) for number in range(30)})
    world.put_all({b"k": bytes(5000), b"k1": bytes(10)})
    world.settle()
    answers = [response for response in client.responses if response.events]
    if fragment:
        assert [answer.fragment for answer in answers] == [True] * 3 + [False, True, False]
        assert all(answer.ByteSize() < 1000 for answer in answers if len(answer.events) > 1)
    else:
        assert [len(answer.events) for answer in answers] == [30, 2]
    world.close()


# Compaction


def test_previous_values_outlive_compaction_as_long_as_their_event(world: World) -> None:
    """Change the key at 2, 3 and 4, delete it at 5; compact at each: whoever may still watch is told all."""
    world.put(b"k", b"2")
    world.put(b"k", b"3")
    world.put(b"k", b"4")
    world.delete(b"k")
    for compacted in (2, 3, 4, 5):
        world.compact(compacted)
        world.flush()
        client = world.client()
        client.create(watching(b"k", start=compacted, prev_kv=True))
        world.settle()
        previous = [event.prev_kv.value for response in client.responses for event in response.events]
        assert previous == [b"", b"2", b"3", b"4"][compacted - 2 :]


def test_a_watcher_in_the_queue_keeps_what_compaction_removes(world: World) -> None:
    client = world.client()
    asked = client.create(watching(b"k", prev_kv=True))
    for number in range(5):
        world.put(b"k", b"%d" % number)
    world.compact(world.store.revision)
    world.settle()
    assert len(asked.told) == 5


@pytest.mark.parametrize("start", [3, 4, 5])
def test_compacted(world: World, start: int) -> None:
    """Below the compacted revision: created, then canceled with it; at it: everything."""
    for _ in range(4):
        world.put(b"k")
    world.compact(4)
    client = world.client()
    client.create(watching(b"k", start=start))
    world.settle()
    answers = [
        (response.watch_id, response.created, response.canceled, response.compact_revision, len(response.events))
        for response in client.responses
    ]
    told = (0, False, True, 4, 0) if start < 4 else (0, False, False, 0, 6 - start)
    assert answers == [(0, True, False, 0, 0), told]
    # etcd's header of the last answer has no revision.
    assert client.responses[1].header.revision == (0 if start < 4 else 5)


def test_a_reader_that_compaction_overtakes_is_told(world: World) -> None:
    client = world.client()
    client.create(watching(b"k"))
    overflow(world, client)
    behind = next(iter(client.stream.behind)).next_revision
    world.put(b"k")
    world.compact(behind + 1)
    world.settle()
    last = client.responses[-1]
    assert (last.canceled, last.compact_revision) == (True, behind + 1)
    assert flat(client) == list(range(2, behind))
    assert not client.stream.watchers


# Snapshots


def move(world: World, other: World) -> None:
    """The world's store becomes the other's, as a member's does that takes a snapshot."""
    world.hub.become(other.store)
    world.store, world.history = other.store, other.history


@pytest.mark.parametrize("behind", [False, True])
def test_a_snapshot_loses_and_repeats_nothing(world: World, tmp_path: Path, behind: bool) -> None:
    """Watchers of now, of the past and of the future, and one that must be told that its history is gone."""
    other = World(tmp_path / "other")
    for number in range(20):
        for each in (world, other) if number < 10 else (other,):
            each.put(b"k", b"%d" % number)
    client, late = world.client(), world.client()
    for start in (0, 5, 15, 21, 30):
        client.create(watching(b"k", start=start))
    if not behind:
        client.drain()
        world.catch_up()
    late.create(watching(b"k", start=2))
    other.compact(5)
    move(world, other)
    world.settle()
    assert late.responses[-1].compact_revision == 5
    first = [asked.told[0].revision if asked.told else 0 for asked in client.watchers.values()]
    assert first == [12, 5, 15, 21, 0]
    other.put(b"k", b"after")
    world.hub.distribute()
    world.settle()
    assert [len(asked.told) for asked in client.watchers.values()] == [11, 18, 8, 2, 0]
    other.close()


def test_no_slice_is_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long way back, and many watchers: each slice has its bounds."""
    monkeypatch.setattr(watch_hub, "SLICE_REVISIONS", 10)
    monkeypatch.setattr(watch_hub, "SLICE_WATCHERS", 7)
    for _ in range(100):
        world.put(b"k")
    clients = [world.client() for _ in range(20)]
    for client in clients:
        client.create(watching(b"k", start=1))
    slices = 0
    while world.catch_up():
        slices += 1
        moved = sum(response > 50 for response in (client.stream.queued_bytes for client in clients))
        assert moved <= 7 * slices
    assert slices >= 20 * 100 // (7 * 10) - 1
    world.settle()


def test_a_long_way_back_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are behind, the one that is nearly there arrives after a slice or two."""
    monkeypatch.setattr(watch_hub, "SLICE_REVISIONS", 10)
    for _ in range(200):
        world.put(b"k")
    far, near = world.client(), world.client()
    far.create(watching(b"k", start=1))
    near.create(watching(b"k", start=200))
    for _ in range(2):
        world.catch_up()
    near.drain()
    assert flat(near) == [200, 201]
    assert far.stream.behind
    world.settle()


def test_a_stream_that_nobody_reads_is_bounded(world: World) -> None:
    client, quick = world.client(), world.client()
    for each in (client, quick):
        for _ in range(10):
            each.create(watching(b"k"))
    for _ in range(100):
        world.put(b"k", bytes(10_000))
        world.catch_up()
        quick.drain()
        assert client.stream.queued_bytes < watch_stream.QUEUE_BYTES + 20_000
    assert not quick.stream.behind
    assert len(client.stream.behind) == 10
    world.settle()


def test_watchers_are_bounded_by_what_they_hold_all_together(tmp_path: Path) -> None:
    world = World(tmp_path / "few", max_bytes=10 * watch_stream.WATCHER_BYTES)
    clients = [world.client() for _ in range(4)]
    many = [client.create(watching(b"k%d" % number)) for client in clients for number in range(20)]
    for client in clients:
        client.drain()
    refused = [asked for asked in many if asked.canceled]
    assert len(refused) == 70
    assert world.hub.watcher_bytes < 11 * watch_stream.WATCHER_BYTES
    reasons = {answer.cancel_reason for client in clients for answer in client.responses if answer.canceled}
    assert reasons == {watch_stream.TOO_MANY}
    # One who leaves makes room, and so does one that is given up.
    clients.pop(0).stream.close()
    world.clients.pop(0)
    again = clients[0].create(watching(b"again"))
    clients[0].drain()
    assert not again.canceled
    world.put(b"again")
    world.settle()
    for client in world.clients:
        client.stream.close()
    assert world.hub.watcher_bytes == 0
    # A long key counts with all its bytes.
    long = world.client()
    created = [long.create(watching(bytes(3 * watch_stream.WATCHER_BYTES) + b"%d" % number)) for number in range(5)]
    long.drain()
    assert [asked.canceled for asked in created] == [False, False, True, True, True]
    world.close()


def test_queues_are_bounded_all_together_and_nothing_is_lost(tmp_path: Path) -> None:
    """Many streams that nobody reads hold little more than few of them; each is told all of it once it is read."""
    most = 400_000
    world = World(tmp_path / "slow", max_bytes=most)
    clients = [world.client() for _ in range(20)]
    for number, client in enumerate(clients):
        client.create(watching(b"%d" % number))
        client.drain()
    for number in range(800):
        world.put(b"%d" % (number % 20), bytes(5_000))
        world.catch_up()
        assert world.hub.queued_bytes < most + len(clients) * 6_000
    assert world.hub.queued_bytes >= most
    world.settle()
    assert world.hub.queued_bytes == 0
    for client in clients:
        assert len(flat(client)) == 40
    world.close()


def test_what_many_streams_are_told_counts_once_however_many_they_are(tmp_path: Path) -> None:
    """One large value, told to many who watch one key, is no reason to refuse anybody, or to let them read history."""
    world = World(tmp_path / "same", max_bytes=200_000)
    clients = [world.client() for _ in range(50)]
    for number, client in enumerate(clients):
        client.create(watching(b"k", bytes((ord("l") + number % 5,))))
        client.drain()
    for _ in range(2):
        world.put(b"k", bytes(50_000))
    assert 100_000 <= world.hub.queued_bytes < 120_000
    assert world.hub.count().behind == 0
    # Who has taken it does not hold it any more; the others do.
    for client in clients[1:]:
        client.take()
    assert 100_000 <= world.hub.queued_bytes < 101_000
    clients[0].stream.close()
    assert world.hub.queued_bytes == 0
    world.clients.pop(0)
    world.settle()
    world.close()


def test_what_waits_for_some_refuses_no_watcher_and_watchers_hold_up_nobody(tmp_path: Path) -> None:
    world = World(tmp_path / "both", max_bytes=50 * watch_stream.WATCHER_BYTES)
    slow, other = world.client(), world.client()
    slow.create(watching(b"k"))
    slow.drain()
    world.put(b"k", bytes(51 * watch_stream.WATCHER_BYTES))
    late = other.create(watching(b"other"))
    other.drain()
    assert late.created
    assert not late.canceled
    slow.drain()
    more = [other.create(watching(b"more")) for _ in range(50)]
    other.drain()
    assert more[-1].canceled
    for _ in range(5):
        world.put(b"k", bytes(1000))
    assert world.hub.count().behind == 0
    assert slow.stream.queued_bytes > 5000
    world.settle()
    world.close()


def test_what_is_counted(world: World) -> None:
    clients = [world.client() for _ in range(3)]
    for client in clients:
        client.create(watching(b"k"))
        client.create(watching(b"k"))
    world.put(b"k")
    world.settle()
    clients.pop().stream.close()
    clients[0].stream.cancel(1)
    assert world.hub.count() == (2, 3, 0, 6)
    overflow(world, clients[0])
    assert world.hub.count().behind == 3


def test_many_watchers_of_one_key_are_told_in_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One change never keeps the member busy with more than so many; nobody misses it."""
    monkeypatch.setattr(watch_hub, "FAN_OUT", 30)
    monkeypatch.setattr(watch_hub, "SLICE_WATCHERS", 40)
    clients = [world.client() for _ in range(10)]
    for client in clients:
        for _ in range(10):
            client.create(watching(b"k"))
    for value in (b"1", b"2"):
        world.put(b"k", value)
        assert world.hub.count().events == 30 + 100 * (value == b"2")
        world.settle()
    assert world.hub.count() == (10, 100, 0, 200)
