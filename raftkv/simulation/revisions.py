"""The exact check: every answer names a revision, and the committed log says what that revision holds.

For each operation: an answer is the one that the model gives at that place in the log; a refusal had no effect; an
operation is in the log once at most. Then the order in time: what was answered before something else was asked has no
later revision than it (strict serializability). And no answer shows what nobody had committed yet.

Sound and complete, for all keys and transactions at once, in the time it takes to replay the log.
"""

from collections.abc import Sequence
from typing import Any

from raftkv.pb import rpc_pb2, v3lock_pb2
from raftkv.simulation.history import History, Operation
from raftkv.simulation.invariants import Violation
from raftkv.simulation.model import Model, Outcome, inside, version_of, versions_of
from raftkv.status import Code

_ANSWERS: dict[str, Any] = {
    "put": rpc_pb2.PutResponse,
    "delete": rpc_pb2.DeleteRangeResponse,
    "txn": rpc_pb2.TxnResponse,
    "read-txn": rpc_pb2.TxnResponse,
    "range": rpc_pb2.RangeResponse,
    "compact": rpc_pb2.CompactionResponse,
    "grant": rpc_pb2.LeaseGrantResponse,
    "revoke": rpc_pb2.LeaseRevokeResponse,
    "lock": v3lock_pb2.LockResponse,
}
LOGGED = frozenset({"put", "delete", "txn", "compact", "grant", "revoke"})
_TIMELY = LOGGED | {"range", "read-txn"}


def check(history: History, model: Model, committed_at: Sequence[int]) -> None:
    """Compare a history with the replayed log; `committed_at` are the times (ns) of its entries.

    Raises:
        Violation
    """
    if model.repeated:
        raise Violation(f"I21 at most once: operation {model.repeated[0]} stands in the log twice")
    check = _Check(model, committed_at)
    for operation in history.operations:
        check.operation(operation)
    _check_order([op for op in history.operations if op.kind in _TIMELY and op.ok], model)
    _check_compactions(history, model)


class _Check:
    def __init__(self, model: Model, committed_at: Sequence[int]) -> None:
        self._model = model
        self._committed_at = committed_at

    def operation(self, op: Operation) -> None:
        if op.kind not in _ANSWERS:
            return
        outcome = self._model.outcomes.get(op.number)
        if op.error is not None:
            self._refused(op, outcome)
        if op.answer is None:
            return
        op.parsed = parsed = _ANSWERS[op.kind].FromString(op.answer)
        revision: int = parsed.header.revision
        self._check_durable(op, revision)
        if op.kind in LOGGED:
            if outcome is None:
                raise Violation(f"I7 durability: {_named(op)} was answered, and is not in the log")
            if outcome.error is not None or outcome.revision != revision:
                raise Violation(f"I11: {_named(op)} was answered at revision {revision}, the log says {outcome}")
            self._logged(op, outcome)
        elif isinstance(parsed, rpc_pb2.RangeResponse):
            self._range(op, parsed, revision)
        elif isinstance(parsed, rpc_pb2.TxnResponse):
            assert isinstance(op.request, rpc_pb2.TxnRequest)
            _compare(op, _txn(parsed, op.request), self._model.read_txn_at(op.request, revision))
        elif isinstance(parsed, v3lock_pb2.LockResponse):
            self._lock(op, parsed, revision)

    def _refused(self, op: Operation, outcome: Outcome | None) -> None:
        assert op.error is not None
        if op.error.code is Code.INTERNAL:
            raise Violation(f"{_named(op)} ended with a bug: {op.error.message}")
        if not op.refused or outcome is None:
            return
        if outcome.error is None:
            raise Violation(
                f"I26: {_named(op)} was refused ({op.error.message}), and took effect at {outcome.revision}"
            )
        if op.error.message != outcome.error.TEXT:  # type: ignore[attr-defined]
            raise Violation(f"I11: {_named(op)} was refused with {op.error.message}, the log says {outcome.error}")

    def _check_durable(self, op: Operation, revision: int) -> None:
        index = self._model.index_of.get(revision)
        if index is None:
            raise Violation(f"I8: {_named(op)} was answered at revision {revision}, which was never committed")
        if index and self._committed_at[index - 1] > op.returned:
            raise Violation(f"I8: {_named(op)} was answered at revision {revision} before it was committed")

    def _logged(self, op: Operation, outcome: Outcome) -> None:
        parsed = op.parsed
        if isinstance(parsed, rpc_pb2.PutResponse):
            found: object = ("put", version_of(parsed.prev_kv) if parsed.HasField("prev_kv") else None)
        elif isinstance(parsed, rpc_pb2.DeleteRangeResponse):
            found = ("delete", parsed.deleted, versions_of(parsed.prev_kvs))
        elif isinstance(parsed, rpc_pb2.TxnResponse):
            assert isinstance(op.request, rpc_pb2.TxnRequest)
            found = _txn(parsed, op.request)
        elif isinstance(parsed, rpc_pb2.LeaseGrantResponse):
            found = (parsed.ID, parsed.TTL)
        else:
            found = None
        _compare(op, found, outcome.answer)

    def _range(self, op: Operation, parsed: rpc_pb2.RangeResponse, revision: int) -> None:
        request = op.request
        assert isinstance(request, rpc_pb2.RangeRequest)
        found = (parsed.count, parsed.more, versions_of(parsed.kvs))
        _compare(op, found, self._model.range_at(request, request.revision or revision))

    def _lock(self, op: Operation, parsed: v3lock_pb2.LockResponse, revision: int) -> None:
        """Whoever is given a lock has the oldest key under its name at that revision (I18)."""
        assert isinstance(op.request, v3lock_pb2.LockRequest)
        prefix = op.request.name + b"/"
        span = prefix, prefix[:-1] + b"0"
        keys = [key for key in self._model.versions if inside(key, *span)]
        queue = [version for key in keys if (version := self._model.at(key, revision)) is not None]
        first = min(queue, key=lambda version: version.create_revision, default=None)
        if first is None or first.key != parsed.key:
            raise Violation(
                f"I18 lock: {_named(op)} was given to {parsed.key!r} at {revision}, and the queue is "
                f"{[(version.key, version.create_revision) for version in queue]}"
            )


