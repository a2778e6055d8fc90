"""Proposals on their way through the log, and the calls that wait for them.

A proposal is framed around the client's own request bytes (`raftkvpb.Proposal`), so nothing is encoded twice, and
everything that waits at one moment travels as one `raftkvpb.Batch`, the data of a single log entry. Each proposal
carries an id; the member that made it finds the waiting call by that id when the entry is applied. A client's operation
is proposed once, ever: a call whose outcome is unknown ends in a timeout, never in a second proposal.
"""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from raftkv import errors
from raftkv.pb import log_pb2
from raftkv.status import StatusError


def varint(value: int) -> bytes:
    """Encode a non-negative integer below 2**64 as protobuf does."""
    if value < 0x80:
        return value.to_bytes(1, "little")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


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
MEMBER_ATTRIBUTES = _operation("member_attributes")


def encode_proposal(proposal_id: int, operation: Operation, request: bytes) -> bytes:
    """Frame a client's request as one element of `raftkvpb.Batch.proposals`."""
    head = b"\x08" + varint(proposal_id) + operation.tag + varint(len(request))
    return b"\x0a" + varint(len(head) + len(request)) + head + request


class Proposals:
    """What this member proposed and has not seen applied, in order of arrival.

    Invariants:
    1. A proposal is in `_queued` or was handed to Raft, never both, and is handed over once.
    2. `_waiting` holds exactly the calls that have not been answered; its order is that of their deadlines.
    3. `pending_bytes` is the size of all requests in `_waiting`.
    """

    __slots__ = (
        "_loop",
        "_next_id",
        "_queued",
        "_queued_bytes",
        "_waiting",
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
        self._queued: list[bytes] = []
        self._queued_bytes = 0
        self._waiting: dict[int, tuple[asyncio.Future[list[bytes]], float, int]] = {}
        self.pending_bytes = 0
        self.max_pending_bytes = max_pending_bytes

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def queued(self) -> bool:
        """Whether something waits to be handed to Raft."""
        return bool(self._queued)

    def add(self, operation: Operation, request: bytes) -> asyncio.Future[list[bytes]]:
        """Queue an operation; the future gets the pieces of the encoded response once it is applied.

        Raises:
            RequestTooManyRequests: `max_pending_bytes` are waiting already.
        """
        size = len(request)
        if self.pending_bytes + size > self.max_pending_bytes:
            raise errors.RequestTooManyRequests
        proposal_id = self._next_id
        self._next_id += 1
        framed = encode_proposal(proposal_id, operation, request)
        self._queued.append(framed)
        self._queued_bytes += len(framed)
        self.pending_bytes += size
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        self._waiting[proposal_id] = (future, self._loop.time() + self.timeout_seconds, size)
        return future

    def take_batches(self, max_bytes: int) -> list[bytes]:
        """Hand over what is queued as encoded batches of at most `max_bytes`, or of one larger request each."""
        queued, self._queued = self._queued, []
        if self._queued_bytes <= max_bytes:
            self._queued_bytes = 0
            return [b"".join(queued)]
        self._queued_bytes = 0
        batches: list[bytes] = []
        current: list[bytes] = []
        size = 0
        for framed in queued:
            if current and size + len(framed) > max_bytes:
                batches.append(b"".join(current))
                current, size = [], 0
            current.append(framed)
            size += len(framed)
        batches.append(b"".join(current))
        return batches

    def put_back(self, batches: list[bytes]) -> None:
        """Queue again, ahead of the rest, batches that Raft refused before anything was sent."""
        self._queued[:0] = batches
        self._queued_bytes += sum(map(len, batches))

    def resolve(self, proposal_id: int, response: list[bytes]) -> None:
        """Answer the call that waits for this proposal, if it waits here."""
        entry = self._waiting.pop(proposal_id, None)
        if entry is not None:
            self.pending_bytes -= entry[2]
            if not entry[0].done():
                entry[0].set_result(response)

    def reject(self, proposal_id: int, error: StatusError) -> None:
        """End the call that waits for this proposal with an error, if it waits here."""
        entry = self._waiting.pop(proposal_id, None)
        if entry is not None:
            self.pending_bytes -= entry[2]
            if not entry[0].done():
                entry[0].set_exception(error)

    def expire(self, now: float, error: Callable[[], StatusError]) -> None:
        """End every call whose time is up; what was queued for it and not sent yet may still be proposed."""
        while self._waiting:
            proposal_id, (_, deadline, _) = next(iter(self._waiting.items()))
            if deadline > now:
                return
            self.reject(proposal_id, error())

    def fail_all(self, error: Callable[[], StatusError]) -> None:
        """End every waiting call, at shutdown."""
        for proposal_id in list(self._waiting):
            self.reject(proposal_id, error())
