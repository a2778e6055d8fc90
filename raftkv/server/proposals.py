"""Proposals on their way through the log, and the calls that wait for them.

A proposal is framed around the client's own request bytes (`raftkvpb.Proposal`), so nothing is encoded twice, and
everything that waits at one moment travels as one `raftkvpb.Batch`, the data of a single log entry. Each proposal
carries an id; the member that made it finds the waiting call by that id when the entry is applied.

A client's operation takes effect at most once. A proposal is handed to the leader of one term, and only that leader
takes it. Terms never decrease along the log: once an entry of a later term is applied and the proposal was not, it is
in nobody's log and never will be, so it may be proposed anew. Without that proof it is not; the call then ends in a
timeout, which tells the client that the outcome is unknown.
"""

import asyncio
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import DecodeError

from raftkv import errors
from raftkv.auth import Caller
from raftkv.mvcc.encoding import varint
from raftkv.pb import log_pb2
from raftkv.server.slow import Slow
from raftkv.status import Code, StatusError

_ID = struct.Struct("<BQ")
_ID_TAG = log_pb2.Proposal.DESCRIPTOR.fields_by_name["id"].number << 3 | 1
_PROPOSAL_TAG = b"\x0a"
_CALLER_TAG = varint(log_pb2.Proposal.DESCRIPTOR.fields_by_name["caller"].number << 3 | 2)


class Operation(NamedTuple):
    """One kind of operation of `raftkvpb.Proposal`: its field name and its encoded tag."""

    name: str
    tag: bytes


def _operation(name: str) -> Operation:
    number = log_pb2.Proposal.DESCRIPTOR.fields_by_name[name].number
    return Operation(name, varint(number << 3 | 2))


PUT = _operation("put")
DELETE_RANGE = _operation("delete_range")
TXN = _operation("txn")
COMPACTION = _operation("compaction")
LEASE_GRANT = _operation("lease_grant")
LEASE_REVOKE = _operation("lease_revoke")
ALARM = _operation("alarm")
LEASE_EXPIRY = _operation("lease_expiry")
LEASE_CHECKPOINTS = _operation("lease_checkpoints")
MEMBER_ATTRIBUTES = _operation("member_attributes")
AUTH_ENABLE = _operation("auth_enable")
AUTH_DISABLE = _operation("auth_disable")
LOG_IN = _operation("log_in")
USER_ADD = _operation("user_add")
USER_DELETE = _operation("user_delete")
USER_CHANGE_PASSWORD = _operation("user_change_password")
USER_GRANT_ROLE = _operation("user_grant_role")
USER_REVOKE_ROLE = _operation("user_revoke_role")
ROLE_ADD = _operation("role_add")
ROLE_DELETE = _operation("role_delete")
ROLE_GRANT_PERMISSION = _operation("role_grant_permission")
ROLE_REVOKE_PERMISSION = _operation("role_revoke_permission")


def encode_proposal(proposal_id: int, operation: Operation, request: bytes, caller: Caller | None = None) -> bytes:
    """Frame a client's request as one element of `raftkvpb.Batch.proposals`."""
    head = _ID.pack(_ID_TAG, proposal_id) + operation.tag + varint(len(request))
    if caller is not None:
        who = log_pb2.Caller(user=caller.user, revision=caller.revision, member=caller.member).SerializeToString()
        # Before the request, which is the last: it is appended as it is.
        head = _CALLER_TAG + varint(len(who)) + who + head
    return b"".join((_PROPOSAL_TAG, varint(len(head) + len(request)), head, request))


class _Call:
    """A waiting call; `term` is that of the leader its proposal was handed to, 0 while it is queued, and `handed_over`
    the loop time of that."""

    __slots__ = ("deadline", "framed", "future", "handed_over", "term")

    def __init__(self, future: asyncio.Future[list[bytes]], deadline: float, framed: bytes) -> None:
        self.future = future
        self.deadline = deadline
        self.framed = framed
        self.handed_over = 0.0
        self.term = 0


def _readable(data: bytes) -> bool:
    """Whether an entry's data can be decoded: what is committed must be applied, or every member stops for good.

    In an entry a request lies two messages deep. It may have been decoded by itself and yet nest too deeply for that;
    unknown fields nest too.
    """
    try:
        log_pb2.Batch.FromString(data)
    except DecodeError:
        return False
    return True


