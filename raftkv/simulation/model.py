"""The keyspace as the committed log defines it: slow, obvious, and independent of the store that is checked.

Entries are replayed in order. Every proposal leaves an outcome, every revision its events and every key its versions,
so that what a client was told can be compared at whatever revision it names.
"""

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import Message

from raftkv import errors
from raftkv.pb import kv_pb2, log_pb2, rpc_pb2
from raftkv.simulation.history import Change, mark_of
from raftkv.status import StatusError


class Version(NamedTuple):
    """A live version of a key."""

    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a proposal: where it stands in the log, the revision after it, and its answer or error."""

    index: int
    revision: int
    wrote: bool
    answer: Any
    error: type[StatusError] | None


@dataclass(slots=True)
class LeaseState:
    """A lease while it lives."""

    ttl: int
    serial: int
    keys: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """How a lease ended."""

    index: int
    expired: bool


State = dict[bytes, Version]


class Model:
    """The state after some entries of the log, and every state before."""

    def __init__(self) -> None:
        self.revision = 1
        self.index = 0
        self.compacted = -1
        self.compactions: list[tuple[int, int]] = []
        """Index in the log and revision of each compaction that took effect."""
        self.state: State = {}
        self.versions: dict[bytes, list[tuple[int, Version | None]]] = {}
        self.events: dict[int, list[Change]] = {}
        self.index_of: dict[int, int] = {1: 0}
        """Which entry made a revision."""
        self.leases: dict[int, LeaseState] = {}
        self.grants = 0
        self.ended: dict[int, list[LeaseEnd]] = {}
        self.granted: dict[int, list[tuple[int, int]]] = {}
        """Index and time to live of each grant of an id."""
        self.outcomes: dict[int, Outcome] = {}
        self.repeated: list[int] = []
        """Marks that stand in the log more than once."""
        self.full: set[int] = set()
        """Members for which the alarm NOSPACE is on."""

    # Replay

    def apply(self, index: int, term: int, data: bytes) -> None:
        """Take the next entry."""
        self.index = index
        if not data:
            return
        for proposal in log_pb2.Batch.FromString(data).proposals:
            name = proposal.WhichOneof("operation")
            request = getattr(proposal, name) if name else None
            if request is None:
                continue
            before = self.revision
            answer: object = None
            error: type[StatusError] | None = None
            try:
                answer = self._apply(name or "", request, term)
            except StatusError as refused:
                error = type(refused)
            mark = mark_of(request.SerializeToString())
            if mark:
                if mark in self.outcomes:
                    self.repeated.append(mark)
                self.outcomes[mark] = Outcome(index, self.revision, self.revision > before, answer, error)

    def _apply(self, name: str, request: Message, term: int) -> object:
        if isinstance(request, rpc_pb2.AlarmRequest):
            self._alarm(request)
        elif self.full and _takes_space(request):
            raise errors.NoSpace
        if isinstance(request, rpc_pb2.PutRequest):
            return self._write(lambda write: write.put(request))
        if isinstance(request, rpc_pb2.DeleteRangeRequest):
            return self._write(lambda write: write.delete(request))
        if isinstance(request, rpc_pb2.TxnRequest):
            return self._write(lambda write: write.txn(request, {**self.state}))
        if isinstance(request, rpc_pb2.CompactionRequest):
            self._compact(request.revision)
        elif isinstance(request, rpc_pb2.LeaseGrantRequest):
            return self._grant(request)
        elif isinstance(request, rpc_pb2.LeaseRevokeRequest):
            self._revoke(request.ID, expired=False)
        elif isinstance(request, log_pb2.LeaseExpiry) and request.term == term:
            for lease_id in request.ids:
                lease = self.leases.get(lease_id)
                if lease is not None and lease.serial <= request.grants:
                    self._revoke(lease_id, expired=True)
        return None

    def _alarm(self, request: rpc_pb2.AlarmRequest) -> None:
        if request.alarm == rpc_pb2.NOSPACE and request.action == rpc_pb2.AlarmRequest.ACTIVATE:
            self.full.add(request.memberID)
        elif request.alarm == rpc_pb2.NOSPACE and request.action == rpc_pb2.AlarmRequest.DEACTIVATE:
            self.full.discard(request.memberID)

    def _write(self, run: "Callable[[_Write], object]") -> object:
        write = _Write(self)
        answer = run(write)
        write.commit()
        return answer

    def _compact(self, revision: int) -> None:
        if revision <= self.compacted:
            raise errors.Compacted
        if revision > self.revision:
            raise errors.FutureRev
        self.compacted = revision
        self.compactions.append((self.index, revision))

    def _grant(self, request: rpc_pb2.LeaseGrantRequest) -> tuple[int, int]:
        if request.ID in self.leases:
            raise errors.LeaseExist
        self.grants += 1
        self.leases[request.ID] = LeaseState(request.TTL, self.grants)
        self.granted.setdefault(request.ID, []).append((self.index, request.TTL))
        return request.ID, request.TTL

    def _revoke(self, lease_id: int, *, expired: bool) -> None:
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise errors.LeaseNotFound
        write = _Write(self)
        for key in sorted(lease.keys):
            write.remove(key)
        write.commit()
        self.ended.setdefault(lease_id, []).append(LeaseEnd(self.index, expired))

    # Looking

    def check_revision(self, revision: int) -> None:
        """Raises: FutureRev, Compacted; for a revision that cannot be read now."""
        if revision > self.revision:
            raise errors.FutureRev
        if 0 < revision < self.compacted:
            raise errors.Compacted

    def at(self, key: bytes, revision: int) -> Version | None:
        """A key's version at a revision."""
        versions = self.versions.get(key)
        if not versions:
            return None
        place = bisect_right(versions, revision, key=lambda version: version[0])
        return versions[place - 1][1] if place else None

    def range_at(self, request: rpc_pb2.RangeRequest, revision: int) -> tuple[int, bool, list[Version]]:
        """Count, more and versions that a range must answer at a revision."""
        found = []
        for key in self.versions:
            if inside(key, request.key, request.range_end):
                version = self.at(key, revision)
                if version is not None:
                    found.append(version)
        return _cut(request, sorted(found))

    def read_txn_at(self, request: rpc_pb2.TxnRequest, revision: int) -> object:
        """What a transaction that only reads must answer at a revision."""
        state = {key: version for key in self.versions if (version := self.at(key, revision)) is not None}
        succeeded = all(_holds(compare, state) for compare in request.compare)
        answers: list[object] = []
        for op in request.success if succeeded else request.failure:
            found = [v for k, v in sorted(state.items()) if inside(k, op.request_range.key, op.request_range.range_end)]
            answers.append(("range", *_cut(op.request_range, found)))
        return succeeded, answers