def _txn(parsed: rpc_pb2.TxnResponse, request: rpc_pb2.TxnRequest) -> object:
    answers: list[object] = []
    for response in parsed.responses:
        if response.HasField("response_put"):
            put = response.response_put
            answers.append(("put", version_of(put.prev_kv) if put.HasField("prev_kv") else None))
        elif response.HasField("response_delete_range"):
            deleted = response.response_delete_range
            answers.append(("delete", deleted.deleted, versions_of(deleted.prev_kvs)))
        else:
            answer = response.response_range
            answers.append(("range", answer.count, answer.more, versions_of(answer.kvs)))
    return parsed.succeeded, answers


def _compare(op: Operation, found: object, expected: object) -> None:
    if found != expected:
        raise Violation(f"I11: {_named(op)} was answered {found!r}, the log says {expected!r}")


def _named(op: Operation) -> str:
    request = " ".join(str(op.request).split())
    if len(request) > 200:
        request = request[:200] + "…"
    return f"{op.kind} {op.number} of client {op.client} at member {op.member} ({request})"


def _check_order(operations: list[Operation], model: Model) -> None:
    """Nothing goes back behind what was answered before it was asked."""
    moments = sorted(
        [(op.invoked, 1, place) for place, op in enumerate(operations)]
        + [(op.returned, 0, place) for place, op in enumerate(operations)]
    )
    newest = 0, ""
    floors: dict[int, tuple[int, str]] = {}
    for _, begins, place in moments:
        op = operations[place]
        serializable = op.kind == "range" and op.request.serializable  # type: ignore[attr-defined]
        if begins:
            floors[place] = newest
            continue
        floor, before = floors.pop(place)
        revision: int = op.parsed.header.revision  # type: ignore[union-attr]
        if serializable:
            continue
        outcome = model.outcomes.get(op.number)
        wrote = outcome is not None and outcome.wrote
        if revision < floor or (wrote and revision == floor):
            raise Violation(
                f"I11 strict serializability: {_named(op)} was answered at revision {revision} after {before} had been "
                f"answered at {floor}"
            )
        if revision > newest[0]:
            newest = revision, _named(op)


def _check_compactions(history: History, model: Model) -> None:
    """History is refused only behind a compaction, and not given once a compaction was answered."""
    answered = sorted(
        (op.returned, op.request.revision)  # type: ignore[attr-defined]
        for op in history.operations
        if op.kind == "compact" and op.ok
    )
    for op in history.operations:
        if op.kind != "range" or not op.request.revision:  # type: ignore[attr-defined]
            continue
        wanted: int = op.request.revision  # type: ignore[attr-defined]
        if op.error is not None and "compacted" in op.error.message and wanted >= model.compacted:
            raise Violation(f"I13: {_named(op)} was refused as compacted; compacted is {model.compacted}")
        if op.ok and not op.request.serializable:  # type: ignore[attr-defined]
            for returned, revision in answered:
                if returned >= op.invoked:
                    break
                if wanted < revision:
                    raise Violation(f"I13: {_named(op)} was answered after {revision} had been compacted")