class Proposals:
    """What was proposed through this member and is not applied yet.

    Invariants:
    1. `_waiting` holds exactly the calls that have not been answered; its order is that of their deadlines.
    2. `_queued` names the waiting calls whose proposal is with no leader, in order, and calls that gave up.
    3. `pending_bytes` is the size of all proposals in `_waiting`.
    """

    __slots__ = (
        "_loop",
        "_next_id",
        "_oldest",
        "_queued",
        "_waiting",
        "failed",
        "max_pending_bytes",
        "pending_bytes",
        "timeout_seconds",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        member_id: int,
        rng: random.Random,
        *,
        timeout_seconds: float,
        max_pending_bytes: int = 256 << 20,
    ) -> None:
        self._loop = loop
        self.timeout_seconds = timeout_seconds
        # 16 bits of the member, then a start that differs from one life of the process to the next: an entry of an
        # earlier life that is applied again must not wake a call of this one.
        self._next_id = (member_id & 0xFFFF) << 48 | rng.getrandbits(47)
        self._oldest: _Call | None = None
        self.failed = 0
        """Calls that ended without an answer from the log."""
        self._queued: list[int] = []
        self._waiting: dict[int, _Call] = {}
        self.pending_bytes = 0
        self.max_pending_bytes = max_pending_bytes

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def queued(self) -> bool:
        """Whether something waits to be handed to a leader."""
        return bool(self._queued)

    def add(self, operation: Operation, request: bytes, caller: Caller | None = None) -> asyncio.Future[list[bytes]]:
        """Queue an operation; the future gets the pieces of the encoded response once it is applied.

        Raises:
            RequestTooManyRequests: `max_pending_bytes` are waiting already.
        """
        if self.pending_bytes + len(request) > self.max_pending_bytes:
            raise errors.RequestTooManyRequests
        proposal_id = self._next_id
        self._next_id += 1
        framed = encode_proposal(proposal_id, operation, request, caller)
        self._queued.append(proposal_id)
        self.pending_bytes += len(framed)
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        self._waiting[proposal_id] = _Call(future, self._loop.time() + self.timeout_seconds, framed)
        return future

    def hand_over(self, term: int, max_bytes: int, propose: Callable[[bytes], None]) -> None:
        """Hand what is queued to the leader of `term`, in batches of at most `max_bytes` or of one larger proposal.

        What `propose` raises ends it; what was not handed over by then stays queued.
        """
        queued, self._queued = self._queued, []
        start = 0
        try:
            while start < len(queued):
                batch, end = self._batch(queued, start, max_bytes)
                data = b"".join(call.framed for call in batch)
                if not _readable(data):
                    batch = self._reject_unreadable(batch)
                    data = b"".join(call.framed for call in batch)
                if batch:
                    propose(data)
                    now = self._loop.time()
                    for call in batch:
                        call.term = term
                        call.handed_over = now
                start = end
        finally:
            if start < len(queued):
                self._queued = queued[start:]

    def _batch(self, queued: list[int], start: int, max_bytes: int) -> tuple[list[_Call], int]:
        batch: list[_Call] = []
        size = 0
        for place in range(start, len(queued)):
            proposal_id = queued[place]
            call = self._waiting.get(proposal_id)
            if call is None:
                continue
            if call.future.cancelled():
                # Who asked is gone, and no leader has it: after a time without one that may be most of the queue.
                self._take(proposal_id)
                continue
            size += len(call.framed)
            if batch and size > max_bytes:
                return batch, place
            batch.append(call)
        return batch, len(queued)

    def _reject_unreadable(self, batch: list[_Call]) -> list[_Call]:
        """End the calls whose requests could not be read back from the log; the others."""
        unreadable = {call for call in batch if not _readable(call.framed)}
        for proposal_id, call in list(self._waiting.items()):
            if call in unreadable:
                error = StatusError(Code.INTERNAL, "grpc: error unmarshalling request: it is nested too deeply")
                self.reject(proposal_id, error)
        return [call for call in batch if call not in unreadable]

    def term_applied(self, term: int) -> None:
        """An entry of `term` is about to be applied: what was handed to earlier leaders is lost, and queued again."""
        lost = [proposal_id for proposal_id, call in self._waiting.items() if 0 < call.term < term]
        for proposal_id in lost:
            self._waiting[proposal_id].term = 0
        self._queued = lost + self._queued

    def entries_skipped(self, error: Callable[[], StatusError]) -> None:
        """A snapshot stands for entries that were never seen here: what was handed over may be among them, or lost.

        Those calls end, their outcome unknown: a later entry does not prove any more that they were not applied.
        """
        for proposal_id, call in list(self._waiting.items()):
            if call.term:
                self.failed += 1
                self.reject(proposal_id, error())

    def resolve(self, proposal_id: int, response: list[bytes]) -> None:
        """Answer the call that waits for this proposal, if it waits here."""
        call = self._take(proposal_id)
        if call is not None:
            if self._oldest is None or call.deadline < self._oldest.deadline:
                self._oldest = call
            if not call.future.done():
                call.future.set_result(response)

    def report(self, slow: Slow, started: float) -> None:
        """Have the oldest call judged that was answered since the last time; applying began at this loop time."""
        call, self._oldest = self._oldest, None
        if call is not None:
            added = call.deadline - self.timeout_seconds
            slow.applied(call.framed, added=added, handed_over=call.handed_over, started=started)

    def reject(self, proposal_id: int, error: StatusError) -> None:
        """End the call that waits for this proposal with an error, if it waits here."""
        call = self._take(proposal_id)
        if call is not None and not call.future.done():
            call.future.set_exception(error)

    def _take(self, proposal_id: int) -> _Call | None:
        call = self._waiting.pop(proposal_id, None)
        if call is not None:
            self.pending_bytes -= len(call.framed)
        return call

    def expire(self, now: float, error: Callable[[], StatusError]) -> None:
        """End every call whose time is up; a proposal that is still queued then is never made."""
        while self._waiting:
            proposal_id, call = next(iter(self._waiting.items()))
            if call.deadline > now:
                break
            self.failed += 1
            self.reject(proposal_id, error())
        # Without a leader nothing takes from the queue; it must not keep those that gave up for ever.
        if len(self._queued) > 2 * len(self._waiting) + 1000:
            self._queued = [proposal_id for proposal_id in self._queued if proposal_id in self._waiting]

    def fail_all(self, error: Callable[[], StatusError]) -> None:
        """End every waiting call, at shutdown."""
        for proposal_id in list(self._waiting):
            self.reject(proposal_id, error())