class _Write:
    """One request's changes, not visible before `commit`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._main = model.revision + 1
        self.events: list[Change] = []
        self.state = model.state
        self._changed: dict[bytes, Version | None] = {}

    def commit(self) -> None:
        model = self._model
        if not self.events:
            return
        model.revision = self._main
        model.index_of[self._main] = model.index
        model.events[self._main] = self.events
        for key, version in self._changed.items():
            model.versions.setdefault(key, []).append((self._main, version))

    def put(self, request: rpc_pb2.PutRequest) -> object:
        model = self._model
        old = self.state.get(request.key)
        if request.lease and request.lease not in model.leases:
            raise errors.LeaseNotFound
        new = Version(
            request.key,
            old.create_revision if old is not None else self._main,
            self._main,
            old.version + 1 if old is not None else 1,
            request.value,
            request.lease,
        )
        if old is not None and old.lease in model.leases:
            model.leases[old.lease].keys.discard(request.key)
        if request.lease:
            model.leases[request.lease].keys.add(request.key)
        self.state[request.key] = self._changed[request.key] = new
        self.events.append(
            Change(
                self._main,
                False,
                request.key,
                request.value,
                new.create_revision,
                new.version,
                new.lease,
                old.value if old is not None else None,
            )
        )
        return ("put", old if request.prev_kv else None)

    def delete(self, request: rpc_pb2.DeleteRangeRequest) -> object:
        keys = sorted(key for key in self.state if inside(key, request.key, request.range_end))
        gone = [self.remove(key) for key in keys]
        return ("delete", len(gone), gone if request.prev_kv else [])

    def remove(self, key: bytes) -> Version:
        """Delete a key that is there."""
        old = self.state.pop(key)
        if old.lease in self._model.leases:
            self._model.leases[old.lease].keys.discard(key)
        self._changed[key] = None
        self.events.append(Change(self._main, True, key, b"", 0, 0, 0, old.value))
        return old

    def txn(self, request: rpc_pb2.TxnRequest, before: State) -> object:
        succeeded = all(_holds(compare, before) for compare in request.compare)
        chosen = request.success if succeeded else request.failure
        for op in chosen:
            put = op.request_put
            if op.HasField("request_put") and put.lease and put.lease not in self._model.leases:
                raise errors.LeaseNotFound
        for op in chosen:
            self._model.check_revision(op.request_range.revision)
        answers: list[object] = []
        for op in chosen:
            if op.HasField("request_put"):
                answers.append(self.put(op.request_put))
            elif op.HasField("request_delete_range"):
                answers.append(self.delete(op.request_delete_range))
            else:
                wanted = op.request_range
                if 0 < wanted.revision < self._main:
                    answers.append(("range", *self._model.range_at(wanted, wanted.revision)))
                    continue
                found = [v for key, v in sorted(self.state.items()) if inside(key, wanted.key, wanted.range_end)]
                answers.append(("range", *_cut(wanted, found)))
        return succeeded, answers


def _cut(request: rpc_pb2.RangeRequest, found: list[Version]) -> tuple[int, bool, list[Version]]:
    count = len(found)
    if request.count_only:
        return count, False, []
    more = 0 < request.limit < count
    if request.limit:
        found = found[: request.limit]
    if request.keys_only:
        found = [version._replace(value=b"") for version in found]
    return count, more, found


def _takes_space(request: Message) -> bool:
    """Whether a full disk forbids it: whatever may put something."""
    if isinstance(request, rpc_pb2.TxnRequest):
        ops = (*request.success, *request.failure)
        return any(op.HasField("request_put") or _takes_space(op.request_txn) for op in ops)
    return isinstance(request, rpc_pb2.PutRequest | rpc_pb2.LeaseGrantRequest)


def inside(key: bytes, first: bytes, end: bytes) -> bool:
    """Whether a key is in an interval as requests name it."""
    if not end:
        return key == first
    if end == b"\0":
        return key >= first
    return first <= key < end


_TESTS: tuple[Callable[[Any, Any], Any], ...] = operator.eq, operator.gt, operator.lt, operator.ne
_FIELDS = ("version", "create_revision", "mod_revision", "value", "lease")


def _holds(compare: rpc_pb2.Compare, state: State) -> bool:
    found = state.get(compare.key)
    name = _FIELDS[compare.target]
    wanted = getattr(compare, name)
    if found is None:
        if name == "value":
            return False
        have: object = 0
    else:
        have = getattr(found, name)
    return bool(_TESTS[compare.result](have, wanted))


def versions_of(kvs: Iterable[kv_pb2.KeyValue]) -> list[Version]:
    """Key-values of a response as the model has them."""
    return [version_of(kv) for kv in kvs]


def version_of(kv: kv_pb2.KeyValue) -> Version:
    """A key-value of a response as the model has it."""
    return Version(
        kv.key,
        kv.create_revision,
        kv.mod_revision,
        kv.version,
        kv.value,
        kv.lease,
    )
