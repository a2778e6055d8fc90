"""What clients asked and what they were told, with the times of both."""

from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import Message

from raftkv.status import Code, StatusError

_MARK_TAG = b"\xc1\x3e"
"""Field 1000, fixed64: no request knows it, so it travels through the log as part of the request's bytes."""
MARK_BYTES = 10

UNKNOWN_CODES = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELED, Code.UNKNOWN, Code.ABORTED})
"""After these an operation may have taken effect, or may yet."""


def marked(request: Message, number: int) -> bytes:
    """Encode a request so that it can be found again in the log."""
    return request.SerializeToString() + _MARK_TAG + number.to_bytes(8, "little")


def mark_of(request: bytes) -> int:
    """The number a request of the log was marked with; 0: none."""
    if request[-MARK_BYTES:-8] != _MARK_TAG:
        return 0
    return int.from_bytes(request[-8:], "little")


@dataclass(slots=True)
class Operation:
    """One call of a client. `number` is its mark, from 1; times are the scheduler's (ns).

    An operation that has neither answer nor error when a run ends has an unknown outcome, like one with an error of
    `UNKNOWN_CODES` or without a connection.
    """

    number: int
    client: int
    member: int
    kind: str
    request: Message
    invoked: int
    returned: int = 0
    answer: bytes | None = None
    error: StatusError | None = None
    parsed: Message | None = None

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.answer is not None

    @property
    def refused(self) -> bool:
        """Whether it surely had no effect."""
        return self.error is not None and self.error.code not in UNKNOWN_CODES


@dataclass(slots=True)
class Watched:
    """What one watcher wanted, and what it was told over all its streams."""

    client: int
    key: bytes
    range_end: bytes
    prev_kv: bool
    no_put: bool = False
    no_delete: bool = False
    segments: list["Told"] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Where compaction overtook it: the revision it wanted, and the one it was told of instead."""


class Change(NamedTuple):
    """An event as a watcher was told it, or should be: version, value and lease are 0 and empty for a deletion."""

    revision: int
    deleted: bool
    key: bytes
    value: bytes
    create_revision: int
    version: int
    lease: int
    previous: bytes | None
    """Value of the version before, if it was asked for and there was one."""


@dataclass(slots=True)
class Told:
    """Events from revision `start` on; everything up to `reached` was told. `batches` are responses in order."""

    start: int
    reached: int
    batches: list[list[Change]] = field(default_factory=list)


@dataclass(slots=True)
class History:
    """Everything a run's clients did."""

    operations: list[Operation] = field(default_factory=list)
    watches: list[Watched] = field(default_factory=list)
    renewals: list[tuple[int, int, int]] = field(default_factory=list)
    """Lease, time asked (ns), promised time to live (s)."""

    def acknowledged(self) -> int:
        """How many operations were answered."""
        return sum(operation.ok for operation in self.operations)

    def unknown(self) -> int:
        """Of how many the outcome is not known."""
        return sum(not operation.ok and not operation.refused for operation in self.operations)
