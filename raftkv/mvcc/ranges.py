"""Answering a Range: selection, filters, order, limit, and the response's bytes (etcd's KV semantics)."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftkv.mvcc import encoding as enc
from raftkv.mvcc.interval import Interval, interval
from raftkv.pb import kv_pb2, rpc_pb2

if TYPE_CHECKING:
    from raftkv.mvcc.store import Store

_TARGETS: dict[int, Callable[[kv_pb2.KeyValue], bytes | int]] = {
    rpc_pb2.RangeRequest.KEY: lambda kv: kv.key,
    rpc_pb2.RangeRequest.VERSION: lambda kv: kv.version,
    rpc_pb2.RangeRequest.CREATE: lambda kv: kv.create_revision,
    rpc_pb2.RangeRequest.MOD: lambda kv: kv.mod_revision,
    rpc_pb2.RangeRequest.VALUE: lambda kv: kv.value,
}


FIRST_SLICE_KEYS = 16
MAX_SLICE_KEYS = 4096


@dataclass(slots=True)
class Part:
    """A part of a streamed range: a RangeResponse body without header; the last one tells count and more."""

    body: bytes
    last: bool


def answer_range(store: "Store", request: rpc_pb2.RangeRequest, current: int) -> list[bytes]:
    """The pieces of a RangeResponse's body; `current` is the revision a transaction has come to.

    Raises:
        FutureRev, Compacted
    """
    revision = request.revision
    if revision > 0:
        store.check_revision(revision)
    if not request.range_end and not 0 < revision < current and _is_plain(request) and not request.limit:
        chunk = store.newest(request.key)
        return [] if chunk is None else [chunk, b"\x20\x01"]
    span = interval(request.key, request.range_end)
    old = 0 < revision < current
    count = store.count_at(span, revision) if old else store.count(span)
    if request.count_only:
        return [enc.int_field(b"\x20", count)]
    # etcd sorts no more than it needs to know that there is more.
    limit = 0 if _needs_all(request) else request.limit + 1
    return _answer(store.select_at(span, revision, limit) if old else store.select(span, limit), count, request)


def _answer(chunks: list[bytes], count: int, request: rpc_pb2.RangeRequest) -> list[bytes]:
    if _filters(request):
        chunks = [chunk for chunk in chunks if _passes(enc.decode_chunk(chunk), request)]
        total = len(chunks)
    else:
        total = count
    chunks = _order(chunks, request)
    more = 0 < request.limit < total
    if more:
        del chunks[request.limit :]
    if request.keys_only:
        chunks = [enc.without_value(chunk) for chunk in chunks]
    chunks.append((b"\x18\x01" if more else b"") + enc.int_field(b"\x20", count))
    return chunks


def is_gathered(request: rpc_pb2.RangeRequest, current: int) -> bool:
    """Whether `gather_range` answers this: keys in their order, as they are now."""
    return not (0 < request.revision < current or request.count_only or _filters(request) or _sorts(request))


def gather_range(store: "Store", request: rpc_pb2.RangeRequest, max_keys: int) -> Generator[tuple[list[bytes], bool]]:
    """The pieces of a RangeResponse's body in slices, each of about so many keys; all of the moment of the first.

    With each comes whether there are more.

    Raises:
        FutureRev
    """
    store.check_revision(request.revision)
    with store.gather(interval(request.key, request.range_end)) as gathering:
        count = gathering.count
        left = min(count, request.limit) if request.limit > 0 else count
        tail = (b"\x18\x01" if left < count else b"") + enc.int_field(b"\x20", count)
        chunks: list[bytes] = []
        while left:
            if gathering.over:
                raise RuntimeError(f"{left} of {count} keys are missing")
            chunks = gathering.take(max_keys)
            del chunks[left:]
            left -= len(chunks)
            if request.keys_only:
                chunks = [enc.without_value(chunk) for chunk in chunks]
            if left:
                yield chunks, True
    chunks.append(tail)
    yield chunks, False


def stream_range(store: "Store", request: rpc_pb2.RangeRequest, max_bytes: int) -> Iterator[Part]:
    """The parts of an answer without sorting or filters: disjoint, in key order, of the revision of this moment.

    Each part is the work of at most a few milliseconds; a body is empty where there was only work. The first parts are
    small, so that the reader has something soon; they grow up to `max_bytes`, or to one larger key-value.

    Raises:
        FutureRev, Compacted: also between parts, when compaction overtakes the reader.
    """
    store.check_revision(request.revision)
    revision = request.revision if request.revision > 0 else store.revision
    span = interval(request.key, request.range_end)
    return _parts(store, request, span, revision, store.count_at(span, revision), max_bytes)


def _parts(
    store: "Store", request: rpc_pb2.RangeRequest, span: Interval, revision: int, count: int, max_bytes: int
) -> Iterator[Part]:
    left = 0 if request.count_only else min(count, request.limit) if request.limit > 0 else count
    tail = (b"\x18\x01" if left < count and not request.count_only else b"") + enc.int_field(b"\x20", count)
    keys = FIRST_SLICE_KEYS
    while left:
        store.check_revision(revision)
        chunks, first = store.slice_at(span, revision, min(keys, left))
        left -= len(chunks)
        if first is None and left:
            raise RuntimeError(f"{left} of {count} keys are missing at revision {revision}")
        if first is not None:
            span = (first, span[1])
        if request.keys_only:
            chunks = [enc.without_value(chunk) for chunk in chunks]
        *bodies, body = _cut(chunks, max_bytes)
        yield from (Part(whole, last=False) for whole in bodies)
        if not left:
            yield Part(body + tail, last=True)
            return
        yield Part(body, last=False)
        if bodies:
            keys = max(keys // 2, 1)
        elif len(body) < max_bytes // 2:
            keys = min(keys * 2, MAX_SLICE_KEYS)
    yield Part(tail, last=True)


def _cut(chunks: list[bytes], max_bytes: int) -> Iterator[bytes]:
    body: list[bytes] = []
    size = 0
    for chunk in chunks:
        if body and size + len(chunk) > max_bytes:
            yield b"".join(body)
            body, size = [], 0
        body.append(chunk)
        size += len(chunk)
    yield b"".join(body)


def _order(chunks: list[bytes], request: rpc_pb2.RangeRequest) -> list[bytes]:
    """Sort as asked; ties keep key order. A target without an order is ascending, but among the first keys only."""
    if not _sorts(request):
        return chunks
    target = _TARGETS[request.sort_target]
    descending = request.sort_order == rpc_pb2.RangeRequest.DESCEND
    return sorted(chunks, key=lambda chunk: target(enc.decode_chunk(chunk)), reverse=descending)


def _needs_all(request: rpc_pb2.RangeRequest) -> bool:
    return request.limit <= 0 or request.sort_order != rpc_pb2.RangeRequest.NONE or _filters(request)


def _is_plain(request: rpc_pb2.RangeRequest) -> bool:
    return not (request.keys_only or request.count_only or _filters(request))


def _sorts(request: rpc_pb2.RangeRequest) -> bool:
    return request.sort_target != rpc_pb2.RangeRequest.KEY or request.sort_order == rpc_pb2.RangeRequest.DESCEND


def _filters(request: rpc_pb2.RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def _passes(kv: kv_pb2.KeyValue, request: rpc_pb2.RangeRequest) -> bool:
    return not (
        (request.min_mod_revision and kv.mod_revision < request.min_mod_revision)
        or (request.max_mod_revision and kv.mod_revision > request.max_mod_revision)
        or (request.min_create_revision and kv.create_revision < request.min_create_revision)
        or (request.max_create_revision and kv.create_revision > request.max_create_revision)
    )
