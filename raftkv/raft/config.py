"""What a node is given, and what it hands out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .messages import NOBODY, Entry, HardState, Message, NodeId, SnapshotMetadata


class Role(Enum):
    """What a node is in its term; a pre-candidate asks whether it could win before it disturbs anyone."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one node; times in ticks, sizes in bytes of entry data.

    Raises:
        ValueError: an election timeout that is not longer than a heartbeat.
    """

    id: NodeId
    random: random.Random
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    max_message_bytes: int = 1 << 20
    max_inflight_messages: int = 256
    max_inflight_bytes: int = 64 << 20
    max_uncommitted_bytes: int = 256 << 20
    max_apply_bytes: int = 16 << 20
    pre_vote: bool = True
    check_quorum: bool = True

    def __post_init__(self) -> None:
        if self.id == NOBODY:
            raise ValueError("id 0 is nobody")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError(f"election {self.election_ticks} ticks, heartbeat {self.heartbeat_ticks} ticks")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftState:
    """Who leads and what we are; not persisted."""

    leader: NodeId
    role: Role


@dataclass(frozen=True, slots=True)
class ReadState:
    """The read with this context is current once `index` is applied."""

    context: bytes
    index: int


@dataclass(slots=True, kw_only=True)
class Ready:
    """What is owed since the last one; each thing is handed out once.

    `messages` may be sent at once. `messages_after_persist` may be sent when this Ready and all before it are durable.
    `committed` are entries to apply, durable here. Without `must_sync` there is nothing to make durable but perhaps a
    commit index, which may be lost.
    """

    hard_state: HardState | None
    entries: Sequence[Entry]
    snapshot: SnapshotMetadata | None
    must_sync: bool
    messages: Sequence[Message]
    messages_after_persist: Sequence[Message]
    committed: Sequence[Entry]
    read_states: Sequence[ReadState]
    soft_state: SoftState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A view for operators; `match_indexes` is empty unless we lead."""

    id: NodeId
    term: int
    role: Role
    leader: NodeId
    commit: int
    applied: int
    last_index: int
    match_indexes: dict[NodeId, int]


@dataclass(slots=True)
class Outbox:
    """What gathers for the next Ready."""

    messages: list[Message] = field(default_factory=list)
    messages_after_persist: list[Message] = field(default_factory=list)
    read_states: list[ReadState] = field(default_factory=list)
