"""How many operations a transaction may hold, nested ones included."""

import pytest

from raftkv import errors
from raftkv.mvcc import validate
from raftkv.pb import rpc_pb2 as pb

MAX_OPS = 8
RANGE = pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))


def txn(compares: int = 0, success: int = 0, failure: int = 0, *nested: pb.TxnRequest) -> pb.TxnRequest:
    """A transaction with so many elements a list; the nested ones come on top, in its success branch."""
    return pb.TxnRequest(
        compare=[pb.Compare(key=b"k")] * compares,
        success=[RANGE] * success + [pb.RequestOp(request_txn=inner) for inner in nested],
        failure=[RANGE] * failure,
    )


@pytest.mark.parametrize("request_", [txn(8), txn(0, 8), txn(0, 0, 8), txn(8, 8, 8)])
def test_each_list_may_be_as_long_as_the_limit(request_: pb.TxnRequest) -> None:
    validate.check_txn(request_, MAX_OPS)


@pytest.mark.parametrize("request_", [txn(9), txn(0, 9), txn(0, 0, 9)])
def test_no_list_may_be_longer(request_: pb.TxnRequest) -> None:
    with pytest.raises(errors.TooManyOps):
        validate.check_txn(request_, MAX_OPS)


@pytest.mark.parametrize(("outer", "inner"), [((5, 0, 0), 3), ((0, 4, 0), 3), ((0, 0, 6), 2), ((1, 0, 0), 7)])
def test_a_nested_transaction_has_what_the_longest_list_around_it_leaves(
    outer: tuple[int, int, int], inner: int
) -> None:
    validate.check_txn(txn(*outer, txn(0, inner)), MAX_OPS)
    with pytest.raises(errors.TooManyOps):
        validate.check_txn(txn(*outer, txn(0, inner + 1)), MAX_OPS)


def test_neighbours_do_not_share_what_is_left() -> None:
    validate.check_txn(txn(0, 0, 0, txn(0, 6), txn(0, 6)), MAX_OPS)


def test_nesting_alone_uses_the_limit_up() -> None:
    chain = txn()
    for _ in range(MAX_OPS):
        chain = txn(0, 0, 0, chain)
    validate.check_txn(chain, MAX_OPS)
    with pytest.raises(errors.TooManyOps):
        validate.check_txn(txn(0, 0, 0, chain), MAX_OPS)
