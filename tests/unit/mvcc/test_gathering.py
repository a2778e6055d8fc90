"""A range of many keys that is read slice by slice: all of it is of one moment, whatever happens between the slices."""

import random
from collections.abc import Iterator
from contextlib import closing

import pytest

from raftkv import errors
from raftkv.mvcc import Store
from raftkv.mvcc.ranges import is_gathered
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import rpc_pb2 as pb

ALL = pb.RangeRequest(key=b"\0", range_end=b"\0")
SOME = pb.RangeRequest(key=b"k0100", range_end=b"k0300")


@pytest.fixture
def store() -> Store:
    return Store(MemoryBackend())


def fill(store: Store, count: int, value: bytes = b"v") -> None:
    for number in range(count):
        store.put(pb.PutRequest(key=b"k%04d" % number, value=value))


def change(store: Store, rng: random.Random) -> None:
    key = b"k%04d" % rng.randrange(500)
    match rng.randrange(6):
        case 0:
            store.delete_range(pb.DeleteRangeRequest(key=key))
        case 1:
            store.delete_range(pb.DeleteRangeRequest(key=key, range_end=b"k%04d" % rng.randrange(500)))
        case 2 if store.compacted_revision < store.revision:
            store.compact(store.revision)
            store.compaction_step(rng.randrange(100))
        case 3:
            store.put(pb.PutRequest(key=key + b"+", value=b"new"))
        case _:
            store.put(pb.PutRequest(key=key, value=b"%d" % store.revision))


def gather(slices: Iterator[tuple[list[bytes], bool]]) -> Iterator[list[bytes]]:
    last = False
    for chunks, more in slices:
        assert not last, "the last one says so"
        last = not more
        yield chunks
    assert last


@pytest.mark.parametrize("request_", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize("limit", [0, 7, 150, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_what_changes_between_slices_does_not_show(
    store: Store, request_: pb.RangeRequest, limit: int, seed: int
) -> None:
    fill(store, 400)
    rng = random.Random(seed)
    for _ in range(20):
        request = pb.RangeRequest(
            key=request_.key,
            range_end=request_.range_end,
            limit=limit,
            keys_only=rng.random() < 0.3,
            revision=rng.choice((0, store.revision)),
        )
        expected = pb.RangeResponse.FromString(b"".join(store.range(request)))
        body = b""
        with closing(store.range_slices(request, rng.choice((1, 10, 64)))) as slices:
            for chunks in gather(slices):
                body += b"".join(chunks)
                for _ in range(rng.randrange(4)):
                    change(store, rng)
        assert pb.RangeResponse.FromString(body) == expected
        fill(store, rng.randrange(400))


def test_a_slice_has_no_more_than_asked_for_and_takes_it_in_order(store: Store) -> None:
    fill(store, 100)
    slices = list(gather(store.range_slices(ALL, 30)))
    assert [len(chunks) for chunks in slices] == [30, 30, 30, 10 + 1]


def test_a_slice_is_bounded_whatever_went_and_came_before_it(store: Store) -> None:
    fill(store, 1000)
    expected = b"".join(store.range(ALL))
    body, largest = b"", 0
    for place, chunks in enumerate(gather(store.range_slices(ALL, 30))):
        body += b"".join(chunks)
        largest = max(largest, len(chunks))
        if not place:
            store.delete_range(pb.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
            for number in range(1000):
                store.put(pb.PutRequest(key=b"k%04d+" % number, value=b"new"))
    assert body == expected
    assert largest <= 60 + 1


def test_nothing_there_is_an_answer_too(store: Store) -> None:
    assert list(store.range_slices(ALL, 30)) == [([b""], False)]


def test_whoever_gathers_goes_on_when_another_store_takes_the_place_of_this(store: Store) -> None:
    fill(store, 100)
    expected = b"".join(store.range(ALL))
    other = Store(MemoryBackend())
    fill(other, 200, b"other")
    slices = gather(store.range_slices(ALL, 30))
    body = b"".join(next(slices))
    store.replace(other)
    fill(store, 200, b"later")
    assert body + b"".join(b"".join(chunks) for chunks in slices) == expected


def test_whoever_stops_half_way_is_told_nothing_more(store: Store) -> None:
    fill(store, 100)
    slices = store.range_slices(ALL, 30)
    next(slices)
    assert store._gatherings
    slices.close()
    assert not store._gatherings


def test_a_revision_to_come_is_refused(store: Store) -> None:
    with pytest.raises(errors.FutureRev):
        next(store.range_slices(pb.RangeRequest(key=b"\0", range_end=b"\0", revision=2), 30))


def test_only_keys_in_order_and_as_they_are_now_are_gathered() -> None:
    assert is_gathered(pb.RangeRequest(limit=3, keys_only=True), 9)
    assert is_gathered(pb.RangeRequest(revision=9), 9)
    for other in (
        pb.RangeRequest(revision=8),
        pb.RangeRequest(count_only=True),
        pb.RangeRequest(sort_target=pb.RangeRequest.MOD),
        pb.RangeRequest(sort_order=pb.RangeRequest.DESCEND),
        pb.RangeRequest(min_mod_revision=1),
        pb.RangeRequest(max_create_revision=1),
    ):
        assert not is_gathered(other, 9)
