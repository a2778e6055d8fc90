"""Checks that need no state: run before a request is proposed, recursively (etcd's v3rpc checks)."""

from collections.abc import Sequence

from raftkv import errors
from raftkv.mvcc.interval import Interval, contains, interval
from raftkv.pb import rpc_pb2
from raftkv.status import Code, StatusError

_SORT_ORDERS = frozenset(rpc_pb2.RangeRequest.SortOrder.values())
_SORT_TARGETS = frozenset(rpc_pb2.RangeRequest.SortTarget.values())


PUT_OVERHEAD_BYTES = 256
LEASE_BYTES = 64


def check_range(request: rpc_pb2.RangeRequest) -> None:
    """Raises: EmptyKey, InvalidSortOption."""
    if not request.key:
        raise errors.EmptyKey
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise errors.InvalidSortOption


def check_range_stream(request: rpc_pb2.RangeRequest) -> None:
    """Raises: what `check_range` raises; UNIMPLEMENTED for sorts and revision filters, which need the whole answer."""
    check_range(request)
    filtered = (
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )
    ascending = request.sort_target == rpc_pb2.RangeRequest.KEY and request.sort_order == rpc_pb2.RangeRequest.ASCEND
    if request.sort_order != rpc_pb2.RangeRequest.NONE and not ascending:
        raise StatusError(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")
    if filtered:
        raise StatusError(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")


def check_put(request: rpc_pb2.PutRequest) -> None:
    """Raises: EmptyKey, ValueProvided, LeaseProvided."""
    if not request.key:
        raise errors.EmptyKey
    if request.ignore_value and request.value:
        raise errors.ValueProvided
    if request.ignore_lease and request.lease:
        raise errors.LeaseProvided


def check_delete_range(request: rpc_pb2.DeleteRangeRequest) -> None:
    """Raises: EmptyKey."""
    if not request.key:
        raise errors.EmptyKey


def check_txn(request: rpc_pb2.TxnRequest, max_ops: int) -> None:
    """Raises: TooManyOps, EmptyKey, DuplicateKey, and what the checks of single operations raise.

    A transaction counts as its longest list (compares, then or else) and leaves the rest of `max_ops` to each
    transaction nested in it. So no path down the nesting is longer than `max_ops`, though a whole may hold more.
    """
    _check_operations(request, max_ops)
    _check_writes(request.success)
    _check_writes(request.failure)


def _check_operations(request: rpc_pb2.TxnRequest, max_ops: int) -> None:
    left = max_ops - max(len(request.compare), len(request.success), len(request.failure))
    if left < 0:
        raise errors.TooManyOps
    for compare in request.compare:
        if not compare.key:
            raise errors.EmptyKey
    for branch in (request.success, request.failure):
        for op in branch:
            _check_operation(op, left)


def _check_operation(op: rpc_pb2.RequestOp, max_ops: int) -> None:
    kind = op.WhichOneof("request")
    if kind == "request_range":
        check_range(op.request_range)
    elif kind == "request_put":
        check_put(op.request_put)
    elif kind == "request_delete_range":
        check_delete_range(op.request_delete_range)
    elif kind == "request_txn":
        _check_operations(op.request_txn, max_ops)
    else:
        # An operation that is none: etcd's answer.
        raise errors.KeyNotFound


def _check_writes(ops: Sequence[rpc_pb2.RequestOp]) -> tuple[set[bytes], list[Interval]]:
    """Refuse a branch that writes a key twice; what it puts and deletes.

    In etcd's order, each compared with what came before it: deletions of this level, nested transactions, puts of this
    level. The branches of one nested transaction exclude each other, so they may share keys; not with the rest.
    """
    deletes = [_literal(op.request_delete_range) for op in ops if op.HasField("request_delete_range")]
    puts: set[bytes] = set()
    for op in ops:
        if op.HasField("request_txn"):
            then_puts, then_deletes = _check_writes(op.request_txn.success)
            else_puts, else_deletes = _check_writes(op.request_txn.failure)
            nested, nested_deletes = then_puts | else_puts, then_deletes + else_deletes
            _refuse_overlap(nested, deletes)
            if nested & puts:
                raise errors.DuplicateKey
            puts |= nested
            deletes += nested_deletes
    for op in ops:
        if op.HasField("request_put"):
            key = op.request_put.key
            if key in puts:
                raise errors.DuplicateKey
            _refuse_overlap({key}, deletes)
            puts.add(key)
    return puts, deletes


def _literal(request: rpc_pb2.DeleteRangeRequest) -> Interval:
    # etcd compares range_end as it stands here: a deletion from a key on (range_end "\0") collides with nothing.
    return (request.key, request.range_end) if request.range_end else interval(request.key, b"")


def _refuse_overlap(puts: set[bytes], deletes: list[Interval]) -> None:
    if any(contains(span, key) for span in deletes for key in puts):
        raise errors.DuplicateKey


def put_cost(request: rpc_pb2.TxnRequest) -> int:
    """Bytes that the puts of the larger branch may take, as etcd reckons them: 256 each besides key and value."""
    return max(_branch_cost(request.success), _branch_cost(request.failure))


def _branch_cost(ops: Sequence[rpc_pb2.RequestOp]) -> int:
    cost = 0
    for op in ops:
        if op.HasField("request_put"):
            cost += PUT_OVERHEAD_BYTES + len(op.request_put.key) + len(op.request_put.value)
        elif op.HasField("request_txn"):
            cost += put_cost(op.request_txn)
    return cost


def txn_is_read_only(request: rpc_pb2.TxnRequest) -> bool:
    """Whether neither branch can write."""
    return all(
        op.HasField("request_range") or (op.HasField("request_txn") and txn_is_read_only(op.request_txn))
        for branch in (request.success, request.failure)
        for op in branch
    )


def txn_is_serializable(request: rpc_pb2.TxnRequest) -> bool:
    """Whether every operation is a range that asks for no more than local state."""
    return all(
        op.HasField("request_range") and op.request_range.serializable
        for branch in (request.success, request.failure)
        for op in branch
    )
