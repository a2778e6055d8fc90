"""Answering a Range: selection, filters, order, limit, and the response's bytes (etcd's KV semantics)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkv.mvcc import encoding as enc
from raftkv.mvcc.interval import interval
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
    if 0 < revision < current:
        return _answer(store.select_at(span, revision), None, request)
    count = store.count(span)
    if request.count_only:
        return [enc.int_field(b"\x20", count)]
    return _answer(store.select(span, 0 if _needs_all(request) else request.limit + 1), count, request)


def _answer(chunks: list[bytes], count: int | None, request: rpc_pb2.RangeRequest) -> list[bytes]:
    if count is None:
        count = len(chunks)
    if request.count_only:
        return [enc.int_field(b"\x20", count)]
    if _filters(request):
        chunks = [chunk for chunk in chunks if _passes(enc.decode_chunk(chunk), request)]
        total = len(chunks)
    else:
        if not _needs_all(request):
            # etcd sorts no more than it needs to know that there is more.
            chunks = chunks[: request.limit + 1]
        total = count
    chunks = order(chunks, request)
    more = 0 < request.limit < total
    if more:
        del chunks[request.limit :]
    if request.keys_only:
        chunks = [enc.without_value(chunk) for chunk in chunks]
    chunks.append((b"\x18\x01" if more else b"") + enc.int_field(b"\x20", count))
    return chunks


def order(chunks: list[bytes], request: rpc_pb2.RangeRequest) -> list[bytes]:
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
