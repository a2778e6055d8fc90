"""Transactions: compares first, then one branch, all or nothing (etcd's Txn).

All compares, those of nested transactions included, are decided against the state before the transaction; then the
operations that will run are checked; only then does anything change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftkv.mvcc import encoding as enc
from raftkv.mvcc.interval import interval
from raftkv.mvcc.ranges import answer_range
from raftkv.pb import kv_pb2, rpc_pb2

if TYPE_CHECKING:
    from raftkv.mvcc.store import Store, Writer

_Compare = rpc_pb2.Compare
_MISSING = kv_pb2.KeyValue()


@dataclass(slots=True)
class _Plan:
    """A decided transaction: the branch to run, and the plans of the transactions nested in it, in order."""

    succeeded: bool
    ops: Sequence[rpc_pb2.RequestOp]
    nested: list["_Plan"]


class Txn:
    """One transaction on its way through the store."""

    def __init__(self, store: "Store", request: rpc_pb2.TxnRequest) -> None:
        self._store = store
        self._request = request

    def run(self) -> bytes:
        """Decide, check and execute; the body of the TxnResponse.

        Raises:
            LeaseNotFound, KeyNotFound, Compacted, FutureRev: with nothing changed.
        """
        from raftkv.mvcc.store import Writer

        plan = self._decide(self._request)
        # All puts, then all ranges: etcd's order decides which error is told.
        self._check_puts(plan)
        self._check_ranges(plan)
        writer = Writer(self._store)
        body = self._execute(plan, writer)
        writer.commit()
        return body

    def _decide(self, request: rpc_pb2.TxnRequest) -> _Plan:
        succeeded = all(map(self._holds, request.compare))
        ops = request.success if succeeded else request.failure
        return _Plan(succeeded, ops, [self._decide(op.request_txn) for op in ops if op.HasField("request_txn")])

    def _holds(self, compare: rpc_pb2.Compare) -> bool:
        chunks = self._store.select(interval(compare.key, compare.range_end))
        if chunks:
            return all(compares(enc.decode_chunk(chunk), compare) for chunk in chunks)
        # A missing key has zeroes everywhere, but no value to compare.
        return compare.target != _Compare.VALUE and compares(_MISSING, compare)

    def _check_puts(self, plan: _Plan) -> None:
        nested = iter(plan.nested)
        for op in plan.ops:
            if op.HasField("request_put"):
                self._store.check_put(op.request_put)
            elif op.HasField("request_txn"):
                self._check_puts(next(nested))

    def _check_ranges(self, plan: _Plan) -> None:
        nested = iter(plan.nested)
        for op in plan.ops:
            if op.HasField("request_range"):
                self._store.check_revision(op.request_range.revision)
            elif op.HasField("request_txn"):
                self._check_ranges(next(nested))

    def _execute(self, plan: _Plan, writer: "Writer") -> bytes:
        nested = iter(plan.nested)
        parts = [b"\x10\x01"] if plan.succeeded else []
        for op in plan.ops:
            kind = op.WhichOneof("request")
            if kind == "request_range":
                self._store.counts.ranges += 1
                pieces = answer_range(self._store, op.request_range, writer.revision)
                tag, body = b"\x0a", b"".join([_header(writer.revision), *pieces])
            elif kind == "request_put":
                previous = writer.put(op.request_put)
                shown = previous if op.request_put.prev_kv and previous is not None else b""
                tag, body = b"\x12", _header(writer.revision) + shown
            elif kind == "request_delete_range":
                deleted = writer.delete_range(op.request_delete_range)
                tag, body = b"\x1a", _header(writer.revision) + deleted
            else:
                tag, body = b"\x22", b"\x0a\x00" + self._execute(next(nested), writer)
            parts.append(enc.bytes_field(b"\x1a", enc.bytes_field(tag, body)))
        return b"".join(parts)


def _header(revision: int) -> bytes:
    return enc.bytes_field(b"\x0a", b"\x18" + enc.varint(revision))


def compares(kv: kv_pb2.KeyValue, compare: rpc_pb2.Compare) -> bool:
    """Whether one key satisfies a compare; a target without its value is compared with zero."""
    target = compare.target
    if target == _Compare.VALUE:
        return _ordered(kv.value, compare.value, compare.result)
    if target == _Compare.VERSION:
        return _ordered(kv.version, compare.version, compare.result)
    if target == _Compare.CREATE:
        return _ordered(kv.create_revision, compare.create_revision, compare.result)
    if target == _Compare.MOD:
        return _ordered(kv.mod_revision, compare.mod_revision, compare.result)
    if target == _Compare.LEASE:
        return _ordered(kv.lease, compare.lease, compare.result)
    return True


def _ordered(actual: bytes | int, wanted: bytes | int, result: int) -> bool:
    if result == _Compare.EQUAL:
        return actual == wanted
    if result == _Compare.NOT_EQUAL:
        return actual != wanted
    if result == _Compare.GREATER:
        return actual > wanted  # type: ignore[operator]
    if result == _Compare.LESS:
        return actual < wanted  # type: ignore[operator]
    return True
