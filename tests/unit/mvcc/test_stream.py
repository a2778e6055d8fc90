"""A streamed range: bounded parts, one revision, whatever happens between them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv import errors
from raftkv.mvcc import LmdbBackend, Store, validate
from raftkv.pb import rpc_pb2 as pb
from raftkv.status import Code, StatusError

MAX_BYTES = 4096
ALL = pb.RangeRequest(key=b"\0", range_end=b"\0")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 30)
    yield Store(backend)
    backend.close()


def fill(store: Store, count: int, *, size: int = 10, value: bytes = b"v") -> None:
    for number in range(count):
        store.put(pb.PutRequest(key=b"k%05d" % number, value=value * size))


def key_values(store: Store, request: pb.RangeRequest) -> pb.RangeResponse:
    return merge(part.body for part in store.range_stream(request, MAX_BYTES))


def merge(bodies: Iterator[bytes]) -> pb.RangeResponse:
    # Fields of an encoded message may be repeated: joining bodies is merging them.
    return pb.RangeResponse.FromString(b"".join(bodies))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
@pytest.mark.parametrize("limit", [0, 1, 16, 999, 1000, 1001])
@pytest.mark.parametrize("keys_only", [False, True])
def test_the_parts_make_the_unary_answer(store: Store, count: int, limit: int, keys_only: bool) -> None:
    fill(store, count)
    request = pb.RangeRequest(key=b"\0", range_end=b"\0", limit=limit, keys_only=keys_only)
    assert key_values(store, request) == pb.RangeResponse.FromString(b"".join(store.range(request)))


def test_count_and_more_are_in_the_last_part_alone(store: Store) -> None:
    fill(store, 300)
    *parts, last = store.range_stream(pb.RangeRequest(key=b"\0", range_end=b"\0", limit=200), MAX_BYTES)
    assert parts
    for part in parts:
        told = pb.RangeResponse.FromString(part.body)
        assert (part.last, told.count, told.more) == (False, 0, False)
        assert told.kvs
    told = pb.RangeResponse.FromString(last.body)
    assert (last.last, told.count, told.more) == (True, 300, True)
    assert told.kvs


def test_counting_alone_is_one_part_without_more(store: Store) -> None:
    fill(store, 300)
    [part] = store.range_stream(pb.RangeRequest(key=b"\0", range_end=b"\0", limit=2, count_only=True), MAX_BYTES)
    assert pb.RangeResponse.FromString(part.body) == pb.RangeResponse(count=300)


def test_parts_grow_to_the_limit_and_not_beyond(store: Store) -> None:
    fill(store, 2000, size=100)
    sizes = [len(part.body) for part in store.range_stream(ALL, MAX_BYTES)]
    assert sizes[0] < MAX_BYTES // 2 <= max(sizes)
    assert max(sizes[:-1]) <= MAX_BYTES


def test_a_value_larger_than_a_part_travels_alone(store: Store) -> None:
    fill(store, 5, size=3 * MAX_BYTES)
    parts = [pb.RangeResponse.FromString(part.body) for part in store.range_stream(ALL, MAX_BYTES)]
    assert [len(part.kvs) for part in parts] == [1] * 5


def test_writes_between_parts_do_not_show(store: Store) -> None:
    fill(store, 500)
    expected = pb.RangeResponse.FromString(b"".join(store.range(ALL)))
    stream = store.range_stream(ALL, MAX_BYTES)
    bodies = [next(stream).body]
    for number in range(0, 500, 3):
        store.delete_range(pb.DeleteRangeRequest(key=b"k%05d" % number))
        store.put(pb.PutRequest(key=b"k%05d" % (number + 1), value=b"later"))
        store.put(pb.PutRequest(key=b"k%05d-born later" % number, value=b"later"))
    for number in range(0, 500, 6):
        store.put(pb.PutRequest(key=b"k%05d" % number, value=b"born again"))
    bodies += [part.body for part in stream]
    assert merge(iter(bodies)) == expected


def test_compaction_behind_the_revision_does_not_disturb_it(store: Store) -> None:
    fill(store, 500)
    expected = pb.RangeResponse.FromString(b"".join(store.range(ALL)))
    stream = store.range_stream(ALL, MAX_BYTES)
    bodies = [next(stream).body]
    pinned = store.revision
    fill(store, 500, value=b"later")
    store.compact(pinned)
    while store.compaction_step():
        pass
    bodies += [part.body for part in stream]
    assert merge(iter(bodies)) == expected


def test_compaction_ahead_of_the_revision_ends_it(store: Store) -> None:
    fill(store, 500)
    stream = store.range_stream(ALL, MAX_BYTES)
    next(stream)
    store.put(pb.PutRequest(key=b"k", value=b"v"))
    store.compact(store.revision)
    with pytest.raises(errors.Compacted):
        list(stream)


def test_a_slice_is_bounded_by_what_it_looks_at_too(store: Store) -> None:
    """Thousands of keys that died: the reader works through them in steps, some of which find nothing."""
    fill(store, 3000)
    store.delete_range(pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
    store.put(pb.PutRequest(key=b"z", value=b"v"))
    pinned = store.revision
    parts = list(store.range_stream(pb.RangeRequest(key=b"\0", range_end=b"\0", revision=pinned), MAX_BYTES))
    assert len(parts) > 10
    [kv] = merge(part.body for part in parts).kvs
    assert kv.key == b"z"


def test_a_page_of_an_old_revision_is_read_alone(store: Store) -> None:
    """What lies behind the page is counted without being read."""
    fill(store, 1000)
    pinned = store.revision
    fill(store, 1000, value=b"later")
    fetched = 0
    real = store.backend.get

    def counting(table: bytes, key: bytes) -> bytes | None:
        nonlocal fetched
        fetched += 1
        return real(table, key)

    store.backend.get = counting  # type: ignore[method-assign]
    response = pb.RangeResponse.FromString(
        b"".join(store.range(pb.RangeRequest(key=b"k00100", range_end=b"k00900", limit=10, revision=pinned)))
    )
    assert [kv.key for kv in response.kvs] == [b"k%05d" % number for number in range(100, 110)]
    assert {kv.value for kv in response.kvs} == {b"v" * 10}
    assert (response.count, response.more) == (800, True)
    assert fetched < 200


@pytest.mark.parametrize("limit", range(1, 8))
def test_keys_that_died_since_count_for_the_limit(store: Store, limit: int) -> None:
    fill(store, 6)
    request = pb.RangeRequest(key=b"\0", range_end=b"\0", limit=limit, revision=store.revision)
    expected = pb.RangeResponse.FromString(b"".join(store.range(request)))
    for number in (0, 2, 4):
        store.delete_range(pb.DeleteRangeRequest(key=b"k%05d" % number))
    assert key_values(store, request) == expected
    assert pb.RangeResponse.FromString(b"".join(store.range(request))) == expected


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"sort_order": "DESCEND"}, "sort"),
        ({"sort_order": "ASCEND", "sort_target": "MOD"}, "sort"),
        ({"min_mod_revision": 1}, "filters"),
        ({"max_create_revision": 1}, "filters"),
    ],
)
def test_sorts_and_filters_are_left_to_the_unary_call(fields: dict[str, str | int], word: str) -> None:
    with pytest.raises(StatusError, match=word) as refused:
        validate.check_range_stream(pb.RangeRequest(key=b"k", **fields))  # type: ignore[arg-type]
    assert refused.value.code is Code.UNIMPLEMENTED


def test_an_order_that_changes_nothing_is_served() -> None:
    validate.check_range_stream(pb.RangeRequest(key=b"k", sort_order="ASCEND"))
    validate.check_range_stream(pb.RangeRequest(key=b"k", sort_target="VALUE"))


def test_a_chunk_without_its_value_keeps_the_rest(store: Store) -> None:
    fill(store, 3)
    response = pb.RangeResponse.FromString(
        b"".join(store.range(pb.RangeRequest(key=b"\0", range_end=b"\0", keys_only=True)))
    )
    whole = pb.RangeResponse.FromString(b"".join(store.range(ALL)))
    for kv in whole.kvs:
        kv.value = b""
    assert response == whole
