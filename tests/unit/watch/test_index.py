"""Who wants to hear of a key: the index against a list that is searched from end to end."""

import random
import tracemalloc
from collections.abc import Callable

import pytest

from raftkv.mvcc.interval import Interval, contains
from raftkv.pb import rpc_pb2 as pb
from raftkv.watch.index import Index, prefix_end
from raftkv.watch.stream import Watcher
from raftkv.watch.tree import IntervalTree
from tests.unit.watch.world import World

KEYS = [bytes(key) for key in ((97,), (97, 98), (97, 255), (98,), (255,), (255, 255), (0,), (97, 0), (97,) * 200)]
ENDS = [None, *KEYS, b"b\0", b"c"]


def watcher(world: World, span: Interval, form: int = 0) -> Watcher:
    made = Watcher(world.hub.open(lambda: None), 0, span, pb.WatchCreateRequest())
    made.form = form
    return made


def test_the_index_equals_a_search(world: World) -> None:
    """Keys, prefixes short and long, endless and other ranges, added and removed in any order."""
    rng = random.Random(3)
    index, known = Index(rng), []
    for _ in range(2000):
        if known and rng.random() < 0.45:
            index.remove(gone := known.pop(rng.randrange(len(known))))
            assert gone not in index.watchers()
        else:
            first, end = rng.choice(KEYS), rng.choice(ENDS)
            if rng.random() < 0.5:
                end = rng.choice((first + b"\0", prefix_end(first)))
            if end is not None and end <= first:
                continue
            known.append(watcher(world, (first, end), rng.randrange(3)))
            index.add(known[-1])
        key = rng.choice(KEYS) + rng.choice((b"", b"a", b"\xff", b"\0"))
        found = [one for group in index.match(key) for watchers in group.forms.values() for one in watchers]
        assert sorted(map(id, found)) == sorted(id(one) for one in known if contains(one.span, key))
    for one in known:
        index.remove(one)
    assert not index
    assert not index.match(b"a")


@pytest.mark.parametrize(("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", None), (b"", None)])
def test_prefix_end(prefix: bytes, end: bytes | None) -> None:
    assert prefix_end(prefix) == end


def test_a_key_finds_its_intervals_among_many_without_a_search() -> None:
    """20,000 overlapping intervals; the tree is asked a few nodes each."""
    asked = 0

    class Counted(bytes):
        def __le__(self, other: bytes) -> bool:
            nonlocal asked
            asked += 1
            return bytes.__le__(self, other)

        def __ge__(self, other: bytes) -> bool:
            nonlocal asked
            asked += 1
            return bytes.__ge__(self, other)

    tree: IntervalTree[int] = IntervalTree(random.Random(2))
    order = list(range(20_000))
    random.Random(1).shuffle(order)
    for number in order:
        tree.add(b"%06d" % number, b"%06d" % (number + 3), number)
    assert sorted(tree.holding(Counted(b"010000"))) == [9998, 9999, 10000]
    assert 0 < asked < 400
    for number in order:
        tree.remove(b"%06d" % number, b"%06d" % (number + 3))
    assert tree.holding(b"010000") == []
    with pytest.raises(KeyError):
        tree.remove(b"a", b"b")


def test_an_order_of_intervals_made_for_one_seed_does_no_harm_under_another() -> None:
    """Positions in the order of the priorities make a list of the tree: a client that knew them could stop a member."""
    known, size = random.Random(5), 900
    priorities = [known.random() for _ in range(size)]
    places = {number: place for place, number in enumerate(sorted(range(size), key=priorities.__getitem__))}

    def depth(rng: random.Random) -> int:
        tree: IntervalTree[int] = IntervalTree(rng)
        for number in range(size):
            tree.add(b"%06d" % places[number], b"%06d" % (places[number] + 1), number)
        return tree.depth

    assert depth(random.Random(5)) == size
    assert depth(random.Random(6)) < 60


SPANS: list[Callable[[bytes], tuple[bytes, bytes]]] = [
    lambda name: (b"/registry/same", b""),
    lambda name: (name, b""),
    lambda name: (name, prefix_end(name) or b""),
    lambda name: (name, name + b"/z"),
    lambda name: (name, b"\0"),
]
"""The same key for all; a key, a prefix, an interval, everything from a key on for each."""


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("span", SPANS)
def test_a_watcher_costs_at_most_two_kilobytes(
    world: World, span: Callable[[bytes], tuple[bytes, bytes]], behind: bool
) -> None:
    """Of 1,000 on one stream with nothing queued, that are all current, or have all of history before them."""
    world.put(b"other", b"")
    stream = world.hub.open(lambda: None)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(1000):
        key, end = span(b"/registry/%d/" % number)
        request = pb.WatchCreateRequest(key=key, range_end=end, prev_kv=True, progress_notify=True)
        request.start_revision = 1 if behind else 0
        stream.create(request)
        while stream.take():
            continue
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown / 1000 <= 2000
    assert len(stream.watchers) == 1000
    assert len(stream.behind) == (1000 if behind else 0)


@pytest.mark.parametrize("prev_kv", [True, False])
def test_an_event_is_encoded_once_however_many_want_it(world: World, prev_kv: bool) -> None:
    """What 500 queues hold of one event is one piece of memory, though each stands for another range."""
    clients = [world.client() for _ in range(500)]
    for number, client in enumerate(clients):
        client.create(pb.WatchCreateRequest(key=b"a%03d" % number, range_end=b"l", prev_kv=prev_kv))
        client.drain()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    world.put(b"k", bytes(100_000))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1_500_000
    assert all(client.stream.queued_bytes > 100_000 for client in clients)
