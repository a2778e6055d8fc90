"""The checkers themselves: they accept what is right and find what is not."""

from collections.abc import Callable

import pytest

from raftkv import errors
from raftkv.pb import log_pb2, rpc_pb2
from raftkv.simulation import promises, revisions
from raftkv.simulation.history import Change, History, Operation, Told, Watched, marked
from raftkv.simulation.invariants import Violation
from raftkv.simulation.linearizability import FOREVER, Access, linearizable
from raftkv.simulation.model import Model


def put(value: bytes, invoked: int, returned: int = FOREVER) -> Access:
    return Access("put", invoked, returned, value)


def get(seen: bytes | None, invoked: int, returned: int) -> Access:
    return Access("get", invoked, returned, seen=seen)


@pytest.mark.parametrize(
    ("accesses", "verdict"),
    [
        ([put(b"1", 0, 1), get(b"1", 2, 3)], True),
        ([put(b"1", 0, 1), get(None, 2, 3)], False),
        # While a write is under way, a read may see it or not, and never the old value after the new one.
        ([put(b"1", 0, 9), get(None, 1, 2), get(b"1", 3, 4)], True),
        ([put(b"1", 0, 9), get(b"1", 1, 2), get(None, 3, 4)], False),
        # A write without an answer may come late, or never.
        ([put(b"1", 0), get(None, 1, 2), put(b"2", 3, 4), get(b"1", 5, 6)], True),
        ([put(b"1", 0), get(None, 1, 2)], True),
        ([put(b"1", 0), get(b"2", 1, 2)], False),
        ([put(b"1", 0, 1), Access("delete", 2, 3, seen=True), get(None, 4, 5)], True),
        ([Access("delete", 2, 3, seen=True)], False),
        ([put(b"1", 0, 1), Access("cas", 2, 3, b"2", b"1", True), get(b"2", 4, 5)], True),
        ([put(b"1", 0, 1), Access("cas", 2, 3, b"2", b"1", False)], False),
    ],
)
def test_registers(accesses: list[Access], verdict: bool) -> None:
    assert linearizable(accesses) is verdict


def test_a_search_that_is_too_long_gives_up() -> None:
    accesses = [put(b"%d" % number, 0) for number in range(30)] + [get(b"none", 1, 2)]
    assert linearizable(accesses, max_steps=100) is None


class Run:
    """A history of two puts and a range, and the log that explains it; each test breaks one thing."""

    def __init__(self) -> None:
        self.history = History()
        self.model = Model()
        self.committed_at = [10, 30]
        for number, index in ((1, 1), (2, 2)):
            request = rpc_pb2.PutRequest(key=b"k", value=b"%d" % number)
            proposal = log_pb2.Proposal(put=rpc_pb2.PutRequest.FromString(marked(request, number)))
            self.model.apply(index, 1, log_pb2.Batch(proposals=[proposal]).SerializeToString())
            answer = rpc_pb2.PutResponse()
            answer.header.revision = index + 1
            times = (index * 20 - 15, index * 20 - 5)
            self.add("put", number, request, *times, answer.SerializeToString())
        self.read = rpc_pb2.RangeResponse(count=1)
        self.read.header.revision = 3
        self.read.kvs.add(key=b"k", create_revision=2, mod_revision=3, version=2, value=b"2")
        self.add("range", 3, rpc_pb2.RangeRequest(key=b"k"), 40, 50, b"")

    def add(self, kind: str, number: int, request: object, invoked: int, returned: int, answer: bytes) -> None:
        operation = Operation(number, 0, 0, kind, request, invoked, returned, answer)  # type: ignore[arg-type]
        self.history.operations.append(operation)

    def check(self) -> None:
        self.history.operations[2].answer = self.read.SerializeToString()
        revisions.check(self.history, self.model, self.committed_at)


def stale(run: Run) -> None:
    run.read.header.revision = 2
    run.read.kvs[0].mod_revision, run.read.kvs[0].version, run.read.kvs[0].value = 2, 1, b"1"


def wrong_value(run: Run) -> None:
    run.read.kvs[0].value = b"1"


def from_the_future(run: Run) -> None:
    run.read.header.revision = 4


def lost(run: Run) -> None:
    del run.model.outcomes[2]


def twice(run: Run) -> None:
    run.model.repeated.append(2)


def too_early(run: Run) -> None:
    run.committed_at[1] = 36


@pytest.mark.parametrize(
    ("damage", "promise"),
    [
        (stale, "I11 strict serializability"),
        (wrong_value, "I11"),
        (from_the_future, "I8"),
        (lost, "I7 durability"),
        (twice, "I21"),
        (too_early, "I8"),
    ],
)
def test_the_revision_checker_finds(damage: Callable[[Run], None], promise: str) -> None:
    Run().check()
    run = Run()
    damage(run)
    with pytest.raises(Violation, match=promise):
        run.check()


def changes(*revisions: int) -> list[Change]:
    return [Change(revision, False, b"k", b"%d" % (revision - 1), 2, revision - 1, 0, None) for revision in revisions]


@pytest.mark.parametrize(
    ("batches", "reached", "promise"),
    [
        ([[2], [3]], 3, ""),
        ([[2, 3]], 3, ""),
        ([[2]], 2, "I14 reliable"),
        ([[3]], 3, "I14 watch"),
        ([[3], [2]], 3, "I14 watch"),
        ([[2], [2], [3]], 3, "I14 watch"),
        ([[2]], 3, "I14 watch"),
    ],
)
def test_the_watch_checker_finds(batches: list[list[int]], reached: int, promise: str) -> None:
    run = Run()
    watched = Watched(1, b"k", b"", False)
    watched.segments.append(Told(1, reached, [changes(*batch) for batch in batches]))
    run.history.watches.append(watched)
    if not promise:
        promises.check_watches(run.history, run.model, drained=True)
        return
    with pytest.raises(Violation, match=promise):
        promises.check_watches(run.history, run.model, drained=True)


def test_a_put_while_a_disk_is_full_is_refused() -> None:
    """The model knows the alarm, and that deletions are not refused."""
    model = Model()
    alarm = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.ACTIVATE, memberID=1, alarm=rpc_pb2.NOSPACE)
    puts = rpc_pb2.TxnRequest(failure=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k"))])
    requests = [
        log_pb2.Proposal(alarm=alarm),
        log_pb2.Proposal(put=rpc_pb2.PutRequest.FromString(marked(rpc_pb2.PutRequest(key=b"k"), 1))),
        log_pb2.Proposal(txn=rpc_pb2.TxnRequest.FromString(marked(puts, 2))),
        log_pb2.Proposal(
            delete_range=rpc_pb2.DeleteRangeRequest.FromString(marked(rpc_pb2.DeleteRangeRequest(key=b"k"), 3))
        ),
    ]
    alarm = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=1, alarm=rpc_pb2.NOSPACE)
    requests.append(log_pb2.Proposal(alarm=alarm))
    requests.append(log_pb2.Proposal(put=rpc_pb2.PutRequest.FromString(marked(rpc_pb2.PutRequest(key=b"k"), 4))))
    model.apply(1, 1, log_pb2.Batch(proposals=requests).SerializeToString())
    assert [model.outcomes[number].error for number in (1, 2, 3, 4)] == [errors.NoSpace, errors.NoSpace, None, None]
